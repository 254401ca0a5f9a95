"""The examples for Redis run as they stand, each page on a server of its own, also with the rights that it names."""

import re
import subprocess
import sys

import pytest

from providers import UnavailableError
from providers.redis import private_redis
from providers.skipping import skip_unless_required
from test_docs import blocks
from tools.workspace import ROOT

PAGE = ROOT / "docs" / "stores" / "redis.md"
PAGES = [ROOT / "packages" / "store-redis" / "README.md", PAGE]


@pytest.fixture
def server():
    try:
        with private_redis() as started:
            yield started
    except UnavailableError as error:
        skip_unless_required("redis", str(error))


def run_examples(page, url, folder):
    code = "\n".join("\n".join(block.lines) for block in blocks(page.read_text("utf-8")) if block.language == "py")
    assert "redis://localhost:6379/0" in code
    (folder / "example.py").write_text(code.replace("redis://localhost:6379/0", url) + "\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "example.py"], cwd=folder, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_run(server, tmp_path, page):
    run_examples(page, server.url, tmp_path)


def test_the_rights_that_the_page_names_are_enough(server, tmp_path):
    (rule,) = re.findall(r"^ACL (SETUSER app .*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    server.ask("ACL", *rule.split())
    run_examples(PAGE, server.url.replace("redis://", "redis://app:secret@"), tmp_path)

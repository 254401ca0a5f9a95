"""The examples for MySQL run as they stand, on the server that the tests have, in a database of their own."""

import subprocess
import sys
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from providers.mysql import execute
from test_docs import blocks
from tools.workspace import ROOT

PAGES = [ROOT / "packages" / "store-mysql" / "README.md", ROOT / "docs" / "stores" / "mysql.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_run(databases, tmp_path, page):
    url = databases.url("mysql")
    parts = urlsplit(url)
    database = f"docs_{uuid4().hex[:8]}"
    code = "\n".join("\n".join(block.lines) for block in blocks(page.read_text("utf-8")) if block.language == "py")
    assert "localhost" in code
    credentials, _, place = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    for written, meant in (
        ("mysql://saga:secret@localhost:3306/shop", f"mysql://{credentials}@{place}/{database}"),
        ('host="localhost", port=3306', f'host="{parts.hostname}", port={parts.port or 3306}'),
        ('user="saga", password="secret", db="shop"', f'user="{user}", password="{password}", db="{database}"'),
    ):
        code = code.replace(written, meant)
    assert "localhost" not in code
    (tmp_path / "example.py").write_text(code + "\n", encoding="utf-8")
    execute(url, f"CREATE DATABASE {database} CHARACTER SET utf8mb4")
    try:
        done = subprocess.run(
            [sys.executable, "-W", "error", "example.py"], cwd=tmp_path, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    finally:
        execute(url, f"DROP DATABASE {database}")

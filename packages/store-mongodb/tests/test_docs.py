"""The examples of the documentation run as they stand, each page on a database of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import uuid
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from pymongo import MongoClient

PACKAGE = Path(__file__).parent.parent
PAGES = [PACKAGE / "README.md", PACKAGE.parent.parent / "docs" / "stores" / "mongodb.md"]
WRITTEN_URL = "mongodb://app:secret@localhost/shop"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(url, page, tmp_path):
    blocks = re.findall(r"^```py\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    parts = urlsplit(url)
    database = f"docs_{uuid.uuid4().hex[:12]}"
    own_url = urlunsplit(parts._replace(path=f"/{database}"))
    code = "\n".join(blocks).replace('URL + "?w=1"', 'URL + "&w=1"').replace(WRITTEN_URL, own_url)
    assert "localhost" not in code
    program = tmp_path / "program.py"
    program.write_text(code, encoding="utf-8")
    try:
        done = subprocess.run(
            [sys.executable, "-W", "error", str(program)], check=False, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
    finally:
        with MongoClient(url) as client:
            client.drop_database(database)

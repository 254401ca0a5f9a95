"""The examples of the documentation run as they stand, each page on a database of its own."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import uuid
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from postgres_helpers import connected

PACKAGE = Path(__file__).parent.parent
PAGES = [PACKAGE / "README.md", PACKAGE.parent.parent / "docs" / "stores" / "postgres.md"]
WRITTEN_URL = "postgresql://app:secret@localhost/shop"


async def administer(url, statement):
    async with connected(url) as connection:
        await connection.execute(statement)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(url, page, tmp_path):
    blocks = re.findall(r"^```py\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    database = f"docs_{uuid.uuid4().hex[:12]}"
    own_url = urlunsplit(urlsplit(url)._replace(path=f"/{database}"))
    program = tmp_path / "program.py"
    program.write_text("\n".join(blocks).replace(WRITTEN_URL, own_url), encoding="utf-8")
    asyncio.run(administer(url, f"CREATE DATABASE {database}"))
    try:
        done = subprocess.run(
            [sys.executable, "-W", "error", str(program)], check=False, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
    finally:
        asyncio.run(administer(url, f"DROP DATABASE {database} WITH (FORCE)"))

"""Every example in the documentation runs as it stands, and every link between its pages leads somewhere.

The ``python`` blocks of a page are one program, run in their order. A block whose fence also names a file, as in
``python test_my_store.py``, is that file beside the program; pytest runs those whose name begins with ``test_``.
Blocks marked ``py`` want a server; the tests of their backend run them.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools.workspace import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("packages/*/*.md"), *ROOT.glob("docs/**/*.md")])
LANGUAGES = {"python", "py", "console", "sql", "prisma", "toml", "json", "text", "mermaid"}
FENCE = re.compile(r"^(\s*)```(.*)$")
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)")


@dataclass
class Block:
    language: str
    filename: str
    first_line: int  # of the code, counted from 1
    lines: list[str]


def blocks(text: str) -> Iterator[Block]:
    block: Block | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        fence = FENCE.match(line)
        if fence is None:
            if block is not None:
                block.lines.append(line)
            continue
        assert not fence[1], f"line {number}: an indented fence is not read"
        if block is not None:
            assert not fence[2], f"line {number}: a fence opens inside a block"
            yield block
            block = None
        else:
            language, _, filename = fence[2].partition(" ")
            assert language in LANGUAGES, f"line {number}: {language!r} is none of {sorted(LANGUAGES)}"
            assert not filename or language == "python", f"line {number}: only python blocks are files"
            block = Block(language, filename, number + 1, [])
    assert block is None, f"line {block.first_line - 1}: the block has no end"


def run(command: list[str], folder: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=folder,
        env=clean,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def run_page(text: str, folder: Path) -> None:
    """Run the python blocks of a page; the program's line numbers are the page's."""
    program: list[str] = []
    tests = []
    for block in blocks(text):
        if block.language != "python":
            continue
        if block.filename:
            (folder / block.filename).write_text("\n".join(block.lines) + "\n", encoding="utf-8")
            if block.filename.startswith("test_"):
                tests.append(block.filename)
            continue
        program += [""] * (block.first_line - 1 - len(program))
        program += block.lines
    if program:
        (folder / "program.py").write_text("\n".join(program) + "\n", encoding="utf-8")
        run(["program.py"], folder)
    if tests:
        run(["-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], folder)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


WITH_CODE = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_examples_of_a_page_run(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    assert sum(block.language == "python" for block in blocks(text)) == text.count("```python")
    run_page(text, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_fences_of_a_page_are_read(page):
    list(blocks(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_of_a_page_lead_somewhere(page):
    for path, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{path} is not there"
        assert target.is_relative_to(ROOT), f"{path} is outside the repository"
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}: no such heading"


def test_a_failing_example_fails_with_the_line_of_the_page(tmp_path):
    with pytest.raises(AssertionError, match=r'(?s)program.py", line 6.*ZeroDivisionError'):
        run_page("# Page\n```python\nx = 0\n```\n```python\n1 / x\n```\n", tmp_path)


def test_a_warning_fails_an_example(tmp_path):
    with pytest.raises(AssertionError, match="DeprecationWarning"):
        run_page("```python\nimport warnings\nwarnings.warn('old', DeprecationWarning)\n```\n", tmp_path)


def test_a_file_of_a_page_is_there_and_its_tests_run(tmp_path):
    module, fails = "```python part.py\nvalue = 1\n```\n", "from part import value\ndef test_it(): assert value == 2"
    run_page(module + "```python\nfrom part import value\n```\n", tmp_path)
    with pytest.raises(AssertionError, match="1 failed"):
        run_page(f"{module}```python test_part.py\n{fails}\n```\n", tmp_path)


@pytest.mark.parametrize(
    "text", ["```python\nx = 1\n", "```bash\n```\n", "- x\n  ```python\n  x\n  ```\n", "```\n```\n"]
)
def test_a_block_that_would_go_unrun_is_refused(text):
    with pytest.raises(AssertionError):
        list(blocks(text))

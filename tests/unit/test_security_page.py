"""The security page: each of its lines is proved by a test that there is."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs/security.md"
SOURCES = [*TESTS.rglob("*.py"), *(TESTS.parent / "daemon/storage/testing").glob("*.py")]


def rows() -> list[list[str]]:
    """The cells of each line of a table, without headings."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [found for found in cells if found[-1].strip("| ") not in ("proved by", "shown by")]


def test_every_line_names_its_test() -> None:
    found = rows()
    assert len(found) > 50
    for cells in found:
        assert len(cells) == 3, cells
        assert re.search(r"`test_\w+`", cells[-1]) or cells[-1].startswith("none: "), cells


def test_every_test_that_is_named_exists() -> None:
    names = {name for path in SOURCES for name in re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE)}
    files = {path.name for path in SOURCES}
    text = PAGE.read_text()
    assert set(re.findall(r"`(test_\w+)`", text)) - names == set()
    assert set(re.findall(r"\b(test_\w+\.py)", text)) - files == set()


def test_no_two_tests_of_one_file_have_one_name() -> None:
    """The second would replace the first, which would then prove nothing."""
    for path in TESTS.rglob("test_*.py"):
        names = re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
        assert len(names) == len(set(names)), path

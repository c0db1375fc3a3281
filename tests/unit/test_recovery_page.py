"""docs/recovery.md names a test for each of its cases, and the tests are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/recovery.md").read_text()


def test_every_test_that_the_page_names_exists() -> None:
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    named = {*re.findall(r"`(test_\w+)`", PAGE)}
    assert len(named) > 20
    assert named <= defined


def test_cases_are_numbered_and_each_has_its_test() -> None:
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)]
    assert numbers == [*range(1, len(numbers) + 1)]
    for line in PAGE.partition("## What it comes to")[0].splitlines():
        if line.startswith("|") and not line.startswith(("| |", "|---", "| found")):
            assert "`test_" in line or re.match(r"\| (9|10|11|12) \|", line), line

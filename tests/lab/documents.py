"""The blocks of code in a page of Markdown, and what its comments say about running them.

A fenced block of `sh` is of commands that are run as they stand. One that cannot be is preceded by a comment,
which no reader of the page sees:

    <!-- not run: it would want a registry; tests/system/test_scenarios.py upgrades the plugin -->

What has to be there before a page's block is run, such as a volume, and a reader has got, is made by a comment:

    <!-- first:
    docker volume create -d brokervol -o type=sidecar broker
    -->

A block of `text` right after one of commands is what these print.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = "sh"
OUTPUT = "text"
INDENTED = "indented"

_FENCE = re.compile(r"( *)(`{3,}|~{3,}) *(\S*)")
_EXCUSE = re.compile(r"<!-- not run: (.*) -->")
_FIRST = "<!-- first:"


class Block(NamedTuple):
    """A block of code.

    Attributes:
        line: the number of its first line in the page.
        excuse: why it is not run, if that is said.
        output: what the page says that these commands print; empty if nothing.
        first: commands to be run before, one after another.
    """

    line: int
    language: str
    text: str
    excuse: str
    output: str = ""
    first: tuple[str, ...] = ()


def blocks(page: Path) -> list[Block]:
    """All blocks of a page in order; one that is indented instead of fenced has the language `INDENTED`."""
    found: list[Block] = []
    lines = page.read_text().splitlines()
    first: tuple[str, ...] = ()
    number, excuse, is_list, after_commands = 0, "", False, -1
    while number < len(lines):
        line = lines[number]
        if fence := _FENCE.match(line):
            end = _next(lines, number, fence[1] + fence[2])
            text = "\n".join(each.removeprefix(fence[1]) for each in lines[number + 1 : end])
            found.append(Block(number + 2, fence[3], text, excuse, first=first))
            if fence[3] == OUTPUT and number == after_commands:
                found[-2] = found[-2]._replace(output=text)
            number, excuse, first = end, "", ()
            after_commands = end + 2 if found[-1].language == COMMANDS else -1
        elif line == _FIRST:
            end = _next(lines, number, "-->")
            number, first = end, tuple(lines[number + 1 : end])
        elif told := _EXCUSE.fullmatch(line):
            excuse = told[1]
        elif line.startswith("    ") and not is_list:
            found.append(Block(number + 1, INDENTED, line, ""))
        elif line.strip():
            is_list = bool(re.match(r" *([*-]|\d+\.) |  ", line))
        number += 1
    return found


def commands(page: Path) -> list[Block]:
    """The blocks of commands of a page, those that are not run included."""
    return [block for block in blocks(page) if block.language == COMMANDS]


def _next(lines: list[str], start: int, wanted: str) -> int:
    """Where the line `wanted` comes next after `start`."""
    return next(number for number in range(start + 1, len(lines)) if lines[number].rstrip() == wanted)

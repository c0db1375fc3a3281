"""Tables for people: with rich on a terminal, where it is installed; otherwise plain columns."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from brokervol.console import visible

if TYPE_CHECKING:
    from rich.console import Group

_STYLES = {
    "healthy": "green",
    "slow": "yellow",
    "unknown": "yellow",
    "unreachable": "bold red",
    "stale": "bold red",
    "unusable": "bold red",
    "refused": "bold red",
    "ok": "green",
    "warning": "yellow",
    "fault": "bold red",
    "skipped": "dim",
    "error": "bold red",
    "critical": "bold red",
    "debug": "dim",
}


class Table(NamedTuple):
    """Cells by row. `numbers` are the columns aligned to the right, `states` those whose words have colours."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[str] = frozenset()
    states: frozenset[str] = frozenset()


Page = Sequence[str | Table]
"""What is shown, from above: lines and tables."""


def show(page: Page) -> None:
    """Print a page."""
    if _is_rich():
        from rich.console import Console  # noqa: PLC0415  # rich is not everywhere, and not quickly there

        Console().print(_rich(page))
    else:
        print(plain(page), flush=True)


def show_row(cells: Sequence[str], widths: Sequence[int]) -> None:
    """Print one row of a table without a head, at once: the first cell is a state, the last has all the room left.

    Args:
        widths: of all cells but the last.
    """
    if not _is_rich():
        aligned = [f"{visible(cell):<{width}}" for cell, width in zip(cells, widths, strict=False)]
        print("  ".join([*aligned, visible(cells[-1])]).rstrip(), flush=True)
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table as RichTable  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    grid = RichTable.grid(padding=(0, 2, 0, 0))
    for width in widths:
        grid.add_column(width=width, no_wrap=True)
    grid.add_column(overflow="fold")
    styles = [_STYLES.get(cells[0], ""), *[""] * len(widths)]
    grid.add_row(*(Text(visible(cell), style) for cell, style in zip(cells, styles, strict=True)))
    Console().print(grid)


def watch(look: Callable[[], Page], interval_s: float) -> None:
    """Show a page again and again until KeyboardInterrupt: in one place on a terminal, else below each other."""
    if not _is_rich():
        while True:
            print(f"{plain(look())}\n", flush=True)
            time.sleep(interval_s)
    from rich.live import Live  # noqa: PLC0415

    with Live(_rich(look()), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            live.update(_rich(look()), refresh=True)


def plain(page: Page) -> str:
    """The page as text for a pipe: no colours, no lines, whatever the width."""
    return "\n".join(_columns(part) if isinstance(part, Table) else visible(part) for part in page)


def _columns(table: Table) -> str:
    rows = [table.head, *([visible(cell) for cell in row] for row in table.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.head))]
    aligned = [
        [
            f"{cell:>{width}}" if title in table.numbers else f"{cell:<{width}}"
            for title, cell, width in zip(table.head, row, widths, strict=True)
        ]
        for row in rows
    ]
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def _is_rich() -> bool:
    return sys.stdout.isatty() and importlib.util.find_spec("rich") is not None


def _rich(page: Page) -> Group:
    from rich import box  # noqa: PLC0415
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table as RichTable  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    parts: list[RichTable | Text] = []
    for part in page:
        if isinstance(part, str):
            parts.append(Text(visible(part)))
            continue
        table = RichTable(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
        for title in part.head:
            table.add_column(title, justify="right" if title in part.numbers else "left", overflow="fold")
        for row in part.rows:
            styles = [
                _STYLES.get(cell, "") if title in part.states else ""
                for title, cell in zip(part.head, row, strict=True)
            ]
            table.add_row(*(Text(visible(cell), style) for cell, style in zip(row, styles, strict=True)))
        parts.append(table)
    return Group(*parts)

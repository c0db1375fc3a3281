"""Tables for people: with rich on a terminal, where it is installed; otherwise plain columns."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from brokervol.console import visible

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.padding import Padding
    from rich.table import Table as RichTable

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


_GAP = 2
_GAP_IN_TABLE = 3  # rich's, of a table without lines between columns
_LEAST_ROOM = 30  # for a sentence in the last column; with less it has lines of its own
_LEAST_CELL = 12  # a cell may be folded to this width; with less there is no table


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

        console = Console()
        console.print(_rich(page, console.width))
    else:
        print(plain(page), flush=True)


def show_row(cells: Sequence[str], widths: Sequence[int]) -> None:
    """Print one row of a table without a head, at once: the first cell is a state, the last has all the room left.

    Where a terminal leaves it too little, it stands below the others.

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

    console = Console()
    styles = [_STYLES.get(cells[0], ""), *[""] * len(widths)]
    shown = [Text(visible(cell), style) for cell, style in zip(cells, styles, strict=True)]
    if console.width - sum(widths) - _GAP * len(widths) < _LEAST_ROOM:
        if any(cells[:-1]):
            console.print(Text("  ").join(cell for cell in shown[:-1] if cell), overflow="fold")
        console.print(_indented(shown[-1], console.width))
        return
    grid = RichTable.grid(padding=(0, _GAP, 0, 0))
    for width in widths:
        grid.add_column(width=width, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(*shown)
    console.print(grid)


def _indented(part: RenderableType, width: int) -> Padding:
    """`part` by two columns to the right, in a terminal of this width, unless that has hardly any."""
    from rich.padding import Padding  # noqa: PLC0415

    return Padding(part, (0, 0, 0, _GAP if width > 4 * _GAP else 0), expand=False)


def watch(look: Callable[[], Page], interval_s: float) -> None:
    """Show a page again and again until KeyboardInterrupt: in one place on a terminal, else below each other."""
    if not _is_rich():
        while True:
            print(f"{plain(look())}\n", flush=True)
            time.sleep(interval_s)
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    console = Console()
    with Live(_rich(look(), console.width), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            live.update(_rich(look(), console.width), refresh=True)


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


def _rich(page: Page, width: int) -> Group:
    """For a terminal of this width."""
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    parts: list[RenderableType] = []
    for part in page:
        if isinstance(part, str):
            parts.append(Text(visible(part), overflow="fold"))
        elif _least_width(part) <= width:
            parts.append(_rich_table(part))
        else:
            parts += _records(part, width)
    return Group(*parts)


def _least_width(table: Table) -> int:
    """What it takes so that numbers and states stand whole in their columns, and the others are readable."""
    whole = table.numbers | table.states
    widths = [max(len(visible(cell)) for cell in column) for column in zip(table.head, *table.rows, strict=True)]
    least = (
        width if title in whole else min(width, max(_LEAST_CELL, len(title)))
        for title, width in zip(table.head, widths, strict=True)
    )
    return sum(least) + _GAP_IN_TABLE * (len(table.head) - 1)


def _rich_table(part: Table) -> RichTable:
    from rich import box  # noqa: PLC0415
    from rich.table import Table as RichTable  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = RichTable(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
    for title in part.head:
        table.add_column(title, justify="right" if title in part.numbers else "left", overflow="fold")
    for row in part.rows:
        styles = _cell_styles(part, row)
        table.add_row(*(Text(visible(cell), style) for cell, style in zip(row, styles, strict=True)))
    return table


def _records(part: Table, width: int) -> list[RenderableType]:
    """Each row by itself, a cell a line, for terminals that are too narrow for columns."""
    from rich.text import Text  # noqa: PLC0415

    lines: list[RenderableType] = []
    for row in part.rows:
        first, *others = zip(part.head, row, _cell_styles(part, row), strict=True)
        lines.append(Text(visible(first[1]), "bold", overflow="fold"))
        for title, cell, style in others:
            line = Text.assemble(f"{title.lower()}: ", (visible(cell), style), overflow="fold")
            lines.append(_indented(line, width))
    return lines


def _cell_styles(part: Table, row: Sequence[str]) -> list[str]:
    return [
        _STYLES.get(cell, "") if title in part.states else "" for title, cell in zip(part.head, row, strict=True)
    ]

"""Growth: what a thousand, ten thousand and a hundred thousand files cost, through one sidecar over its socket.

What volumes cost, up to ten thousand, the driver's section measures. `plot.py` draws both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.frame import Case, Contender, Figure
from bench.resident import highest, watched
from bench.session import Session, Tree
from bench.sidecar_calls import LINES, asked, fill
from lab.processes import Running
from lab.sidecar import self_sidecar
from lab.unix_http import connected

_FILES_A_BATCH = 10_000
_TIMEOUT_S = 600
_TARGET_MB = 20
_LISTED = "names and sizes, as lines"
_CHANGED = f"batches of {_FILES_A_BATCH:,}, durable; journal, catalog, audit"


def measure(session: Session) -> None:
    """Measure everything of this section; nothing is deleted before all is there."""
    directory = session.new_directory("growth")
    data = directory / "data"
    data.mkdir()
    most = session.sizes.keys
    steps = sorted({max(1, most // part) for part in (100, 10, 1)})
    with self_sidecar(directory, {"data": {"broker": {"type": "host", "host_path": str(data)}}}) as sidecar:
        _measure_listings(session, sidecar, data, [*steps, *([10 * most] if session.is_large else [])])
        batches = [_Batches(sidecar, session.small_files(f"growth-{count}", count)) for count in steps]
        for each in batches:
            session.race("growth", each.case("upload", Contender("ours", each.upload, _CHANGED)), repeat=1)
        for each in batches:
            session.race("growth", each.case("delete", Contender("ours", each.delete, _CHANGED)), repeat=1)


def _measure_listings(session: Session, sidecar: Running, data: Path, steps: list[int]) -> None:
    listings = [_Listing(sidecar, data / f"listed-{count}", count) for count in steps]
    before = watched(sidecar.pid)
    for each in listings:
        name = f"list {each.count:,} files"
        session.race("growth", Case(name, each.count, "files", Contender("ours", each.ask, _LISTED), []))
    grown_mb = (highest(sidecar.pid) - before) / 1e6
    session.note(
        Figure("growth", f"memory, {name}", grown_mb, _TARGET_MB, "MB", "of the sidecar, since its start")
    )


class _Listing:
    """A directory of so many empty files, a thousand in each below it."""

    def __init__(self, sidecar: Running, directory: Path, count: int) -> None:
        self.count = count
        self._sidecar, self._prefix = sidecar, f"{directory.name}/"
        fill(directory, count)

    def ask(self, _: int) -> None:
        _asked(self._sidecar, "GET", f"files?recursive=true&prefix={self._prefix}")


class _Batches:
    """Files that are uploaded and deleted, those of each repetition its own."""

    def __init__(self, sidecar: Running, tree: Tree) -> None:
        self._sidecar, self._tree = sidecar, tree

    def case(self, verb: str, ours: Contender) -> Case:
        count = len(self._tree.paths)
        return Case(f"{verb} {count:,} files of 4 KiB", count, "files", ours, [])

    def upload(self, repetition: int) -> None:
        source = self._tree.directory
        self._each("upload", repetition, lambda path: {"local_path": f"{source}/{path}"})

    def delete(self, repetition: int) -> None:
        self._each("delete", repetition, lambda _: {})

    def _each(self, verb: str, repetition: int, more: Callable[[str], dict[str, str]]) -> None:
        root = f"{self._tree.directory.name}/{repetition}"
        items = [{"file_path": f"{root}/{path}", **more(path)} for path in self._tree.paths]
        for start in range(0, len(items), _FILES_A_BATCH):
            _asked(self._sidecar, "POST", verb, {"files": items[start : start + _FILES_A_BATCH]})


def _asked(sidecar: Running, method: str, path: str, document: object = None) -> None:
    """Ask the sidecar for lines, or to do what the document says."""
    connection = connected(sidecar.socket_path, _TIMEOUT_S)
    asked(connection, method, f"/v1/workspaces/data/{path}", document, LINES if document is None else {})

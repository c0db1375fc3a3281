"""A host with a workspace `data`, the real sidecar, and tasks that hold all of it, a part, or nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.directories import temporary_directory
from lab.processes import Running, wait_until
from lab.sidecar import caller_sidecar, descriptors, thread_identities
from lab.task import Identity, Task, ask

USER = Identity(uid=1000, gid=1000)
WS = "/v1/workspaces/data"


class World:
    """The tasks of one test, below `directory`. `data` is what the workspace shows."""

    def __init__(self, directory: Path, data: Path, socket_directory: Path, sidecar: Running) -> None:
        self.directory = directory
        self.data = data
        self.sidecar = sidecar
        self._socket_directory = socket_directory
        self._count = 0

    def task(
        self,
        *binds: tuple[Path, str, str],
        identity: Identity | None = None,
        is_pivoted: bool = False,
    ) -> Task:
        """A task with these binds: (source, target, "ro" or "rw")."""
        self._count += 1
        root = self.directory / f"task{self._count}"
        for name in ("tmp", "proc"):
            (root / name).mkdir(parents=True)
        (root / "tmp").chmod(0o1777)
        (root / "tmp" / "in").write_text("x")
        (root / "tmp" / "in").chmod(0o644)
        ours = (self._socket_directory, "/run/brokervol", "ro")
        return Task(root, [ours, *binds], identity, is_pivoted=is_pivoted)

    def holder(self, mode: str = "rw", identity: Identity | None = None, *, is_pivoted: bool = False) -> Task:
        """A task with the whole workspace at `/data`."""
        return self.task((self.data, "/data", mode), identity=identity, is_pivoted=is_pivoted)


@contextlib.contextmanager
def world_of(outer: Path, sidecar: Running) -> Iterator[World]:
    """A clean world; afterwards no thread of the sidecar may still be somebody else, and no descriptor be left."""
    with temporary_directory() as directory:
        world = World(directory, outer / "data", outer / "root" / "sidecar", sidecar)
        world.data.chmod(0o777)
        before = descriptors(sidecar.pid)
        yield world
        wait_until(lambda: len(thread_identities(sidecar.pid)) == 1, "every thread to be itself again")
        wait_until(lambda: descriptors(sidecar.pid) <= before, "descriptors to be closed")
        empty(world.data)


@contextlib.contextmanager
def served_workspace() -> Iterator[tuple[Path, Running]]:
    """The sidecar, and the directory that it and the workspace are in."""
    with temporary_directory() as directory:
        (directory / "data").mkdir()
        with caller_sidecar(directory, {"data": directory / "data"}) as sidecar:
            assert ask(sidecar.socket_path, "GET", "/healthz").status == 200  # all is open by then
            yield directory, sidecar
            assert "Traceback" not in sidecar.log()


def empty(directory: Path) -> None:
    """Remove what is in a directory, nothing through links."""
    for found in sorted(directory.rglob("*"), key=lambda path: len(path.parts), reverse=True):
        found.rmdir() if found.is_dir() and not found.is_symlink() else found.unlink()


def one(verb: str, **item: Any) -> tuple[str, dict[str, Any]]:
    """Path and body of a batch of one."""
    return f"{WS}/{verb}", {"files": [item]}

"""Files on a host workspace: many small ones and one large; ours, coreutils, and loops of system calls in Python.

All that is created is created before anything is deleted: for a while after many files were deleted, ext4 makes
new ones several times slower.
"""

from __future__ import annotations

import os
from pathlib import Path

from bench.frame import Case, Contender
from bench.ours import Ours
from bench.session import Session, Tree, run
from lab.directories import remove_tree
from storage.brokers.factory import get_broker

_DURABLE = "fsynced in groups, renamed; catalog"


def measure(session: Session) -> None:
    """Race everything of this section."""
    workspace = session.new_directory("workspace")
    broker = get_broker("host")
    broker.load_configuration({"type": "host", "host_path": str(workspace)})
    count, mib = session.sizes.files, session.sizes.large_bytes >> 20
    tree = session.small_files("files", count)
    ours = Ours(broker, str(workspace), tree, count=count, root="small", downloads=session.directory)
    plain = _Copies(tree, session.new_directory("copied"), is_synced=False)
    synced = _Copies(tree, session.new_directory("copied-synced"), is_synced=True)
    session.race("files", _uploads(f"upload {count:,} files of 4 KiB", count, ours, plain, synced))
    large = Ours(broker, str(workspace), session.large_file, count=1, root="large", downloads=session.directory)
    session.race("files", _large_uploads(f"upload one file of {mib:,} MiB", mib, large, session, workspace))
    session.race("files", _moves(f"move {count:,} files", count, ours, plain, synced))
    session.race("files", _deletes(f"delete {count:,} files", count, ours, plain, synced))


class _Copies:
    """Copies of a tree, one a repetition, and what ours does to files done to them by the plainest calls.

    Args:
        is_synced: whether each operation ends with the file system synced.
    """

    def __init__(self, tree: Tree, target: Path, *, is_synced: bool) -> None:
        self._tree, self._target, self._is_synced = tree, target, is_synced

    def copy(self, repetition: int) -> None:
        run("cp", "-r", self._tree.directory, self._target / str(repetition))
        self._sync()

    def rename(self, repetition: int) -> None:
        source, target = self._target / str(repetition), self._target / f"moved-{repetition}"
        self._tree.make_directories(target)
        for path in self._tree.paths:
            os.rename(f"{source}/{path}", f"{target}/{path}")
        self._sync()

    def unlink(self, repetition: int) -> None:
        target = self._target / f"moved-{repetition}"
        for path in self._tree.paths:
            os.unlink(f"{target}/{path}")
        self._sync()

    def _sync(self) -> None:
        if self._is_synced:
            run("sync", "-f", self._target)


def _uploads(name: str, count: int, ours: Ours, plain: _Copies, synced: _Copies) -> Case:
    rivals = [
        Contender("cp -r", plain.copy, "not synced"),
        Contender("cp -r + sync -f", synced.copy, "file system synced"),
    ]
    return Case(name, count, "files", Contender("ours", ours.upload, _DURABLE), rivals)


def _moves(name: str, count: int, ours: Ours, plain: _Copies, synced: _Copies) -> Case:
    rivals = [
        Contender("os.rename", plain.rename, "not synced"),
        Contender("os.rename + sync -f", synced.rename, "file system synced"),
    ]
    includes = "checked, directories fsynced in groups; catalog"
    return Case(name, count, "files", Contender("ours", ours.move, includes), rivals)


def _deletes(name: str, count: int, ours: Ours, plain: _Copies, synced: _Copies) -> Case:
    rivals = [
        Contender("os.unlink", plain.unlink, "not synced"),
        Contender("os.unlink + sync -f", synced.unlink, "file system synced"),
    ]
    includes = "checked, directories fsynced in groups; catalog"
    return Case(name, count, "files", Contender("ours", ours.delete, includes), rivals)


def _large_uploads(name: str, mib: int, ours: Ours, session: Session, workspace: Path) -> Case:
    source = session.large_file.directory / session.large_file.paths[0]
    target = session.new_directory("copied-large") / "large.dat"

    def copy(*, is_synced: bool) -> None:
        with source.open("rb") as read, target.open("xb") as written:
            while os.copy_file_range(read.fileno(), written.fileno(), 1 << 30):
                pass
            if is_synced:
                os.fsync(written.fileno())

    def forget(_: int) -> None:  # one file, of which ext4's next files do not suffer
        target.unlink(missing_ok=True)

    def forget_ours(_: int) -> None:
        remove_tree(workspace / "large")

    rivals = [
        Contender("copy_file_range", lambda _: copy(is_synced=False), "not synced", tidy=forget),
        Contender("copy_file_range + fsync", lambda _: copy(is_synced=True), "fsynced", tidy=forget),
        Contender("cp", lambda _: run("cp", source, target), "not synced", tidy=forget),
    ]
    return Case(name, mib, "MiB", Contender("ours", ours.upload, _DURABLE, tidy=forget_ours), rivals)

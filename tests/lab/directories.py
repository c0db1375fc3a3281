"""Temporary directories that cannot take somebody's data with them."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from storage.mountinfo import read_mounts


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    """A directory, removed at the end, whose path leaves room for a socket's name (107 bytes in all).

    If anything is mounted below it by then, nothing is removed and the test fails.
    """
    directory = Path(tempfile.mkdtemp(prefix="bv-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        remove_tree(directory)


def remove_tree(directory: Path) -> None:
    """Remove a directory of ours, unless anything is mounted below it."""
    leaked = [mount.mountpoint for mount in read_mounts() if mount.mountpoint.startswith(f"{directory}/")]
    assert not leaked, f"mounts leaked, nothing below is removed: {leaked}"
    shutil.rmtree(directory)


def remove_chain(root: Path, path: str) -> None:
    """Remove the file `path` below `root` and the directories on its way: too many for shutil.rmtree."""
    (root / path).unlink(missing_ok=True)
    for parent in (root / path).parents:
        if parent == root:
            break
        parent.rmdir()

"""Directories beneath a mount: found without following a link, and made so that others can pass at once."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from volumedriver.nfs_directories import NotReached, Ownership, made, opened

pytestmark = pytest.mark.root


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A directory and its descriptor, in a process with a worker's umask."""
    before = os.umask(0)
    tmp_path.chmod(0o777)
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield tmp_path, fd
    os.close(fd)
    os.umask(before)


@pytest.mark.parametrize("uid", [0, 1000])
@pytest.mark.parametrize("mode", [0o2750, 0o1777, 0o311])
def test_what_is_made_can_be_passed_through_from_its_first_moment(
    tree: tuple[Path, int], monkeypatch: pytest.MonkeyPatch, uid: int, mode: int
) -> None:
    """Another mount may be on its way through it, as the nobody whom a server maps root to."""
    seen = []
    change = os.fchown

    def look_and_change(fd: int, uid: int, gid: int) -> None:
        seen.append(os.fstat(fd).st_mode & 0o077)
        change(fd, uid, gid)

    monkeypatch.setattr(os, "fchown", look_and_change)
    path, tree_fd = tree
    os.close(made(tree_fd, ["a", "b"], Ownership(mode, uid, uid)))
    assert seen == [0o055, mode & 0o077]
    for name, expected in (("a", 0o755), ("a/b", mode)):
        stat = (path / name).stat()
        assert (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid) == (expected, uid, uid)


@pytest.mark.parametrize(
    ("names", "count", "code", "target"),
    [
        (["a", "link", "c"], 1, errno.ELOOP, "../elsewhere"),
        (["a", "link"], 1, errno.ELOOP, "../elsewhere"),
        (["a", "none", "c"], 1, errno.ENOENT, None),
        (["none"], 0, errno.ENOENT, None),
        (["a", "file"], 1, errno.ENOTDIR, None),
    ],
)
def test_what_is_in_the_way(
    tree: tuple[Path, int], names: list[str], count: int, code: int, target: str | None
) -> None:
    path, tree_fd = tree
    (path / "a/b").mkdir(parents=True)
    (path / "elsewhere").mkdir()
    (path / "a/link").symlink_to("../elsewhere")
    (path / "a/file").touch()
    with pytest.raises(NotReached) as failed:
        opened(tree_fd, names)
    assert (failed.value.count, failed.value.error.errno, failed.value.target) == (count, code, target)
    fd = opened(tree_fd, ["a", "b"])
    assert os.path.samestat(os.fstat(fd), (path / "a/b").stat())
    os.close(fd)


def test_nothing_is_made_through_a_link_and_what_was_made_goes_again(tree: tuple[Path, int]) -> None:
    path, tree_fd = tree
    (path / "link").symlink_to(".")
    with pytest.raises(OSError, match="symbolic links") as failed:
        made(tree_fd, ["link", "a"], Ownership(0o755, 0, 0))
    assert failed.value.filename == "link"
    with pytest.raises(OSError, match="too long") as failed:
        made(tree_fd, ["a", "b", "x" * 256], Ownership(0o755, 0, 0))
    assert failed.value.filename == f"a/b/{'x' * 256}"
    assert os.listdir(path) == ["link"]

"""Opening host directories by descriptor, and making them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.faults import descriptors
from volumedriver import hostpaths
from volumedriver.errors import DriverError, HostPathRefused, InvalidVolume, MountFailed
from volumedriver.hostpaths import HostDirectories
from volumedriver.options import Creation

OURS = Creation(0o750, os.geteuid(), os.getegid())


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[HostDirectories]:
    (tmp_path / "srv/data").mkdir(parents=True)
    hosts = HostDirectories(str(tmp_path))
    yield hosts
    hosts.close()


def test_existing_directory_is_opened_unaltered(hosts: HostDirectories, tmp_path: Path) -> None:
    os.chmod(tmp_path / "srv/data", 0o701)
    with hosts.opened("/srv/data", Creation(0o777, 1, 1)) as fd:
        assert os.fstat(fd).st_ino == (tmp_path / "srv/data").stat().st_ino
    assert stat.S_IMODE((tmp_path / "srv/data").stat().st_mode) == 0o701
    assert (tmp_path / "srv/data").stat().st_uid == os.geteuid()


@pytest.mark.root
def test_missing_directories_are_made(hosts: HostDirectories, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with hosts.opened("/srv/a/b/c", OURS) as fd:
            assert os.fstat(fd).st_ino == (tmp_path / "srv/a/b/c").stat().st_ino
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "srv/a/b/c").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "srv/a/b").stat().st_mode) == 0o755


@pytest.mark.root
def test_what_was_made_goes_when_a_later_step_fails(hosts: HostDirectories, tmp_path: Path) -> None:
    before = descriptors()
    with pytest.raises(RuntimeError), hosts.opened("/srv/data/a/b", OURS):
        raise RuntimeError
    assert os.listdir(tmp_path / "srv/data") == []
    assert descriptors() == before


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.root
def test_what_was_made_goes_when_a_step_of_making_fails(
    hosts: HostDirectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    calls = iter(range(1, 10))
    real = hostpaths._give_away

    def failing(fd: int, name: str, creation: Creation) -> None:
        if next(calls) == step:
            raise OSError(28, "No space left on device")
        real(fd, name, creation)

    monkeypatch.setattr(hostpaths, "_give_away", failing)
    before = descriptors()
    with pytest.raises(MountFailed, match="No space left"), hosts.opened("/srv/data/a/b/c", OURS):
        pass
    assert os.listdir(tmp_path / "srv/data") == []
    assert descriptors() == before


@pytest.mark.root
def test_undoing_leaves_what_somebody_uses(hosts: HostDirectories, tmp_path: Path) -> None:
    def use_and_fail() -> None:
        with hosts.opened("/srv/data/a/b", OURS):
            (tmp_path / "srv/data/a/file").write_text("theirs")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        use_and_fail()
    assert (tmp_path / "srv/data/a/file").read_text() == "theirs"
    assert not (tmp_path / "srv/data/a/b").exists()


@pytest.mark.parametrize("creation", [None, OURS])
@pytest.mark.parametrize(
    ("path", "kind", "said"),
    [
        ("/srv/link", HostPathRefused, "host_path /srv/link passes through the symbolic link /srv/link -> data"),
        ("/srv/link/x", HostPathRefused, "the symbolic link /srv/link -> data; give the real path"),
        ("/srv/out/x", HostPathRefused, "/srv/out -> /etc"),
        ("/srv/up", HostPathRefused, "/srv/up -> ../.."),
        ("/srv/dangling/x", HostPathRefused, "/srv/dangling -> none"),
        ("/srv/magic", HostPathRefused, "/srv/magic -> /proc/self/root"),
        ("/srv/file", InvalidVolume, "host_path /srv/file is not a directory: /srv/file is a file"),
        ("/srv/file/x/y", InvalidVolume, "host_path /srv/file/x/y is not a directory: /srv/file is a file"),
    ],
)
def test_obstacles_are_named(  # noqa: PLR0917 fixtures, then the columns of the table
    hosts: HostDirectories,
    tmp_path: Path,
    path: str,
    kind: type[DriverError],
    said: str,
    creation: Creation | None,
) -> None:
    targets = {"link": "data", "out": "/etc", "up": "../..", "dangling": "none", "magic": "/proc/self/root"}
    for name, target in targets.items():
        (tmp_path / "srv" / name).symlink_to(target)
    (tmp_path / "srv/file").write_text("")
    before = sorted(tmp_path.rglob("*")), descriptors()
    with pytest.raises(kind) as refused, hosts.opened(path, creation):
        pass
    assert said in str(refused.value)
    assert (sorted(tmp_path.rglob("*")), descriptors()) == before


def test_missing_directory_is_explained(hosts: HostDirectories) -> None:
    with pytest.raises(InvalidVolume, match="does not exist on this host; make it"):
        hosts.opened("/srv/none", None).__enter__()


def test_path_that_prints_badly_is_escaped(hosts: HostDirectories) -> None:
    with pytest.raises(InvalidVolume) as refused:
        hosts.opened("/srv/\x1b[2J\n", None).__enter__()
    assert str(refused.value).isprintable()


def test_directory_put_in_place_of_the_new_one_is_not_given_away(
    hosts: HostDirectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may write in the parent can exchange what we have just made."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(HostPathRefused, match="kept changing"), hosts.opened("/srv/data/a", OURS):
        pass

"""Tables of mounts: the same object while nothing changes, and no longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar import mounts
from sidecar.mounts import OwnTable, read_table
from storage.mountinfo import read_mounts

# The kernel spells a line's end in a name, and no carriage return.
_LINE = "{number} 1 8:1 / /m{number}\r rw - ext4 /dev/sda1 rw\n"


def test_a_table_is_the_same_while_the_kernel_says_the_same(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for file in (one, other):
        file.write_text(_LINE.format(number=1))
    first = read_table(str(one))
    assert read_table(str(one)) is first
    assert read_table(str(other)) is first, "also another process's"
    one.write_text(_LINE.format(number=1) + _LINE.format(number=2))
    assert [mount.mountpoint for mount in read_table(str(one)).mounts] == ["/m1\r", "/m2\r"]
    assert [mount.mountpoint for mount in first.mounts] == ["/m1\r"], "what somebody holds does not change"


def test_who_is_in_a_chroot_without_mounts_has_none(tmp_path: Path) -> None:
    (tmp_path / "none").touch()
    assert read_table(str(tmp_path / "none")).mounts == []


def test_what_is_long_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "_LONGEST_BYTES", 100)
    file = tmp_path / "many"
    file.write_text("".join(_LINE.format(number=number) for number in range(1, 5)))
    assert read_table(str(file)) is not read_table(str(file))
    assert len(read_table(str(file)).mounts) == 4


def test_the_own_table_is_what_is_mounted_here() -> None:
    table = OwnTable()
    assert list(table.now().mounts) == read_mounts()
    assert table.now() is table.now()

"""Which volume, and which part of it, a mount shows: by mountinfo alone."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from sidecar.holdings import Claim, Known, Volumes, known_workspace
from storage.definitions import Definition
from storage.mountinfo import Mount, parse_mounts


def mount(root: str, device: str = "8:1", *, options: str = "rw", kind: str = "ext4 /dev/sda1") -> Mount:
    (found,) = parse_mounts([f"40 22 {device} {root} /data {options} - {kind} rw\n".encode()])
    return found


def known(name: str, **options: str) -> Known:
    given = {"type": "host", "host_path": f"/srv/{name}", **options}
    found = known_workspace("/root", Definition(name, given, datetime.now(UTC)))
    assert found is not None
    return found


def shown(volumes: dict[str, Mount], found: Mount, **options: str) -> list[tuple[str, str]]:
    index = Volumes((known(name, **options), published) for name, published in volumes.items())
    return [(claim.known.name, claim.part) for claim in index.shown_by(found)]


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("/srv/a", [("a", "")]),
        ("/srv/a/b", [("a", "b")]),
        ("/srv/a/b/c", [("a", "b/c")]),
        ("/srv/ab", []),
        ("/srv/A/b", []),
        ("/srv", []),
        ("/", []),
        ("/srv/a/b//deleted", []),
        ("/srv/a//deleted", []),
        ("/srv/a/.brokervol-x", []),
        ("/srv/a/" + "x" * 256, []),
    ],
)
def test_a_mount_shows_a_volume_or_a_part_of_it(root: str, expected: list[tuple[str, str]]) -> None:
    assert shown({"a": mount("/srv/a")}, mount(root)) == expected
    assert shown({"a": mount("/srv/a")}, mount(root, "8:2")) == []


def test_a_volume_can_be_a_whole_file_system() -> None:
    assert shown({"a": mount("/")}, mount("/")) == [("a", "")]
    assert shown({"a": mount("/")}, mount("/x/y")) == [("a", "x/y")]
    assert shown({"a": mount("/")}, mount("/x//deleted")) == []


def test_a_directory_of_an_nfs_export_is_told_by_the_source() -> None:
    nas = {"a": mount("/", "0:60", kind="nfs4 nas:/imagery"), "b": mount("/", "0:60", kind="nfs4 nas:/other")}
    assert shown(nas, mount("/", "0:60", kind="nfs4 nas:/imagery")) == [("a", "")]
    assert shown(nas, mount("/", "0:60", kind="nfs4 nas:/imagery/2026")) == [("a", "2026")]
    assert shown(nas, mount("/", "0:60", kind="nfs4 nas:/imagery2")) == []
    assert shown(nas, mount("/", "0:60", kind="nfs4 nas:/")) == []


def test_the_nearest_of_volumes_in_each_other_counts() -> None:
    volumes = {"top": mount("/"), "outer": mount("/srv"), "inner": mount("/srv/a/b"), "twin": mount("/srv/a/b")}
    for root, expected in (
        ("/srv/a/b", [("inner", ""), ("twin", "")]),
        ("/srv/a/b/c", [("inner", "c"), ("twin", "c")]),
        ("/srv/a", [("outer", "a")]),
        ("/srv", [("outer", "")]),
        ("/x", [("top", "x")]),
    ):
        assert shown(volumes, mount(root)) == expected


def test_a_name_that_is_not_utf_8_is_no_part() -> None:
    (odd,) = parse_mounts([b"40 22 8:1 /srv/a/\xff /data rw - ext4 /dev/sda1 rw\n"])
    assert shown({"a": mount("/srv/a")}, odd) == []


def test_a_mounted_bucket_has_no_parts() -> None:
    """Its keys have a prefix: what a directory of the mount would be in the workspace is not told by the path."""
    bucket = {"type": "s3", "bucket_name": "imagery", "region_name": "eu-central-1"}
    published = {"a": mount("/mnt/bucket")}
    assert shown(published, mount("/mnt/bucket"), **bucket) == [("a", "")]
    assert shown(published, mount("/mnt/bucket/2026"), **bucket) == []


def test_a_token_is_told_by_its_source_too() -> None:
    token = mount("/", "0:70", kind="tmpfs brokervol:1")
    definition = Definition("a", {"type": "s3", "bucket_name": "imagery"}, datetime.now(UTC))
    bucket = known_workspace("/root", definition)
    assert bucket is not None
    assert bucket.is_token
    index = Volumes([(bucket, token)])
    assert len(index.shown_by(token)) == 1
    for other in (
        mount("/", "0:71", kind="tmpfs brokervol:1"),
        mount("/", "0:70", kind="tmpfs brokervol:2"),
        mount("/x", "0:70", kind="tmpfs brokervol:1"),
    ):
        assert index.shown_by(other) == []


def test_the_widest_ranks_first_and_then_what_can_be_written() -> None:
    ways = [("a/b/c", "ro"), ("a/b", "rw"), ("a", "ro"), ("a", "rw"), ("", "ro"), ("", "rw")]
    claims = [Claim(known("a"), mount("/", options=options), part) for part, options in ways]
    claims.sort(key=Claim.rank)
    assert [(claim.part, "ro" if claim.is_read_only else "rw") for claim in claims] == ways[::-1]

"""ALLOWED_NFS_SERVERS: who is mounted from, by name, by address, and which of the exports."""

from __future__ import annotations

import pytest

from volumedriver.errors import NfsServerRefused
from volumedriver.nfs_options import parse_place
from volumedriver.nfs_policy import NfsServerPolicy, parse_allowed


def networks(allowed: str, place: str) -> list[str] | None:
    return NfsServerPolicy(parse_allowed(allowed)).networks(parse_place(place))


@pytest.mark.parametrize(
    ("allowed", "place", "expected"),
    [
        ("", "nas:/x", None),
        ("nas", "nas:/x", None),
        ("NAS.", "nas:/", None),
        ("other nas:/export", "nas:/export", None),
        ("nas:/export/", "nas:/export/sub", None),
        ("nas:/", "nas:/export", None),
        ("10.0.0.1", "10.0.0.1:/x", ["10.0.0.1/32"]),
        ("10.0.0.0/8,192.168.0.0/16", "10.1.2.3:/x", ["10.0.0.0/8"]),
        ("10.0.0.0/8", "nas:/x", ["10.0.0.0/8"]),
        ("10.0.0.0/8:/a 10.1.0.0/16:/b", "nas:/b/c", ["10.1.0.0/16"]),
        ("fd00::/8", "[fd00::1]:/x", ["fd00::/8"]),
        ("fd00::1", "[fd00:0::1]:/x", ["fd00::1/128"]),
        ("[fd00::/8]:/x", "[fd00::1]:/x/y", ["fd00::/8"]),
        ("[fd00::1]:/x", "[fd00::1]:/x", ["fd00::1/128"]),
        ("fe80::/10", "[fe80::1%eth0]:/x", ["fe80::/10"]),
    ],
)
def test_allowed(allowed: str, place: str, expected: list[str] | None) -> None:
    assert networks(allowed, place) == expected


@pytest.mark.parametrize(
    ("allowed", "place", "expected"),
    [
        ("", "nas:/x", None),
        ("nas", "nas:/x", None),
        ("nas:/a", "nas:/a", "/a"),
        ("nas:/a nas:/a/b", "nas:/a/b/c", "/a/b"),
        ("nas:/a nas", "nas:/a/b", None),
        ("nas:/a 10.0.0.0/8", "nas:/a/b", "/a"),
        ("10.0.0.0/8:/a", "nas:/a/b", "/a"),
        ("10.0.0.0/8:/a 192.168.0.0/16", "nas:/a/b", "/a"),
        ("10.0.0.0/8:/a 10.1.0.0/16", "10.1.0.1:/a/b", None),
        ("10.0.0.0/8:/a 10.1.0.0/16", "10.2.0.1:/a/b", "/a"),
        ("10.0.0.0/8 fd00::/8", "nas:/a/b", None),
    ],
)
def test_beneath_which_directory(allowed: str, place: str, expected: str | None) -> None:
    assert NfsServerPolicy(parse_allowed(allowed)).prefix(parse_place(place)) == expected


@pytest.mark.parametrize(
    ("allowed", "place"),
    [
        ("nas", "nas2:/x"),
        ("nas", "10.0.0.1:/x"),
        ("nas", "nas.example.org:/x"),
        ("nas:/export", "nas:/"),
        ("nas:/export", "nas:/export2"),
        ("nas:/export", "nas:/other"),
        ("10.0.0.0/8", "11.0.0.1:/x"),
        ("10.0.0.0/8", "[fd00::1]:/x"),
        ("10.0.0.0/8:/a", "nas:/b"),
        ("[fd00::/8]:/x", "[fd00::1]:/y"),
    ],
)
def test_refused(allowed: str, place: str) -> None:
    with pytest.raises(NfsServerRefused, match="ALLOWED_NFS_SERVERS of this host allows "):
        networks(allowed, place)


@pytest.mark.parametrize("text", [" ", " , ", "\n"])
def test_a_list_of_nothing_does_not_allow_everything(text: str) -> None:
    with pytest.raises(ValueError, match="it names no server; empty allows all"):
        parse_allowed(text)


def test_the_refusal_lists_what_is_allowed() -> None:
    with pytest.raises(NfsServerRefused, match=r"allows nas:/a, 10\.0\.0\.0/8, \[fd00::/8\]:/b$"):
        networks("nas:/a, 10.0.0.1/8, [fd00::/8]:/b", "192.0.2.1:/x")


@pytest.mark.parametrize(
    "text", ["nas:export", "10.0.0.0/33", "[nas]:/x", "nas:/a/../b", "*", "*.example.org", "/x", "[fd00::/8"]
)
def test_entries_that_are_none(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"the allowed NFS server .* is not accepted: it is a name, an address or"
    ):
        parse_allowed(f"nas {text}")

"""NFS volumes: where they are, the mount options that are accepted, and the sentence for what is not."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.brokers.nfs_broker import parse_nfs_path
from volumedriver import mountcalls
from volumedriver.errors import InvalidVolume
from volumedriver.nfs_options import OPTIONS, Place, parse_mount_options, parse_place
from volumedriver.options import Creation, NfsOptions, parse

DOCS = Path(__file__).parents[2] / "docs/nfs.md"
IN_FORCE = "hard,nosuid,nodev"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nas:/export", Place("nas", "/export")),
        ("NAS.Example.org.:/export/", Place("nas.example.org", "/export")),
        ("10.0.0.1:/", Place("10.0.0.1", "/")),
        ("[FD00:0::1]:/a/b", Place("fd00::1", "/a/b")),
        ("[fe80::1%eth0]:/a", Place("fe80::1%eth0", "/a")),
        ("nas:/with space,comma:colon/ü$(x);'\"\\", Place("nas", "/with space,comma:colon/ü$(x);'\"\\")),
        ("nas:/" + "a" * 250, Place("nas", "/" + "a" * 250)),
    ],
)
def test_places(text: str, expected: Place) -> None:
    assert parse_place(text) == expected
    assert parse_place(expected.text) == expected
    server, path = parse_nfs_path(expected.text)
    assert (server, path) == expected, "the broker understands it in the same way"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "nas",
            "nas:",
            "nas:export",
            ":/export",
            "/export",
            "nas:/a/../b",
            "nas:/./a",
            "nas:/a//b",
            "nas://a",
        ),
        *("nas:/a\0b", "nas:/a\nb", "nas:/a\x7f", "nas:/\ud800", "na s:/x", "-nas:/x", "nas,addr=1.2.3.4:/x"),
        *("$(reboot):/x", "fd00::1:/x", "[nas]:/x", "[fd00::1]/x", "[fd00::1%]:/x", "[fd00::1%a b]:/x", "[]:/x"),
        *("nas:/" + "a" * 251, "a" * 64 + ":/x", "ä:/x", "nas\n:/x", "nas:/a/.."),
    ],
)
def test_refused_places(text: str) -> None:
    with pytest.raises(InvalidVolume, match=r"option nfs_path=.* is not accepted: ") as refused:
        parse({"type": "nfs", "nfs_path": text})
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", IN_FORCE),
        (IN_FORCE, IN_FORCE),
        ("rw", IN_FORCE),
        ("soft", "soft,nosuid,nodev"),
        ("nodev,wsize=08192,nfsvers=4,rsize=1048576", "vers=4,hard,rsize=1048576,wsize=8192,nosuid,nodev"),
        ("lookupcache=pos,noatime", f"{IN_FORCE},noatime,lookupcache=positive"),
        ("vers=3,proto=udp,mountport=20048,nolock", f"vers=3,proto=udp,mountport=20048,{IN_FORCE},nolock"),
        ("nolock,local_lock=all", f"{IN_FORCE},nolock,local_lock=all"),
        ("noac,actimeo=0", f"{IN_FORCE},actimeo=0,noac"),
        ("acregmax=1,acdirmin=60", f"{IN_FORCE},acregmax=1,acdirmin=60"),
        ("proto=tcp6,mountproto=udp6,vers=3", f"vers=3,proto=tcp6,mountproto=udp6,{IN_FORCE}"),
    ],
)
def test_mount_options(text: str, expected: str) -> None:
    options = parse({"nfs_path": "nas:/x", "mount_options": text})
    assert isinstance(options, NfsOptions)
    assert options.effective["mount_options"] == expected
    assert parse(options.effective) == options


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vers=5", "vers='5' is not accepted: it is 4.2, 4.1, 4.0, 4 or 3"),
        ("vers", "vers is not accepted: it is 4.2"),
        ("rsize=1000", "rsize='1000' is not accepted: it is a number from 1024 to 1048576 that 1024 divides"),
        ("timeo=-1", "timeo='-1' is not accepted: it is a number from 1 to 6000"),
        ("timeo=\u0661", "timeo="),
        ("port=0", "port='0' is not accepted: it is a number from 1 to 65535"),
        ("hard=1", "mount option hard has no value"),
        ("hard,soft", "mount options hard and soft contradict each other"),
        ("ro,rw", "mount options ro and rw contradict each other"),
        ("timeo=1,timeo=2", "mount option timeo is given twice"),
        ("vers=3,nfsvers=3", "mount option vers is given twice"),
        ("suid", "mount option suid is not accepted: NFS volumes are always nosuid"),
        ("dev", "NFS volumes are always nodev"),
        ("addr=10.0.0.1", "mount option 'addr' is not accepted: accepted are vers, proto, port,"),
        ("mounthost=x", "mount option 'mounthost' is not accepted"),
        ("mountaddr=x", "mount option 'mountaddr' is not accepted"),
        ("bg", "mount option 'bg' is not accepted"),
        ("$(reboot)", "mount option '$(reboot)' is not accepted"),
        ("hard,,soft=", "mount option '' is not accepted"),
        ("hard, noatime", "mount option ' noatime' is not accepted"),
        ("proto=udp", "proto=udp is accepted only with vers=3"),
        ("vers=3,proto=udp,nconnect=2", "nconnect and proto=udp contradict each other: it needs TCP"),
        ("proto=udp6,vers=4.2", "proto=udp6 is accepted only with vers=3"),
        ("vers=4.2,nolock", "nolock is of NFSv3 only, and vers=4.2 is given"),
        ("vers=4,lock", "lock is of NFSv3 only, and vers=4 is given"),
        ("local_lock=all,vers=4.0", "local_lock is of NFSv3 only, and vers=4.0 is given"),
        ("vers=4.1,mountport=5", "mountport is of NFSv3 only"),
        ("vers=4.1,mountproto=tcp", "mountproto is of NFSv3 only"),
        ("vers=4.2,acl", "acl is of NFSv3 only"),
        ("vers=4.2,noacl", "noacl is of NFSv3 only"),
        ("vers=3,proto=tcp,mountproto=tcp6", "mountproto=tcp6 needs proto=tcp6 or udp6"),
        ("nolock,local_lock=none", "nolock and local_lock=none contradict each other"),
        ("vers=3,nolock,local_lock=posix", "nolock and local_lock=posix contradict each other"),
        ("lock,local_lock=all", "lock and local_lock=all contradict each other"),
        ("ac,noac", "mount options ac and noac contradict each other"),
        ("noac,actimeo=60", "noac and actimeo contradict each other"),
        ("acdirmax=1,noac", "noac and acdirmax contradict each other"),
        ("acregmin=60,actimeo=3", "actimeo and acregmin contradict each other"),
        ("acregmin=10,acregmax=5", "acregmin=10 is above acregmax, which is 5"),
        ("acdirmax=5,acdirmin=6", "acdirmin=6 is above acdirmax, which is 5"),
        ("acregmin=61", "acregmin=61 is above acregmax, which is 60, if it is left out"),
        ("\x1b[2J" * 1000, "is not accepted"),
    ],
)
def test_refused_mount_options(text: str, said: str) -> None:
    with pytest.raises(InvalidVolume) as refused:
        parse({"nfs_path": "nas:/x", "mount_options": text})
    assert said in str(refused.value)
    assert str(refused.value).isprintable()


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(InvalidVolume) as refused:
        parse({"type": "nfs", "mount_options": "vers=9,bg,hard,soft", "mode": "7", "read_only": "?", "x": ""})
    for part in (
        "nfs_path is missing",
        "vers='9'",
        "'bg'",
        "hard and soft",
        "mode is accepted only",
        "'x'",
        "'?'",
    ):
        assert part in str(refused.value)


def test_read_only_may_be_said_in_either_place() -> None:
    for given_options in (
        {"read_only": "true"},
        {"mount_options": "ro"},
        {"mount_options": "ro", "read_only": "true"},
    ):
        options = parse({"nfs_path": "nas:/x", **given_options})
        assert options.read_only
        assert options.effective["read_only"] == "true"
        assert options.effective["mount_options"] == IN_FORCE
    for mount_option, read_only in (("ro", "false"), ("rw", "true")):
        with pytest.raises(InvalidVolume, match="read_only contradicts ro or rw"):
            parse({"nfs_path": "nas:/x", "mount_options": mount_option, "read_only": read_only})


def test_creation() -> None:
    options = parse({"nfs_path": "nas:/x/y", "create": "true", "mode": "2770", "uid": "5"})
    assert isinstance(options, NfsOptions)
    assert options.creation == Creation(0o2770, 5, 0)
    assert parse(options.effective) == options


def test_what_the_kernel_is_told() -> None:
    options, _, problems = parse_mount_options(
        "vers=4.1,proto=tcp,port=2050,noexec,noatime,soft,timeo=30,nconnect=4"
    )
    assert problems == []
    assert options.parameters == [("soft", None), ("timeo", "30"), ("nconnect", "4")]
    expected = mountcalls.NOSUID | mountcalls.NODEV | mountcalls.NOEXEC | mountcalls.NOATIME
    assert options.attributes == expected
    assert options.versions == ("4.1",)
    assert options.number("port") == 2050
    assert parse_mount_options("").options.versions == ("4.2", "4.1", "4.0", "3")
    assert parse_mount_options("vers=4").options.versions == ("4.2", "4.1", "4.0")


KEYS = st.sampled_from(["type", "nfs_path", "mount_options", "create", "mode", "uid", "read_only", "x"])
WORDS = st.sampled_from([*OPTIONS, "vers=3", "rsize=1024", "timeo=1", "=", "x"])
VALUES = st.text() | st.sampled_from(["nfs", "nas:/x", "true"]) | st.lists(WORDS).map(",".join)


@given(st.dictionaries(KEYS, VALUES))
def test_any_text_is_accepted_or_refused(given_options: dict[str, str]) -> None:
    with contextlib.suppress(InvalidVolume):
        accepted = parse({"nfs_path": "nas:/x", **given_options, "type": "nfs"})
        assert parse(accepted.effective) == accepted


def test_every_mount_option_is_documented() -> None:
    assert {*OPTIONS} <= {*re.findall(r"`([a-z_]+)`", DOCS.read_text())}

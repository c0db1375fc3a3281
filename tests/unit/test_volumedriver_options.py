"""Names, Mount IDs and options: what is accepted, and the sentence for what is not."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volumedriver import errors, options
from volumedriver.errors import STATUS, DriverError, InvalidVolume, quoted
from volumedriver.options import (
    BrokerOptions,
    Creation,
    HostOptions,
    SidecarOptions,
    UnusableOptions,
    parse,
    restore,
)
from volumedriver.volume import check_mount_id, check_name

DOCS = Path(__file__).parents[2] / "docs/options.md"


EVERYTHING_OF_S3 = {
    "type": "s3",
    "bucket_name": "imagery",
    "region_name": "eu-central-1",
    "endpoint_url": "https://s3.example.org",
    "prefix": "projects/a b",
    "storage_class": "STANDARD_IA",
    "server_side_encryption": "aws:kms",
    "credentials": "team a.reader@site",
    "host_path": "/mnt/imagery",
}


def bucket(shown: str | None = None, *, read_only: bool = False, **options: str) -> BrokerOptions:
    """The options of the bucket `imagery`, of which `shown` is mounted."""
    return BrokerOptions({"type": "s3", "bucket_name": "imagery", **options}, shown, read_only)


@pytest.mark.parametrize(
    ("given_options", "expected"),
    [
        ({"host_path": "/srv"}, HostOptions("/srv", None, read_only=False)),
        ({"type": "host", "host_path": "/srv/a/"}, HostOptions("/srv/a", None, read_only=False)),
        ({"host_path": "/srv", "read_only": "true"}, HostOptions("/srv", None, read_only=True)),
        ({"host_path": "/srv", "create": "false"}, HostOptions("/srv", None, read_only=False)),
        ({"host_path": "/srv", "create": "true"}, HostOptions("/srv", Creation(), read_only=False)),
        (
            {"host_path": "/srv", "create": "true", "mode": "2770", "uid": "4294967294", "gid": "0"},
            HostOptions("/srv", Creation(0o2770, 4294967294, 0), read_only=False),
        ),
        ({"host_path": "/srv/ü b/a:b,c"}, HostOptions("/srv/ü b/a:b,c", None, read_only=False)),
        ({"bucket_name": "imagery"}, bucket()),
        ({"type": "s3", "bucket_name": "imagery", "prefix": "a/b/"}, bucket(prefix="a/b")),
        ({"bucket_name": "imagery", "prefix": "", "read_only": "true"}, bucket(read_only=True)),
        (
            {"bucket_name": "imagery", "host_path": "/mnt/imagery/"},
            bucket("/mnt/imagery", host_path="/mnt/imagery"),
        ),
        (
            {**EVERYTHING_OF_S3, "endpoint_url": "https://s3.example.org/"},
            BrokerOptions(EVERYTHING_OF_S3, "/mnt/imagery", read_only=False),
        ),
        ({"type": "sidecar"}, SidecarOptions()),
        ({"type": "sidecar", "read_only": "true"}, SidecarOptions()),
    ],
)
def test_accepted(given_options: dict[str, str], expected: options.VolumeOptions) -> None:
    assert parse(given_options) == expected
    assert parse(expected.effective) == expected


WRONG = [
    ({}, ["option type is missing: this version serves host, nfs, s3 and sidecar"]),
    ({"read_only": "true"}, ["option type is missing"]),
    ({"type": ""}, ["option type='' is not accepted: this version serves host, nfs, s3 and sidecar"]),
    ({"type": "Host"}, ["option type='Host' is not accepted"]),
    ({"type": "nfs"}, ["option nfs_path is missing: it is server:/export or server:/export/sub/dir"]),
    ({"nfs_path": "nas:/x", "host_path": "/srv"}, ["option 'host_path' is unknown: a volume of type nfs has"]),
    ({"type": "host"}, ["option host_path is missing: it is an absolute directory of the host"]),
    ({"host_path": "srv"}, ["option host_path='srv' is not accepted: it is an absolute path"]),
    ({"host_path": ""}, ["option host_path='' is not accepted: it is an absolute path"]),
    ({"host_path": "/srv/../etc"}, ["without empty parts, `.` and `..`"]),
    ({"host_path": "/srv/."}, ["without empty parts"]),
    ({"host_path": "//srv"}, ["without empty parts"]),
    ({"host_path": "/srv//a"}, ["without empty parts"]),
    ({"host_path": "/srv/a//"}, ["without empty parts"]),
    ({"host_path": "/srv\0"}, ["NUL"]),
    ({"host_path": "/" + "a/" * 2048 + "a"}, ["at most 4095 bytes"]),
    ({"host_path": "/" + "ü" * 128}, ["at most 255 bytes"]),
    ({"host_path": "/srv", "create": "yes"}, ["option create='yes' is not accepted: it is true or false"]),
    ({"host_path": "/srv", "create": ""}, ["it is true or false"]),
    ({"host_path": "/srv", "read_only": "1"}, ["option read_only='1' is not accepted: it is true or false"]),
    ({"host_path": "/srv", "create": "true", "mode": "8"}, ["octal permissions from 0 to 07777"]),
    ({"host_path": "/srv", "create": "true", "mode": "10000"}, ["octal permissions"]),
    ({"host_path": "/srv", "create": "true", "mode": "0o755"}, ["octal permissions"]),
    ({"host_path": "/srv", "create": "true", "mode": "u=rwx"}, ["octal permissions"]),
    ({"host_path": "/srv", "create": "true", "uid": "-1"}, ["it is a number from 0 to 4294967294"]),
    ({"host_path": "/srv", "create": "true", "gid": "4294967295"}, ["it is a number from 0 to 4294967294"]),
    ({"host_path": "/srv", "create": "true", "uid": "root"}, ["option uid='root' is not accepted"]),
    ({"host_path": "/srv", "create": "true", "uid": "\u0661"}, ["option uid="]),
    ({"host_path": "/srv", "mode": "0755"}, ["option mode is accepted only with create=true"]),
    ({"host_path": "/srv", "create": "false", "uid": "1", "gid": "1"}, ["option uid is", "option gid is"]),
    (
        {"host_path": "/srv", "colour": "red"},
        ["option 'colour' is unknown: a volume of type host has the options"],
    ),
    ({"host_path": "/srv", "": ""}, ["option '' is unknown"]),
    ({"type": "s3"}, ["option bucket_name is missing: accepted is a bucket's name"]),
    ({"bucket_name": "b", "host_path": "/srv"}, ["option bucket_name is 'b': accepted is a bucket's name"]),
    ({"bucket_name": "imagery", "create": "true"}, ["option 'create' is unknown: a volume of type s3 has"]),
    ({"bucket_name": "imagery", "nfs_path": "nas:/x", "type": "s3"}, ["option 'nfs_path' is unknown"]),
    ({"bucket_name": "imagery", "region_name": "EU"}, ["option region_name is 'EU': accepted is a region's name"]),
    ({"bucket_name": "imagery", "endpoint_url": "host"}, ["option endpoint_url is not accepted: it is 'https://"]),
    ({"bucket_name": "imagery", "endpoint_url": ""}, ["option endpoint_url is not accepted"]),
    ({"bucket_name": "imagery", "prefix": "../x"}, ["option prefix '../x' must be relative"]),
    ({"bucket_name": "imagery", "storage_class": "cold"}, ["option storage_class is 'cold': accepted is"]),
    ({"bucket_name": "imagery", "server_side_encryption": "rot13"}, ["is 'rot13': accepted is one of AES256"]),
    ({"bucket_name": "imagery", "host_path": "srv"}, ["option host_path='srv' is not accepted"]),
    ({"bucket_name": "imagery", "read_only": "no"}, ["option read_only='no' is not accepted"]),
    ({"bucket_name": "x" * 5000}, ["option bucket_name has more than 1024 characters"]),
    (
        {"type": "s3", "region_name": "?", "prefix": "/", "credentials": "{}", "read_only": "?", "x": ""},
        ["bucket_name", "region_name", "prefix", "credentials", "read_only", "'x'"],
    ),
    ({"type": "sidecar", "read_only": "false"}, ["a sidecar volume is always read-only"]),
    ({"type": "sidecar", "host_path": "/srv"}, ["a volume of type sidecar has the options read_only, type"]),
    (
        {"type": "host", "create": "?", "mode": "x", "uid": "x", "gid": "x", "read_only": "?", "a": "", "b": ""},
        ["host_path", "create", "mode", "uid", "gid", "read_only", "'a'", "'b'"],
    ),
]


@pytest.mark.parametrize(("given_options", "said"), WRONG)
def test_refused_with_everything_that_is_wrong(given_options: dict[str, str], said: list[str]) -> None:
    with pytest.raises(InvalidVolume) as refused:
        parse(given_options)
    for part in said:
        assert part in str(refused.value)
    assert str(refused.value).count("; ") == len(said) - 1 if len(said) > 1 else True


ID, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@pytest.mark.parametrize(
    "given_options",
    [
        {"access_key_id": ID},
        {"secret_access_key": SECRET},
        {"session_token": SECRET},
        {"AWS_SECRET_ACCESS_KEY": SECRET, "aws_access_key_id": ID},
        {"credentials": f'{{"access_key_id": "{ID}", "secret_access_key": "{SECRET}"}}'},
        {"credentials": f"{ID}:{SECRET}"},
        {"credentials": f"{ID} {SECRET}"},
        {"credentials": f"{ID},{SECRET}"},
        {"credentials": ID},
        {"credentials": SECRET},
        {"credentials": SECRET.replace("/", "a")},
        {"credentials": f"x{SECRET}" * 100},
        {"endpoint_url": f"https://{ID}:{SECRET}@s3.example.org"},
        {"endpoint_url": f"https://{ID}:{SECRET}@s3.example.org/" + "x" * 2000},
    ],
)
def test_secrets_are_no_options_and_are_not_repeated(given_options: dict[str, str]) -> None:
    with pytest.raises(InvalidVolume) as refused:
        parse({"bucket_name": "imagery", **given_options})
    said = str(refused.value)
    assert all(key in said for key in given_options)
    if "endpoint_url" not in given_options:
        assert "/etc/brokervol/credentials" in said
        assert "docker volume inspect" in said
    assert ID not in said
    assert not any(SECRET[start : start + 8] in said for start in range(0, 32, 4))
    assert len(said) < 600


def test_a_flood_of_wrong_options_is_a_short_answer() -> None:
    flood = {f"\x1b{number}" + "x" * 10_000: "y" for number in range(5000)}
    with pytest.raises(InvalidVolume) as refused:
        parse({"host_path": "/srv", **flood})
    assert len(str(refused.value)) < 5000
    assert str(refused.value).isprintable()
    assert "and 4980 more" in str(refused.value)


KEYS = ["type", "host_path", "create", "mode", "uid", "read_only", "x", "name", *EVERYTHING_OF_S3]


@given(st.dictionaries(st.sampled_from(KEYS), st.text() | st.sampled_from(["s3", "memory", "true"])))
def test_any_text_is_accepted_or_refused(given_options: dict[str, str]) -> None:
    with contextlib.suppress(InvalidVolume):
        accepted = parse(given_options)
        assert parse(accepted.effective) == accepted


def test_stored_options_of_another_version_stay_known() -> None:
    stored = {"type": "tape", "drive": "0"}
    kept = restore(stored)
    assert isinstance(kept, UnusableOptions)
    assert kept.effective == stored
    assert "tape" in kept.problem


@pytest.mark.parametrize("name", ["a", "0", "A" * 255, "a.b-c_d", "9..", "data2"])
def test_accepted_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "..",
            "../x",
            "/",
            "a/b",
            "_a",
            "-a",
            ".a",
            "a b",
            "a\n",
            "\na",
            "a\0",
            "A" * 256,
            "ä",
            "a\u0301",
        ),
        *("\u0661", "\ud800", "a" * (1 << 20), "\x1b[2J" * 1000),
    ],
)
def test_refused_names_are_quoted_short(name: str) -> None:
    with pytest.raises(InvalidVolume) as refused:
        check_name(name)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("mount_id", ["", " ", "a b", "\n", "\ud800", "a" * 256, "ä"])
def test_refused_mount_ids(mount_id: str) -> None:
    with pytest.raises(InvalidVolume, match="Mount ID"):
        check_mount_id(mount_id)


def test_quoted_tells_the_length_of_what_it_cuts() -> None:
    assert quoted("x" * 40) == repr("x" * 40)
    assert quoted("x" * 41) == f"{'x' * 40!r}... (41 characters)"


def test_every_kind_of_error_has_a_status() -> None:
    kinds = set(DriverError.__subclasses__())
    assert set(STATUS) == kinds | {narrower for kind in kinds for narrower in kind.__subclasses__()}
    assert {DriverError, *STATUS} == {
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)
    }


def test_every_option_and_status_is_documented() -> None:
    text = DOCS.read_text()
    keys = {"type", *HostOptions("/x", Creation(), read_only=False).effective, *EVERYTHING_OF_S3}
    assert keys <= set(re.findall(r"`([a-z_]+)`", text))
    assert {str(status) for status in STATUS.values()} <= set(re.findall(r"\b[45]\d\d\b", text))

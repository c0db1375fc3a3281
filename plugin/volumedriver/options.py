"""The options of `docker volume create -o KEY=VALUE`: what is accepted, and a sentence for what is not.

`parse` accepts its own `effective` again, so that a stored definition needs no other format. A further type of
ours is one more reader function and one line in `_READERS`; a type of another package needs nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from volumedriver import broker_options, nfs_options
from volumedriver.errors import InvalidVolume, quoted
from volumedriver.nfs_options import MountOptions, Place

_LONGEST_PATH_BYTES = 4095
_LONGEST_PART_BYTES = 255
_MOST_PROBLEMS = 20
_HIGHEST_ID = 2**32 - 2  # 2**32 - 1 means "do not change" to chown(2)
_TELLING = {"nfs_path": "nfs", "bucket_name": "s3", "host_path": "host"}
_OWNERSHIP = ("mode", "uid", "gid")


@dataclass(frozen=True, slots=True)
class Creation:
    """What a missing directory is made with."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0


_DEFAULT = Creation()


@dataclass(frozen=True, slots=True)
class HostOptions:
    """A directory of the host."""

    host_path: str
    creation: Creation | None
    read_only: bool

    @property
    def effective(self) -> dict[str, str]:
        """Every option with the value that is in force."""
        options = {"type": "host", "host_path": self.host_path, "read_only": _word(self.read_only)}
        return options | _effective_creation(self.creation)


@dataclass(frozen=True, slots=True)
class NfsOptions:
    """An export of an NFS server, or a directory in it."""

    place: Place
    mount_options: MountOptions
    creation: Creation | None
    read_only: bool
    host_path = None

    @property
    def effective(self) -> dict[str, str]:
        """Every option with the value that is in force, what nobody asked for included."""
        options = {"type": "nfs", "nfs_path": self.place.text, "mount_options": self.mount_options.text}
        return options | {"read_only": _word(self.read_only)} | _effective_creation(self.creation)


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """A workspace whose files only its broker reaches, or another package's.

    Attributes:
        configuration: of the broker, with `type`.
        host_path: the host's directory that is shown; None for a token, see `mounter`.
    """

    configuration: Mapping[str, str]
    host_path: str | None
    read_only: bool
    creation = None

    @property
    def effective(self) -> dict[str, str]:
        return {**self.configuration, "read_only": _word(self.read_only)}


@dataclass(frozen=True, slots=True)
class SidecarOptions:
    """The directory with the sidecar's socket and client; nobody may write there."""

    host_path = None
    read_only = True

    @property
    def effective(self) -> dict[str, str]:
        return {"type": "sidecar", "read_only": "true"}


@dataclass(frozen=True, slots=True)
class UnusableOptions:
    """Options from disk that this version does not accept, for instance after a downgrade.

    The volume stays known, because the engine forgets one that is not; it cannot be mounted.
    """

    effective: dict[str, str]
    problem: str
    host_path = None
    read_only = True


VolumeOptions = HostOptions | NfsOptions | BrokerOptions | SidecarOptions | UnusableOptions


def parse(given: Mapping[str, str]) -> VolumeOptions:
    """The options of one volume.

    Raises:
        InvalidVolume: with one sentence for everything that is wrong, not just the first.
    """
    reading = _Reading(given)
    options = _READERS.get(kind, _third_party)(reading) if (kind := _kind(reading)) is not None else None
    reading.refuse_unknown_keys(kind)
    if options is None or reading.problems:
        raise InvalidVolume(_sentence(reading.problems))
    return options


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The keys, sorted, that are not the same in two sets of effective options."""
    return sorted(key for key in {*before, *after} if before.get(key) != after.get(key))


def restore(stored: dict[str, str]) -> VolumeOptions:
    """The options of a definition on disk."""
    try:
        return parse(stored)
    except InvalidVolume as error:
        return UnusableOptions(stored, str(error))


class _Reading:
    """The options as given, and the problems found while they are read."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self.given = given
        self.problems: list[str] = []
        self._read: set[str] = set()

    def text(self, key: str) -> str | None:
        self._read.add(key)
        return self.given.get(key)

    def refuse(self, key: str, accepted: str) -> None:
        self.problems.append(f"option {key}={quoted(self.given[key])} is not accepted: {accepted}")

    def flag(self, key: str, *, default: bool) -> bool:
        match self.text(key):
            case None:
                return default
            case "true":
                return True
            case "false":
                return False
            case _:
                self.refuse(key, "it is true or false")
                return default

    def number(self, key: str) -> int:
        text = self.text(key)
        if text is None:
            return 0
        if re.fullmatch(r"[0-9]{1,10}", text) is None or int(text) > _HIGHEST_ID:
            self.refuse(key, f"it is a number from 0 to {_HIGHEST_ID}")
            return 0
        return int(text)

    def permissions(self, key: str) -> int:
        text = self.text(key)
        if text is None:
            return _DEFAULT.mode
        if re.fullmatch(r"[0-7]{1,6}", text) is None or int(text, 8) > 0o7777:
            self.refuse(key, "it is octal permissions from 0 to 07777, such as 0755")
            return _DEFAULT.mode
        return int(text, 8)

    def host_path(self, key: str) -> str | None:
        text = self.text(key)
        if text is None:
            return None
        path = text[:-1] if text.endswith("/") and text != "/" else text
        if (problem := path_problem(path)) is not None:
            self.refuse(key, problem)
        return path

    def refuse_unknown_keys(self, kind: str | None) -> None:
        if kind is None:  # without a type nobody can say which keys belong
            return
        accepted = ", ".join(sorted(self._read))
        if kind == "s3" and (secrets := [key for key in self.given if broker_options.is_secret(key)]):
            self.problems.append(broker_options.secrets_refused(secrets))
            self._read.update(secrets)
        self.problems += [
            f"option {quoted(key)} is unknown: a volume of type {kind} has the options {accepted}"
            for key in self.given
            if key not in self._read
        ]


def path_problem(path: str) -> str | None:
    """What keeps `path` from being an absolute path in its only spelling, as a clause; None if it is."""
    parts = path[1:].split("/") if path != "/" else []
    facts = (
        (not path.startswith("/"), "it is an absolute path, which begins with /"),
        ("\0" in path, "a path cannot hold a NUL character"),
        (not {"", ".", ".."}.isdisjoint(parts), "it is a path without empty parts, `.` and `..`"),
        (_size_bytes(path) > _LONGEST_PATH_BYTES, f"a path has at most {_LONGEST_PATH_BYTES} bytes"),
        (any(_size_bytes(part) > _LONGEST_PART_BYTES for part in parts), "a name in a path has at most 255 bytes"),
    )
    return next((accepted for is_wrong, accepted in facts if is_wrong), None)


def _size_bytes(path: str) -> int:
    return len(path.encode("utf-8", "surrogatepass"))


def _kind(reading: _Reading) -> str | None:
    """The type of the volume as given or as another key tells it."""
    given = reading.text("type")
    kind = given or next((kind for key, kind in _TELLING.items() if key in reading.given), None)
    if kind in _READERS:
        return kind
    types = [*_READERS, *broker_options.third_party_types()]
    served = f"{', '.join(types[:-1])} and {types[-1]}"
    if kind in types:
        return kind
    if given is None:
        reading.problems.append(f"option type is missing: this version serves {served}")
    else:
        reading.refuse("type", f"this version serves {served}")
    return None


def _host(reading: _Reading) -> HostOptions:
    host_path = reading.host_path("host_path")
    if host_path is None:
        reading.problems.append("option host_path is missing: it is an absolute directory of the host")
    return HostOptions(host_path or "", _creation(reading), reading.flag("read_only", default=False))


def _creation(reading: _Reading) -> Creation | None:
    creates = reading.flag("create", default=False)
    creation = Creation(reading.permissions("mode"), reading.number("uid"), reading.number("gid"))
    if not creates and reading.given.get("create", "false") == "false":
        reading.problems += [
            f"option {key} is accepted only with create=true: an existing directory is not altered"
            for key in _OWNERSHIP
            if key in reading.given
        ]
    return creation if creates else None


def _nfs(reading: _Reading) -> NfsOptions:
    place = Place("", "")
    if (text := reading.text("nfs_path")) is None:
        reading.problems.append("option nfs_path is missing: it is server:/export or server:/export/sub/dir")
    else:
        try:
            place = nfs_options.parse_place(text)
        except ValueError as error:
            reading.refuse("nfs_path", str(error))
    mount_options, is_read_only, problems = nfs_options.parse_mount_options(reading.text("mount_options") or "")
    reading.problems += problems
    read_only = reading.flag("read_only", default=bool(is_read_only))
    if is_read_only not in {None, read_only}:
        reading.problems.append("option read_only contradicts ro or rw in mount_options: give one of them")
    return NfsOptions(place, mount_options, _creation(reading), read_only)


def _s3(reading: _Reading) -> BrokerOptions:
    host_path = reading.host_path("host_path")
    given = {key: text for key in broker_options.S3_KEYS if (text := reading.text(key)) is not None}
    configuration, problems, _ = broker_options.check_s3(given)
    reading.problems += problems
    place = {} if host_path is None else {"host_path": host_path}
    read_only = reading.flag("read_only", default=False)
    return BrokerOptions({"type": "s3", **configuration, **place}, host_path, read_only)


def _third_party(reading: _Reading) -> BrokerOptions:
    """Every option is the broker's, but for one."""
    read_only = reading.flag("read_only", default=False)
    given = {key: text for key in reading.given if key != "read_only" and (text := reading.text(key)) is not None}
    configuration, problems, host_path = broker_options.check_third_party(given["type"], given)
    reading.problems += problems
    if host_path is not None and (problem := path_problem(host_path)) is not None:
        reading.problems.append(f"the broker's directory {quoted(host_path)} is not accepted: {problem}")
    return BrokerOptions(configuration, host_path, read_only)


def _sidecar(reading: _Reading) -> SidecarOptions:
    if not reading.flag("read_only", default=True):
        reading.refuse("read_only", "a sidecar volume is always read-only; leave the option out")
    return SidecarOptions()


_READERS: dict[str, Callable[[_Reading], VolumeOptions]] = {
    "host": _host,
    "nfs": _nfs,
    "s3": _s3,
    "sidecar": _sidecar,
}


def _effective_creation(creation: Creation | None) -> dict[str, str]:
    if creation is None:
        return {"create": "false"}
    ownership = {"mode": f"{creation.mode:04o}", "uid": str(creation.uid), "gid": str(creation.gid)}
    return {"create": "true", **ownership}


def _sentence(problems: list[str]) -> str:
    shown = problems[:_MOST_PROBLEMS]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    return "; ".join(shown)


def _word(flag: bool) -> str:
    return "true" if flag else "false"

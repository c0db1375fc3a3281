"""The options of NFS volumes: where the export is, and what of mount(8)'s options is accepted.

An allow-list, because the rest would get around something: `addr` and `mounthost` name other servers than
`nfs_path` does, `dev` and `suid` let an export bring devices and set-user-id programs. Options that contradict
each other are refused, where the kernel would take the last one; and so are those that the version asked for does
not have, where it would ignore them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from volumedriver import mountcalls
from volumedriver.errors import quoted

NEWEST_FIRST = ("4.2", "4.1", "4.0", "3")

_LONGEST_BYTES = 255  # of what the kernel takes as a source
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?", re.ASCII)
_PATH = re.compile(r"(?:\[(?P<v6>[^\]]*)\]|(?P<name>[^:/\[\]]*)):(?P<path>/.*)", re.DOTALL)
_NOT_IN_PATHS = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_ACCEPTED = "it is server:/export or server:/export/sub/dir, with an IPv6 address as [addr]:/export"
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)


class Place(NamedTuple):
    """An export or a directory in it. `server` is a name in lower case or an address; IPv6 without brackets."""

    server: str
    path: str

    @property
    def text(self) -> str:
        return f"[{self.server}]:{self.path}" if ":" in self.server else f"{self.server}:{self.path}"


def parse_place(text: str) -> Place:
    """The place that `nfs_path` names.

    Raises:
        ValueError: with a clause that says what is accepted.
    """
    match = _PATH.fullmatch(text)
    if match is None:
        raise ValueError(_ACCEPTED)
    server = _ipv6(match["v6"]) if match["v6"] is not None else _host(match["name"])
    parts = match["path"].rstrip("/").split("/")[1:]
    if not {"", ".", ".."}.isdisjoint(parts):
        raise ValueError("its path has no empty parts, `.` and `..`")
    if _NOT_IN_PATHS.search(match["path"]):
        raise ValueError("its path is UTF-8 without control characters")
    place = Place(server, "/" + "/".join(parts))
    if len(place.text.encode()) > _LONGEST_BYTES:
        raise ValueError(f"the kernel takes at most {_LONGEST_BYTES} bytes")
    return place


def _ipv6(text: str) -> str:
    address, percent, scope = text.partition("%")
    try:
        canonical = str(ipaddress.IPv6Address(address))
    except ValueError:
        raise ValueError(_ACCEPTED) from None
    if percent and re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", scope) is None:
        raise ValueError("what follows the % of an IPv6 address is the name of a network interface")
    return canonical + percent + scope


def _host(text: str) -> str:
    if _HOST_NAME.fullmatch(text) is None or len(text) > 253:
        raise ValueError(_ACCEPTED)
    return text.rstrip(".").lower()


class MountOptions(NamedTuple):
    """What `mount_options` says, checked: every option with its value (None for a flag), as the table spells and
    orders them. `ro` and `rw` are not among them: a volume has `read_only`.
    """

    words: tuple[tuple[str, str | None], ...]

    @property
    def text(self) -> str:
        return ",".join(key if value is None else f"{key}={value}" for key, value in self.words)

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions to try, in this order."""
        given = self.value("vers")
        if given is None:
            return NEWEST_FIRST
        return NEWEST_FIRST[:3] if given == "4" else (given,)

    @property
    def attributes(self) -> int:
        """The attributes of the mount."""
        attributes = mountcalls.NOSUID | mountcalls.NODEV
        for key, _ in self.words:
            attributes |= _ATTRIBUTES.get(key, 0)
        return attributes

    @property
    def parameters(self) -> list[tuple[str, str | None]]:
        """What the kernel's NFS client is told, transport and version apart."""
        apart = {"vers", "proto", "port", "mountproto", "mountport", *_ATTRIBUTES}
        return [(key, value) for key, value in self.words if key not in apart]

    def value(self, key: str) -> str | None:
        return dict(self.words).get(key)

    def number(self, key: str) -> int | None:
        text = self.value(key)
        return None if text is None else int(text)


class _Flag(NamedTuple):
    """An option without a value. Of one `group` only one may be given."""

    group: str = ""


class _Value(NamedTuple):
    accepted: str
    canonical: Callable[[str], str | None]


def _range(low: int, high: int, step: int = 1) -> _Value:
    def canonical(text: str) -> str | None:
        if _NUMBER.fullmatch(text) is None or not low <= int(text) <= high or int(text) % step:
            return None
        return str(int(text))

    of = f" that {step} divides" if step > 1 else ""
    return _Value(f"a number from {low} to {high}{of}", canonical)


def _one_of(*words: str, **aliases: str) -> _Value:
    def canonical(text: str) -> str | None:
        word = aliases.get(text, text)
        return word if word in words else None

    return _Value(f"{', '.join(words[:-1])} or {words[-1]}", canonical)


_ATTRIBUTES = {
    "nosuid": mountcalls.NOSUID,
    "nodev": mountcalls.NODEV,
    "noexec": mountcalls.NOEXEC,
    "noatime": mountcalls.NOATIME,
    "nodiratime": mountcalls.NODIRATIME,
}
_TRANSPORTS = ("tcp", "tcp6", "udp", "udp6")
_ALIASES = {"nfsvers": "vers"}
_IN_FORCE = ("hard", "nosuid", "nodev")  # unless the first of them is contradicted
_ACCESS = ("ro", "rw")
_OF_V3_ONLY = ("mountproto", "mountport", "lock", "nolock", "local_lock", "acl", "noacl")
_CACHE_TIMES = ("acregmin", "acregmax", "acdirmin", "acdirmax")
_LONGEST_CACHED_S = 60  # where neither acregmax nor acdirmax says otherwise: the kernel's own

OPTIONS: Mapping[str, _Flag | _Value] = {
    "vers": _one_of("4.2", "4.1", "4.0", "4", "3"),
    "proto": _one_of(*_TRANSPORTS),
    "port": _range(1, 65535),
    "mountproto": _one_of(*_TRANSPORTS),
    "mountport": _range(1, 65535),
    "sec": _one_of("sys", "krb5", "krb5i", "krb5p", "none"),
    "hard": _Flag("hard"),
    "soft": _Flag("hard"),
    "softerr": _Flag("hard"),
    "softreval": _Flag("reval"),
    "nosoftreval": _Flag("reval"),
    "timeo": _range(1, 6000),
    "retrans": _range(0, 100),
    "rsize": _range(1024, 1048576, 1024),
    "wsize": _range(1024, 1048576, 1024),
    "nconnect": _range(1, 16),
    "nosuid": _Flag(),
    "nodev": _Flag(),
    "noexec": _Flag(),
    "noatime": _Flag(),
    "nodiratime": _Flag(),
    "ro": _Flag("access"),
    "rw": _Flag("access"),
    "lookupcache": _one_of("all", "positive", "none", pos="positive"),
    "actimeo": _range(0, 86400),
    "acregmin": _range(0, 86400),
    "acregmax": _range(0, 86400),
    "acdirmin": _range(0, 86400),
    "acdirmax": _range(0, 86400),
    "ac": _Flag("ac"),
    "noac": _Flag("ac"),
    "cto": _Flag("cto"),
    "nocto": _Flag("cto"),
    "lock": _Flag("lock"),
    "nolock": _Flag("lock"),
    "local_lock": _one_of("all", "flock", "posix", "none"),
    "acl": _Flag("acl"),
    "noacl": _Flag("acl"),
    "rdirplus": _Flag("rdirplus"),
    "nordirplus": _Flag("rdirplus"),
    "sharecache": _Flag("sharecache"),
    "nosharecache": _Flag("sharecache"),
    "resvport": _Flag("resvport"),
    "noresvport": _Flag("resvport"),
}


class Parsed(NamedTuple):
    """A list of options: those that are accepted, whether it says that nothing is written (None: neither `ro` nor
    `rw`), and a sentence for everything that is wrong with it.
    """

    options: MountOptions
    is_read_only: bool | None
    problems: list[str]


def parse_mount_options(text: str) -> Parsed:
    """The options of a comma-separated list, with those that are in force unless it says otherwise."""
    given: dict[str, str | None] = {}
    problems = []
    for word in text.split(",") if text else ():
        key, equals, value = word.partition("=")
        key = _ALIASES.get(key, key)
        problem, canonical = _checked(key, value if equals else None)
        if problem is None and key in given:
            problem = f"mount option {key} is given twice"
        if problem is not None:
            problems.append(problem)
        else:
            given[key] = canonical
    problems += _quarrels(given)
    is_read_only = "ro" in given if not given.keys().isdisjoint(_ACCESS) else None
    for key in _IN_FORCE:
        if key != "hard" or given.keys().isdisjoint(("soft", "softerr")):
            given[key] = None
    words = tuple((key, given[key]) for key in OPTIONS if key in given and key not in _ACCESS)
    return Parsed(MountOptions(words), is_read_only, problems)


def _checked(key: str, value: str | None) -> tuple[str | None, str | None]:
    """What is wrong with an option, or its value in the only spelling."""
    match OPTIONS.get(key):
        case None if key in {"dev", "suid"}:
            return f"mount option {key} is not accepted: NFS volumes are always no{key}", None
        case None:
            return f"mount option {quoted(key)} is not accepted: accepted are {', '.join(OPTIONS)}", None
        case _Flag():
            return None if value is None else f"mount option {key} has no value", None
        case _Value(accepted, canonical):
            word = canonical(value) if value is not None else None
            if word is None:
                shown = key if value is None else f"{key}={quoted(value)}"
                return f"mount option {shown} is not accepted: it is {accepted}", None
            return None, word


def _quarrels(given: Mapping[str, str | None]) -> list[str]:
    """What contradicts each other, where the kernel would let the last win or ignore one without a word."""
    groups: dict[str, list[str]] = {}
    for key in given:
        kind = OPTIONS[key]
        if isinstance(kind, _Flag) and kind.group:
            groups.setdefault(kind.group, []).append(key)
    contradictions = [" and ".join(keys) for keys in groups.values() if keys[1:]]
    return [
        *(f"mount options {keys} contradict each other" for keys in contradictions),
        *_quarrels_of_versions(given),
        *_quarrels_of_caching(given),
        *_quarrels_of_locking(given),
    ]


def _quarrels_of_versions(given: Mapping[str, str | None]) -> Iterator[str]:
    version, proto, mountproto = (given.get(key) or "" for key in ("vers", "proto", "mountproto"))
    if proto.startswith("udp"):
        if version != "3":
            yield f"mount option proto={proto} is accepted only with vers=3: NFSv4 needs TCP"
        if "nconnect" in given:
            yield f"mount options nconnect and proto={proto} contradict each other: it needs TCP"
    if mountproto.endswith("6") and not proto.endswith("6"):
        yield f"mount option mountproto={mountproto} needs proto=tcp6 or udp6: the server has one address for both"
    if version.startswith("4"):
        for key in filter(given.__contains__, _OF_V3_ONLY):
            yield f"mount option {key} is of NFSv3 only, and vers={version} is given: leave one of them out"


def _quarrels_of_caching(given: Mapping[str, str | None]) -> Iterator[str]:
    times = {key: int(value) for key in ("actimeo", *_CACHE_TIMES) if (value := given.get(key)) is not None}
    if "noac" in given:
        for key in (key for key, seconds in times.items() if seconds):
            yield f"mount options noac and {key} contradict each other: with noac no attributes are cached"
    if "actimeo" in times:
        for key in filter(times.__contains__, _CACHE_TIMES):
            yield f"mount options actimeo and {key} contradict each other: actimeo sets {key}, too"
    for low, high in (_CACHE_TIMES[:2], _CACHE_TIMES[2:]):
        most = times.get(high, _LONGEST_CACHED_S)
        if times.get(low, 0) > most:
            left_out = "" if high in times else ", if it is left out"
            yield f"mount option {low}={times[low]} is above {high}, which is {most}{left_out}"


def _quarrels_of_locking(given: Mapping[str, str | None]) -> Iterator[str]:
    local = given.get("local_lock")
    if "nolock" in given and local not in {None, "all"}:
        yield f"mount options nolock and local_lock={local} contradict each other: with nolock all locks are local"
    if "lock" in given and local == "all":
        yield "mount options lock and local_lock=all contradict each other: with that no lock leaves this host"

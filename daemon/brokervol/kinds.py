"""What texts settings accept, and what these mean. Imports little: the supervisor reads settings, too."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

AUDIT_TO_LOG, AUDIT_OFF = "-", "off"

_WHOLE = re.compile("[0-9]{1,12}")
_REGION = re.compile("[a-z0-9][a-z0-9-]{0,62}")
# SQLite's in a file: in memory every thread would have another.
_DATABASE = re.compile(r"sqlite(?:\+\w+)?:///(?!:memory:|file:|\?).+|postgresql(?:\+\w+)?://.*")
_URL = re.compile(
    r"https?://(?P<user>[^@/?#\s]*@)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?/?"
)


class Kind(NamedTuple, Generic[T]):
    """What texts are accepted, in words, and what they mean. `parse` raises ValueError for others."""

    accepted: str
    parse: Callable[[str], T]


def listed(accepted: str) -> Kind[str]:
    """A list, which only who uses it can judge."""
    return Kind(accepted, str)


def whole(least: int, most: int) -> Kind[int]:
    """A number within bounds."""

    def parse(text: str) -> int:
        if _WHOLE.fullmatch(text) is None or not least <= int(text) <= most:
            raise ValueError
        return int(text)

    return Kind(f"a whole number from {least} to {most}", parse)


def choice(*words: str) -> Kind[str]:
    """One of some words, in whatever case."""

    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError
        return text.lower()

    return Kind(f"{', '.join(words[:-1])} or {words[-1]}", parse)


class Address(NamedTuple):
    """Where to listen: a literal address and a port; port 0 is any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _readable(text: str) -> str:
    """No control characters, no bytes that are no UTF-8, and no blanks at its ends, which nobody sees."""
    if not text.isprintable() or text != text.strip():
        raise ValueError
    return text


def _path(text: str) -> str:
    if text and not text.startswith("/"):  # relative to what, for a process that others start?
        raise ValueError
    return _readable(text)


def _audit(text: str) -> str:
    if text.lower() == AUDIT_OFF:
        return AUDIT_OFF
    if {".", ".."} & {*text.split("/")} or text.endswith("/"):
        raise ValueError
    return _readable(text)


def _loopback(text: str) -> Address | None:
    if not text:
        return None
    import ipaddress  # noqa: PLC0415  # most hosts have no such port

    host, _, port = text.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    address = ipaddress.ip_address(host[1:-1] if is_bracketed else host)
    if is_bracketed != (address.version == 6) or not address.is_loopback or "%" in host:
        raise ValueError
    return Address(str(address), whole(0, 65535).parse(port))


def _url(text: str) -> str:
    match = _URL.fullmatch(text)
    if text and (match is None or not 0 < int(match["port"] or 1) <= 65535):
        raise ValueError
    return text


def _service(text: str) -> str:
    if "@" in text:
        raise ValueError
    return _url(text)


def _database(text: str) -> str:
    if text and _DATABASE.fullmatch(text) is None:
        raise ValueError
    return _readable(text)


def _region(text: str) -> str:
    if text and _REGION.fullmatch(text) is None:
        raise ValueError
    return text


PATH = Kind("an absolute path", _path)
AUDIT = Kind(
    "a file, below ROOT/.state if relative, without . and .. in its path; - for standard output; off", _audit
)
LOOPBACK = Kind("a loopback address with a port, such as 127.0.0.1:9323 or [::1]:9323", _loopback)
SERVICE = Kind("https://host or http://host:port, without user, path or query", _service)
PROXY = Kind("an URL, such as http://proxy:3128 or http://user:password@proxy:3128", _url)
DATABASE = Kind(
    "an URL for SQLAlchemy: sqlite:////directory/file or postgresql://user:password@host/database", _database
)
REGION = Kind("a region's name, such as eu-central-1", _region)

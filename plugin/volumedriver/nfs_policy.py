"""Which NFS servers, and which of their exports, may be volumes on this host: ALLOWED_NFS_SERVERS."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import NamedTuple

from volumedriver.errors import NfsServerRefused, shown
from volumedriver.nfs_options import Place, parse_place

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Allowed(NamedTuple):
    """One entry. Either a `name` or a `network`, and the directory in which an export must lie."""

    name: str | None
    network: _Network | None
    prefix: str

    @property
    def text(self) -> str:
        server = self.name or str(self.network)
        if self.prefix == "/":
            return server
        return f"[{server}]:{self.prefix}" if ":" in server else f"{server}:{self.prefix}"

    def covers(self, path: str) -> bool:
        return self.prefix in {"/", path} or path.startswith(self.prefix + "/")


class NfsServerPolicy:
    """What this host allows; nothing in `allowed` allows everything."""

    def __init__(self, allowed: Sequence[Allowed] = ()) -> None:
        self._allowed = allowed

    def networks(self, place: Place) -> list[str] | None:
        """In which networks the server must turn out to be; None: anywhere.

        A server is allowed by its name, or by the address that it has. What a name stands for is known only when
        it is mounted, so where no entry names the server the mount must look.

        Raises:
            NfsServerRefused: nowhere.
        """
        return [str(entry.network) for entry in self._admitting(place) if entry.network is not None] or None

    def prefix(self, place: Place) -> str | None:
        """The directory of the server beneath which the place must turn out to be; None: anywhere.

        Where it depends on what the server's name stands for, the deepest of the directories that it may be.

        Raises:
            NfsServerRefused: nowhere.
        """
        entries = self._admitting(place)
        prefixes = [entry.prefix for entry in entries]
        is_any_enough = _address(place.server) is not None or any(entry.name for entry in entries)
        if set(prefixes) <= {"/"} or (is_any_enough and "/" in prefixes):
            return None
        return max(prefixes, key=len)

    def _admitting(self, place: Place) -> list[Allowed]:
        """The entries that allow it, by its name if one does, else by networks; none if all places are allowed."""
        if not self._allowed:
            return []
        entries = [entry for entry in self._allowed if entry.covers(place.path)]
        if named := [entry for entry in entries if entry.name == place.server]:
            return named
        networks = [entry for entry in entries if entry.network is not None]
        address = _address(place.server)
        if address is not None:
            networks = [entry for entry in networks if entry.network is not None and address in entry.network]
        if not networks:
            raise self.refusal(place)
        return networks

    def refusal(self, place: Place) -> NfsServerRefused:
        """What to tell who asked for a place that is not allowed."""
        allowed = ", ".join(entry.text for entry in self._allowed)
        return NfsServerRefused(
            f"nfs_path {shown(place.text)} is refused: ALLOWED_NFS_SERVERS of this host allows {allowed}"
        )


def parse_allowed(text: str) -> list[Allowed]:
    """The entries of a list separated by commas or spaces: `nas`, `nas:/export`, `10.0.0.0/8`, `[fd00::/8]:/x`.

    Raises:
        ValueError: with a sentence, where one of them is none of these, or there is none.
    """
    entries = [_entry(word) for word in re.split(r"[,\s]+", text) if word]
    if text and not entries:  # it was meant to allow less than all
        raise ValueError("it names no server; empty allows all")
    return entries


def _entry(word: str) -> Allowed:
    if (network := _network(word)) is not None:
        return Allowed(None, network, "/")
    server, colon, path = word.partition("]:/" if word.startswith("[") else ":/")
    try:
        if (network := _network(server.removeprefix("["))) is not None and colon:
            return Allowed(None, network, parse_place(f"any:/{path}").path)
        place = parse_place(word if colon else f"{word}:/")
    except ValueError as error:
        raise ValueError(
            f"the allowed NFS server {word!r} is not accepted: it is a name, an address or a network,"
            " with or without :/directory, IPv6 then in brackets"
        ) from error
    return Allowed(place.server, None, place.path)


def _network(text: str) -> _Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None

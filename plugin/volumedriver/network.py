"""This host's network, as the kernel tells it over netlink: the one home of pyroute2.

Which way leads to a server, whether its link is up, when any of that changes, and how the kernel's own connections
with a server fare. Nothing here sends the server anything, or touches a mount.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import structlog

log = structlog.get_logger()

_NO_ROUTE = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EACCES, errno.EINVAL))
_DOWN = frozenset(("DOWN", "LOWERLAYERDOWN", "NOTPRESENT"))  # UNKNOWN is what a loopback says
_UP_FLAG = 1
_REFUSING_ROUTES = frozenset((6, 7, 8))  # blackhole, unreachable, prohibit
_ESTABLISHED, _SYN_SENT = 1 << 1, 1 << 2
_INFO = 1 << 1  # INET_DIAG_INFO
_REOPEN_S, _LONG_REOPEN_S = 1.0, 60.0


class Path(NamedTuple):
    """The way to an address: over which link, from which address of ours."""

    link: str
    source: str
    is_up: bool


class Connections(NamedTuple):
    """The kernel's connections with a server: the longest smoothed round trip, and all segments sent again."""

    round_trip_ms: float
    retransmits: int


@functools.cache
def _pyroute2() -> Any:
    """It takes 0.2 s and 8 MB to import, which a host without NFS volumes does not spend."""
    import pyroute2  # noqa: PLC0415

    return pyroute2


def is_ready() -> bool:
    """Whether asking takes no longer than the kernel does."""
    return _pyroute2.cache_info().currsize > 0


def path(address: str) -> Path | None:
    """The way that the kernel would take to `address`, IPv6 with `%link` where it needs one; None: there is none.

    Raises:
        OSError: the kernel does not say.
    """
    parsed = ipaddress.ip_address(address)
    wanted: dict[str, Any] = {"dst": address.partition("%")[0], "family": _family(parsed)}
    if scope := getattr(parsed, "scope_id", None):
        wanted["oif"] = socket.if_nametoindex(scope)
    with _failures(), _pyroute2().IPRoute() as asked:
        try:
            (route,) = asked.route("get", **wanted)
        except _pyroute2().NetlinkError as error:
            if error.code in _NO_ROUTE:
                return None
            raise
        if route["type"] in _REFUSING_ROUTES:
            return None
        (link,) = asked.get_links(route.get("oif"))
        is_up = bool(link["flags"] & _UP_FLAG) and link.get("operstate") not in _DOWN
        return Path(link.get("ifname"), route.get("prefsrc") or "", is_up)


def connections(addresses: Sequence[str], port: int) -> Connections | None:
    """How this host's connections to a server's port fare, the kernel's among them; None: there is none.

    Raises:
        OSError: the kernel does not say (it was built without INET_DIAG).
    """
    wanted = {ipaddress.ip_address(address.partition("%")[0]) for address in addresses}
    found: list[Any] = []
    with _failures(), _pyroute2().DiagSocket() as diagnosis:
        diagnosis.bind()
        for family in {_family(address) for address in wanted}:
            states = _ESTABLISHED | _SYN_SENT
            found += [
                info
                for each in diagnosis.get_sock_stats(family=family, states=states, extensions=_INFO, dport=port)
                if ipaddress.ip_address(each["idiag_dst"]) in wanted and (info := each.get("INET_DIAG_INFO"))
            ]
    if not found:
        return None
    round_trip_us = max(info["tcpi_rtt"] for info in found)
    return Connections(round_trip_us / 1000, sum(info["tcpi_total_retrans"] for info in found))


class Watch:
    """Calls `changed` when links, addresses or routes have changed, from a thread of its own, until closed.

    On a host with containers that is often, and several times in a row: `changed` should only take note.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._is_closed = threading.Event()
        self._end: Callable[[], object] | None = None
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 5) -> None:
        self._is_closed.set()
        if self._end is not None:
            self._end()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._is_closed.is_set():
            try:
                asyncio.run(self._watch())
            except asyncio.CancelledError:
                return
            except OSError as error:
                log.info("events of the network are lost", reason=error.strerror)  # they came faster than we read
                self._is_closed.wait(_REOPEN_S)
            except Exception:
                log.exception("the network is not watched")
                self._is_closed.wait(_LONG_REOPEN_S)
            self._changed()

    async def _watch(self) -> None:
        self._end = functools.partial(_cancel, asyncio.get_running_loop(), asyncio.current_task())
        async with _pyroute2().AsyncIPRoute() as events:
            await events.bind(groups=_groups())
            while not self._is_closed.is_set():
                async for _ in events.get():
                    pass
                self._changed()


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None) -> None:
    if task is not None:
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(task.cancel)


def _groups() -> int:
    rtnl = _pyroute2().netlink.rtnl
    names = ("LINK", "IPV4_IFADDR", "IPV4_ROUTE", "IPV6_IFADDR", "IPV6_ROUTE")
    return sum(getattr(rtnl, f"RTMGRP_{name}") for name in names)


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Errors of netlink as those of any other system call."""
    try:
        yield
    except _pyroute2().NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code)) from error


def _family(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    return int(socket.AF_INET6 if address.version == 6 else socket.AF_INET)

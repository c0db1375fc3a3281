"""What the kernel says of ways, links and connections, in a network of the test's own whose links are cut."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from pyroute2 import IPRoute

from lab.namespaces import in_private_network
from lab.processes import wait_until
from lab.rpc_server import far_host
from volumedriver import network
from volumedriver.errors import NfsUnavailable
from volumedriver.health import State
from volumedriver.network import Connections, Watch
from volumedriver.nfs import NfsMounts, NfsSource
from volumedriver.nfs_probes import Prober
from volumedriver.nfs_servers import Servers
from volumedriver.options import NfsOptions, parse
from volumedriver.workers import Workers

pytestmark = pytest.mark.root

HERE, THERE = "10.1.0.1", "10.1.0.2"


class Net:
    """A link `here` with two addresses, at whose other end is `there`."""

    def __init__(self, netlink: Any) -> None:
        self._netlink = netlink
        self._index: dict[str, int] = {}
        netlink.link("add", ifname="here", kind="veth", peer="there")
        for name in ("lo", "here", "there"):
            (self._index[name],) = netlink.link_lookup(ifname=name)
            self.switch(name, "up")
        self.add_address()

    def add_address(self) -> None:
        self._netlink.addr("add", index=self._index["here"], address=HERE, prefixlen=24)
        self._netlink.addr("add", index=self._index["here"], address="fd01::1", prefixlen=64, flags=2)  # at once

    def switch(self, name: str, state: str) -> None:
        self._netlink.link("set", index=self._index[name], state=state)

    def refuse(self, destination: str, kind: str) -> None:
        self._netlink.route("add", dst=destination, type=kind)

    def restore(self) -> None:
        self.switch("here", "up")

    def move_there(self, pid: int) -> None:
        """Make `there` a link of another network."""
        self._netlink.link("set", index=self._index["there"], net_ns_pid=pid)


@contextlib.contextmanager
def net() -> Iterator[Net]:
    with IPRoute() as netlink:
        yield Net(netlink)


@in_private_network
def test_the_way_to_an_address() -> None:
    assert network.path(THERE) is None
    with net() as links:
        wait_until(lambda: network.path(THERE) == ("here", HERE, True), "the carrier is there")
        assert network.path("fd01::2") == ("here", "fd01::1", True)
        way = network.path("fe80::2%here")
        assert way is not None
        assert (way.link, way.is_up) == ("here", True)
        assert network.path(HERE) == ("lo", HERE, True)
        assert network.path("10.2.0.1") is None
        for number, kind in enumerate(("unreachable", "blackhole", "prohibit")):
            links.refuse(f"10.1.0.{128 + 8 * number}/29", kind)
            links.refuse(f"fd01::{number + 1}:0/112", kind)
            assert network.path(f"10.1.0.{129 + 8 * number}") is None
            assert network.path(f"fd01::{number + 1}:1") is None
        links.switch("there", "down")
        wait_until(lambda: network.path(THERE) == ("here", HERE, False), "the carrier is gone")
        links.switch("there", "up")
        wait_until(lambda: network.path(THERE) == ("here", HERE, True), "the carrier is back")
        links.switch("here", "down")
        assert network.path(THERE) is None


@in_private_network
def test_changes_are_noticed() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    noticed = threading.Event()
    with net() as links, contextlib.closing(Watch(noticed.set)):
        links.switch("there", "down")
        while not noticed.wait(0.05):  # it may not have listened yet
            links.switch("there", "up")
            links.switch("there", "down")
        changes: list[Callable[[], None]] = [
            partial(links.switch, "there", "up"),
            partial(links.refuse, "10.9.0.0/16", "unreachable"),
        ]
        for change in changes:
            wait_until(lambda: _is_silent(noticed), "all earlier ones are told")
            change()
            assert noticed.wait(10)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() == 1


def _is_silent(noticed: threading.Event) -> bool:
    noticed.clear()
    return not noticed.wait(0.2)


def test_a_watch_is_closed_at_once() -> None:
    for _ in range(20):
        Watch(lambda: None).close()
    wait_until(lambda: not any(thread.name == "network" for thread in threading.enumerate()), "they ended")


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_connections_to_a_port(family: socket.AddressFamily, address: str) -> None:
    with socket.create_server((address, 0), family=family) as listener:
        port = listener.getsockname()[1]
        assert network.connections([address], port) is None
        with socket.create_connection((address, port)):
            seen = network.connections([address, "127.0.0.9"], port)
            assert isinstance(seen, Connections)
            assert (0 < seen.round_trip_ms < 1000, seen.retransmits) == (True, 0)
            assert network.connections(["127.0.0.9", "fd00::9"], port) is None


def source(server: str) -> NfsSource:
    options = parse({"nfs_path": f"{server}:/data"})
    assert isinstance(options, NfsOptions)
    return NfsSource(options, None)


@contextlib.contextmanager
def probing(server: str) -> Iterator[tuple[Servers, NfsMounts]]:
    """Servers of which one is in use. Regular probes come so seldom that none is seen here."""
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    servers = Servers(interval_s=3600)
    with contextlib.closing(Workers()) as workers:
        mounts = NfsMounts(workers, 5, servers)
        with contextlib.closing(Prober(servers, mounts, lambda: [source(server)])) as prober:
            prober.start()
            yield servers, mounts


@in_private_network
def test_a_cut_link_is_known_at_once_and_its_return_as_well() -> None:
    with net() as links, far_host("there", THERE, links.move_there) as switch, probing(THERE) as (servers, mounts):
        wait_until(lambda: _state(servers) is State.HEALTHY, "the server answers")
        for cut, mend, reason in (
            (partial(switch, "down"), partial(switch, "up"), f"the link here towards {THERE} is down: check its"),
            (
                partial(links.switch, "here", "down"),
                links.restore,
                f"there is no route to {THERE}: check this host",
            ),
        ):
            _cut(cut, mend, servers)
            (health,) = servers.report()
            assert health.reason.startswith(reason)
            with pytest.raises(NfsUnavailable, match=f"cannot mount {THERE}:/data: {reason}"):
                mounts.mount(source(THERE), 0, read_only=False)
            mend()
            wait_until(lambda: _state(servers) is State.HEALTHY, "the server is found again")


def _cut(cut: Callable[[], None], mend: Callable[[], None], servers: Servers) -> None:
    """Cut the link until that is noticed: the first time may be before anybody listens."""
    for _ in range(20):
        cut()
        with contextlib.suppress(AssertionError):
            wait_until(lambda: _state(servers) is State.UNREACHABLE, "that is noticed", timeout_s=2)
            return
        mend()
    raise AssertionError("nobody noticed")


def _state(servers: Servers) -> State:
    report = servers.report()
    return report[0].state if report else State.UNKNOWN

"""Hosts with an NFS server each, in a machine of the tests' own (`lab.uml`): network namespaces with a link each.

The kernel's server, its rpcbind, mountd and file systems are one set for each namespace, so a house knows nothing
of the others and of the machine's own `lab.nas`. The link is a pair of interfaces; either can be taken down.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pyroute2 import IPRoute, netns

from lab.processes import wait_until

_DOOR = "door"  # the interface of a house, inside
# rpcbind's socket and everybody's state are files, so the mount namespace is its own, too. nfsdcld remembers
# clients: what does so outside of namespaces does not work in one, and every start would take ten seconds.
_BUILD = """
set -e
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib/nfs
mount -t tmpfs tmpfs /exports
mount -t nfsd nfsd /proc/fs/nfsd
mkdir -p /run/rpcbind /run/rpc_pipefs /var/lib/nfs/nfsdcld
mount -t rpc_pipefs rpc_pipefs /run/rpc_pipefs
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
rpcbind -w
rpc.mountd
nfsdcld -p /run/rpc_pipefs
echo ready
exec cat
"""
_GRACE = "/proc/fs/nfsd/v4_end_grace"
_NFS_PORT = 2049
# Or else pyroute2 searches for it each time, with programs that do not run in this machine.
_libc = ctypes.CDLL(None, use_errno=True)


class House:
    """A server, reached by `name` over a link of its own. It stands until the machine ends.

    Attributes:
        exports: where the files are that it exports as `/`, as the machine sees them.
    """

    _numbers = itertools.count(1)
    _houses: ClassVar[list[House]] = []

    def __init__(self, name: str) -> None:
        assert "User Mode Linux" in Path("/proc/cpuinfo").read_text(), "only in a machine of the tests' own"
        self.name = name
        number = next(self._numbers)
        self._address = f"10.77.{number}.2"
        self._lay_link(f"10.77.{number}.1", self._address)
        self._keeper = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{name}", "unshare", "--mount", "sh", "-c", _BUILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == b"ready\n"
        self.exports = Path(f"/proc/{self._keeper.pid}/root/exports")
        self.open()
        self._houses.append(self)

    def open(self) -> None:
        """Serve."""
        wait_until(self._serves, f"{self.name} serves")

    def close(self) -> None:
        """Serve no more: connections are refused."""
        self._run("rpc.nfsd", "0")

    def serve_version_3_only(self) -> None:
        """Serve, if it was closed. The next `open` serves all versions again."""
        self._run("rpc.nfsd", "-N", "4", "-G", "10", "-L", "10", "4")

    @property
    def pid(self) -> int:
        """A process in its namespaces."""
        return self._keeper.pid

    def export(self, name: str) -> Path:
        """Export a new directory as `/name`; returns where it is."""
        path = self.exports / name
        path.mkdir()
        fsid = 100 + len(list(self.exports.iterdir()))  # a tmpfs has none of its own
        self._run("exportfs", "-o", f"rw,no_root_squash,insecure,no_subtree_check,fsid={fsid}", f"*:/{name}")
        return path

    def cut(self, *, inside: bool) -> None:
        """Take the link down, at the end in the house or at this one."""
        self._set_link("down", inside=inside)

    def mend(self) -> None:
        """Have the link up at both ends."""
        for inside in (True, False):
            self._set_link("up", inside=inside)

    @contextlib.contextmanager
    def absent(self) -> Iterator[None]:
        """Nobody has its address: what is sent there is lost."""
        with IPRoute(netns=self.name) as namespace:
            address = {"index": namespace.link_lookup(ifname=_DOOR)[0], "address": self._address, "prefixlen": 24}
            namespace.addr("del", **address)
            try:
                yield
            finally:
                namespace.addr("add", **address)

    @contextlib.contextmanager
    def silent(self, *, is_deaf: bool) -> Iterator[None]:
        """In the place of its server is one that accepts connections, and then never answers.

        Args:
            is_deaf: or else it answers a call that does nothing (RPC NULL), but no other.
        """
        self.close()
        netns.pushns(self.name, _libc)
        try:
            listener = socket.create_server(("", _NFS_PORT), backlog=64)
        finally:
            netns.popns(_libc)
        try:
            if not is_deaf:
                threading.Thread(target=_greet, args=(listener,), daemon=True).start()
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            self.open()

    def _serves(self) -> bool:
        """Begin, with no time of grace. For that nfsdcld must be ready when the kernel looks for it."""
        self._run("rpc.nfsd", "-G", "10", "-L", "10", "4")
        if self._has_run("sh", "-c", f"grep -q Y {_GRACE} || echo Y > {_GRACE}"):
            return True
        self.close()
        return False

    def _lay_link(self, here: str, there: str) -> None:
        netns.create(self.name, _libc)
        with IPRoute() as namespace:
            peer = {"ifname": _DOOR, "net_ns_fd": self.name}
            namespace.link("add", ifname=self.name, kind="veth", peer=peer)
            index = namespace.link_lookup(ifname=self.name)[0]
            namespace.addr("add", index=index, address=here, prefixlen=24)
        with IPRoute(netns=self.name) as namespace:
            namespace.link("set", index=namespace.link_lookup(ifname="lo")[0], state="up")
            namespace.addr("add", index=namespace.link_lookup(ifname=_DOOR)[0], address=there, prefixlen=24)
        self.mend()
        with open("/etc/hosts", "a", encoding="ascii") as hosts:
            hosts.write(f"{there} {self.name}\n")

    def _set_link(self, state: str, *, inside: bool) -> None:
        with IPRoute(netns=self.name if inside else None) as namespace:
            index = namespace.link_lookup(ifname=_DOOR if inside else self.name)[0]
            namespace.link("set", index=index, state=state)

    def _run(self, *command: str) -> None:
        assert self._has_run(*command), command

    def _has_run(self, *command: str) -> bool:
        entering = ["nsenter", "-t", str(self._keeper.pid), "--root", "--wd", "--mount", "--net", "--"]
        return subprocess.run([*entering, *command], check=False).returncode == 0


def _greet(listener: socket.socket) -> None:
    """Answer each first request that is NULL, and nothing else."""
    connections = []  # which nobody closes
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            connections.append(connection)
            request = connection.recv(4096)
            if request[24:28] == bytes(4):
                answer = request[4:8] + struct.pack(">5I", 1, 0, 0, 0, 0)
                connection.sendall(struct.pack(">I", 1 << 31 | len(answer)) + answer)
    for connection in connections:
        connection.close()

"""A host with a server that answers every RPC call, as an NFS server does one that asks for nothing.

For networks in which there is no NFS server. It lives in a network of its own, at the other end of a link of ours.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

from pyroute2 import IPRoute

PORT = 2049


@contextlib.contextmanager
def far_host(link: str, address: str, move: Callable[[int], None]) -> Iterator[Callable[[str], None]]:
    """Run it: `move` gives `link` to the network of a process. Yields what switches that end "up" and "down"."""
    command = ["unshare", "--net", "--", sys.executable, "-m", "lab.rpc_server", link, address]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        orders, answers = process.stdin, process.stdout

        def order(state: str) -> None:
            print(state, file=orders, flush=True)
            assert answers.readline() == f"{state}\n"

        assert answers.readline() == "here\n"
        move(process.pid)
        order("up")
        yield order
        orders.close()


def _serve(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            call = connection.recv(1 << 16)
            refusal = struct.pack(">3I", 10004, 0, 0)  # NFS4ERR_NOTSUPP, where NFSv4 was asked something
            reply = call[4:8] + struct.pack(">5I", 1, 0, 0, 0, 0) + refusal
            connection.sendall(struct.pack(">I", 0x80000000 | len(reply)) + reply)


def main(link: str, address: str) -> None:
    with IPRoute() as netlink, socket.create_server(("", PORT)) as listener:
        print("here", flush=True)
        threading.Thread(target=_serve, args=[listener], daemon=True).start()
        for line in sys.stdin:
            (index,) = netlink.link_lookup(ifname=link)
            with contextlib.suppress(Exception):  # it has the address
                netlink.addr("add", index=index, address=address, prefixlen=24)
            netlink.link("set", index=index, state=line.strip())
            print(line, end="", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

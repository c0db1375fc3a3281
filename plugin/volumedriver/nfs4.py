"""What NFSv4's client says first to a server (RFC 7530, RFC 8881), said in a worker, which can be killed.

The kernel greets one server at a time (nfs_clid_init_mutex, Linux 6.1), and waits as long as that takes: a server
that answers the first call and hangs at the second would keep it from the first mount of every other one.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

from volumedriver import rpc
from volumedriver.rpc import Address, Reader

_COMPOUND = 1
_SETCLIENTID, _SETCLIENTID_CONFIRM = 35, 36
_EXCHANGE_ID, _CREATE_SESSION, _DESTROY_SESSION = 42, 43, 44
_SEQUENCE, _DESTROY_CLIENTID = 53, 57

_KERNELS_CLIENTS = "/proc/fs/nfsfs/servers"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_ATTRIBUTES = struct.pack(">7I", 0, 4096, 4096, 2048, 8, 1, 0)  # of a channel: sizes, operations, requests


class _Answer(NamedTuple):
    """Of an operation. A status other than 0 is an answer, too."""

    status: int
    result: Reader


def is_known_to_kernel(address: Address, port: int) -> bool:
    """Whether the kernel has greeted the server, in this network namespace. False: it may yet."""
    wanted = [b"v4", socket.inet_pton(address.family, address.host).hex().encode(), b"%x" % port]
    with contextlib.suppress(OSError), open(_KERNELS_CLIENTS, "rb") as clients:
        return any(line.split()[:3] == wanted for line in clients)
    return False


def greet(connection: socket.socket, minor: int, *, is_whole: bool, tell: Callable[[str], object]) -> None:
    """Ask for what a mount begins with: who is answered will be served.

    A call that does nothing would not do: a server may answer it, and hang at the first that does something.

    Args:
        is_whole: all that the kernel says until it has a client there; which is given back. Else only the first
            call, of a client that never confirms, so that the server forgets it.
        tell: called with the name of each call after the first, before it is made.

    Raises:
        rpc.NotServed: the server does not have version 4. A minor version that it does not have is an answer.
        rpc.NoRpc: the answer is none.
        OSError: the connection fails.
    """
    with contextlib.suppress(rpc.Denied):
        (_greet_with_sessions if minor else _greet_without_sessions)(connection, minor, is_whole, tell)


def _greet_without_sessions(
    connection: socket.socket, minor: int, is_whole: bool, tell: Callable[[str], object]
) -> None:
    nowhere = struct.pack(">I", 0) + rpc.opaque(b"tcp") + rpc.opaque(b"0.0.0.0.0.0")  # to call back to
    answer = _asked(connection, minor, _SETCLIENTID, _owner() + nowhere + struct.pack(">I", 0))
    if is_whole and not answer.status:
        tell("SETCLIENTID_CONFIRM")
        _asked(connection, minor, _SETCLIENTID_CONFIRM, answer.result.fixed(16))


def _greet_with_sessions(
    connection: socket.socket, minor: int, is_whole: bool, tell: Callable[[str], object]
) -> None:
    answer = _asked(connection, minor, _EXCHANGE_ID, _owner() + struct.pack(">3I", 0, 0, 0))
    if not is_whole or answer.status:
        return
    client, sequence = answer.result.fixed(8), answer.result.fixed(4)
    flags, callbacks = bytes(4), struct.pack(">3I", 0, 1, 0)  # a program, and one flavour: none
    tell("CREATE_SESSION")
    channels = client + sequence + flags + _ATTRIBUTES + _ATTRIBUTES + callbacks
    answer = _asked(connection, minor, _CREATE_SESSION, channels)
    if answer.status:
        return
    session = answer.result.fixed(16)
    tell("SEQUENCE")  # not RECLAIM_COMPLETE, which has servers write down on disk that there is such a client
    _asked(connection, minor, _SEQUENCE, session + struct.pack(">4I", 1, 0, 0, 0))
    tell("DESTROY_SESSION")
    _asked(connection, minor, _DESTROY_SESSION, session)
    tell("DESTROY_CLIENTID")
    _asked(connection, minor, _DESTROY_CLIENTID, client)


def _owner() -> bytes:
    """A verifier, and a name that no kernel gives itself, and no other host."""
    boot_id = b""
    with contextlib.suppress(OSError), open(_BOOT_ID, "rb") as file:
        boot_id = file.read().strip()
    return bytes(8) + rpc.opaque(b"brokervol asks, of boot %s, process %d" % (boot_id, os.getpid()))


def _asked(connection: socket.socket, minor: int, operation: int, arguments: bytes) -> _Answer:
    """The answer to one operation."""
    body = struct.pack(">4I", 0, minor, 1, operation) + arguments  # no tag
    reply = Reader(rpc.call(connection, rpc.NFS, 4, _COMPOUND, body))
    status = reply.number()
    reply.opaque()
    if reply.number():
        reply.fixed(8)  # which operation, and its status again
    return _Answer(status, reply)

"""As much of ONC RPC (RFC 5531) over TCP as it takes to ask a server whether, and how, it serves NFS.

The kernel's client does the work; this asks first, because the kernel's answer to most failures is the same errno.
Runs in workers, which are killed when it takes too long; imports little.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

PORTMAPPER, NFS, MOUNT, STATUS = 100000, 100003, 100005, 100024
PORTMAPPER_PORT, NFS_PORT = 111, 2049
TCP, UDP = 6, 17

_CALL, _REPLY, _RPC_VERSION = 0, 1, 2
_ACCEPTED = 0
_NULL, _GET_PORT, _EXPORTS = 0, 3, 5
_LAST_FRAGMENT = 0x80000000
_LONGEST_REPLY_BYTES = 1 << 20
_MOST_EXPORTS = 1000


class NotServed(Exception):
    """The server does not have the program, or not in this version but in `low` to `high`."""

    def __init__(self, low: int = 0, high: int = 0) -> None:
        super().__init__(low, high)
        self.low = low
        self.high = high


class NoRpc(Exception):
    """What answers does not speak RPC, or refuses to."""


class Denied(NoRpc):
    """It does, but not without credentials."""


class Address(NamedTuple):
    """Where a server is, as getaddrinfo(3) tells it. `scope_id` is the link of an IPv6 address that needs one."""

    family: int
    host: str
    scope_id: int = 0

    @property
    def is_ipv6(self) -> bool:
        return self.family == socket.AF_INET6

    @property
    def text(self) -> str:
        """The address as the kernel reads it."""
        return f"{self.host}%{socket.if_indextoname(self.scope_id)}" if self.scope_id else self.host

    def at(self, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
        return (self.host, port, 0, self.scope_id) if self.is_ipv6 else (self.host, port)


def connected(addresses: Sequence[Address], port: int) -> tuple[socket.socket, Address]:
    """A connection to the first address that accepts one; all are tried at once.

    Raises:
        OSError: none does; of the last one that refused.
    """
    if len(addresses) == 1:
        return _connected(addresses[0], port), addresses[0]
    failure = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as waiting:
        for address in addresses:
            connection = stack.enter_context(socket.socket(address.family, socket.SOCK_STREAM))
            connection.setblocking(False)
            code = connection.connect_ex(address.at(port))
            if code in {0, errno.EINPROGRESS}:
                waiting.register(connection, selectors.EVENT_WRITE, (connection, address))
            else:
                failure = OSError(code, os.strerror(code))
        while waiting.get_map():
            for key, _ in waiting.select():
                connection, address = key.data
                waiting.unregister(connection)
                code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not code:
                    connection.setblocking(True)
                    return connection.dup(), address
                failure = OSError(code, os.strerror(code))
    raise failure


def _connected(address: Address, port: int) -> socket.socket:
    connection = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        connection.connect(address.at(port))
    except OSError:
        connection.close()
        raise
    return connection


def call(connection: socket.socket, program: int, version: int, procedure: int, arguments: bytes = b"") -> bytes:
    """The result of one call without credentials.

    Raises:
        NotServed: the program or its version.
        NoRpc: the answer is none.
        OSError: the connection fails.
    """
    xid = os.urandom(4)
    head = struct.pack(">6I", _CALL, _RPC_VERSION, program, version, procedure, 0)
    message = xid + head + bytes(12) + arguments  # no credentials, no verifier
    connection.sendall(struct.pack(">I", _LAST_FRAGMENT | len(message)) + message)
    return _result(_record(connection), xid)


def opaque(value: bytes) -> bytes:
    """Bytes of any length in XDR."""
    return struct.pack(">I", len(value)) + value + bytes(-len(value) % 4)


def ping(connection: socket.socket, program: int, version: int) -> None:
    """Make the call that does nothing.

    Raises:
        NotServed: the server does not have the program, or not in this version.
        NoRpc: the answer is none.
        OSError: the connection fails.
    """
    call(connection, program, version, _NULL)


def port_of(connection: socket.socket, program: int, version: int, protocol: int) -> int:
    """Ask a portmapper on which port a program is.

    Raises:
        NotServed: it is not registered.
    """
    wanted = struct.pack(">4I", program, version, protocol, 0)
    (port,) = struct.unpack(">I", call(connection, PORTMAPPER, 2, _GET_PORT, wanted)[:4])
    if not port:
        raise NotServed
    return int(port)


def exports(connection: socket.socket) -> list[str]:
    """The directories that a mount daemon says it exports, whoever to."""
    result = Reader(call(connection, MOUNT, 3, _EXPORTS))
    found: list[str] = []
    while result.number() and len(found) < _MOST_EXPORTS:
        found.append(os.fsdecode(result.opaque()))
        while result.number():
            result.opaque()
    return found


class Reader:
    """XDR (RFC 4506)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def number(self) -> int:
        return int.from_bytes(self._bytes(4), "big")

    def opaque(self) -> bytes:
        length = self.number()
        value = self._bytes(length)
        self._bytes(-length % 4)
        return value

    def fixed(self, count: int) -> bytes:
        """So many bytes, a multiple of four."""
        return self._bytes(count)

    def rest(self) -> bytes:
        return self._data[self._place :]

    def _bytes(self, count: int) -> bytes:
        end = self._place + count
        if end > len(self._data):
            raise NoRpc("the answer is cut off")
        value, self._place = self._data[self._place : end], end
        return value


def _record(connection: socket.socket) -> bytes:
    return b"".join(_fragments(connection))


def _fragments(connection: socket.socket) -> Iterator[bytes]:
    total = 0
    while True:
        (mark,) = struct.unpack(">I", _received(connection, 4))
        length = mark & ~_LAST_FRAGMENT
        total += length
        if total > _LONGEST_REPLY_BYTES:
            raise NoRpc("the answer is no RPC")
        yield _received(connection, length)
        if mark & _LAST_FRAGMENT:
            return


def _received(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise NoRpc("the connection was closed without an answer")
        data += part
    return bytes(data)


def _result(record: bytes, xid: bytes) -> bytes:
    reply = Reader(record)
    if reply.number() != int.from_bytes(xid, "big") or reply.number() != _REPLY:
        raise NoRpc("the answer is no RPC")
    if reply.number() != _ACCEPTED:
        raise Denied("the call was denied")
    reply.number()
    reply.opaque()
    match reply.number():
        case 0:
            return reply.rest()
        case 1:  # no such program
            raise NotServed
        case 2:  # no such version
            raise NotServed(reply.number(), reply.number())
        case status:
            raise NoRpc(f"the call was not accepted ({status})")

"""Asking a server before the kernel does: what comes back may be anything."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from volumedriver import nfs4, rpc
from volumedriver.rpc import Address, NoRpc, NotServed

LOCAL = Address(socket.AF_INET, "127.0.0.1")
ACCEPTED = struct.pack(">IIII", 1, 0, 0, 0)  # a reply, accepted, without a verifier


def record(payload: bytes, *, is_last: bool = True) -> bytes:
    return struct.pack(">I", len(payload) | (0x80000000 if is_last else 0)) + payload


@contextlib.contextmanager
def server(answer: Callable[[bytes], bytes]) -> Iterator[socket.socket]:
    """A connection to a server that answers one call, of the number that it is given, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                call = connection.recv(1 << 16)
                connection.sendall(answer(call[4:8]))

        thread = threading.Thread(target=serve)
        thread.start()
        connection, address = rpc.connected([LOCAL], listener.getsockname()[1])
        assert address == LOCAL
        with connection:
            yield connection
        thread.join()


def test_a_result() -> None:
    with server(lambda xid: record(xid + ACCEPTED + struct.pack(">I", 0) + b"result")) as connection:
        assert rpc.call(connection, rpc.NFS, 4, 0) == b"result"


def test_a_result_in_pieces() -> None:
    def answer(xid: bytes) -> bytes:
        return record(xid + ACCEPTED, is_last=False) + record(struct.pack(">II", 0, 2049))

    with server(answer) as connection:
        assert rpc.port_of(connection, rpc.NFS, 3, rpc.TCP) == 2049


def test_a_version_that_is_not_served() -> None:
    with (
        server(lambda xid: record(xid + ACCEPTED + struct.pack(">III", 2, 2, 3))) as connection,
        pytest.raises(NotServed) as served,
    ):
        rpc.call(connection, rpc.NFS, 4, 0)
    assert (served.value.low, served.value.high) == (2, 3)


@pytest.mark.parametrize("result", [struct.pack(">I", 1), struct.pack(">II", 0, 0)])
def test_a_program_that_is_not_there(result: bytes) -> None:
    with server(lambda xid: record(xid + ACCEPTED + result)) as connection, pytest.raises(NotServed):
        rpc.port_of(connection, rpc.NFS, 3, rpc.TCP)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x80\x00\x00\x04abcd",
        record(b""),
        record(b"x" * 100),
        struct.pack(">I", 0x8FFFFFFF),
        b"\x00" * 4,
    ],
)
def test_what_is_no_rpc(answer: bytes) -> None:
    with server(lambda _: answer) as connection, pytest.raises(NoRpc):
        rpc.call(connection, rpc.NFS, 4, 0)


@pytest.mark.parametrize("rest", [struct.pack(">II", 1, 1), ACCEPTED[4:8] + struct.pack(">III", 0, 0, 4)])
def test_a_call_that_is_denied(rest: bytes) -> None:
    with server(lambda xid: record(xid + struct.pack(">I", 1) + rest)) as connection, pytest.raises(NoRpc):
        rpc.call(connection, rpc.NFS, 4, 0)


def test_exports() -> None:
    def opaque(text: bytes) -> bytes:
        return struct.pack(">I", len(text)) + text + b"\0" * (-len(text) % 4)

    one = struct.pack(">I", 1) + opaque(b"/data") + struct.pack(">I", 1) + opaque(b"*") + struct.pack(">I", 0)
    two = struct.pack(">I", 1) + opaque(b"/x\xff") + struct.pack(">I", 0)
    listed = one + two + struct.pack(">I", 0)
    with server(lambda xid: record(xid + ACCEPTED + struct.pack(">I", 0) + listed)) as connection:
        assert rpc.exports(connection) == ["/data", "/x\udcff"]
    with (
        server(lambda xid: record(xid + ACCEPTED + struct.pack(">I", 0) + listed[:-6])) as connection,
        pytest.raises(NoRpc),
    ):
        rpc.exports(connection)


def test_the_first_address_that_accepts() -> None:
    with socket.create_server(("127.0.0.2", 0)) as listener:
        port = listener.getsockname()[1]
        second = Address(socket.AF_INET, "127.0.0.2")
        connection, address = rpc.connected([LOCAL, second], port)
        connection.close()
        assert address == second
    with pytest.raises(ConnectionRefusedError):
        rpc.connected([LOCAL, second], port)


def test_addresses_as_the_kernel_reads_them() -> None:
    assert Address(socket.AF_INET6, "fe80::1", socket.if_nametoindex("lo")).text == "fe80::1%lo"
    assert Address(socket.AF_INET6, "::1").at(2049) == ("::1", 2049, 0, 0)


@pytest.mark.parametrize("minor", [0, 1, 2])
def test_who_wants_credentials_for_a_greeting_is_there(minor: int) -> None:
    with server(lambda xid: record(xid + struct.pack(">IIII", 1, 1, 1, 5))) as connection:
        nfs4.greet(connection, minor, is_whole=True, tell=print)


def test_greeting_of_a_version_that_is_not_served() -> None:
    with (
        server(lambda xid: record(xid + ACCEPTED + struct.pack(">III", 2, 2, 3))) as connection,
        pytest.raises(NotServed),
    ):
        nfs4.greet(connection, 2, is_whole=True, tell=print)

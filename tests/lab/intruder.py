"""What a task does to be somebody else, or to have more than it was given: its own system calls, from inside.

`lab.task` runs these in the task's process, by name. What a system call did is told as its errno, 0 for success.
"""

from __future__ import annotations

import ctypes
import errno
import http.client
import json
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from lab.unix_http import UnixConnection

SOCKET = "/run/brokervol/broker.sock"

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x00020000, 0x10000000, 0x20000000
MS_RDONLY, MS_NOSUID, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 1, 2, 32, 4096, 8192, 16384, 1 << 18
MNT_DETACH = 2
_SYS_MOUNT_SETATTR, _SYS_OPEN_TREE, _SYS_MOVE_MOUNT = 442, 428, 429
_AT_FDCWD, _MOUNT_ATTR_RDONLY, _OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = -100, 1, 1, 4

_libc = ctypes.CDLL(None, use_errno=True)
_kept: list[UnixConnection] = []
_begun: dict[int, http.client.HTTPResponse] = {}


def _told(result: int) -> int:
    return 0 if result >= 0 else ctypes.get_errno()


# Mounts and namespaces


def mount(source: str, target: str, flags: int, kind: str = "", data: str = "") -> int:
    arguments = [os.fsencode(text) or None for text in (source, target, kind)]
    return _told(_libc.mount(*arguments, ctypes.c_ulong(flags), os.fsencode(data) or None))


def unmount(target: str, flags: int = MNT_DETACH) -> int:
    return _told(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)))


def unshare(flags: int) -> int:
    return _told(_libc.unshare(ctypes.c_int(flags)))


def make_writable(target: str) -> dict[str, int]:
    """Every way that there is to lift `:ro` from a mount."""
    attributes = (ctypes.c_uint64 * 4)(0, _MOUNT_ATTR_RDONLY, 0, 0)
    at, path = ctypes.c_int(_AT_FDCWD), ctypes.c_char_p(os.fsencode(target))

    def set_attributes(fd: ctypes.c_int, name: ctypes.c_char_p, flags: int) -> int:
        size = ctypes.c_size_t(ctypes.sizeof(attributes))
        return _told(_libc.syscall(_SYS_MOUNT_SETATTR, fd, name, ctypes.c_uint(flags), attributes, size))

    clone = _libc.syscall(_SYS_OPEN_TREE, at, path, ctypes.c_uint(_OPEN_TREE_CLONE))
    tree, empty = ctypes.c_int(clone), ctypes.c_char_p(b"")
    done = {
        "remount": mount("", target, MS_REMOUNT | MS_BIND),
        "remount of the file system": mount("", target, MS_REMOUNT),
        "mount_setattr": set_attributes(at, path, 0),
        "mount_setattr of a clone": set_attributes(tree, empty, 0x1000) if clone >= 0 else errno.EPERM,
        "bind": mount(target, "/tmp", MS_BIND),
        "remount of the bind": mount("", "/tmp", MS_REMOUNT | MS_BIND),
        "unmount": unmount(target),
        "move": mount(target, "/tmp", MS_MOVE),
    }
    if clone >= 0:
        os.close(clone)
    return done


# Identities


def set_groups(groups: list[int]) -> int:
    return _told(_libc.setgroups(ctypes.c_size_t(len(groups)), (ctypes.c_uint32 * len(groups))(*groups)))


def nested(flags: int, root: str, groups: list[int] | None, *requests: tuple[str, str, Any]) -> list[Any]:
    """Answers to requests of a child in new namespaces, which connects there, and then changes root and groups."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            failed = unshare(flags) if flags else 0
            if flags & CLONE_NEWPID and os.fork() > 0:  # whose child is the first process in there
                os.wait()
                os._exit(0)
            connection = UnixConnection(SOCKET)
            connection.connect()
            if root:
                os.chroot(root)
            if groups is not None:
                failed = failed or set_groups(groups)
            found = [failed] if failed else [_exchange(connection, *request) for request in requests]
            os.write(tell, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(tell)
    with open(told, "rb") as file:
        answer = file.read()
    os.waitpid(child, 0)
    return list(json.loads(answer or b"[]"))


def _exchange(connection: UnixConnection, method: str, path: str, body: Any = None) -> tuple[int, str]:
    connection.request(method, path, None if body is None else json.dumps(body))
    response = connection.getresponse()
    return response.status, response.read().decode("utf-8", "surrogateescape")


# Connections


def connect() -> int:
    """Open a connection that stays; its number."""
    _kept.append(UnixConnection(SOCKET))
    _kept[-1].connect()
    return len(_kept) - 1


def ask_on(number: int, method: str, path: str, body: Any = None) -> tuple[int, str]:
    return _exchange(_kept[number], method, path, body)


def begin(number: int, method: str, path: str, body: Any = None) -> list[str]:
    """The first line of a streamed answer; what does not fit into the socket is not made before `end`."""
    connection = _kept[number]
    data = None if body is None else json.dumps(body)
    connection.request(method, path, data, {"Accept": "application/x-ndjson"})
    _begun[number] = connection.getresponse()
    return [_begun[number].readline().decode()]


def end(number: int) -> list[str]:
    """The other lines."""
    return _begun.pop(number).read().decode().splitlines()


def listen(path: str) -> int:
    """Wait for connections of others at `path`."""
    global _listener  # noqa: PLW0603  # of this one process
    _listener = socket.socket(socket.AF_UNIX)
    _listener.bind(path)
    os.chmod(path, 0o777)  # noqa: S103  # for another user
    _listener.listen()
    return 0


_listener: socket.socket


def give(number: int, path: str) -> int:
    """Send a connection to whoever listens at `path`."""
    with socket.socket(socket.AF_UNIX) as to:
        to.connect(path)
        socket.send_fds(to, [b"!"], [_kept[number].sock.fileno()])
    return 0


def take() -> int:
    """Take a connection of another process; its number."""
    accepted, _ = _listener.accept()
    with accepted:
        _, (fd,), _, _ = socket.recv_fds(accepted, 1, 1)
    connection = UnixConnection(SOCKET)
    connection.sock = socket.socket(fileno=fd)
    connection.sock.settimeout(60)  # as the giver's, with whom it shares that it does not block
    _kept.append(connection)
    return len(_kept) - 1


def leave_connection(number: int, fifo: str, request: tuple[str, str, Any], answer: str) -> int:
    """Have a child keep a connection, ask on it when `fifo` is written to, and put what it got at `answer`."""
    child = os.fork()
    if child == 0:
        try:
            _leave_pipes()
            with open(fifo, "rb") as waiting:
                waiting.read(1)
            _tell(answer, _exchange(_kept[number], *request))
        finally:
            os._exit(0)
    return child


def begin_and_die(path: str, body: Any, answer: str) -> int:
    """Have a child send a batch on our connection, kill us after a first result, and put all of them at `answer`.

    The results are more than fit into the socket, so that most of the batch is still to be done then.
    """
    connection = UnixConnection(SOCKET)
    connection.connect()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            _leave_pipes()
            connection.request("POST", path, json.dumps(body), {"Accept": "application/x-ndjson"})
            response = connection.getresponse()
            lines = [response.readline()]
            os.kill(parent, signal.SIGKILL)
            while os.getppid() == parent:
                pass
            lines += response.read().splitlines()
            _tell(answer, [json.loads(line) for line in lines])
        finally:
            os._exit(0)
    signal.pause()
    return child


def _leave_pipes() -> None:
    """Let go of the task's pipes: who waits for the end of the task does not wait for us."""
    os.close(0)
    os.close(1)


def _tell(path: str, found: object) -> None:
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(found, file)
    os.rename(f"{path}.new", path)


ATTACKS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(mount, unmount, unshare, make_writable, set_groups, nested),
        *(connect, ask_on, begin, end, listen, give, take, leave_connection, begin_and_die),
    )
}

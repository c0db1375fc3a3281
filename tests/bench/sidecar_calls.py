"""The sidecar as its callers see it, over its socket: single calls, batches and listings, beside rclone's `rcd`.

Run as a program it is a caller: a process whose mount namespace holds the volume, as a container's does. It makes
the connections, and hands them over; each stays its own, and counts while it lives.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from bench.calls import Caller, Timings
from bench.client import Client
from bench.frame import Case, Contender, Figure
from bench.resident import highest, watched
from bench.session import Session, Tree, progress, run
from lab.processes import Running, running
from lab.sidecar import caller_sidecar
from lab.unix_http import connected

_WS = "/v1/workspaces/data"
_MANY = 16
_CALLS_A_ROUND = 10  # times as many as there are mounts in the driver's section
_FILE_CALLS = 0.05  # of rclone's calls a file, such a part is made
_MEMORY_TARGET_MB = 20
_PRIVATE_BIND = 'mount --bind "$1" "$2"; shift 2; exec "$@"'
LINES = {"Accept": "application/x-ndjson"}


def measure(session: Session) -> None:
    """Measure everything of this section, where a caller can have mounts of its own."""
    program = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if os.geteuid() != 0 or program is None:
        session.leave_out("sidecar", "needs root, for a caller with mounts of its own, and rclone")
        return
    with contextlib.ExitStack() as stack:
        site = Site(session, program, stack)
        _measure_calls(session, site)
        _measure_batches(session, site)
        _measure_listing(session, site)


class Site:
    """A sidecar with the workspace `data`, its caller, and rclone beside it."""

    def __init__(self, session: Session, program: str, stack: contextlib.ExitStack) -> None:
        self.directory = session.new_directory("sidecar")
        self.data, self.mounted = self.directory / "data", self.directory / "mounted"
        self.data.mkdir()
        self.mounted.mkdir()
        self.sidecar = stack.enter_context(caller_sidecar(self.directory, {"data": self.data}))
        self._caller, theirs = socket.socketpair()
        stack.enter_context(_caller_process(self.sidecar.socket_path, theirs, self.data, self.mounted))
        stack.callback(self._caller.close)  # which ends it
        self._rclone = stack.enter_context(_rclone(program, str(self.directory / "rclone.sock"))).socket_path

    def connection(self) -> socket.socket:
        """A connection of the caller's."""
        self._caller.send(b"c")
        _, (descriptor,), _, _ = socket.recv_fds(self._caller, 1, 1)
        connection = socket.socket(fileno=descriptor)
        connection.setblocking(True)
        return connection

    def rclone_connection(self) -> socket.socket:
        return connected(self._rclone)

    def ask(self, method: str, path: str, document: object = None, **headers: str) -> int:
        """Ask the sidecar; the answer must be good, and its length is returned."""
        return asked(self.connection(), method, f"{_WS}/{path}", document, headers)

    def ask_rclone(self, path: str, **document: object) -> int:
        """One call of rclone's, likewise."""
        return asked(self.rclone_connection(), "POST", path, document, {})


@contextlib.contextmanager
def _caller_process(socket_path: str, theirs: socket.socket, data: Path, mounted: Path) -> Iterator[None]:
    number = str(theirs.fileno())
    in_namespace = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _PRIVATE_BIND, "sh"]
    process = subprocess.Popen(
        [*in_namespace, data, mounted, sys.executable, "-m", "bench.sidecar_calls", socket_path, number],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    try:
        yield
    finally:
        process.wait(20)


@contextlib.contextmanager
def _rclone(program: str, socket_path: str) -> Iterator[Running]:
    options = ["--rc-no-auth", "--rc-addr", f"unix://{socket_path}", "--config", "/dev/null"]
    with running([program, "rcd", *options], {}, socket_path) as found:
        yield found


class _Given(Client):
    """A connection that somebody else has made."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection


# Single calls


def _measure_calls(session: Session, site: Site) -> None:
    count = session.sizes.calls * _CALLS_A_ROUND
    for connections in (1, _MANY):
        with contextlib.ExitStack() as stack:

            def clients(
                connect: Callable[[], socket.socket], stack: contextlib.ExitStack = stack, count: int = connections
            ) -> list[Client]:
                made: list[Client] = [_Given(connect()) for _ in range(count)]
                for client in made:
                    stack.callback(client.close)
                return made

            asked = {"no-op": ("GET", "/healthz", b""), "what I hold": ("GET", "/v1/workspaces", b"")}
            noop = dict.fromkeys(asked, ("POST", "/rc/noop", b"{}"))
            includes = "who asks; to hold: mounts of that moment, audit line"
            callers = [
                Caller("ours", _maker(clients(site.connection), asked), count, includes),
                Caller("rclone rcd", _maker(clients(site.rclone_connection), noop), count, "rc/noop, each time"),
            ]
            what = "one connection" if connections == 1 else f"{connections} connections"
            session.take_turns(f"sidecar, {what}", callers)


def _maker(clients: list[Client], asked: dict[str, tuple[str, str, bytes]]) -> Callable[[int], Timings]:
    def make(count: int) -> Timings:
        return {name: _timed(clients, count, *request) for name, request in asked.items()}

    return make


def _timed(clients: list[Client], count: int, method: str, path: str, body: bytes) -> list[float]:
    def some(client: Client) -> list[float]:
        return [client.timed_of(method, path, body) for _ in range(max(1, count // len(clients)))]

    if len(clients) == 1:
        return some(clients[0])
    with ThreadPoolExecutor(len(clients)) as pool:
        return [seconds for each in pool.map(some, clients) for seconds in each]


# Batches


def _measure_batches(session: Session, site: Site) -> None:
    count = session.sizes.files
    tree = session.small_files("sidecar-files", count)
    batches = _Batches(site, tree)

    def case(verb: str, ours: Callable[[int], None], *rivals: Contender) -> None:
        contender = Contender("ours", ours, "one batch: as the caller, durable; journal, catalog, audit")
        session.race("sidecar", Case(f"{verb} {count:,} files of 4 KiB", count, "files", contender, rivals))

    def at_once(work: Callable[[int], None]) -> Contender:
        return Contender("rclone rcd, one call", work, "not synced")

    def one_by_one(work: Callable[[int], None]) -> Contender:
        return Contender("rclone rcd, a call a file", work, "not synced", _FILE_CALLS)

    case("upload", batches.upload, at_once(batches.rclone_copy), Contender("cp -r", batches.copy, "not synced"))
    case("move", batches.move, at_once(batches.rclone_move), one_by_one(batches.rclone_move_each))
    case("delete", batches.delete, at_once(batches.rclone_delete), one_by_one(batches.rclone_delete_each))


class _Batches:
    """The work of the races. Each repetition has files of its own; those moved or deleted were made before."""

    def __init__(self, site: Site, tree: Tree) -> None:
        self._site, self._tree = site, tree
        self._few = tree.paths[: max(1, round(len(tree.paths) * _FILE_CALLS))]
        self._theirs = site.directory / "theirs"
        self._theirs.mkdir()

    def upload(self, repetition: int) -> None:
        source, root = self._tree.directory, str(repetition)
        self._batch(
            "upload", [{"local_path": f"{source}/{at}", "file_path": f"{root}/{at}"} for at in self._paths]
        )

    def move(self, repetition: int) -> None:
        names = [f"{repetition}/{path}" for path in self._paths]
        self._batch("move", [{"file_path": name, "new_path": f"moved/{name}"} for name in names])

    def delete(self, repetition: int) -> None:
        self._batch("delete", [{"file_path": f"moved/{repetition}/{path}"} for path in self._paths])

    def copy(self, repetition: int) -> None:
        run("cp", "-r", self._tree.directory, self._theirs / f"cp-{repetition}")

    def rclone_copy(self, repetition: int) -> None:
        target = str(self._theirs / f"one-{repetition}")
        self._site.ask_rclone("/sync/copy", srcFs=str(self._tree.directory), dstFs=target)

    def rclone_move(self, repetition: int) -> None:
        target = self._theirs / f"one-moved-{repetition}"
        target.mkdir()  # else the directory would be renamed instead of its files
        self._site.ask_rclone("/sync/move", srcFs=str(self._theirs / f"one-{repetition}"), dstFs=str(target))

    def rclone_delete(self, repetition: int) -> None:
        self._site.ask_rclone("/operations/delete", fs=str(self._theirs / f"one-moved-{repetition}"))

    def rclone_move_each(self, repetition: int) -> None:
        source, target = str(self._theirs / f"cp-{repetition}"), str(self._theirs / f"each-moved-{repetition}")
        place = {"srcFs": source, "dstFs": target}
        self._each("movefile", lambda path: {**place, "srcRemote": path, "dstRemote": path})

    def rclone_delete_each(self, repetition: int) -> None:
        target = str(self._theirs / f"each-moved-{repetition}")
        self._each("deletefile", lambda path: {"fs": target, "remote": path})

    @property
    def _paths(self) -> list[str]:
        return self._tree.paths

    def _batch(self, verb: str, items: list[dict[str, str]]) -> None:
        self._site.ask("POST", verb, {"files": items}, **{"Content-Type": "application/json"})

    def _each(self, verb: str, document: Callable[[str], dict[str, str]]) -> None:
        client = _Given(self._site.rclone_connection())
        for path in self._few:
            client.timed_of("POST", f"/operations/{verb}?{urlencode(document(path))}")
        client.close()


# Listings


def _measure_listing(session: Session, site: Site) -> None:
    count = session.sizes.keys
    fill(site.data / "listed", count)
    listed = f"list {count:,} files as lines"

    def ours(_: int) -> None:
        site.ask("GET", "files?recursive=true&prefix=listed/", **LINES)

    def rclone(_: int) -> None:
        site.ask_rclone("/operations/list", fs=str(site.data), remote="listed", opt={"recurse": True})

    rival = Contender("rclone rcd", rclone, "operations/list: one document, with times and types")
    session.race("sidecar", Case(listed, count, "files", Contender("ours", ours, "paths and sizes"), [rival]))
    if session.is_large:
        count *= 10
        fill(site.data / "many", count)
    prefix = "many/" if session.is_large else "listed/"
    before = watched(site.sidecar.pid)
    site.ask("GET", f"files?recursive=true&prefix={prefix}", **LINES)
    grown = (highest(site.sidecar.pid) - before) / 1e6
    session.note(Figure("sidecar", f"memory, list {count:,} files", grown, _MEMORY_TARGET_MB, "MB", "as lines"))


def fill(directory: Path, count: int) -> None:
    """Make empty files, a thousand in each directory."""
    progress(f"making {count:,} files to be listed")
    for number in range(count):
        if number % 1000 == 0:
            (below := directory / f"{number // 1000:04}").mkdir(parents=True)
        os.close(os.open(f"{below}/{number:07}.dat", os.O_CREAT | os.O_WRONLY))


def asked(connection: socket.socket, method: str, path: str, document: Any, headers: dict[str, str]) -> int:
    """Ask on a connection, and close it; the answer must be good, and its length in bytes is returned."""
    client = http.client.HTTPConnection("localhost")
    client.sock = connection
    body = None if document is None else json.dumps(document)
    if document is not None:
        headers = {"Content-Type": "application/json", **headers}
    with contextlib.closing(client):
        client.request(method, path, body, headers)
        answer = client.getresponse()
        length, last = 0, b""
        while part := answer.read(1 << 20):
            length, last = length + len(part), part
        if answer.status != http.client.OK:
            raise RuntimeError(f"{method} {path} was answered by {answer.status}: {last[:1000]!r}")
    return length


def main() -> None:
    """Be a caller: connect whenever asked, and hand over the connection."""
    socket_path, theirs = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
    while theirs.recv(1):
        with connected(socket_path) as connection:
            socket.send_fds(theirs, [b"c"], [connection.fileno()])


if __name__ == "__main__":
    main()

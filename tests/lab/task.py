"""A task container without an engine: a process in its own mount namespace and root, as any user.

Run as a program it becomes the task: it unshares its mounts, binds what it was given below its root, changes
root and user, then makes the HTTP requests that come on standard input, a JSON line each. So the sidecar sees
a peer exactly as it sees one in a container. Needs root.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import intruder
from lab.unix_http import UnixConnection, request

if TYPE_CHECKING:
    from lab.namespaces import Host

SOCKET = "/run/brokervol/broker.sock"

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.text.splitlines()]


@dataclass(frozen=True)
class Identity:
    """Who the task is. `capabilities` None leaves what the user has, a mask replaces the effective ones."""

    uid: int = 0
    gid: int = 0
    groups: list[int] = field(default_factory=list)
    capabilities: int | None = None


class Task:
    """A running task. A context manager: the process ends with it, and its mounts with the process.

    Args:
        root: an existing directory that becomes the task's root.
        binds: (source, target below root, "ro" or "rw"), as `docker run -v`.
        host: the host that it runs on, where `root` and the sources are.
        is_pivoted: whether the root is that of its mounts, as an engine does it. Only such a task can make user
            namespaces; and nothing of the outside, `mount_file` and the like included, has a path in its mounts.
    """

    def __init__(
        self,
        root: Path,
        binds: list[tuple[Path, str, str]],
        identity: Identity | None = None,
        host: Host | None = None,
        *,
        is_pivoted: bool = False,
    ) -> None:
        outside = Path(f"/proc/{host.pid}/root{root}") if host else root
        for _, target, _ in binds:
            (outside / target.lstrip("/")).mkdir(parents=True, exist_ok=True)
        plan = {
            "root": str(root),
            "binds": [[str(source), target, mode] for source, target, mode in binds],
            "identity": asdict(identity or Identity()),
            "is_pivoted": is_pivoted,
        }
        entering = host.entering if host else []
        command = [*entering, sys.executable, "-m", "lab.task", json.dumps(plan)]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        self.root = root
        try:
            assert self._ask("ready?") == "ready"
        except BaseException:
            self.close()
            raise

    def attack(self, name: str, *arguments: Any) -> Any:
        """Have the task do one of `ATTACKS`, here or in `lab.intruder`, and return what it saw."""
        return self._ask({"attack": name, "arguments": arguments})

    def mount_file(self, source: Path, target: str) -> None:
        """Bind a file over another, as `docker run -v FILE:TARGET:ro` does."""
        self._in_namespace("mount", "--bind", str(source), f"{self.root}{target}")

    def mount_tmpfs(self, target: str) -> None:
        """Mount an empty file system over `target`, as a privileged task could."""
        self._in_namespace("mount", "-t", "tmpfs", "tmpfs", f"{self.root}{target}")

    def mount_proc(self) -> None:
        """Mount the host's process information at /proc, as `docker run --pid host` does."""
        (self.root / "proc").mkdir(exist_ok=True)
        self._in_namespace("mount", "-t", "proc", "proc", f"{self.root}/proc")

    def _in_namespace(self, *command: str) -> None:
        subprocess.run(["nsenter", "-t", str(self.pid), "-m", *command], check=True)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Task:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """One request from inside the task on a connection of its own."""
        found = self._ask({"method": method, "path": path, "body": body, "headers": headers})
        return Answer(found["status"], found["headers"], found["text"])

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, **headers)

    def post(self, path: str, body: object, **headers: str) -> Answer:
        return self.request("POST", path, body, **headers)

    def workspaces(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("/v1/workspaces").json["workspaces"]
        return found

    def _ask(self, question: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the task ended with {self._process.wait()}"
        return json.loads(line)


def ask(path: str, method: str, target: str, body: object = None, headers: dict[str, str] | None = None) -> Answer:
    """One request to the socket at `path`. A body that is not text is sent as JSON."""
    data = body if body is None or isinstance(body, str) else json.dumps(body)
    found = request(path, method, target, data.encode() if data is not None else None, **(headers or {}))
    text = found.body.decode("utf-8", "surrogateescape")
    return Answer(found.status, {key.lower(): value for key, value in found.headers.items()}, text)


def become(plan: dict[str, Any]) -> None:
    """Make this process the task of a plan: root, binds, identity."""
    libc = ctypes.CDLL(None, use_errno=True)

    def must(result: int, what: str) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), what)

    def mount(source: str | None, target: str, flags: int) -> None:
        encoded = os.fsencode(source) if source else None
        must(libc.mount(encoded, os.fsencode(target), None, ctypes.c_ulong(flags), None), f"mount {target}")

    must(libc.unshare(_CLONE_NEWNS), "unshare")
    mount(None, "/", _MS_REC | _MS_PRIVATE)
    if plan.get("is_pivoted"):
        mount(plan["root"], plan["root"], _MS_BIND)
    for source, target, mode in plan["binds"]:
        place = plan["root"] + target
        mount(source, place, _MS_BIND)
        if mode == "ro":
            mount(None, place, _MS_REMOUNT | _MS_BIND | _MS_RDONLY)
    if plan.get("is_pivoted"):
        os.chdir(plan["root"])
        must(libc.pivot_root(b".", b"."), "pivot_root")
        must(libc.umount2(b".", ctypes.c_int(_MNT_DETACH)), "umount2")
    else:
        os.chroot(plan["root"])
    os.chdir("/")
    identity = plan["identity"]
    os.setgroups(identity["groups"])
    os.setresgid(identity["gid"], identity["gid"], identity["gid"])
    os.setresuid(identity["uid"], identity["uid"], identity["uid"])
    if identity["capabilities"] is not None:
        _limit_capabilities(libc, identity["capabilities"])


def _limit_capabilities(libc: ctypes.CDLL, mask: int) -> None:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)(mask & 0xFFFFFFFF, mask & 0xFFFFFFFF, 0, mask >> 32, mask >> 32, 0)
    if libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _ask_after_exec(program: str, path: str, body: str) -> list[int]:
    """Connect, let a child keep the connection, become the (set-user-id) `program`, and have the child ask."""
    told, tell = os.pipe()
    if os.fork() == 0:
        connection = UnixConnection(SOCKET)
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        caller = os.getpid()
        executed, closed_by_exec = os.pipe()
        if os.fork() > 0:
            os.close(executed)
            os.execv(program, [program])  # noqa: S606
        os.close(closed_by_exec)
        os.read(executed, 1)
        os.write(tell, _status_of(connection, path, body))
        os.kill(caller, signal.SIGKILL)
        os._exit(0)
    return _told(told, tell)


def _status_of(connection: UnixConnection, path: str, body: str) -> bytes:
    connection.request("POST", path, body)
    return str(connection.getresponse().status).encode()


def _told(told: int, tell: int) -> list[int]:
    os.close(tell)
    with open(told, "rb") as file:
        status = file.read()
    os.wait()
    return [int(status)]


def _ask_and_leave_namespace(path: str, body: str) -> list[int]:
    """Ask, and be in a user namespace of one's own, with every capability in it, while it is worked on."""
    told, tell = os.pipe()
    if os.fork() == 0:
        connection = UnixConnection(SOCKET)
        connection.request("POST", path, body)
        made = ctypes.CDLL(None).unshare(_CLONE_NEWUSER)
        status = connection.getresponse().status
        os.write(tell, str(status if made == 0 else made).encode())
        os._exit(0)
    return _told(told, tell)


def _hold_leases(directory: str) -> list[int]:
    """Hold a write lease on every file of a directory, and never give way."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    for name in os.listdir(directory):
        fcntl.fcntl(os.open(f"{directory}/{name}", os.O_RDWR), fcntl.F_SETLEASE, fcntl.F_WRLCK)
    return []


_stalled: list[UnixConnection] = []


def _stall(content: str) -> list[int]:
    """Begin to put `new` and to get `large` below the URL `content`, and go on with neither."""
    for method, name in (("PUT", "new"), ("GET", "large")):
        connection = UnixConnection(SOCKET)
        connection.putrequest(method, f"{content}/{name}")
        if method == "PUT":
            connection.putheader("Content-Length", "1000000000")
        connection.endheaders(bytes(3_000_000) if method == "PUT" else None)
        _stalled.append(connection)
    return []


ATTACKS: dict[str, Callable[..., Any]] = {
    **intruder.ATTACKS,
    "exec": _ask_after_exec,
    "namespace": _ask_and_leave_namespace,
    "leases": _hold_leases,
    "stall": _stall,
}


def _main() -> None:
    become(json.loads(sys.argv[1]))
    for line in sys.stdin:
        question = json.loads(line)
        answer: object = "ready"
        if "attack" in question:
            answer = ATTACKS[question["attack"]](*question["arguments"])
        elif question != "ready?":
            found = ask(SOCKET, question["method"], question["path"], question["body"], question["headers"])
            answer = asdict(found)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main()

"""What is fuzzed: a real sidecar in a cage, with files inside and outside of what it serves, and how it fared.

In the self view the local directory is bound at the same place where tasks of the caller view have theirs, so that
one request means the same in both.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import sidecar as sidecar_package
from fuzz import corpus
from lab.cage import caged
from lab.processes import Running, wait_until
from lab.s3 import S3Server
from lab.sentinels import Sentinels
from lab.sidecar import caller_sidecar, descriptors, self_sidecar, thread_identities
from lab.task import SOCKET, Answer, Identity, Task, ask
from sidecar.limits import DEFAULTS
from storage.files import TEMPORARY_PREFIX
from storage.testing.hostile import ESCAPING_LINKS

_ORDINARY = f"{corpus.WS}/files?limit=10"
_PROBES = 60
_SLOWEST_PROBE_S = 0.25
_GROWTH_KB = 64 * 1024
_QUIET_S = 30.0
_POOLED = 32
_MOST_THREADS = DEFAULTS.max_requests + 16


@dataclass(frozen=True)
class Health:
    """What of a process must be as before afterwards."""

    descriptors: int
    threads: int
    identities: frozenset[tuple[str, ...]]
    memory_kb: int


@dataclass
class Site:
    """A running sidecar under fire.

    Attributes:
        ask: makes a request by method, target and body, as a caller that holds the workspace `data`.
        callers: the JSON plans of the tasks that play (`lab.task`); None for a worker that is no task.
        forbidden: texts that no answer may hold.
        pooled: how many connections to a backend may be kept open.
        further_checks: more to look at afterwards; each tells what is wrong, a sentence each.
    """

    view: str
    sidecar: Running
    directory: Path
    callers: Sequence[dict[str, Any] | None]
    forbidden: list[str]
    local_directories: list[Path]
    sentinels: Sentinels
    socket_path: str
    ask: Callable[..., Answer]
    pooled: int = 0
    further_checks: Sequence[Callable[[], Iterable[str]]] = ()
    memory_kb: list[int] = field(default_factory=list)
    _log_offset: int = 0

    def health(self) -> Health:
        pid = self.sidecar.pid
        threads = len(os.listdir(f"/proc/{pid}/task"))
        return Health(descriptors(pid), threads, frozenset(thread_identities(pid)), _memory_kb(pid))

    def faults_in_log(self) -> list[str]:
        """What the sidecar logged as its own fault since the last look."""
        with open(f"/proc/{self.sidecar.pid}/fd/1", "rb") as log:
            log.seek(self._log_offset)
            lines = log.read().decode(errors="replace").splitlines()
            self._log_offset = log.tell()
        signs = ("Traceback", '"level": "error"', '"level": "critical"', "internal-error")
        return [_brief(line) for line in lines if any(sign in line for sign in signs)]

    def check(self, before: Health) -> list[str]:
        """What is not as it must be after the fire, a sentence each."""
        if self.sidecar.has_ended():
            return ["the sidecar has ended"]
        found = [*self.sentinels.touched(), *self._left_over(), *self._slow()]
        found += self._changed(before)
        found += [sentence for look in self.further_checks for sentence in look()]
        return [f"{self.view} view: {sentence}" for sentence in found]

    def _changed(self, before: Health) -> Iterator[str]:
        checks: dict[str, Callable[[Health], bool]] = {
            "descriptors are left open": lambda now: now.descriptors <= before.descriptors + self.pooled,
            "threads are left": lambda now: now.threads <= max(before.threads, _MOST_THREADS),
            "threads are somebody else": lambda now: now.identities == before.identities,
        }
        for sentence, is_well in checks.items():
            try:
                wait_until(lambda is_well=is_well: is_well(self.health()), sentence, _QUIET_S)  # type: ignore[misc]
            except AssertionError:
                yield f"{sentence}: {before} before, {self.health()} now; {_open_files(self.sidecar.pid)}"
        earlier = self.memory_kb[: len(self.memory_kb) // 2 + 1]
        if earlier and self.memory_kb[-1] > max(earlier) + _GROWTH_KB:
            yield f"memory grew by more than {_GROWTH_KB} KB in the second half: {self.memory_kb}"

    def _left_over(self) -> Iterator[str]:
        places = [self.directory / "data", *self.local_directories]

        def left() -> list[str]:
            self.ask("GET", _ORDINARY)  # what could not be settled at once is settled when the workspace is used
            return [str(path) for place in places for path in place.rglob(f"{TEMPORARY_PREFIX}*")]

        with contextlib.suppress(AssertionError):
            wait_until(lambda: not left(), "no temporary files")
        yield from (f"{path} is left" for path in left())

    def _slow(self) -> Iterator[str]:
        """Whether ordinary requests still work, and at once."""
        taken = []
        for _ in range(_PROBES):
            started = time.monotonic()
            status = self.ask("GET", _ORDINARY).status
            taken.append(time.monotonic() - started)
            if status != 200:
                yield f"an ordinary request has status {status}"
                return
        if statistics.median(taken) > _SLOWEST_PROBE_S:
            yield f"an ordinary request takes {statistics.median(taken):.3f} s"


def _brief(line: str) -> str:
    """A line of the log as a sentence: what happened, where in our code, and the error itself."""
    try:
        told = json.loads(line)
    except ValueError:
        return line
    raised = str(told.get("exception", "")).strip().splitlines()
    places = [text.strip() for text in raised if "/daemon/" in text or "cheroot" in text]
    return " | ".join(
        str(part) for part in (told.get("event"), told.get("detail"), *places[-1:], *raised[-1:]) if part
    )


def _open_files(pid: int) -> list[str]:
    found = []
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
    return sorted(path for path in found if ".sqlite" not in path)


def _memory_kb(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


@contextlib.contextmanager
def self_site(directory: Path, s3: tuple[S3Server, str] | None = None) -> Iterator[Site]:
    """A sidecar in its own view, with a workspace of the host as `data` and `frozen`, perhaps a bucket, and one
    whose directory is missing."""
    data, outside, local = _made(directory)
    host = {"type": "host", "host_path": str(data)}
    workspaces: dict[str, Any] = {
        "data": {"broker": host},
        "frozen": {"broker": host, "read_only": True},
        "gone": {"broker": {"type": "host", "host_path": str(directory / "gone")}},
    }
    secrets = []
    if s3:
        server, bucket = s3
        place = {"endpoint_url": server.endpoint_url, "region_name": server.region_name, "bucket_name": bucket}
        workspaces["bucket"] = {"broker": {"type": "s3", **place, "credentials": server.credentials()}}
        secrets = [server.secret_access_key]
    with self_sidecar(directory, workspaces, caged(directory, f"{local}={corpus.LOCAL}")) as sidecar:
        yield Site(
            "self",
            sidecar,
            directory,
            [None],
            [*_forbidden(directory), *secrets],
            [local],
            Sentinels([outside]),
            sidecar.socket_path,
            partial(ask, sidecar.socket_path),
            _POOLED if s3 else 0,
        )


# Who plays in the caller view, and how each has the workspace mounted.
_CALLERS = [
    (Identity(), "rw"),
    (Identity(1000, 1000, [2000]), "rw"),
    (Identity(1001, 1001), "ro"),
    (Identity(), None),
]


@contextlib.contextmanager
def caller_site(directory: Path) -> Iterator[Site]:
    """A sidecar that acts as its callers: root and users with the workspace, with it read-only, without it."""
    data, outside, local = _made(directory)
    cage = caged(directory)
    with (
        caller_sidecar(directory, {"data": data, "other": outside}, cage) as sidecar,
        contextlib.ExitStack() as stack,
    ):
        roots = [directory / f"task{number}" for number in range(len(_CALLERS))]
        socket_directory = directory / "root" / "sidecar"
        plans: list[dict[str, Any] | None] = []
        for root, (identity, mode) in zip(roots, _CALLERS, strict=True):
            _fill_local(root / corpus.LOCAL.lstrip("/"))
            for name in ("data", "run/brokervol", "etc"):
                (root / name).mkdir(parents=True)
            binds = [[str(socket_directory), "/run/brokervol", "ro"]]
            binds += [[str(data), "/data", mode]] if mode else []
            plans.append({"root": str(root), "binds": binds, "identity": asdict(identity)})
        task = stack.enter_context(
            Task(roots[0], [(socket_directory, "/run/brokervol", "ro"), (data, "/data", "rw")])
        )
        yield Site(
            "caller",
            sidecar,
            directory,
            plans,
            _forbidden(directory),
            [local, *(root / corpus.LOCAL.lstrip("/") for root in roots)],
            Sentinels([outside]),
            SOCKET,
            task.request,
        )


def _forbidden(directory: Path) -> list[str]:
    """What is nobody's business: where the sidecar's code and state are."""
    return [str(Path(sidecar_package.__file__ or "").parent), "site-packages", str(directory / "root"), "sqlite"]


def _made(directory: Path) -> tuple[Path, Path, Path]:
    """The workspace's directory, one outside of it, and one of local files."""
    data, outside, local = directory / "data", directory / "outside", directory / "local"
    for place in (data, outside, data / "a", data / "roots"):
        place.mkdir()
        place.chmod(0o777)
    (data / "roots").chmod(0o700)
    (data / "keep").write_bytes(b"0123456789" * 1000)
    (data / "a" / "keep").write_bytes(b"kept")
    (outside / "secret").write_text("a secret that nobody asked for")
    os.mkfifo(data / "fifo")
    for name, target in ESCAPING_LINKS:
        (data / name).symlink_to(target.format(outside=outside))
    _fill_local(local)
    return data, outside, local


def _fill_local(local: Path) -> None:
    (local / "dir").mkdir(parents=True)
    for place in (local, local / "dir"):
        place.chmod(0o777)
    (local / "in").write_bytes(b"local bytes")
    (local / "empty").touch()
    (local / "big").write_bytes(os.urandom(300_000))
    (local / "link").symlink_to("in")
    (local / "loop").symlink_to("loop")
    os.mkfifo(local / "fifo")

"""A Docker engine of the tests' own, on this machine's kernel: nothing of the system's engine is touched.

    with Engine(directory) as engine:
        exit_code, output = engine.run("brokervol-busybox", "echo", "hello")

It runs in a mount namespace of its own and below one directory; neither process, mount, cgroup nor file is left.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import docker
import requests
from docker.errors import DockerException
from docker.models.containers import Container

from lab import keeper, prerequisites
from lab.unix_http import request
from storage import mountinfo

_START_TIMEOUT_S = 60
_STOP_TIMEOUT_S = 60
_CALL_TIMEOUT_S = 120
# A network namespace is new: nothing is up in it, not even its loopback.
_WITH_LOOPBACK = """
import os, sys, pyroute2
with pyroute2.IPRoute() as routes:
    routes.link("set", index=1, state="up")
os.execvp(sys.argv[1], sys.argv[1:])
"""


class LabError(AssertionError):
    """The laboratory itself failed, or left something behind."""


class Result(NamedTuple):
    """What a container that ran to its end did."""

    exit_code: int
    output: str


def wait_until(what: str, condition: Callable[[], Any], timeout_s: float = 30) -> Any:
    """The first true answer of `condition`.

    Raises:
        LabError: there was none in time.
    """
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise LabError(f"not within {timeout_s} s: {what}")
        time.sleep(0.02)
    return answer


class _Keeper:
    """Our end of keeper.py."""

    def __init__(self, directory: Path, cgroup: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, keeper.__file__, str(directory), cgroup],
            env={**os.environ, "PATH": prerequisites.search_path()},  # a plain `su` leaves sbin out
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the test run, whose end ends the keeper
        )
        self.pid = self._process.pid
        self.anchor = self._answer()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def _answer(self) -> int:
        answer = self._pipes()[1].readline()
        if not answer.strip().isdigit():
            self.close(answer)
        return int(answer)

    def start(self, command: Sequence[str]) -> int:
        """Start a process in the engine's mount namespace, as a child of the keeper."""
        stdin = self._pipes()[0]
        stdin.write(json.dumps(list(command)) + "\n")
        stdin.flush()
        return self._answer()

    def close(self, answered: str = "") -> None:
        """End everything that was started, and remove all that it made.

        Raises:
            LabError: something could not be ended or removed.
        """
        stdin, stdout = self._pipes()
        stdin.close()
        answered += stdout.read()
        stdout.close()
        if self._process.wait() != 0:
            raise LabError(f"the keeper of the engine: {answered.strip() or 'it died'}")


class Engine:
    """A private dockerd. `client` speaks to it; everything else here is what a client cannot do.

    Args:
        directory: where it keeps everything; made here, and removed at the end. Default: a new one in /tmp.
        live_restore: whether containers go on while dockerd is away.
        has_network: whether it has a network namespace of its own and in it a bridge for containers, so that it
            may join a swarm; if not, containers have no network.
    """

    def __init__(
        self, directory: Path | None = None, *, live_restore: bool = False, has_network: bool = False
    ) -> None:
        self.directory = directory or Path(tempfile.mkdtemp(prefix="brokervol-lab-"))
        self.directory.mkdir(exist_ok=True)
        self.live_restore = live_restore
        self.has_network = has_network
        self._socket = str(self.directory / "docker.sock")
        self.url = f"unix://{self._socket}"
        self.cgroup = f"brokervol-lab-{os.getpid()}-{self.directory.stat().st_ino}"
        self.pid = 0
        self.client: docker.DockerClient
        self._log_path = self.directory / "dockerd.log"
        self._keeper = _Keeper(self.directory, self.cgroup)

    def __enter__(self) -> Engine:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Life

    def start(self) -> None:
        """Start dockerd and wait until it answers."""
        (self.directory / "daemon.json").write_text("{}\n")  # not the system's /etc/docker/daemon.json
        self.pid = self._keeper.start(self._command())
        wait_until("dockerd listens", self._listens, _START_TIMEOUT_S)
        self.client = docker.DockerClient(base_url=self.url, version="auto", timeout=_CALL_TIMEOUT_S)

    def _command(self) -> list[str]:
        options = {
            "config-file": "daemon.json",
            "data-root": "data",
            "exec-root": "exec",
            "pidfile": "docker.pid",
        }
        network = ["unshare", "--net", sys.executable, "-c", _WITH_LOOPBACK] if self.has_network else []
        return [
            *network,
            "dockerd",
            *(f"--{option}={self.directory / name}" for option, name in options.items()),
            f"--host={self.url}",
            f"--live-restore={str(self.live_restore).lower()}",
            f"--cgroup-parent=/{self.cgroup}",
            "--exec-opt=native.cgroupdriver=cgroupfs",
            *([] if self.has_network else ["--bridge=none"]),
            "--iptables=false",
            "--ip6tables=false",
        ]

    def _listens(self) -> bool:
        if not self.is_running():
            raise LabError(f"dockerd ended:\n{self.log[-3000:]}")
        # Not the SDK, which leaks a socket at each refused connection. And not merely a connection: an engine
        # that comes back after a crash accepts, and resets, before it answers.
        with contextlib.suppress(OSError, http.client.HTTPException):
            return request(self._socket, "GET", "/_ping").status == 200
        return False

    def is_running(self) -> bool:
        """Whether dockerd is there."""
        return self.pid in keeper.descendants(self._keeper.pid)

    def kill(self) -> None:
        """End dockerd as a crash does: SIGKILL. Its containerd ends with it, containers and shims do not."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End dockerd in good order. Containers are stopped unless `live_restore`."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self.is_running():
            os.kill(self.pid, number)
            wait_until("dockerd ends", lambda: not self.is_running(), _STOP_TIMEOUT_S)
            self.client.close()

    def restart(self) -> None:
        """Stop dockerd if it runs, and start it again on the same data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End everything, and see that nothing is left.

        Raises:
            LabError: something is, and what.
        """
        try:
            if self.is_running():
                self._tidy()
                self.stop()
        finally:
            self._keeper.close()

    def _tidy(self) -> None:
        """Remove containers and disable plugins as far as that is possible: the keeper ends the rest."""
        with contextlib.suppress(DockerException, requests.RequestException):
            for container in self.client.containers.list(all=True):
                container.remove(force=True)
            for plugin in self.client.plugins.list():
                if plugin.enabled:
                    plugin.disable(force=True)

    # Looking in

    @property
    def log(self) -> str:
        """What dockerd wrote so far, and through it the plugins."""
        return self._log_path.read_text(errors="replace")

    def mounts(self) -> list[mountinfo.Mount]:
        """What is mounted in the engine's mount namespace."""
        return mountinfo.read_mounts(f"/proc/{self._keeper.anchor}/mountinfo")

    def path(self, path: str | Path) -> Path:
        """Where we find what the engine's mount namespace has at `path`."""
        return Path(f"/proc/{self._keeper.anchor}/root{path}")

    @property
    def entering(self) -> list[str]:
        """What a host's command begins with that is run in the engine's mount namespace, from `/`."""
        return ["nsenter", f"--mount=/proc/{self._keeper.anchor}/ns/mnt", "--"]

    def execute(self, *command: str) -> str:
        """Run a host's command in the engine's mount namespace; its output."""
        done = subprocess.run(
            [*self.entering, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise LabError(f"{command} exited {done.returncode}: {done.stdout}")
        return done.stdout

    def plugin_pids(self, name: str) -> list[int]:
        """The processes of an enabled plugin's container, its entry point first; none while it is not running."""
        identity = self.client.plugins.get(name).id  # type: ignore[no-untyped-call]
        for first in self._first_processes(identity):
            if first in keeper.descendants(self._keeper.pid):
                return [first, *keeper.descendants(first)]
        return []

    def _first_processes(self, identity: str) -> list[int]:
        """What runc has written down of a container, while others, or this one, may come and go."""
        while True:
            with contextlib.suppress(FileNotFoundError):
                states = (self.directory / "exec").glob(f"**/{identity}/state.json")
                return [json.loads(state.read_text())["init_process_pid"] for state in states]

    def kill_plugin(self, name: str) -> list[int]:
        """SIGKILL to a plugin's first process, with which the engine ends all of it; the processes it has then.

        Returns when the engine has found the new ones in order: it looks 0.5 s after a start, and a plugin that
        dies before is not started again, but disabled after 12 s.
        """
        before = self.plugin_pids(name)
        os.kill(before[0], signal.SIGKILL)
        wait_until("the plugin is back", lambda: set(self.plugin_pids(name)) - set(before))
        time.sleep(1)
        return self.plugin_pids(name)

    # Containers

    def run(self, image: str, *command: str, **options: Any) -> Result:
        """Run a container to its end. `options` as of docker's `containers.create`."""
        with self.running(image, *command, **options) as container:
            status = container.wait(timeout=120)
            return Result(status["StatusCode"], container.logs().decode(errors="replace"))

    @contextlib.contextmanager
    def running(self, image: str, *command: str, **options: Any) -> Iterator[Container]:
        """A started container, removed at the end."""
        options.setdefault("network_mode", "none")
        container = self.client.containers.create(image, list(command), **options)
        try:
            container.start()
            yield container
        finally:
            container.remove(force=True)


def inside(container: Container, *command: str, user: str = "") -> Result:
    """Run a command in a running container."""
    exit_code, output = container.exec_run(list(command), user=user)
    assert isinstance(exit_code, int)
    assert isinstance(output, bytes)
    return Result(exit_code, output.decode(errors="replace"))


def traces(directory: Path, cgroup: str) -> list[str]:
    """What of an engine in `directory` can be seen from outside: processes, mounts, cgroups, files."""
    found = [str(directory)] if directory.exists() else []
    found += [str(path) for path in keeper.cgroups(cgroup)]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "mountinfo").read_bytes()
        except OSError:
            continue  # ended meanwhile
        if os.fsencode(directory) in told and process.name != str(os.getpid()):
            found.append(str(process))
    return found

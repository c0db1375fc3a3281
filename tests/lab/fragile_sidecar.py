"""The sidecar, started in a moment and killed at a step of one item.

Run as a program it has imported all that a sidecar needs, and becomes one in a forked process for each line of
standard input: a JSON object of `name`, `step`, `steps`, `log` and `options`. The item to be killed at is the one
whose path begins with the name; at step 0 none is. The steps are those of `lab.faults`, and around them what is
done to the journal: "begin", "begun", "finish", "finished". The file `steps` is given those of the last item.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lab.faults import Fault, Kernel
from lab.processes import wait_until
from lab.unix_http import connected
from sidecar.__main__ import main
from sidecar.batches import Batch
from sidecar.operations import Workspace
from storage.brokers import _s3_obstore
from storage.catalog import Catalog


class Sidecar:
    """A forked sidecar that serves."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def has_ended(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        wait_until(self.has_ended, "the sidecar to end")


class Nursery:
    """What sidecars are forked from; a context manager."""

    def __enter__(self) -> Nursery:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lab.fragile_sidecar"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "AWS_MAX_ATTEMPTS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=20)

    @contextlib.contextmanager
    def sidecar(
        self, socket: str, steps: Path, options: Sequence[str], *, name: str = "-", step: int = 0
    ) -> Iterator[Sidecar]:
        """A sidecar from when it accepts on `socket` to the end of the block."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        log = steps.with_suffix(".log")
        options = [*options, "--listen", socket]
        order = {"name": name, "step": step, "steps": str(steps), "log": str(log), "options": options}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        sidecar = Sidecar(int(self._process.stdout.readline()))
        try:
            wait_until(lambda: _is_connectable(socket) or sidecar.has_ended(), "the sidecar to listen")
            assert not sidecar.has_ended(), log.read_text()
            yield sidecar
        finally:
            sidecar.end()


def _is_connectable(socket: str) -> bool:
    with contextlib.suppress(OSError):
        connected(socket).close()
        return True
    return False


def _with_steps(kernel: Callable[[], Kernel], method: str, after: str) -> None:
    """Let a call of the catalog be two steps: before it, and after it."""
    real = getattr(Catalog, method)

    def call(catalog: Catalog, *arguments: Any) -> None:
        kernel().call(method, (), lambda: real(catalog, *arguments))
        kernel().call(after, (), lambda: None)

    setattr(Catalog, method, call)


def _path_of(asked: Any) -> str:
    return asked if isinstance(asked, str) else str(asked.file_path)


def _run(order: dict[str, Any]) -> int:
    current = [Kernel()]

    def watch(home: type[Any], method: str, asked_of: Callable[..., Any]) -> None:
        real = getattr(home, method)

        def watched(*arguments: Any) -> Any:
            is_meant = _path_of(asked_of(*arguments)).startswith(order["name"])
            current[0] = Kernel(Fault(order["step"] if is_meant else 0))
            with current[0].in_place() as kernel:
                found = real(*arguments)
            Path(order["steps"]).write_text(json.dumps(kernel.steps))
            return found

        setattr(home, method, watched)

    watch(Workspace, "_once", lambda _workspace, _held, asked, _write: asked)
    watch(Batch, "_work", lambda _batch, items, _number: items[0])
    _with_steps(lambda: current[0], "begin", "begun")
    _with_steps(lambda: current[0], "finish", "finished")
    _s3_obstore._PID = os.getpid()  # nothing of obstore was used before the fork
    return main(order["options"])


def _serve() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                for descriptor in (1, 2):
                    os.dup2(log, descriptor)
                code = _run(order)
            finally:
                os._exit(code)
        print(child, flush=True)


if __name__ == "__main__":
    _serve()

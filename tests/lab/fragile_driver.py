"""The plugin's daemon with a driver that dies at a step of a verb, for a managed plugin in a real engine.

`plugin_archive` makes the plugin: the real one, with this module and `lab.driver_steps` beside its packages, and
this one as its entry point. In `.steps` below the driver's root a test writes into the file `order` where the
driver is to kill itself, such as "mount: ReferenceStore.set". It renames the file to `obeyed` before it dies, so
that the next driver lives. In a file of a verb's name it leaves the steps of the last call that came to its end.

A step that comes again in a call is told apart by its number: "openat2 (2)". The last one, "answer", is when all
is done and the engine is not told yet.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import tarfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from brokervol import supervisor
from lab import driver_steps
from volumedriver import __main__ as volumedriver
from volumedriver.driver import Driver

VERBS = ("create", "mount", "unmount", "remove")
ANSWER = "answer"
DIRECTORY = ".steps"
ORDER, OBEYED = "order", "obeyed"

_PACKAGES = "rootfs/usr/local/lib/python3.11/dist-packages"


def plugin_archive(archive: Path, directory: Path) -> Path:
    """Make this plugin from the real one's archive; a file in `directory`, which `build.create` takes."""
    fragile = directory / archive.name
    with tarfile.open(archive) as real, tarfile.open(fragile, "w") as made:
        for member in real:
            if member.name == "config.json":
                config = json.loads(_content(real, member))
                config["entrypoint"] = ["/usr/bin/python3", "-m", "lab.fragile_driver", "daemon"]
                _add(made, "config.json", json.dumps(config).encode())
            else:
                made.addfile(member, real.extractfile(member) if member.isreg() else None)
        for module in (__file__, driver_steps.__file__):
            _add(made, f"{_PACKAGES}/lab/{Path(module).name}", Path(module).read_bytes())
    return fragile


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


class _Call:
    """One call of a verb."""

    def __init__(self, verb: str, directory: Path) -> None:
        self.taken: list[str] = []
        self._verb = verb
        self._directory = directory
        self._order = ""
        with contextlib.suppress(FileNotFoundError):
            self._order = (directory / ORDER).read_text()

    def take(self, name: str) -> None:
        again = sum(taken.partition(" (")[0] == name for taken in self.taken)
        step = f"{name} ({again + 1})" if again else name
        self.taken.append(step)
        if self._order == f"{self._verb}: {step}":
            (self._directory / ORDER).rename(self._directory / OBEYED)
            os.kill(os.getpid(), signal.SIGKILL)

    def end(self) -> None:
        self.take(ANSWER)
        (self._directory / self._verb).write_text(json.dumps(self.taken))


class _Calls:
    """Those under way, one a thread. What is done outside of any, as at the start, is no step of theirs."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._current = threading.local()

    def take(self, name: str) -> bool:
        call: _Call | None = getattr(self._current, "call", None)
        if call is not None:
            call.take(name)
        return False

    def watch(self, verb: str) -> None:
        """Let every call of the driver's verb be one of these."""
        real: Callable[..., Any] = getattr(Driver, verb)

        def watched(*arguments: Any) -> Any:
            call = self._current.call = _Call(verb, self._directory)
            try:
                answer = real(*arguments)
                call.end()
                return answer
            finally:
                self._current.call = None

        setattr(Driver, verb, watched)


def _supervise(arguments: Sequence[str]) -> int:
    # It is us who let the driver die again and again: the next test is not to wait for longer each time.
    supervisor.Backoff.LONGEST_S = supervisor.Backoff.FIRST_S
    options = supervisor.parse(arguments, os.environ)
    programs = [_fragile(program) for program in supervisor.programs(options, os.environ)]
    return supervisor.Supervisor(programs, supervisor.json_log(options.log_level)).run()


def _fragile(program: supervisor.Program) -> supervisor.Program:
    return program._replace(
        command=["lab.fragile_driver" if word == "volumedriver" else word for word in program.command]
    )


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] == ["daemon"]:
        return _supervise(arguments[1:])
    calls = _Calls(Path(os.environ["BROKERVOL_ROOT"], DIRECTORY))
    for verb in VERBS:
        calls.watch(verb)
    with driver_steps.seam(calls.take):
        return volumedriver.main(arguments)


if __name__ == "__main__":
    sys.exit(main())

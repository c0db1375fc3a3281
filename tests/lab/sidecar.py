"""The real sidecar process: in its own view, or acting as callers with volumes mounted in a private namespace."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.directories import temporary_directory
from lab.processes import Running, running
from storage.definitions import Definition, DefinitionStore, definitions_path, mountpoint, utc_now

# Binds each volume where the driver would, in a mount namespace that ends with the process.
_BIND_AND_RUN = """
set -eu
count=$1; shift
while [ "$count" -gt 0 ]; do mount --bind "$1" "$2"; shift 2; count=$((count - 1)); done
exec "$@"
"""


@contextlib.contextmanager
def self_sidecar(directory: Path, workspaces: Mapping[str, Any], prefix: Sequence[str] = ()) -> Iterator[Running]:
    """A sidecar with `--view self` over the given workspace configurations; `prefix` is put before its command."""
    file = directory / "workspaces.json"
    file.write_text(json.dumps(workspaces))
    options = ["--view", "self", "--workspaces", str(file), "--root", str(directory / "root")]
    with _started(directory, [*prefix], options) as found:
        yield found


@contextlib.contextmanager
def host_sidecar() -> Iterator[tuple[Path, Running]]:
    """A sidecar of its own view with the workspace `data`, and the directory that both are in."""
    with temporary_directory() as directory:
        data = directory / "data"
        data.mkdir()
        broker = {"type": "host", "host_path": str(data)}
        with self_sidecar(directory, {"data": {"broker": broker}}) as sidecar:
            yield directory, sidecar


@contextlib.contextmanager
def caller_sidecar(
    directory: Path, volumes: Mapping[str, Path], prefix: Sequence[str] = (), module: Sequence[str] = ("sidecar",)
) -> Iterator[Running]:
    """A sidecar that acts as its callers, with the given host directories as volumes. Needs root."""
    root = directory / "root"
    (root / ".state").mkdir(parents=True, exist_ok=True)
    binds = []
    with DefinitionStore(definitions_path(str(root))) as definitions:
        for name, source in volumes.items():
            options = {"type": "host", "host_path": str(source)}
            definitions.save(Definition(name, options, utc_now()))
            place = mountpoint(str(root), name)
            os.makedirs(place, exist_ok=True)
            binds += [str(source), place]
        definitions.save(Definition("broker", {"type": "sidecar"}, utc_now()))
        definitions.save(Definition("future", {"type": "tape", "library": "x"}, utc_now()))
    isolated = [*prefix, "unshare", "--mount", "--propagation", "private"]
    isolated += ["sh", "-c", _BIND_AND_RUN, "sh", str(len(volumes)), *binds]
    with _started(directory, isolated, ["--root", str(root)], module) as found:
        yield found


@contextlib.contextmanager
def _started(
    directory: Path, prefix: list[str], options: list[str], module: Sequence[str] = ("sidecar",)
) -> Iterator[Running]:
    socket = directory / "root" / "sidecar" / "broker.sock"
    command = [*prefix, sys.executable, "-m", *module, "--listen", str(socket), *options]
    with running(command, {}, str(socket)) as found:
        yield found


def thread_identities(pid: int) -> set[tuple[str, ...]]:
    """(users, groups, supplementary groups, effective capabilities) of every thread: one, if none is stuck."""
    found = set()
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/task/{thread}/status") as lines:
            wanted = ("Uid:", "Gid:", "Groups:", "CapEff:")
            found.add(tuple(" ".join(line.split()) for line in lines if line.startswith(wanted)))
    return found


def descriptors(pid: int) -> int:
    """How many descriptors the process has open, its pool of database connections apart; 0 for who is not root.

    It is closed to its own user, too (`storage.linux.forbid_dumps`).
    """
    found = 0
    for descriptor in os.listdir(f"/proc/{pid}/fd") if os.geteuid() == 0 else ():
        with contextlib.suppress(FileNotFoundError):
            found += ".sqlite" not in os.readlink(f"/proc/{pid}/fd/{descriptor}")
    return found

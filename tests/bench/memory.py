"""Memory: by how much a fresh process (`memory_process.py`) grows while a broker works, beside the target."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from bench.frame import Figure
from bench.s3 import configuration
from bench.session import BUCKET, LISTED, Session, progress

_MB = 1e6
_LIST_TARGET_MB = 20
_TRANSFER_TARGET_MB = 100
_BEYOND_ONE_COPY_BYTES = 5 * 1024**3 + 1024**2


def measure(session: Session) -> None:
    """Measure everything of this section; what takes minutes only where asked for."""
    _measure_listing(session)
    _measure_batch(session)
    _measure_object(session)
    if session.is_large:
        _measure_large_move(session)


def _measure_listing(session: Session) -> None:
    keys = session.listed_keys
    _note(
        session,
        f"s3, list {keys:,} keys",
        _LIST_TARGET_MB,
        "one listing, first to last",
        {"name": "list", "broker": configuration(session.server), "prefix": f"{LISTED}/"},
    )


def _measure_batch(session: Session) -> None:
    workspace = session.new_directory("memory-workspace")
    tree = session.small_files("batch", session.sizes.files)
    files = {path: f"{tree.directory}/{path}" for path in tree.paths}
    _note(
        session,
        f"host, upload {len(files):,} files",
        _LIST_TARGET_MB,
        "one call; without the caller's models",
        {
            "name": "upload",
            "broker": {"type": "host", "host_path": str(workspace)},
            "volume_path": str(workspace),
            "first": {"first": files[tree.paths[0]]},
            "files": files,
        },
    )


def _measure_object(session: Session) -> None:
    source = f"{session.large_file.directory}/{session.large_file.paths[0]}"
    mib, target = session.sizes.large_bytes >> 20, session.new_directory("memory-downloads")
    first = session.new_directory("memory-first") / "first"
    first.write_bytes(b"first")
    task = {"broker": configuration(session.server), "volume_path": None}
    up = {"name": "upload", "first": {"growth/first": str(first)}, "files": {"growth/large": source}}
    _note(session, f"s3, upload {mib:,} MiB", _TRANSFER_TARGET_MB, "one object", task | up)
    down = {
        "name": "download",
        "first": {"growth/first": f"{target}/first"},
        "files": {"growth/large": f"{target}/large"},
    }
    _note(session, f"s3, download {mib:,} MiB", _TRANSFER_TARGET_MB, "one object", task | down)
    assert os.path.getsize(f"{target}/large") == session.sizes.large_bytes


def _measure_large_move(session: Session) -> None:
    """Move what S3 copies only in parts; what came of it is looked at with a client of our own."""
    source = session.new_directory("beyond") / "sparse"
    with source.open("wb") as file:
        file.truncate(_BEYOND_ONE_COPY_BYTES)
    task = {
        "name": "move",
        "broker": configuration(session.server),
        "volume_path": None,
        "files": {"beyond": str(source)},
    }
    _note(session, "s3, move 5 GiB + 1 MiB", _TRANSFER_TARGET_MB, "copied in parts; size and ETag looked at", task)
    client = session.server.client()
    found = client.head_object(Bucket=BUCKET, Key="moved/beyond")
    assert found["ContentLength"] == _BEYOND_ONE_COPY_BYTES, found
    parts = found["ETag"].strip('"').partition("-")[2]
    assert parts.isdigit(), found
    assert int(parts) > 1, found
    assert client.list_objects_v2(Bucket=BUCKET, Prefix="beyond")["KeyCount"] == 0


def _note(session: Session, name: str, target_mb: float, includes: str, task: dict[str, Any]) -> None:
    progress(f"memory: {name}")
    catalog = f"sqlite:///{session.directory}/growth.sqlite"
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory_process"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        input=json.dumps(task | {"catalog": catalog}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    grown = json.loads(done.stdout)["growth_bytes"] / _MB
    session.note(Figure("memory", name, grown, target_mb, "MB", includes))

"""The process whose memory is measured: `memory.py` starts one for each figure.

It reads one JSON object, the task, and answers with one: by how many bytes its resident memory grew, from when all
was ready to the highest while it worked.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from bench.resident import highest, watched
from bench.session import exhaust
from storage import catalog
from storage.brokers.broker import Broker, FileDownload, FileMove, FileUpload
from storage.brokers.factory import get_broker
from storage.models import ScaleFile

Work = Callable[[], object]


def main() -> None:
    """Do the task that standard input names."""
    task: dict[str, Any] = json.load(sys.stdin)
    opened = catalog.configure(task["catalog"])
    try:
        broker = get_broker(task["broker"]["type"])
        broker.load_configuration(task["broker"])
        work = _TASKS[task["name"]](broker, task)
        before = watched(os.getpid())
        work()
        print(json.dumps({"growth_bytes": highest(os.getpid()) - before}))
    finally:
        opened.close()


def _list(broker: Broker, task: dict[str, Any]) -> Work:
    """List all below a prefix; the connection is made by a look at another."""
    exhaust(broker.list_files("none/", True))
    return lambda: exhaust(broker.list_files(task["prefix"], True))


def _upload(broker: Broker, task: dict[str, Any]) -> Work:
    """Upload files, and others before, so that the SDKs are loaded; the models are the caller's."""
    uploads = _uploads(task["files"])
    broker.upload_files(task["volume_path"], _uploads(task["first"]))
    return lambda: broker.upload_files(task["volume_path"], uploads)


def _uploads(files: dict[str, str]) -> list[FileUpload]:
    return [FileUpload(ScaleFile(file_path=path, workspace="growth"), local) for path, local in files.items()]


def _download(broker: Broker, task: dict[str, Any]) -> Work:
    """Download files, and others before, so that the SDKs are loaded."""
    broker.download_files(task["volume_path"], _downloads(task["first"]))
    return lambda: broker.download_files(task["volume_path"], _downloads(task["files"]))


def _downloads(files: dict[str, str]) -> list[FileDownload]:
    return [FileDownload(ScaleFile(file_path=path), local_path, False) for path, local_path in files.items()]


def _move(broker: Broker, task: dict[str, Any]) -> Work:
    """Move files, which were uploaded before, to `moved/`."""
    uploads = _uploads(task["files"])
    broker.upload_files(task["volume_path"], uploads)
    moves = [FileMove(upload.file, f"moved/{upload.file.file_path}") for upload in uploads]
    return lambda: broker.move_files(task["volume_path"], moves)


_TASKS: dict[str, Callable[[Broker, dict[str, Any]], Work]] = {
    "list": _list,
    "upload": _upload,
    "download": _download,
    "move": _move,
}

if __name__ == "__main__":
    main()

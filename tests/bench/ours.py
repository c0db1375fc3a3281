"""Ours in the races: a broker, the files that it stored, and the verbs of the cases."""

from __future__ import annotations

from pathlib import Path

from bench.session import Tree
from storage.brokers.broker import Broker, FileDownload, FileMove, FileUpload
from storage.models import ScaleFile


class Ours:
    """A broker at work on a tree's first `count` files; those of each repetition are its own.

    Args:
        root: what the paths of all that it stores begin with.
        downloads: the directory for downloads, made as needed.
    """

    def __init__(
        self, broker: Broker, volume_path: str | None, tree: Tree, *, count: int, root: str, downloads: Path
    ) -> None:
        self._broker, self._volume_path = broker, volume_path
        self._tree, self._paths = tree, tree.paths[:count]
        self._root, self._downloads = root, downloads
        self._stored: dict[int, list[ScaleFile]] = {}

    def upload(self, repetition: int) -> None:
        files = [
            ScaleFile(file_path=f"{self._root}/{repetition}/{path}", workspace="bench") for path in self._paths
        ]
        local_paths = [f"{self._tree.directory}/{path}" for path in self._paths]
        self._broker.upload_files(self._volume_path, list(map(FileUpload, files, local_paths)))
        self._stored[repetition] = files

    def download(self, repetition: int) -> None:
        target = self._downloads / self._root / str(repetition)
        self._tree.make_directories(target, self._paths)
        files = zip(self._stored[repetition], self._paths, strict=True)
        self._broker.download_files(
            self._volume_path, [FileDownload(file, f"{target}/{path}", False) for file, path in files]
        )

    def move(self, repetition: int) -> None:
        files = self._stored[repetition]
        self._broker.move_files(self._volume_path, [FileMove(file, f"moved/{file.file_path}") for file in files])

    def copy(self, repetition: int) -> None:
        """A move back, since a broker has no copy."""
        files = self._stored[repetition]
        moves = [FileMove(file, file.file_path.removeprefix("moved/")) for file in files]
        self._broker.move_files(self._volume_path, moves)

    def delete(self, repetition: int) -> None:
        self._broker.delete_files(self._volume_path, self._stored[repetition])

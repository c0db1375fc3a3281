"""The catalog's records of a workspace, as far as its caller holds it and by the paths that the caller knows.

The catalog keeps the path of a file in the whole workspace. To whoever holds a part (see `sidecar.holdings`) that
directory is the workspace: it is told the paths below, and of no record outside. Only here are both known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from sidecar.holdings import Holding
from storage.catalog import Catalog
from storage.models import ScaleFile


@dataclass(slots=True, kw_only=True)
class PartFile(ScaleFile):
    """A file as whoever holds a part of its workspace knows it, but saved by its path in the whole.

    Attributes:
        part: the directory that `file_path` is relative to.
    """

    part: str

    def row(self) -> dict[str, Any]:
        return {**ScaleFile.row(self), "file_path": f"{self.part}/{self.file_path}"}


class Records:
    """The records of what a caller holds. Others are found as little as those that do not exist."""

    def __init__(self, catalog: Catalog, holding: Holding) -> None:
        self._catalog = catalog
        self.workspace = holding.name
        self._part = holding.part

    def new(self, file_path: str) -> ScaleFile:
        """A record, not saved, of a file that has none."""
        if self._part:
            return PartFile(file_path=file_path, workspace=self.workspace, part=self._part)
        return ScaleFile(file_path=file_path, workspace=self.workspace)

    def at_path(self, file_path: str) -> ScaleFile | None:
        """The live record of a path, if there is one."""
        return self._seen(self._catalog.find_path(self.workspace, self.whole(file_path)))

    def at_paths(self, file_paths: Sequence[str]) -> dict[str, ScaleFile]:
        """The live records of some paths, by path."""
        found = self._catalog.find_paths(self.workspace, [self.whole(path) for path in file_paths])
        return {seen.file_path: seen for file in found if (seen := self._seen(file))}

    def with_id(self, file_id: int) -> ScaleFile | None:
        """The record with this id, live or not."""
        return self._seen(self._catalog.find_id(self.workspace, file_id))

    def with_uuid(self, uuid: str) -> ScaleFile | None:
        """The record with this uuid, live or not."""
        return self._seen(self._catalog.find_uuid(self.workspace, uuid))

    def page(
        self, *, file_path: str | None, is_deleted: bool | None, after_id: int, limit: int
    ) -> list[ScaleFile]:
        """The records with ids above `after_id`, by id; None means any."""
        found = self._catalog.page(
            self.workspace,
            file_path=None if file_path is None else self.whole(file_path),
            is_deleted=is_deleted,
            below=self._part,
            after_id=after_id,
            limit=limit,
        )
        return [seen for file in found if (seen := self._seen(file))]

    def place(self, file_path: str) -> tuple[str, str]:
        """What is the same for all who hold the file at this path, whichever part of the workspace they hold."""
        return self.workspace, self.whole(file_path)

    def whole(self, file_path: str) -> str:
        """The path in the whole workspace."""
        return f"{self._part}/{file_path}" if self._part else file_path

    def _seen(self, file: ScaleFile | None) -> ScaleFile | None:
        if file is None or not self._part:
            return file
        above = f"{self._part}/"
        if not file.file_path.startswith(above):
            return None
        known = {one.name: getattr(file, one.name) for one in fields(ScaleFile)}
        return PartFile(**{**known, "file_path": file.file_path.removeprefix(above)}, part=self._part)

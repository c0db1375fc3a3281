"""The broker's operations, item by item, with the catalog: what a batch does, apart from how it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import structlog

from sidecar import requests
from sidecar.errors import STATUS_OF_CODE, UnknownWorkspace
from sidecar.workspaces import Holding, Session
from storage.brokers._filesystem import FilesystemBroker
from storage.brokers.broker import Broker, FileDownload, FileMove, FileUpload
from storage.catalog import Catalog
from storage.exceptions import MissingFile, ReadOnly, StorageError
from storage.files import check_file_path
from storage.models import ScaleFile
from storage.os_errors import os_errors, quoted

log = structlog.get_logger()


class _Named(Protocol):
    @property
    def label(self) -> str: ...


Item = TypeVar("Item", bound=_Named)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item of a batch."""

    file_path: str
    status: str
    file: ScaleFile | None = None
    error: tuple[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"file_path": self.file_path, "status": self.status}
        if self.file is not None:
            found["file"] = record(self.file)
        if self.error is not None:
            found["error"] = {"code": self.error[0], "detail": self.error[1]}
        return found


class Workspace:
    """One workspace that the caller holds, open for one request.

    Attributes:
        volume_path: where the broker finds its volume; None for a broker without one, though its token has a path.
    """

    def __init__(self, session: Session, name: str, catalog: Catalog) -> None:
        """Take the caller's holding of the name.

        Raises:
            UnknownWorkspace: the caller holds none of it.
            PermissionDenied, InvalidPath: it is mounted in the caller where that cannot go.
        """
        holding = session.holdings.get(name)
        if holding is None:
            raise UnknownWorkspace(
                f"there is no workspace {quoted(name)} here: none of that name is mounted in your container"
            )
        self.holding = holding
        self.broker: Broker = holding.broker(session.view)
        self.volume_path = holding.volume_path if self.broker.volume is not None else None
        self._view = session.view
        self._catalog = catalog
        self._check_reach()

    def download(self, batch: requests.Downloads) -> Iterator[Outcome]:
        self.broker.overwrite = batch.overwrite

        def one(item: requests.Download) -> ScaleFile:
            file = self._file(item)
            self.broker.download_files(self.volume_path, [FileDownload(file, item.local_path, item.partial)])
            return file

        return _outcomes(batch.files, one, batch.on_error)

    def upload(self, batch: requests.Uploads) -> Iterator[Outcome]:
        self.broker.overwrite = batch.overwrite

        def one(item: requests.Upload) -> ScaleFile:
            self._check_writable()
            file = self._file(requests.FileName(file_path=item.file_path))
            file = replace(file, media_type=item.media_type or file.media_type)
            self.broker.upload_files(self.volume_path, [FileUpload(file, item.local_path)])
            return file

        return _outcomes(batch.files, one, batch.on_error)

    def move(self, batch: requests.Moves) -> Iterator[Outcome]:
        self.broker.overwrite = batch.overwrite

        def one(item: requests.Move) -> ScaleFile:
            self._check_writable()
            file = self._file(item)
            self.broker.move_files(self.volume_path, [FileMove(file, item.new_path)])
            return file

        return _outcomes(batch.files, one, batch.on_error)

    def delete(self, batch: requests.Deletes) -> Iterator[Outcome]:
        def one(item: requests.Delete) -> ScaleFile:
            self._check_writable()
            file = self._file(item, deleted_too=True)
            if not file.is_deleted:  # else a new file may be at the path of the old
                self.broker.delete_files(self.volume_path, [file], update_model=batch.update_model)
            return file

        return _outcomes(batch.files, one, batch.on_error)

    def paths(self, query: requests.Paths) -> list[str] | None:
        return self.broker.get_file_system_paths(self.volume_path, [self._file(name) for name in query.files])

    def describe(self) -> dict[str, Any]:
        return describe(self.holding, self.broker)

    def health(self) -> dict[str, Any]:
        """Whether the caller can reach the workspace now."""
        try:
            self.broker.list_page(self.volume_path, False, limit=1)
        except StorageError as error:
            return {"status": "unreachable", "code": error.code, "detail": str(error)}
        return {"status": "healthy"}

    def _check_reach(self) -> None:
        """See to it that the caller can go to the mount that it holds the workspace by.

        Whoever works with files through the volume finds out. Others would take the sight of a mount for enough,
        and a process with a view of the host's mounts sees those of all tasks.
        """
        place = self.holding.volume_path
        if self.holding.is_by_mount and place is not None and not isinstance(self.broker, FilesystemBroker):
            with os_errors(f"open the workspace at {quoted(place)}"), self._view.acting():
                self._view.open_workspace(place).close()

    def _check_writable(self) -> None:
        # The kernel would refuse too, but not where there is nothing to do (a file already gone), and then the
        # catalog would be changed by a caller that may not; nor where nothing goes through the mount.
        self._check_reach()
        if self.holding.is_read_only:
            raise ReadOnly(f"workspace {quoted(self.holding.name)} is mounted read-only for you")

    def _file(self, name: requests.FileName, *, deleted_too: bool = False) -> ScaleFile:
        """The live record of a file, or a new unsaved one for a path that has none yet."""
        workspace = self.holding.name
        if name.file_path is not None:
            check_file_path(name.file_path)
            return self._catalog.find_path(workspace, name.file_path) or ScaleFile(
                file_path=name.file_path, workspace=workspace
            )
        if name.id is not None:
            found = self._catalog.find_id(workspace, name.id)
        else:
            found = self._catalog.find_uuid(workspace, name.uuid or "")
        if found is None:
            raise MissingFile(f"no record of workspace {quoted(workspace)} has {name.label}")
        if found.is_deleted and not deleted_too:
            raise MissingFile(f"the file with {name.label} was deleted")
        return found


def describe(holding: Holding, broker: Broker) -> dict[str, Any]:
    """A workspace as the API shows it."""
    volume = broker.volume
    return {
        "name": holding.name,
        "broker_type": broker.broker_type,
        "volume_path": holding.volume_path,
        "read_only": holding.is_read_only,
        "volume": None if volume is None else {"driver": volume.driver, "remote_path": volume.remote_path},
    }


def record(file: ScaleFile) -> dict[str, Any]:
    """A record as the API shows it: times in RFC 3339; identifiers are null for a file not in the catalog."""
    is_saved = file.id is not None
    return {
        "id": file.id,
        "uuid": file.uuid if is_saved else None,
        "file_name": file.file_name,
        "file_path": file.file_path,
        "file_size": file.file_size,
        "media_type": file.media_type,
        "workspace": file.workspace,
        "is_deleted": file.is_deleted,
        "deleted": file.deleted.isoformat() if file.deleted else None,
        "created": file.created.isoformat() if is_saved else None,
        "last_modified": file.last_modified.isoformat() if is_saved else None,
        "checksum": file.checksum,
        "tags": file.tags,
    }


def _outcomes(items: Iterable[Item], work: Callable[[Item], ScaleFile], on_error: str) -> Iterator[Outcome]:
    """Work on the items in order; after a failure the rest is skipped unless told to continue."""
    stopped = False
    for item in items:
        if stopped:
            yield Outcome(item.label, "skipped")
            continue
        try:
            yield Outcome(item.label, "done", file=work(item))
        except Exception as error:
            yield Outcome(item.label, "failed", error=_told(error))
            stopped = on_error == "stop"


def _told(error: Exception) -> tuple[str, str]:
    """Code and detail of a failure. What was not foreseen is logged in full and told without its insides."""
    if isinstance(error, StorageError) and error.code in STATUS_OF_CODE and error.code != "internal-error":
        return error.code, str(error)
    log.error("operation failed unexpectedly", exc_info=error)
    return "internal-error", "the sidecar failed; its log says why"

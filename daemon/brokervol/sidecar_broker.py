"""A broker whose backend is the sidecar: code written for the library works in a task as it is, by configuration.

    from brokervol.sidecar_broker import SidecarBroker
    from storage.brokers.factory import add_broker_type, get_broker

    add_broker_type(SidecarBroker)
    broker = get_broker("sidecar")
    broker.load_configuration({"type": "sidecar", "workspace": "imagery"})

It is not registered by itself: for the driver and the sidecar, which share the factory, it would be themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Any, TypeVar

from brokervol.client import LONGEST_PATH, BrokerError, Client
from storage import exceptions
from storage.brokers.broker import (
    Broker,
    Content,
    FileDetails,
    FileDownload,
    FileMove,
    FileUpload,
    Readable,
    Written,
)
from storage.brokers.exceptions import InvalidBrokerConfiguration
from storage.configuration.warnings import ValidationWarning
from storage.exceptions import BackendUnavailable, FileChanged, InvalidPath, StorageError, Unsupported
from storage.files import check_file_path, check_local_path, check_prefix
from storage.models import ScaleFile, check_storable
from storage.os_errors import quoted

DEFAULT_SOCKET = "/run/brokervol/broker.sock"

_KEYS = {"type", "workspace", "socket_path"}
_WORKSPACE = re.compile("[A-Za-z0-9][A-Za-z0-9_.-]*")
_MEDIA_TYPE = re.compile("[ -~]{0,255}")
_TIMES = ("created", "last_modified", "deleted")
_FIELDS = (
    "id",
    "uuid",
    "file_name",
    "file_path",
    "file_size",
    "media_type",
    "workspace",
    "is_deleted",
    "checksum",
)

Results = Generator[dict[str, Any], None, None]
Item = TypeVar("Item", FileDownload, FileMove, FileUpload, ScaleFile)


class SidecarBroker(Broker):
    """Configuration: `{"type": "sidecar", "workspace": NAME}`, and `socket_path` where it is not the usual one.

    Nothing has to be mounted for it: an absolute `volume_path` is used by `get_file_system_paths` alone. Paths
    are those of this process, files are touched as its user, and records are in the sidecar's catalog: models are
    given what that says, and `ScaleFile.save` is not called. `view` and `keyed` have no meaning here.

    Attributes:
        client: for what the library has no name for.
        workspace: the workspace's name.
    """

    client: Client
    workspace: str

    def __init__(self) -> None:
        super().__init__("sidecar")

    def load_configuration(self, config: Mapping[str, Any]) -> None:
        self.validate_configuration(config)
        self.workspace = config["workspace"]
        self.client = Client(config.get("socket_path", DEFAULT_SOCKET))

    def validate_configuration(self, config: Mapping[str, Any]) -> list[ValidationWarning]:
        if config.get("type", "sidecar") != "sidecar":
            raise InvalidBrokerConfiguration("type", f"type is {config['type']!r}; this broker's is 'sidecar'")
        name = config.get("workspace")
        if not isinstance(name, str) or not _WORKSPACE.fullmatch(name):
            raise InvalidBrokerConfiguration("workspace", f"workspace is {name!r}; accepted is a volume's name")
        path = config.get("socket_path", DEFAULT_SOCKET)
        if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
            raise InvalidBrokerConfiguration(
                "socket_path", f"socket_path is {path!r}; accepted is an absolute path"
            )
        unknown = sorted(config.keys() - _KEYS)
        return [ValidationWarning("unknown_key", f"{key!r} is not a key of a sidecar broker") for key in unknown]

    def list_files(self, volume_path: str | None, recursive: bool) -> Generator[FileDetails, None, None]:
        """A relative `volume_path` is the beginning of the listed paths, as for s3."""
        prefix = volume_path if volume_path and not volume_path.startswith("/") else ""
        return self.list_under(None, recursive, prefix)

    def list_under(
        self, volume_path: str | None, recursive: bool, prefix: str
    ) -> Generator[FileDetails, None, None]:
        del volume_path
        check_prefix(prefix)
        with _translated("list"), closing(self.client.files(self.workspace, prefix, recursive)) as found:
            for file, size in found:
                yield FileDetails(file, size)

    def download_files(self, volume_path: str | None, file_downloads: Sequence[FileDownload]) -> None:
        del volume_path

        def check(download: FileDownload) -> None:
            check_file_path(download.file.file_path)
            _check_local(download.local_path)

        def run(downloads: Sequence[FileDownload]) -> Results:
            items = [
                {"file_path": it.file.file_path, "local_path": it.local_path, "partial": bool(it.partial)}
                for it in downloads
            ]
            return self.client.download(self.workspace, items, overwrite=self.overwrite)

        for _ in _done("download", file_downloads, check, run):
            pass  # a download changes no record

    def upload_files(self, volume_path: str | None, file_uploads: Sequence[FileUpload]) -> None:
        """Raises Unsupported for a new model with tags or a checksum: the sidecar takes none from a task."""
        del volume_path

        def check(upload: FileUpload) -> None:
            _check_new(upload.file)
            _check_local(upload.local_path)

        def run(uploads: Sequence[FileUpload]) -> Results:
            items = [
                {"local_path": it.local_path, "file_path": it.file.file_path, "media_type": it.file.media_type}
                for it in uploads
            ]
            return self.client.upload(self.workspace, items, overwrite=self.overwrite)

        for upload, result in _done("upload", file_uploads, check, run):
            _take_record(upload.file, result["file"])

    def move_files(self, volume_path: str | None, file_moves: Sequence[FileMove]) -> None:
        del volume_path

        def check(move: FileMove) -> None:
            check_file_path(move.file.file_path)
            check_file_path(move.new_path, "new_path")
            check_storable(move.file)

        def run(moves: Sequence[FileMove]) -> Results:
            items = []
            places: dict[int, str] = {}  # of models that are moved more than once
            for move in moves:
                place = places.get(id(move.file), move.file.file_path)
                items.append({"file_path": place, "new_path": move.new_path})
                places[id(move.file)] = move.new_path
            return self.client.move(self.workspace, items, overwrite=self.overwrite)

        for move, result in _done("move", file_moves, check, run):
            _take_record(move.file, result["file"])

    def delete_files(self, volume_path: str | None, files: Sequence[ScaleFile], update_model: bool = True) -> None:
        del volume_path

        def check(file: ScaleFile) -> None:
            check_file_path(file.file_path)

        def run(some: Sequence[ScaleFile]) -> Results:
            items = [{"file_path": file.file_path} for file in some]
            return self.client.delete(self.workspace, items, update_model=update_model)

        for file, result in _done("delete", files, check, run):
            if update_model and result.get("file"):
                _take_record(file, result["file"])

    def get_file_system_paths(self, volume_path: str | None, files: Sequence[ScaleFile]) -> list[str] | None:
        """Below `volume_path` where that is absolute; else where this process has the volume mounted."""
        for file in files:
            check_file_path(file.file_path)
        if volume_path and volume_path.startswith("/"):
            return [f"{volume_path.rstrip('/')}/{file.file_path}" for file in files]
        with _translated("find the paths of files"):
            return self.client.paths(self.workspace, [file.file_path for file in files])

    def open_file(self, volume_path: str | None, file: ScaleFile) -> Content:
        del volume_path
        check_file_path(file.file_path)
        with _translated("read"):
            return _SidecarContent(self.client, self.workspace, file.file_path)

    def write_file(
        self, volume_path: str | None, file: ScaleFile, source: Readable, *, expected: str | None = None
    ) -> Written:
        """Raises Unsupported as `upload_files` does."""
        del volume_path
        _check_new(file)
        media_type, overwrite = file.media_type, self.overwrite
        with _translated("write"):
            stored = self.client.write(
                self.workspace, file.file_path, source, media_type=media_type, overwrite=overwrite, etag=expected
            )
        _take_record(file, stored.record)
        return Written(stored.etag, stored.is_new)


class _SidecarContent(Content):
    """Each part is asked for when it is read, of the version that was there when the file was opened."""

    def __init__(self, client: Client, workspace: str, file_path: str) -> None:
        self._client, self._workspace, self._path = client, workspace, file_path
        facts = client.facts(workspace, file_path)
        super().__init__(facts.size, facts.etag, facts.last_modified)

    def read(self, start: int, length: int) -> Generator[bytes, None, None]:
        if not length:
            return
        try:
            with _translated("read"):
                yield from self._client.read(self._workspace, self._path, start, length, etag=self.etag)
        except (FileChanged, exceptions.MissingFile) as error:
            raise BackendUnavailable(f"read {quoted(self._path)}: it was replaced while it was read") from error


def _done(
    verb: str,
    items: Iterable[Item],
    check: Callable[[Item], None],
    run: Callable[[Sequence[Item]], Results],
) -> Iterator[tuple[Item, Mapping[str, Any]]]:
    """Have the sidecar do the items; each that is done, with its result. The first failure is raised after those.

    What the sidecar would refuse with the whole of a request, `check` refuses here, when it is that item's turn.
    """
    sound, refusal = [], None
    for item in items:
        try:
            check(item)
        except (StorageError, ValueError) as error:
            refusal = error
            break
        sound.append(item)
    with _translated(verb), closing(run(sound)) as results:
        for item, result in zip(sound, results, strict=False):
            if result["status"] != "done":
                raise _error(result["error"]["code"], result["error"]["detail"])
            yield item, result
    if refusal is not None:
        raise refusal


def _check_local(path: str) -> None:
    check_local_path(path)
    if len(path) > LONGEST_PATH:
        raise InvalidPath(
            f"local_path {quoted(path)} is too long: at most {LONGEST_PATH:,} characters are accepted"
        )


def _check_new(file: ScaleFile) -> None:
    """Refuse a model of which the sidecar would not keep all; see the callers for the errors."""
    check_file_path(file.file_path)
    check_storable(file)
    if not _MEDIA_TYPE.fullmatch(file.media_type):
        raise Unsupported(f"{quoted(file.file_path)}: media_type must be at most 255 printable ASCII characters")
    if file.id is None and (file.tags or file.checksum):
        raise Unsupported(f"{quoted(file.file_path)}: through the sidecar no tags and no checksum can be saved")


def _take_record(file: ScaleFile, record: Mapping[str, Any]) -> None:
    """Let the model be what the sidecar's catalog says; one that it does not know stays as it is."""
    if record["id"] is None:
        return
    for name in _FIELDS:
        setattr(file, name, record[name])
    for name in _TIMES:
        setattr(file, name, datetime.fromisoformat(record[name]) if record[name] else None)
    file.tags = dict(record["tags"])


# By the codes of the API. What is not here is an error that the sidecar itself did not foresee.
_ERRORS: dict[str, type[StorageError]] = {
    "missing-file": exceptions.MissingFile,
    "invalid-path": exceptions.InvalidPath,
    "already-exists": exceptions.AlreadyExists,
    "precondition-failed": exceptions.FileChanged,
    "permission-denied": exceptions.PermissionDenied,
    "read-only": exceptions.ReadOnly,
    "no-space": exceptions.NoSpace,
    "too-large": exceptions.TooLarge,
    "unsupported": exceptions.Unsupported,
    "invalid-request": exceptions.Unsupported,
    "backend-unavailable": exceptions.BackendUnavailable,
    "unknown-workspace": exceptions.BackendUnavailable,  # as a bucket that is not there
    "in-progress": exceptions.BackendUnavailable,
    "unreachable": exceptions.BackendUnavailable,
    "busy": exceptions.TooManyRequests,
    "too-slow": exceptions.TimedOut,
}


def _error(code: str, detail: str) -> StorageError:
    return _ERRORS.get(code, StorageError)(detail)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except BrokerError as error:
        raise _error(error.code, str(error) if error.status else f"{what}: {error}") from error

"""The broker's operations, item by item, with the catalog: what a batch does, apart from how it is asked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import structlog

from sidecar import answers, recovery, requests
from sidecar.attempts import Attempt, attempt, digest_of
from sidecar.errors import STATUS_OF_CODE, Busy, InvalidRequest, UnknownWorkspace
from sidecar.holdings import Holding
from sidecar.locks import Locks
from sidecar.records import Records
from sidecar.workspaces import Session
from storage import journal
from storage.brokers._filesystem import FilesystemBroker
from storage.brokers.broker import Broker, Content, FileDownload, FileMove, FileUpload, Readable, Written
from storage.catalog import Catalog
from storage.exceptions import BackendUnavailable, FileChanged, MissingFile, ReadOnly, StorageError
from storage.files import check_file_path
from storage.journal import DoneItem, KeyedItem
from storage.models import ScaleFile
from storage.os_errors import os_errors, quoted

log = structlog.get_logger()


T = TypeVar("T")

_DRAINED_BYTES = 1024 * 1024

# Paths of whole workspaces that are being changed: so that file and record of one are of the same request.
_paths = Locks()
_PATH_WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item of a batch."""

    file_path: str
    status: Literal["done", "failed", "skipped"]
    file: ScaleFile | None = None
    error: tuple[str, str] | None = None

    def to_json(self) -> answers.Result:
        found = answers.Result(file_path=self.file_path, status=self.status)
        if self.file is not None:
            found["file"] = record(self.file)
        if self.error is not None:
            found["error"] = {"code": self.error[0], "detail": self.error[1]}
        return found


class Workspace:
    """One workspace that the caller holds, open for one request.

    Attributes:
        volume_path: where the broker finds its volume; None for a broker without one, though its token has a path.
        records: what the catalog says of the files that the caller holds.
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
        self._user = session.user
        self._catalog = catalog
        self.records = Records(catalog, holding)
        if not isinstance(self.broker, FilesystemBroker):  # whose work goes through the mount, and finds out
            self.check_reach()
        recovery.settle(catalog, holding)

    def download(
        self, batch: requests.Downloads, key: str | None = None, digest: bytes = b""
    ) -> Iterator[Outcome]:
        """Each of the batches; see `attempts` for the key.

        Args:
            key: the request's idempotency key. A download needs none, since it can be repeated.
            digest: of what is asked for.
        """
        del key, digest
        self.broker.overwrite = batch.overwrite

        def one(item: requests.Download, _: KeyedItem | None) -> ScaleFile:
            if self.holding.token is not None:  # files are reached through the mount, a bucket is not
                self.check_reach()
            file = self._file(item)
            self.broker.download_files(self.volume_path, [FileDownload(file, item.local_path, item.partial)])
            return file

        return self._outcomes("download", batch, one)

    def upload(self, batch: requests.Uploads, key: str | None = None, digest: bytes = b"") -> Iterator[Outcome]:
        self.broker.overwrite = batch.overwrite

        def one(item: requests.Upload, keyed: KeyedItem | None) -> ScaleFile:
            self._check_writable()
            with self._alone(requests.FileName(file_path=item.file_path)) as found:
                file = replace(found, media_type=item.media_type or found.media_type)
                self._tell(file, keyed)
                self.broker.upload_files(self.volume_path, [FileUpload(file, item.local_path)])
            return file

        return self._outcomes("upload", batch, one, key, digest)

    def move(self, batch: requests.Moves, key: str | None = None, digest: bytes = b"") -> Iterator[Outcome]:
        self.broker.overwrite = batch.overwrite

        def one(item: requests.Move, keyed: KeyedItem | None) -> ScaleFile:
            self._check_writable()
            with self._alone(item, item.new_path) as file:
                self._tell(file, keyed)
                self.broker.move_files(self.volume_path, [FileMove(file, item.new_path)])
            return file

        return self._outcomes("move", batch, one, key, digest)

    def delete(self, batch: requests.Deletes, key: str | None = None, digest: bytes = b"") -> Iterator[Outcome]:
        def one(item: requests.Delete, keyed: KeyedItem | None) -> ScaleFile:
            self._check_writable()
            with self._alone(item, deleted_too=True) as file:
                self._tell(file, keyed)
                if not file.is_deleted:  # else a new file may be at the path of the old
                    self.broker.delete_files(self.volume_path, [file], update_model=batch.update_model)
            return file

        return self._outcomes("delete", batch, one, key, digest)

    def open_content(self, file_path: str) -> tuple[ScaleFile, Content]:
        """The record of a file, and its bytes; close these."""
        file = self._file(requests.FileName(file_path=file_path))
        return file, self.broker.open_file(self.volume_path, file)

    def put_content(
        self,
        file_path: str,
        source: Readable,
        *,
        media_type: str = "",
        overwrite: bool = True,
        is_expected: Callable[[str], bool] | None = None,
        key: str | None = None,
    ) -> tuple[ScaleFile, Written]:
        """Store what `source` gives; its record, and what has become of the file.

        Args:
            is_expected: whether a file with this entity tag may be replaced; None if any may, or none be there.
            key: the request's idempotency key; see `attempts`.
        """
        self.broker.overwrite = overwrite

        def write(_: object, keyed: KeyedItem | None) -> tuple[ScaleFile, Written]:
            self._check_writable()
            with self._alone(requests.FileName(file_path=file_path)) as found:
                file = replace(found, media_type=media_type or found.media_type)
                expected = None if is_expected is None else self._expected(file, is_expected)
                self._tell(file, keyed)
                return file, self.broker.write_file(self.volume_path, file, source, expected=expected)

        asked = f"{file_path}\n{media_type}\n{overwrite}\n{is_expected is not None}"
        with self._attempt("write", key, asked.encode("utf-8", "surrogatepass")) as held:
            found = self._once(held, 0, asked, write)
            if not isinstance(found, DoneItem):
                return found
        while source.read(_DRAINED_BYTES):
            pass  # the same once more
        file = self._known(found, file_path)
        return file, Written(self._etag(file), is_new=False)

    def _etag(self, file: ScaleFile) -> str:
        """The entity tag of what is there now; empty for nothing."""
        with contextlib.suppress(StorageError), self.broker.open_file(self.volume_path, file) as content:
            return content.etag
        return ""

    def _expected(self, file: ScaleFile, is_expected: Callable[[str], bool]) -> str:
        subject = f"write {quoted(file.file_path)}"
        try:
            with self.broker.open_file(self.volume_path, file) as content:
                if is_expected(content.etag):
                    return content.etag
        except MissingFile as error:
            raise FileChanged(f"{subject}: no file is there") from error
        raise FileChanged(f"{subject}: what is there has another entity tag")

    def paths(self, files: Iterable[requests.FileName]) -> list[str] | None:
        self.check_reach()
        return self.broker.get_file_system_paths(self.volume_path, [self._file(name) for name in files])

    def describe(self) -> answers.Described:
        return describe(self.holding, self.broker)

    def health(self) -> answers.Health:
        """Whether the caller can reach the workspace now."""
        try:
            self.broker.list_page(self.volume_path, False, limit=1)
        except StorageError as error:
            return {"status": "unreachable", "code": error.code, "detail": str(error)}
        return {"status": "healthy"}

    def check_reach(self) -> None:
        """See to it that the caller can go to the mount that it holds the workspace by.

        The sight of a mount is not enough: a process with a view of the host's mounts sees those of all tasks.

        Raises:
            PermissionDenied, InvalidPath, MissingFile: it cannot.
        """
        place = self.holding.volume_path
        if self.holding.is_by_mount and place is not None:
            with os_errors(f"open the workspace at {quoted(place)}"):
                with self._view.acting():
                    opened = self._view.open_workspace(place)
                with opened:
                    self.holding.check_token(opened.fd)

    def _check_writable(self) -> None:
        # The kernel would refuse too, but not where there is nothing to do (a file already gone), and then the
        # catalog would be changed by a caller that may not; nor where nothing goes through the mount.
        self.check_reach()
        if self.holding.is_read_only:
            raise ReadOnly(f"workspace {quoted(self.holding.name)} is mounted read-only for you")

    def _outcomes(
        self,
        verb: str,
        batch: Any,
        work: Callable[[Any, KeyedItem | None], ScaleFile],
        key: str | None = None,
        digest: bytes = b"",
    ) -> Iterator[Outcome]:
        """Work on the items in order; after a failure the rest is skipped unless told to continue."""
        with self._attempt(verb, key, digest) as held:
            stopped = False
            for number, item in enumerate(batch.files):
                if stopped:
                    yield Outcome(item.label, "skipped")
                    continue
                try:
                    if isinstance(item, requests.BadLine):
                        raise InvalidRequest(item.reason)
                    found = self._once(held, number, item, work)
                    file = self._known(found, item.label) if isinstance(found, DoneItem) else found
                    yield Outcome(item.label, "done", file=file)
                except Exception as error:
                    yield Outcome(item.label, "failed", error=_told(error))
                    stopped = batch.on_error == "stop"

    @contextmanager
    def _attempt(self, verb: str, key: str | None, digest: bytes) -> Iterator[Attempt | None]:
        if key is None:
            yield None
            return
        scope = self.holding.name, f"{self._user} {self.holding.part}".strip()
        asked = digest_of(verb.encode(), digest)
        with attempt(self._catalog, scope, key, asked, self._settle) as found:
            yield found

    def _settle(self, request_id: int) -> None:
        """Find out what became of what an earlier attempt had begun: as the caller, who may see what it made."""
        place = self.broker, self.volume_path, self.holding.name
        if journal.recover(self._catalog, *place, part=self.holding.part, request_id=request_id):
            raise BackendUnavailable("it cannot be told now how far an earlier request with this key has come")

    def _once(
        self, held: Attempt | None, number: int, asked: Any, work: Callable[[Any, KeyedItem | None], T]
    ) -> T | DoneItem:
        """Do an item, unless an earlier attempt has."""
        if held is None:
            return work(asked, None)
        item = held.item(number, asked)
        done = held.done(item)
        if done is not None:
            return done
        found = work(asked, item)
        if not self.broker.keeps_journal:
            file = found[0] if isinstance(found, tuple) else found
            held.remember(item, getattr(file, "id", None))
        return found

    def _known(self, done: DoneItem, label: str) -> ScaleFile:
        """The file of an item that was done before, as it is now."""
        found = self.records.with_id(done.file_id) if done.file_id is not None else None
        return found or self.records.new(label)

    def _tell(self, file: ScaleFile, item: KeyedItem | None) -> None:
        """Tell the broker of what item of a request with a key the model is that it is given next."""
        self.broker.keyed = {id(file): item} if item else {}

    @contextmanager
    def _alone(self, name: requests.FileName, *others: str, deleted_too: bool = False) -> Iterator[ScaleFile]:
        """The record of a file, while no other request changes what is at its path, or at the others."""
        path = name.file_path or self._file(name, deleted_too=deleted_too).file_path
        changed = {(self.holding.name, self.records.whole(each)) for each in (path, *others)}
        refusal = Busy(f"another request is changing {quoted(path)}; try again")
        with _paths.held(changed, refusal, wait_s=_PATH_WAIT_S):
            file = self._file(name, deleted_too=deleted_too)
            if file.file_path != path:
                raise Busy(f"the file with {name.label} was just moved; try again")
            yield file

    def _file(self, name: requests.FileName, *, deleted_too: bool = False) -> ScaleFile:
        """The live record of a file, or a new unsaved one for a path that has none yet."""
        if name.file_path is not None:
            check_file_path(name.file_path)
            return self.records.at_path(name.file_path) or self.records.new(name.file_path)
        self.check_reach()  # what records there are is told to whoever can look
        found = self.records.with_id(name.id) if name.id is not None else self.records.with_uuid(name.uuid or "")
        if found is None:
            raise MissingFile(f"no record of workspace {quoted(self.holding.name)} has {name.label}")
        if found.is_deleted and not deleted_too:
            raise MissingFile(f"the file with {name.label} was deleted")
        return found


def describe(holding: Holding, broker: Broker) -> answers.Described:
    """A workspace as the API shows it."""
    volume = broker.volume
    return {
        "name": holding.name,
        "broker_type": broker.broker_type,
        "volume_path": holding.volume_path,
        "read_only": holding.is_read_only,
        "volume": None if volume is None else {"driver": volume.driver, "remote_path": volume.remote_path},
    }


def record(file: ScaleFile) -> answers.Record:
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


def _told(error: Exception) -> tuple[str, str]:
    """Code and detail of a failure. What was not foreseen is logged in full and told without its insides."""
    if isinstance(error, StorageError) and error.code in STATUS_OF_CODE and error.code != "internal-error":
        return error.code, str(error)
    log.error("operation failed unexpectedly", exc_info=error)
    return "internal-error", "the sidecar failed; its log says why"

"""The broker's operations, with the catalog: what each call does, apart from how it is asked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sidecar import answers, recovery, requests
from sidecar.attempts import Attempt, attempt, digest_of
from sidecar.batches import Batch, Verb, known, path_alone
from sidecar.errors import UnknownWorkspace
from sidecar.holdings import Holding
from sidecar.outcomes import Outcome
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

_DRAINED_BYTES = 1024 * 1024


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
    ) -> Iterator[list[Outcome]]:
        """Each of the batches gives outcomes by the group; see `batches`, and `attempts` for the key.

        Args:
            key: the request's idempotency key. A download needs none, since it can be repeated.
            digest: of what is asked for.
        """
        del key, digest

        def check() -> None:
            if self.holding.token is not None:  # files are reached through the mount, a bucket is not
                self.check_reach()

        def call(pairs: Sequence[tuple[requests.Download, ScaleFile]]) -> None:
            downloads = [FileDownload(file, item.local_path, item.partial) for item, file in pairs]
            self.broker.download_files(self.volume_path, downloads)

        return self._outcomes("download", batch, Verb(check, call, is_change=False))

    def upload(
        self, batch: requests.Uploads, key: str | None = None, digest: bytes = b""
    ) -> Iterator[list[Outcome]]:
        def model(item: requests.Upload, found: ScaleFile) -> ScaleFile:
            return replace(found, media_type=item.media_type) if item.media_type else found

        def call(pairs: Sequence[tuple[requests.Upload, ScaleFile]]) -> None:
            uploads = [FileUpload(file, item.local_path) for item, file in pairs]
            self.broker.upload_files(self.volume_path, uploads)

        verb = Verb(self._check_writable, call, _uploaded, model=model)
        return self._outcomes("upload", batch, verb, key, digest)

    def move(self, batch: requests.Moves, key: str | None = None, digest: bytes = b"") -> Iterator[list[Outcome]]:
        def call(pairs: Sequence[tuple[requests.Move, ScaleFile]]) -> None:
            moves = [FileMove(file, item.new_path) for item, file in pairs]
            self.broker.move_files(self.volume_path, moves)

        verb = Verb(self._check_writable, call, others=lambda item: (item.new_path,))
        return self._outcomes("move", batch, verb, key, digest)

    def delete(
        self, batch: requests.Deletes, key: str | None = None, digest: bytes = b""
    ) -> Iterator[list[Outcome]]:
        def call(pairs: Sequence[tuple[requests.Delete, ScaleFile]]) -> None:
            files = [file for _, file in pairs]
            self.broker.delete_files(self.volume_path, files, update_model=batch.update_model)

        verb = Verb(self._check_writable, call, deleted_too=True)
        return self._outcomes("delete", batch, verb, key, digest)

    def open_content(self, file_path: str) -> tuple[ScaleFile, Content]:
        """The record of a file, and its bytes; close these."""
        file = self.file(requests.FileName(file_path=file_path))
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

        def write(keyed: KeyedItem | None) -> tuple[ScaleFile, Written]:
            self._check_writable()
            with path_alone(self.records, file_path):
                found = self.file(requests.FileName(file_path=file_path))
                file = replace(found, media_type=media_type or found.media_type)
                expected = None if is_expected is None else self._expected(file, is_expected)
                self.broker.keyed = {id(file): keyed} if keyed else {}
                return file, self.broker.write_file(self.volume_path, file, source, expected=expected)

        asked = f"{file_path}\n{media_type}\n{overwrite}\n{is_expected is not None}"
        with self._attempt("write", key, asked.encode("utf-8", "surrogatepass")) as held:
            found = self._once(held, asked, write)
            if not isinstance(found, DoneItem):
                return found
        while source.read(_DRAINED_BYTES):
            pass  # the same once more
        file = known(self.records, found, file_path)
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
        return self.broker.get_file_system_paths(self.volume_path, [self.file(name) for name in files])

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
        self, verb: str, batch: Any, work: Verb, key: str | None = None, digest: bytes = b""
    ) -> Iterator[list[Outcome]]:
        """Work on the items in order; after a failure the rest is skipped unless told to continue."""
        self.broker.overwrite = getattr(batch, "overwrite", True)
        arrivals = [batch.files] if isinstance(batch.files, list) else batch.files
        with self._attempt(verb, key, digest) as held:
            yield from Batch(self, work, held, goes_on=batch.on_error == "continue").outcomes(arrivals)

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
        self, held: Attempt | None, asked: str, write: Callable[[KeyedItem | None], tuple[ScaleFile, Written]]
    ) -> tuple[ScaleFile, Written] | DoneItem:
        """Write a file, unless an earlier attempt has."""
        if held is None:
            return write(None)
        item = held.item(0, asked)
        done = held.done(item)
        if done is not None:
            return done
        found = write(item)
        if not self.broker.keeps_journal:
            held.remember(item, found[0].id)
        return found

    def file(self, name: requests.FileName, *, deleted_too: bool = False) -> ScaleFile:
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


def _uploaded(item: requests.Upload) -> requests.FileName:
    return requests.FileName(file_path=item.file_path)


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

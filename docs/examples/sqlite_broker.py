"""A broker of one's own, to start yours from: a workspace of many small files in one SQLite database."""

# ruff: noqa: ARG002  # where nothing is mounted, volume_path is None
from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from typing import Any

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
from storage.brokers.local import open_local, write_local
from storage.configuration.warnings import ValidationWarning
from storage.exceptions import AlreadyExists, BackendUnavailable, FileChanged, MissingFile
from storage.files import check_file_path
from storage.models import ScaleFile
from storage.os_errors import quoted

_BLOCK_BYTES = 1 << 20


class HeldContent(Content):
    """Content that is in memory, as files of this broker are small."""

    def __init__(self, content: bytes) -> None:
        super().__init__(len(content), hashlib.sha256(content).hexdigest(), None)
        self.content = content

    def read(self, start: int, length: int) -> Generator[bytes, None, None]:
        for offset in range(start, start + length, _BLOCK_BYTES):
            yield self.content[offset : min(offset + _BLOCK_BYTES, start + length)]


class SqliteBroker(Broker):
    """Configuration: `{"type": "sqlite", "database": "/srv/scenes.sqlite"}`. Nothing has to be mounted for it."""

    def __init__(self) -> None:
        super().__init__("sqlite")

    def load_configuration(self, config: Mapping[str, Any]) -> None:
        self.validate_configuration(config)
        self._database = config["database"]

    def validate_configuration(self, config: Mapping[str, Any]) -> list[ValidationWarning]:
        if config.get("type", "sqlite") != "sqlite":
            raise InvalidBrokerConfiguration("type", f"type is {config['type']!r}; this broker's is 'sqlite'")
        path = config.get("database")
        if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
            raise InvalidBrokerConfiguration("database", f"database is {path!r}; accepted is an absolute path")
        unknown = sorted(config.keys() - {"type", "database"})
        return [ValidationWarning("unknown_key", f"{key!r} is not a key of an sqlite broker") for key in unknown]

    def list_files(self, volume_path: str | None, recursive: bool) -> Generator[FileDetails, None, None]:
        for path, size in self._rows("SELECT path, length(content) FROM file"):
            if recursive or "/" not in path:
                yield FileDetails(path, size)

    def download_files(self, volume_path: str | None, file_downloads: Sequence[FileDownload]) -> None:
        for download in file_downloads:
            content = self._only("SELECT content FROM file WHERE path = ?", download.file.file_path)
            write_local(self.view, download, [content], overwrite=self.overwrite)

    def upload_files(self, volume_path: str | None, file_uploads: Sequence[FileUpload]) -> None:
        for upload in file_uploads:
            file = upload.file
            check_file_path(file.file_path)
            with open_local(self.view, upload) as source:
                content = source.read()
            insert = "INSERT OR REPLACE" if self.overwrite else "INSERT"
            list(self._rows(f"{insert} INTO file VALUES (?, ?)", file.file_path, content))
            file.file_size, file.is_deleted, file.deleted = len(content), False, None
            file.save()

    def move_files(self, volume_path: str | None, file_moves: Sequence[FileMove]) -> None:
        for file, new_path in file_moves:
            check_file_path(new_path, "new_path")
            update = "UPDATE OR REPLACE" if self.overwrite else "UPDATE"
            rename = f"{update} file SET path = ?2 WHERE path = ?1 RETURNING length(content)"
            file.file_size = self._only(rename, file.file_path, new_path)
            file.file_path, file.file_name = new_path, new_path.rpartition("/")[2]
            file.save()

    def delete_files(self, volume_path: str | None, files: Sequence[ScaleFile], update_model: bool = True) -> None:
        for file in files:
            check_file_path(file.file_path)
            found = list(self._rows("DELETE FROM file WHERE path = ? RETURNING length(content)", file.file_path))
            if update_model and (found or file.id is not None):
                file.file_size = found[0][0] if found else file.file_size
                file.set_deleted()
                file.save()

    def open_file(self, volume_path: str | None, file: ScaleFile) -> HeldContent:
        return HeldContent(self._only("SELECT content FROM file WHERE path = ?", file.file_path))

    def write_file(
        self, volume_path: str | None, file: ScaleFile, source: Readable, *, expected: str | None = None
    ) -> Written:
        found: HeldContent | None = None
        with contextlib.suppress(MissingFile):
            found = self.open_file(volume_path, file)
        if found is not None and not self.overwrite:
            raise AlreadyExists(f"there is a file of that name already: {quoted(file.file_path)}")
        if expected is not None and (found is None or found.etag != expected):
            raise FileChanged(f"{quoted(file.file_path)} is another version, or gone")
        new = HeldContent(b"".join(iter(partial(source.read, _BLOCK_BYTES), b"")))
        if expected is None or found is None:
            insert = "INSERT OR REPLACE" if self.overwrite else "INSERT"
            list(self._rows(f"{insert} INTO file VALUES (?, ?)", file.file_path, new.content))
        else:
            replace = "UPDATE file SET content = ? WHERE path = ? AND content = ? RETURNING 1"
            if not list(self._rows(replace, new.content, file.file_path, found.content)):
                raise FileChanged(f"{quoted(file.file_path)} has changed meanwhile")
        file.file_size, file.is_deleted, file.deleted = new.size, False, None
        file.save()
        return Written(new.etag, is_new=found is None)

    def _only(self, statement: str, path: str, *values: str) -> Any:
        """What a statement answers of the file at `path`."""
        check_file_path(path)
        for (answer,) in list(self._rows(statement, path, *values)):
            return answer
        raise MissingFile(f"there is no file {quoted(path)} in the workspace")

    def _rows(self, statement: str, *values: object) -> Generator[tuple[Any, ...], None, None]:
        """What a statement answers, in a transaction that ends with the last row."""
        try:
            with contextlib.closing(sqlite3.connect(self._database)) as database, database:
                database.execute("PRAGMA journal_mode = WAL")  # a listing must not stop an upload
                database.execute("CREATE TABLE IF NOT EXISTS file (path TEXT PRIMARY KEY, content BLOB NOT NULL)")
                yield from database.execute(statement, values)
        except sqlite3.IntegrityError as error:
            paths = ", ".join(quoted(value) for value in values if isinstance(value, str))
            raise AlreadyExists(f"there is a file of that name already: {paths}") from error
        except sqlite3.Error as error:
            raise BackendUnavailable(f"the workspace's database cannot be used: {error}") from error

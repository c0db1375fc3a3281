"""What is done for each file of a batch on S3: the local side as the caller, the remote side by threads."""

from __future__ import annotations

import contextlib
import os
import re
import uuid as uuids
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from storage import linux
from storage.brokers._parallel import Job
from storage.brokers._s3_objects import Found, Objects, Source
from storage.brokers._s3_run import Planned
from storage.brokers.broker import FileDownload, FileMove, FileUpload
from storage.exceptions import AlreadyExists, BackendUnavailable, MissingFile, StorageError
from storage.files import FILE_MODE, Directory, FileView
from storage.models import ScaleFile
from storage.os_errors import os_errors, quoted
from storage.transfer import Unfinished, refuse_no_file, refuse_same_file, write_link

_NO_HEADER = re.compile(r"[^\x20-\x7e]")


class Downloading(Job):
    """A download into an unfinished file that the caller's identity opened beside its final name.

    Args:
        parent: the directory of the final name.
    """

    def __init__(self, objects: Objects, download: FileDownload, key: str, parent: Directory, *, overwrite: bool):
        self.file, self.subject, self.parent = download.file, subject_of(download), parent
        self._objects, self._key, self._overwrite = objects, key, overwrite
        self._name = download.local_path.rpartition("/")[2]
        refuse_no_file(parent, self._name)
        if not overwrite:  # before anything is fetched
            _refuse_present(parent, self._name)
        self._unfinished = Unfinished(parent)

    def fetch(self) -> None:
        with about(self.subject), os_errors(self.subject):
            self._objects.get(self._key, self._unfinished.fd)
            os.fchmod(self._unfinished.fd, FILE_MODE)
            linux.start_write_back(self._unfinished.fd)

    def sync(self) -> None:
        with os_errors(self.subject):
            os.fsync(self._unfinished.fd)

    def publish(self) -> None:
        self._unfinished.publish(self._name, overwrite=self._overwrite)

    def close(self) -> None:
        self._unfinished.close()


class Linking(Job):
    """A download by a symbolic link into the mounted bucket.

    Args:
        found: the file in the mounted bucket, at `target`.
    """

    def __init__(
        self, download: FileDownload, parent: Directory, target: str, found: os.stat_result, *, overwrite: bool
    ):
        self.file, self.subject, self.parent = download.file, subject_of(download), parent
        self._found, self._target, self._overwrite = found, target, overwrite
        self._name = download.local_path.rpartition("/")[2]

    def publish(self) -> None:
        refuse_same_file(self.parent, self._name, self._found)
        write_link(self.parent, self._name, self._target, overwrite=self._overwrite)

    def close(self) -> None:
        pass


def subject_of(download: FileDownload) -> str:
    """What a download is about, for errors."""
    return f"download {quoted(download.file.file_path)} to local_path {quoted(download.local_path)}"


class Changing(Job):
    """The job of an item that is in the journal."""

    file: ScaleFile
    planned: Planned[Any]

    def done(self) -> ScaleFile | None:
        """The model as it is to be saved; None for nothing to save."""
        raise NotImplementedError


class Uploading(Changing):
    """An upload of a file that the caller's identity opened."""

    def __init__(
        self, objects: Objects, view: FileView, planned: Planned[FileUpload], key: str, *, overwrite: bool
    ):
        self.planned, self.file = planned, planned.item.file
        self._objects, self._key, self._overwrite = objects, key, overwrite
        path, local_path = self.file.file_path, planned.item.local_path
        self._subject = f"upload {quoted(path)} from local_path {quoted(local_path)}"
        with os_errors(self._subject), view.acting():
            fd = view.open_local(local_path)
        self._source = Source(fd, os.fstat(fd).st_size, self.file.media_type, planned.stamp)

    def store(self) -> None:
        with about(self._subject), self.planned.asking():
            self._objects.put(self._key, self._source, overwrite=self._overwrite)

    def done(self) -> ScaleFile:
        """The model, changed for what is stored."""
        self.file.file_size = self._source.size
        self.file.is_deleted, self.file.deleted = False, None
        return self.file

    def close(self) -> None:
        os.close(self._source.fd)


class Copying(Changing):
    """A move: a copy by the server, verified, before the group deletes the source.

    Attributes:
        key, new_key: of the source and of the copy.
        left: the record of the copy, where it stays though the move failed.
        listed: what a listing tells of the object at `key`, and of the one at `new_key` once it is copied.
    """

    def __init__(self, objects: Objects, planned: Planned[FileMove], keys: tuple[str, str], *, overwrite: bool):
        self.planned, self.file = planned, planned.item.file
        self.key, self.new_key = keys
        self.left: ScaleFile | None = None
        self.listed: Found | None = None
        self._subject = f"move {quoted(self.file.file_path)} to {quoted(planned.item.new_path)}"
        self._objects, self._overwrite = objects, overwrite
        self._found = Found(0, "")

    def look(self) -> None:
        with about(self._subject):
            self._found = self._objects.look(self.key, self.listed)

    def copy(self) -> None:
        if self.key != self.new_key:
            with about(self._subject), self.planned.asking():
                self._objects.copy(
                    self.key, self._found, self.new_key, overwrite=self._overwrite, stamp=self.planned.stamp
                )

    @property
    def is_verified(self) -> bool:
        """Whether the copy is known to be one already, so that nobody need ask."""
        return self.key == self.new_key or (self.listed is not None and self.listed.size == self._found.size)

    def verify(self) -> None:
        with self.planned.asking():
            copied = self._objects.head(self.new_key)
            if copied.size != self._found.size:
                raise BackendUnavailable(
                    f"the copy has {copied.size} bytes instead of {self._found.size}; the source is kept"
                )

    def done(self) -> ScaleFile:
        """The model, changed for its new place."""
        self.file.file_path, self.file.file_size = self.planned.item.new_path, self._found.size
        self.file.file_name = self.file.file_path.rpartition("/")[2]
        return self.file

    def fail(self, what: str, error: StorageError) -> None:
        """Fail after the copy was made. It is taken away if it replaced nothing, else it is recorded.

        Where the service does not answer nothing is taken away, as the source may be gone: recovery finds out.
        """
        left = "both are there"
        self.planned.is_uncertain = isinstance(error, BackendUnavailable)
        if not self.planned.is_uncertain and not self._overwrite:
            kept = self._objects.delete([self.new_key])
            self.planned.is_uncertain = isinstance(kept.get(self.new_key), BackendUnavailable)
            if not kept:
                self.error = type(error)(f"{self._subject}: {what}, the copy was removed again: {error}")
                return
        if self.planned.is_uncertain:
            left = "the copy stays, and what became of the source is found out later"
        else:
            self.left = self._copied()
        self.error = type(error)(f"{self._subject}: {what}, {left}: {error}")

    def _copied(self) -> ScaleFile:
        path = self.planned.item.new_path
        copied = replace(self.file, id=None, uuid=str(uuids.uuid4()), is_deleted=False, deleted=None)
        copied.file_path, copied.file_name, copied.file_size = path, path.rpartition("/")[2], self._found.size
        return copied


class Deleting(Changing):
    """A deletion, done by the group.

    Attributes:
        is_there: whether there is something to delete; true also where it was not asked.
    """

    def __init__(self, objects: Objects, planned: Planned[ScaleFile], key: str, *, is_recorded: bool):
        self.planned, self.file, self.key, self.is_there = planned, planned.item, key, True
        self._objects, self._is_recorded, self._size = objects, is_recorded, self.file.file_size

    @property
    def is_asked(self) -> bool:
        """S3 does not say whether there was anything to delete, and a file never saved gets a record only then."""
        return self._is_recorded and self.file.id is None

    def look(self) -> None:
        with about(f"delete {quoted(self.file.file_path)}"):
            try:
                self._size = self._objects.head(self.key).size
            except MissingFile:
                self.is_there = False

    def done(self) -> ScaleFile | None:
        """The model, changed for a file that is no more, if it is to be saved."""
        if not self._is_recorded or not self.is_there:
            return None
        self.file.file_size = self._size
        self.file.set_deleted()
        return self.file

    def keep(self, error: StorageError) -> None:
        """Fail, since it could not be deleted."""
        self.planned.is_uncertain = isinstance(error, BackendUnavailable)
        self.error = type(error)(f"delete {quoted(self.file.file_path)}: {error}")


def check_media_type(file: ScaleFile) -> None:
    """Refuse a media type that cannot be a header.

    Raises:
        ValueError: saying so.
    """
    if _NO_HEADER.search(file.media_type):
        raise ValueError(f"media_type of file {quoted(file.file_path)} must be printable ASCII for S3")


@contextmanager
def about(subject: str) -> Iterator[None]:
    """Say of what operation and file an error of the block is."""
    try:
        yield
    except StorageError as error:
        raise type(error)(f"{subject}: {error}") from error


def _refuse_present(parent: Directory, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        parent.stat(name, follow=False)
        raise AlreadyExists(f"something is already at local_path {quoted(name)}")

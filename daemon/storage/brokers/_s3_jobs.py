"""What is done for each file of a batch on S3: the local side as the caller, the remote side by threads."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from storage.brokers._parallel import Job
from storage.brokers._s3_objects import Found, Objects, Source
from storage.brokers._s3_run import Planned, Run
from storage.brokers.broker import FileDownload, FileMove, FileUpload
from storage.exceptions import AlreadyExists, BackendUnavailable, MissingFile, StorageError
from storage.files import FILE_MODE, Directory, FileView
from storage.models import ScaleFile
from storage.os_errors import os_errors, quoted
from storage.transfer import Unfinished, refuse_directory, refuse_same_file, write_link

_NO_HEADER = re.compile(r"[^\x20-\x7e]")


class Downloading(Job):
    """A download into an unfinished file that the caller's identity opened beside its final name."""

    def __init__(self, objects: Objects, view: FileView, download: FileDownload, key: str, *, overwrite: bool):
        self._objects, self._view, self._key, self._overwrite = objects, view, key, overwrite
        self._subject = f"download {quoted(download.file.file_path)} to local_path {quoted(download.local_path)}"
        with os_errors(self._subject), view.acting(), contextlib.ExitStack() as stack:
            self._parent, self._name = stack.enter_context(view.local_parent(download.local_path))
            refuse_directory(self._parent, self._name)
            if not overwrite:  # before anything is fetched
                _refuse_present(self._parent, self._name)
            self._file = stack.enter_context(contextlib.closing(Unfinished(self._parent)))
            self._held = stack.pop_all()

    def work(self) -> None:
        with about(self._subject), os_errors(self._subject):
            self._objects.get(self._key, self._file.fd)
            os.fchmod(self._file.fd, FILE_MODE)
            os.fsync(self._file.fd)

    def finish(self) -> None:
        with os_errors(self._subject), self._view.acting():
            self._file.publish(self._name, overwrite=self._overwrite)
            self._parent.sync()

    def close(self) -> None:
        with self._view.leaving():
            self._held.close()


class Linking(Job):
    """A download by a symbolic link into the mounted bucket."""

    def __init__(
        self, view: FileView, download: FileDownload, target: str, found: os.stat_result, *, overwrite: bool
    ):
        self._found = found
        self._view, self._local_path, self._target, self._overwrite = view, download.local_path, target, overwrite
        self._subject = f"download {quoted(download.file.file_path)} to local_path {quoted(download.local_path)}"

    def finish(self) -> None:
        with (
            os_errors(self._subject),
            self._view.acting(),
            self._view.local_parent(self._local_path) as (parent, name),
        ):
            refuse_same_file(parent, name, self._found)
            write_link(parent, name, self._target, overwrite=self._overwrite)


class Uploading(Job):
    """An upload of a file that the caller's identity opened."""

    def __init__(
        self, objects: Objects, view: FileView, run: Run[FileUpload], planned: Planned[FileUpload], key: str
    ):
        self._objects, self._key, self._run, self._planned = objects, key, run, planned
        upload = planned.item
        self._file = upload.file
        self._subject = f"upload {quoted(upload.file.file_path)} from local_path {quoted(upload.local_path)}"
        with os_errors(self._subject), view.acting():
            fd = view.open_local(upload.local_path)
        self._source = Source(fd, os.fstat(fd).st_size, upload.file.media_type, planned.stamp)

    def work(self) -> None:
        with about(self._subject), self._planned.asking():
            self._objects.put(self._key, self._source, overwrite=self._run.overwrite)

    def finish(self) -> None:
        self._file.file_size = self._source.size
        self._file.is_deleted, self._file.deleted = False, None
        self._run.done(self._planned, self._file)

    def close(self) -> None:
        os.close(self._source.fd)


class Copying(Job):
    """The first half of a move: a copy by the server, verified. The source is left for the broker to delete.

    Attributes:
        planned: the move.
        key, new_key: of the source and of the copy.
    """

    def __init__(
        self,
        objects: Objects,
        run: Run[FileMove],
        planned: Planned[FileMove],
        keys: tuple[str, str],
        done: Callable[[Copying], None],
    ):
        self.planned = planned
        self._move, self._size = planned.item, 0
        self.key, self.new_key = keys
        self._subject = f"move {quoted(self._move.file.file_path)} to {quoted(self._move.new_path)}"
        self._objects, self._overwrite, self._done = objects, run.overwrite, done

    def work(self) -> None:
        with about(self._subject):
            found = self._objects.head(self.key, with_all=True)
            self._size = found.size
            if self.key != self.new_key:
                with self.planned.asking():
                    self._copy(found)

    def _copy(self, found: Found) -> None:
        stamp = self.planned.stamp
        self._objects.copy(self.key, found, self.new_key, overwrite=self._overwrite, stamp=stamp)
        copied = self._objects.head(self.new_key)
        if copied.size != found.size:
            raise BackendUnavailable(
                f"the copy has {copied.size} bytes instead of {found.size}; the source is kept"
            )

    def finish(self) -> None:
        self._done(self)

    def moved(self) -> ScaleFile:
        """The model, changed for its new place."""
        file = self._move.file
        file.file_path, file.file_size = self._move.new_path, self._size
        file.file_name = file.file_path.rpartition("/")[2]
        return file

    def kept(self, error: StorageError) -> StorageError:
        """The error of the source's removal, with what it left. A copy that replaced nothing is taken away."""
        self.planned.is_uncertain = isinstance(error, BackendUnavailable)
        left = "both are there"
        if not self._overwrite and not self._objects.delete([self.new_key]):
            left = "the copy was removed again"
        return type(error)(f"{self._subject}: the source could not be removed, {left}: {error}")


class Looking(Job):
    """Finds out, where asked, whether an object is there, before the broker deletes it.

    Attributes:
        planned: the deletion.
        is_there: true also where it was not asked.
    """

    def __init__(
        self,
        objects: Objects,
        planned: Planned[ScaleFile],
        key: str,
        *,
        is_asked: bool,
        done: Callable[[Looking], None],
    ):
        self.planned, self.key, self.is_there = planned, key, True
        self._objects, self._file, self._is_asked, self._done = objects, planned.item, is_asked, done
        self._size = self._file.file_size

    def work(self) -> None:
        if self._is_asked:
            with about(f"delete {quoted(self._file.file_path)}"):
                try:
                    self._size = self._objects.head(self.key).size
                except MissingFile:
                    self.is_there = False

    def finish(self) -> None:
        self._done(self)

    def deleted(self) -> ScaleFile:
        """The model, changed for a file that is no more."""
        self._file.file_size = self._size
        self._file.set_deleted()
        return self._file

    def kept(self, error: StorageError) -> StorageError:
        """The error of the deletion, with what it is about."""
        self.planned.is_uncertain = isinstance(error, BackendUnavailable)
        return type(error)(f"delete {quoted(self._file.file_path)}: {error}")


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

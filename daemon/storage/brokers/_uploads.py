"""Uploads of a group: files are written beside their places, and take their names when all are on the disk."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from storage import linux
from storage.brokers._group import Change, Group, directory_of
from storage.exceptions import AlreadyExists, StorageError
from storage.files import FILE_MODE, Directory, FileView, check_file_path, check_local_path
from storage.models import ScaleFile, check_storable
from storage.os_errors import quoted, translate
from storage.transfer import Unfinished, copy_contents


@dataclass(eq=False)
class Upload(Change):
    """One upload.

    Attributes:
        name: the last component of its path.
        new: the file, until it has that name.
    """

    operation = "upload"
    local_path: str
    name: str = field(init=False)
    new: Unfinished = field(init=False)

    def record(self) -> ScaleFile:
        self.file.file_size = self.size
        self.file.is_deleted, self.file.deleted = False, None
        return self.file


class Uploading:
    """The steps of a group of uploads, in their order.

    A group is as good as one upload after another: it ends before an item that would find something else if those
    before it were in place already.
    """

    def __init__(self, group: Group[Upload], view: FileView, *, overwrite: bool) -> None:
        self._group = group
        self._view = view
        self._overwrite = overwrite
        self._paths: set[str] = set()
        self._replaced: set[tuple[int, int]] = set()

    def write(self, upload: Upload) -> None:
        """Write the file beside its place, and begin to bring it to the disk."""
        path = upload.file.file_path
        check_file_path(path)
        check_local_path(upload.local_path)
        check_storable(upload.file)
        if self._paths and not self._paths.isdisjoint(_above(path)):
            self._group.end_before_this()
        source = self._open_source(upload)
        try:
            with self._room():
                parent, upload.name = self._group.parent(path, create=True)
                self._look_at(parent, upload.name)
                upload.new, upload.size = _copied(source, parent)
                self._group.held.append(upload.new)
        finally:
            os.close(source)
        self._paths.add(path)

    def sync(self, upload: Upload) -> None:
        """Wait until the file is on the disk."""
        with self._room():
            os.fsync(upload.new.fd)

    def publish(self, upload: Upload) -> None:
        """Give the file its name."""
        upload.new.publish(upload.name, overwrite=self._overwrite)
        upload.directories.append(directory_of(upload.file.file_path))

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Let the earlier files take their places first when there is no space: what they replace gives some."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._group.end_before_this()
            raise

    def _open_source(self, upload: Upload) -> int:
        try:
            source = self._view.open_local(upload.local_path)
        except (OSError, StorageError) as error:
            self._group.end_before_this()  # perhaps it is what one of those brings
            if isinstance(error, OSError):
                subject = f"{upload.subject} from local_path {quoted(upload.local_path)}"
                raise translate(error, subject) from error
            raise
        try:
            found = os.fstat(source)
            if (found.st_dev, found.st_ino) in self._replaced:
                self._group.end_before_this()
        except BaseException:
            os.close(source)
            raise
        return source

    def _look_at(self, parent: Directory, name: str) -> None:
        """Refuse what must not be replaced, before anything is copied, and keep in mind what will be."""
        try:
            found = parent.stat(name, follow=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(found.st_mode):
            raise AlreadyExists(f"a directory is already at {quoted(name)}")
        if not self._overwrite:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        self._replaced.add((found.st_dev, found.st_ino))
        if stat.S_ISLNK(found.st_mode):
            self._group.end_after_this()  # a later source's path may lead through it


def _copied(source: int, parent: Directory) -> tuple[Unfinished, int]:
    """A new file in `parent` with the content of `source`, soon on the disk; and its size in bytes."""
    new = Unfinished(parent)
    try:
        size = copy_contents(source, new.fd)
        os.fchmod(new.fd, FILE_MODE)
        linux.start_write_back(new.fd)
        return new, size
    except BaseException:
        new.close()  # now: those before it may need the space to take their places
        raise


def _above(path: str) -> list[str]:
    """The paths of the directories that `path` lies in."""
    names = path.split("/")
    return ["/".join(names[:depth]) for depth in range(1, len(names))]

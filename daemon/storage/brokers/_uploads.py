"""Uploads of a group: files are written beside their places, and take their names when all are on the disk."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from storage import linux
from storage.brokers._group import Change, Group, directory_of
from storage.files import FILE_MODE, FileView, check_file_path, check_local_path, refuse_special
from storage.journal import Intent, KeyedItem, identity_of, intent_of
from storage.models import ScaleFile, check_storable
from storage.os_errors import quoted, translate
from storage.transfer import Unfinished, copy_contents


@dataclass(eq=False)
class NewFile(Change):
    """A file that is written beside its place, and takes its name when it is on the disk.

    Attributes:
        name: the last component of its path.
        new: the file, until it has that name.
    """

    name: str = field(init=False)
    new: Unfinished = field(init=False)

    def plan(self, item: KeyedItem | None, *, overwrite: bool) -> Intent:
        intent = intent_of("upload", self.file, item=item)
        intent.before, intent.size, intent.overwrite = self.before, self.size, overwrite
        return intent

    def record(self) -> ScaleFile:
        self.file.file_size = self.size
        self.file.is_deleted, self.file.deleted = False, None
        return self.file


@dataclass(eq=False)
class Upload(NewFile):
    """An upload.

    Attributes:
        source: the local file, open until it was copied.
    """

    operation = "upload"
    local_path: str
    source: io.FileIO = field(init=False)


class Uploading:
    """The steps of a group of uploads, in their order.

    A group is as good as one upload after another: it ends before an item that would find something else if those
    before it were in place already.
    """

    def __init__(self, group: Group[Any], view: FileView, *, overwrite: bool) -> None:
        self._group = group
        self._view = view
        self._overwrite = overwrite
        self._paths: set[str] = set()
        self._replaced: set[tuple[int, int]] = set()

    def look(self, upload: Upload) -> None:
        """Open the source, and look at its place."""
        check_local_path(upload.local_path)
        self.look_at(upload)
        upload.source = self._open_source(upload)

    def look_at(self, new: NewFile) -> None:
        """Refuse what must not be replaced, before anything is copied, and keep in mind what will be."""
        path = new.file.file_path
        check_file_path(path)
        check_storable(new.file)
        if not self._paths.isdisjoint(_above(path)):
            self._group.end_before_this()
        self._group.take(path)
        self._paths.add(path)
        new.name, new.before = path.rpartition("/")[2], None
        try:
            found = self._group.parent(path)[0].stat(new.name, follow=False)
        except FileNotFoundError:
            return
        refuse_special(found.st_mode, new.name)
        if not self._overwrite:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        new.before = identity_of(found)
        self._replaced.add((found.st_dev, found.st_ino))
        if stat.S_ISLNK(found.st_mode):  # paths of others may lead through it
            self._group.end_before_this()
            self._group.end_after_this()

    def write(self, upload: Upload) -> None:
        """Write the file beside its place, and begin to bring it to the disk."""
        with self._room():
            self.make(upload)
            try:
                copy_contents(upload.source.fileno(), upload.new.fd, upload.size or 0)
                os.fchmod(upload.new.fd, FILE_MODE)
                linux.start_write_back(upload.new.fd)
            except BaseException:
                upload.new.close()  # now: those before it may need the space to take their places
                raise
        self._group.held.append(upload.new)
        upload.source.close()

    def make(self, new: NewFile) -> None:
        """Make the file, and the missing directories on the way to it."""
        parent, _ = self._group.parent(new.file.file_path, create=True)
        new.new = Unfinished(parent, new.intent.token if new.intent else "")

    def sync(self, upload: NewFile) -> None:
        """Wait until the file is on the disk."""
        with self._room():
            os.fsync(upload.new.fd)

    def publish(self, upload: NewFile) -> None:
        """Give the file its name."""
        with upload.changing():
            upload.new.publish(upload.name, overwrite=self._overwrite)
        upload.directories.append(directory_of(upload.file.file_path))

    def close(self, upload: NewFile) -> None:
        """Let go of the file, since what comes next needs descriptors."""
        upload.new.close()

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Where space or descriptors run out let the earlier files take their places first: that gives some."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE):
                self._group.end_before_this()
            raise

    def _open_source(self, upload: Upload) -> io.FileIO:
        try:
            source = io.FileIO(self._view.open_local(upload.local_path), "rb")
        except OSError as error:
            subject = f"{upload.subject} from local_path {quoted(upload.local_path)}"
            raise translate(error, subject) from error
        self._group.held.append(source)
        found = os.fstat(source.fileno())
        if (found.st_dev, found.st_ino) in self._replaced:
            self._group.end_before_this()
        upload.size = found.st_size
        return source


def _above(path: str) -> list[str]:
    """The paths of the directories that `path` lies in."""
    names = path.split("/")
    return ["/".join(names[:depth]) for depth in range(1, len(names))]

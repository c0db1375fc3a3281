"""The file code that brokers with a mounted volume share."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

from storage import linux
from storage.brokers.broker import (
    Broker,
    FileDetails,
    FileDownload,
    FileMove,
    FileUpload,
    Selection,
    path_order,
)
from storage.exceptions import AlreadyExists, InvalidPath, MissingFile
from storage.files import (
    FILE_MODE,
    TEMPORARY_PREFIX,
    Directory,
    check_file_path,
    check_local_path,
    check_prefix,
    is_gone,
)
from storage.models import ScaleFile
from storage.os_errors import os_errors, quoted
from storage.transfer import publish, refuse_directory, write_file, write_link


class FilesystemBroker(Broker):
    """A broker whose workspace is a directory mounted at `volume_path`."""

    def list_files(self, volume_path: str | None, recursive: bool) -> Generator[FileDetails, None, None]:
        yield from self.list_under(volume_path, recursive, "")

    def list_under(
        self, volume_path: str | None, recursive: bool, prefix: str
    ) -> Generator[FileDetails, None, None]:
        check_prefix(prefix)
        selection = Selection(recursive, prefix)
        with self._workspace("list", selection.start, volume_path) as (opened, _):
            workspace = opened.directory("")
        with workspace:
            pending = [selection.start]
            while pending:
                for batch in self._batches(workspace, pending.pop()):
                    pending.extend(
                        entry.path for entry in batch if entry.is_directory and selection.enters(entry.path)
                    )
                    yield from (
                        FileDetails(e.path, e.size)
                        for e in batch
                        if not e.is_directory and selection.takes(e.path)
                    )

    def _batches(self, workspace: Directory, directory: str) -> Iterator[list[_Entry]]:
        """What is in a directory, some at a time; the caller's identity is held only while reading."""
        scan = workspace.scan(directory)
        with contextlib.closing(scan):
            while True:
                with os_errors(f"list {quoted(directory)}"), self.view.acting():
                    try:
                        found = [_entry(directory, entry) for entry in next(scan)]
                    except StopIteration:
                        return
                    except OSError as error:
                        if _is_passed_over(error):
                            return
                        raise
                yield [entry for entry in found if entry]

    def list_page(
        self, volume_path: str | None, recursive: bool, *, prefix: str = "", after: str = "", limit: int
    ) -> list[FileDetails]:
        check_prefix(prefix)
        selection = Selection(recursive, prefix, after)
        with self._workspace("list", selection.start, volume_path) as (workspace, _):
            return list(islice(_in_order(workspace, selection), limit))

    def download_files(self, volume_path: str | None, file_downloads: Sequence[FileDownload]) -> None:
        for download in file_downloads:
            path, local_path = download.file.file_path, download.local_path
            check_file_path(path)
            check_local_path(local_path)
            with self._workspace("download", path, volume_path) as (workspace, mounted_at):
                source = _regular_file(workspace, path)
                with self.view.local_parent(local_path) as (parent, name):
                    _refuse_same_file(parent, name, source)
                    write_link(parent, name, os.path.join(mounted_at, path), overwrite=self.overwrite)

    def upload_files(self, volume_path: str | None, file_uploads: Sequence[FileUpload]) -> None:
        for upload in file_uploads:
            file = upload.file
            check_file_path(file.file_path)
            check_local_path(upload.local_path)
            with self._workspace("upload", file.file_path, volume_path) as (workspace, _):
                with os_errors(f"upload {quoted(file.file_path)} from local_path {quoted(upload.local_path)}"):
                    source = self.view.open_local(upload.local_path)
                try:
                    file.file_size = write_file(workspace, file.file_path, source, overwrite=self.overwrite)
                finally:
                    os.close(source)
            file.is_deleted, file.deleted = False, None
            file.save()

    def move_files(self, volume_path: str | None, file_moves: Sequence[FileMove]) -> None:
        for move in file_moves:
            file, new_path = move
            check_file_path(file.file_path)
            check_file_path(new_path, "new_path")
            with self._workspace("move", file.file_path, volume_path) as (workspace, _):
                file.file_size = _regular_file(workspace, file.file_path, follow=False).st_size
                if new_path != file.file_path:
                    self._move(workspace, file.file_path, new_path)
            file.file_path = new_path
            file.file_name = new_path.rpartition("/")[2]
            file.save()

    def delete_files(self, volume_path: str | None, files: Sequence[ScaleFile], update_model: bool = True) -> None:
        for file in files:
            check_file_path(file.file_path)
            with self._workspace("delete", file.file_path, volume_path) as (workspace, _):
                size = _remove(workspace, file.file_path)
            if update_model and (size is not None or file.id is not None):
                file.file_size = file.file_size if size is None else size
                file.set_deleted()
                file.save()

    def get_file_system_paths(self, volume_path: str | None, files: Sequence[ScaleFile]) -> list[str] | None:
        for file in files:
            check_file_path(file.file_path)
        return [os.path.join(_required(volume_path), file.file_path) for file in files]

    @contextmanager
    def _workspace(self, operation: str, path: str, volume_path: str | None) -> Iterator[tuple[Directory, str]]:
        """The open workspace, as the caller, with the kernel's errors told in terms of operation and file."""
        mounted_at = _required(volume_path)
        with (
            os_errors(f"{operation} {quoted(path)}"),
            self.view.acting(),
            self.view.open_workspace(mounted_at) as workspace,
        ):
            yield workspace, mounted_at

    def _move(self, workspace: Directory, old_path: str, new_path: str) -> None:
        with (
            workspace.parent(old_path) as (old_parent, old),
            workspace.parent(new_path, create=True) as (parent, new),
            _opened(old_parent, old) as moved,
        ):
            refuse_directory(parent, new)
            publish(old_parent, old, parent, new, overwrite=self.overwrite)
            with contextlib.suppress(PermissionError):  # somebody else's file: moved, its mode is theirs
                linux.change_mode(moved, FILE_MODE)
            parent.sync()
            old_parent.sync()


class _Entry(NamedTuple):
    path: str
    is_directory: bool
    size: int


def _entry(directory: str, entry: os.DirEntry[str]) -> _Entry | None:
    """What a listing needs of an entry; None for links, special and unfinished files, and what vanished."""
    path = f"{directory}/{entry.name}" if directory else entry.name
    if entry.name.startswith(TEMPORARY_PREFIX):
        return None
    try:
        if entry.is_dir(follow_symlinks=False):
            return _Entry(path, True, 0)
        if entry.is_file(follow_symlinks=False):
            return _Entry(path, False, entry.stat(follow_symlinks=False).st_size)
    except FileNotFoundError:
        pass
    return None


def _in_order(workspace: Directory, selection: Selection) -> Iterator[FileDetails]:
    """The selected files in byte order. Holds the names of one directory a level, and asks sizes of no others."""
    pending = _sorted_names(workspace, selection.start, selection)
    while pending:
        path, is_directory = pending.pop()
        if is_directory:
            pending += _sorted_names(workspace, path, selection)
        else:
            with contextlib.suppress(FileNotFoundError):
                found = workspace.stat(path, follow=False)
                if stat.S_ISREG(found.st_mode):
                    yield FileDetails(path, found.st_size)


def _sorted_names(workspace: Directory, directory: str, selection: Selection) -> list[tuple[str, bool]]:
    """The selected (path, is a directory) in `directory`, last first. A directory sorts as its content does."""
    names = []
    above = f"{directory}/" if directory else ""
    try:
        for batch in workspace.scan(directory):
            for entry in batch:
                if entry.name.startswith(TEMPORARY_PREFIX):
                    continue
                path, is_directory = above + entry.name, entry.is_dir(follow_symlinks=False)
                if (
                    selection.enters(path)
                    if is_directory
                    else entry.is_file(follow_symlinks=False) and selection.takes(path)
                ):
                    names.append((path, is_directory))
    except OSError as error:
        if not _is_passed_over(error):
            raise
    names.sort(key=lambda name: path_order(f"{name[0]}/" if name[1] else name[0]), reverse=True)
    return names


def _is_passed_over(error: OSError) -> bool:
    """Whether a listing goes on without this directory: removed meanwhile, or another mount."""
    return is_gone(error) or error.errno == errno.EXDEV


def _required(volume_path: str | None) -> str:
    if volume_path is None:
        raise InvalidPath("this broker needs the path at which its volume is mounted; volume_path is None")
    return volume_path


def _regular_file(workspace: Directory, path: str, *, follow: bool = True) -> os.stat_result:
    """The status of the regular file at `path`, or with `follow` what a link there leads to.

    Raises:
        MissingFile: nothing is there, or something that is no regular file.
    """
    try:
        found = workspace.stat(path, follow=follow)
    except OSError as error:
        if is_gone(error):
            raise MissingFile(f"there is no file {quoted(path)} in the workspace") from error
        raise
    if not stat.S_ISREG(found.st_mode):
        raise MissingFile(f"{quoted(path)} in the workspace is not a regular file")
    return found


def _refuse_same_file(parent: Directory, name: str, source: os.stat_result) -> None:
    """A link must not replace the very file it leads to: that would lose the data."""
    with contextlib.suppress(FileNotFoundError):
        present = parent.stat(name, follow=False)
        if (present.st_dev, present.st_ino) == (source.st_dev, source.st_ino):
            raise AlreadyExists(f"local_path is the file itself: {quoted(name)}")


def _remove(workspace: Directory, path: str) -> int | None:
    """Unlink the file at `path`; its size in bytes, or None if it was already gone."""
    try:
        with workspace.parent(path) as (parent, name):
            found = parent.stat(name, follow=False)
            if stat.S_ISDIR(found.st_mode):
                raise InvalidPath(f"{quoted(path)} is a directory; only files are deleted")
            parent.refuse_mountpoint(name)
            os.unlink(name, dir_fd=parent.fd)
            parent.sync()
            return found.st_size
    except OSError as error:
        if is_gone(error):
            return None
        raise


@contextmanager
def _opened(parent: Directory, name: str) -> Iterator[int]:
    """The regular file itself, before it is renamed: its new name may be somebody else's a moment later."""
    fd = parent.open(name, os.O_PATH | os.O_NOFOLLOW)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise MissingFile(f"{quoted(name)} in the workspace is not a regular file")
        yield fd
    finally:
        os.close(fd)

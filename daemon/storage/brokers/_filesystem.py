"""The file code that brokers with a mounted volume share."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice, starmap
from typing import Any

from storage import linux
from storage.brokers._content import Arrival, Arriving, FileContent
from storage.brokers._group import OPEN_FILES, Change, Group, Item, directory_of, groups_of
from storage.brokers._look_back import verdict_on
from storage.brokers._uploads import Upload, Uploading
from storage.brokers.broker import (
    Broker,
    Content,
    FileDetails,
    FileDownload,
    FileMove,
    FileUpload,
    Readable,
    Selection,
    Written,
    path_order,
)
from storage.exceptions import InvalidPath, MissingFile, StorageError
from storage.files import (
    FILE_MODE,
    TEMPORARY_PREFIX,
    Directory,
    check_file_path,
    check_local_path,
    check_prefix,
    is_gone,
)
from storage.journal import Intent, KeyedItem, Verdict, identity_of, intent_of
from storage.models import ScaleFile, check_storable, require_catalog
from storage.os_errors import os_errors, quoted
from storage.transfer import publish, refuse_same_file, write_link


class FilesystemBroker(Broker):
    """A broker whose workspace is a directory mounted at `volume_path`."""

    keeps_journal = True
    tells_outcomes = True

    def list_files(self, volume_path: str | None, recursive: bool) -> Generator[FileDetails, None, None]:
        yield from self.list_under(volume_path, recursive, "")

    def list_under(
        self, volume_path: str | None, recursive: bool, prefix: str
    ) -> Generator[FileDetails, None, None]:
        for block in self.list_blocks(volume_path, recursive, prefix):
            yield from starmap(FileDetails, block)

    def list_blocks(
        self, volume_path: str | None, recursive: bool, prefix: str
    ) -> Generator[list[tuple[str, int]], None, None]:
        check_prefix(prefix)
        selection = Selection(recursive, prefix)
        with self._workspace("list", selection.start, volume_path) as (opened, _):
            workspace = opened.directory("")
        with workspace:
            pending = [selection.start]
            while pending:
                directory = pending.pop()
                takes_all = selection.takes_all_in(directory)
                for directories, files in self._batches(workspace, directory):
                    pending += filter(selection.enters, directories)
                    taken = files if takes_all else [found for found in files if selection.takes(found[0])]
                    if taken:
                        yield taken

    def _batches(self, workspace: Directory, directory: str) -> Iterator[tuple[list[str], list[tuple[str, int]]]]:
        """What is in a directory, some at a time; the caller's identity is held only while reading."""
        scan = workspace.scan(directory)
        with contextlib.closing(scan):
            while True:
                with os_errors(f"list {quoted(directory)}"), self.view.acting():
                    try:
                        found = _entries(directory, next(scan))
                    except StopIteration:
                        return
                    except OSError as error:
                        if _is_passed_over(error):
                            return
                        raise
                yield found

    def list_page(
        self, volume_path: str | None, recursive: bool, *, prefix: str = "", after: str = "", limit: int
    ) -> list[FileDetails]:
        check_prefix(prefix)
        selection = Selection(recursive, prefix, after)
        with self._workspace("list", selection.start, volume_path) as (workspace, _):
            return list(islice(_in_order(workspace, selection), limit))

    def download_files(self, volume_path: str | None, file_downloads: Sequence[FileDownload]) -> None:
        for group in groups_of([_Download(download.file, download.local_path) for download in file_downloads]):
            with self._changing(group, volume_path) as mounted_at:
                # Nothing is synced: a link that a crash takes away holds no data and is made again.
                group.each(partial(self._link, group.workspace, mounted_at))
            group.record(self.outcomes)

    def upload_files(self, volume_path: str | None, file_uploads: Sequence[FileUpload]) -> None:
        require_catalog()
        uploads = [Upload(upload.file, upload.local_path) for upload in file_uploads]
        for group in groups_of(uploads, at_most=OPEN_FILES):
            uploading = Uploading(group, self.view, overwrite=self.overwrite)
            with self._journaled(group, volume_path, uploading.look), self.view.acting():
                group.each(uploading.write)
                group.each(uploading.sync)
                group.each(uploading.publish)
                group.each(uploading.close)
                group.each(group.sync_directories)
            group.record(self.outcomes)

    def move_files(self, volume_path: str | None, file_moves: Sequence[FileMove]) -> None:
        require_catalog()
        for group in groups_of([_Move(move.file, move.new_path) for move in file_moves]):
            with self._journaled(group, volume_path, partial(_look_at_source, group)), self.view.acting():
                group.each(partial(self._rename, group))
                group.each(group.sync_directories)
            group.record(self.outcomes)

    def delete_files(self, volume_path: str | None, files: Sequence[ScaleFile], update_model: bool = True) -> None:
        if update_model:
            require_catalog()
        for group in groups_of([_Deletion(file, update_model) for file in files]):
            with self._journaled(group, volume_path, partial(_look_at_deleted, group)), self.view.acting():
                group.each(partial(_remove, group))
                group.each(group.sync_directories)
            group.record(self.outcomes)

    def open_file(self, volume_path: str | None, file: ScaleFile) -> Content:
        path = file.file_path
        check_file_path(path)
        with self._workspace("read", path, volume_path) as (workspace, _):
            _regular_file(workspace, path)
            return FileContent(workspace.open_regular(path), path)

    def write_file(
        self, volume_path: str | None, file: ScaleFile, source: Readable, *, expected: str | None = None
    ) -> Written:
        require_catalog()
        arrival = Arrival(file, source, expected)
        group = Group([arrival])
        arriving = Arriving(group, self.view, overwrite=self.overwrite)
        with self._journaled(group, volume_path, arriving.examine):
            with self.view.acting():
                group.each(arriving.begin)
            group.each(arriving.receive)
            group.each(arriving.tell_size)
            with self.view.acting():
                for step in (arriving.finish, arriving.sync, arriving.take_place, group.sync_directories):
                    group.each(step)
        group.record(self.outcomes)
        return Written(arrival.etag, arrival.is_new)

    def look_back(self, volume_path: str | None, intents: Sequence[Intent]) -> list[Verdict | StorageError]:
        try:
            with self._workspace("look at", "the workspace", volume_path) as (workspace, _):
                return [verdict_on(workspace, intent) for intent in intents]
        except StorageError as error:
            return [error] * len(intents)

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

    @contextmanager
    def _changing(self, group: Group[Item], volume_path: str | None) -> Iterator[str]:
        """Open the workspace, as the caller, for the steps of a group; where it is mounted."""
        first = group.items[0]
        with (
            self._workspace(first.operation, first.file.file_path, volume_path) as (group.workspace, mounted_at),
            group,
        ):
            yield mounted_at

    @contextmanager
    def _journaled(
        self, group: Group[Item], volume_path: str | None, look: Callable[[Item], None]
    ) -> Iterator[None]:
        """As `_changing`, after a look at what is there, and with the journal written.

        The block is for steps that are each taken with the caller's identity.
        """
        mounted_at = _required(volume_path)
        with os_errors(group.items[0].subject), contextlib.ExitStack() as stack:
            with self.view.acting():
                group.workspace = stack.enter_context(self.view.open_workspace(mounted_at))
                stack.push(partial(self._leave, group))
                group.look(look)
            group.begin(self.keyed, self.view.actor, overwrite=self.overwrite)
            yield

    def _leave(self, group: Group[Any], *failure: Any) -> None:
        with self.view.leaving():
            group.__exit__(*failure)

    def _link(self, workspace: Directory, mounted_at: str, download: _Download) -> None:
        path, local_path = download.file.file_path, download.local_path
        check_file_path(path)
        check_local_path(local_path)
        source = _regular_file(workspace, path)
        with self.view.local_parent(local_path) as (parent, name):
            refuse_same_file(parent, name, source)
            write_link(parent, name, os.path.join(mounted_at, path), overwrite=self.overwrite)

    def _rename(self, group: Group[_Move], move: _Move) -> None:
        path, new_path = move.file.file_path, move.new_path
        with _opened(group, path) as (moved, found):
            move.size = found.st_size
            if new_path == path:
                return
            old_parent, old = group.parent(path)
            parent, new = group.parent(new_path, create=True)
            old_parent.refuse_covered(old)
            with _given_mode(moved, found), move.changing():
                publish(old_parent, old, parent, new, overwrite=self.overwrite)
        move.directories += directory_of(new_path), directory_of(path)


@dataclass(eq=False)
class _Download(Change):
    operation = "download"
    local_path: str

    @property
    def subject(self) -> str:
        return f"{super().subject} to local_path {quoted(self.local_path)}"


@dataclass(eq=False)
class _Move(Change):
    operation = "move"
    new_path: str

    def plan(self, item: KeyedItem | None, *, overwrite: bool) -> Intent:
        intent = intent_of("move", self.file, self.new_path, item=item)
        intent.before, intent.overwrite = self.before, overwrite
        return intent

    def record(self) -> ScaleFile:
        self.file.file_path, self.file.file_size = self.new_path, self.size
        self.file.file_name = os.path.basename(self.new_path)
        return self.file


@dataclass(eq=False)
class _Deletion(Change):
    operation = "delete"
    is_recorded: bool

    def plan(self, item: KeyedItem | None, *, overwrite: bool) -> Intent | None:
        del overwrite
        if not self.is_recorded and item is None:
            return None  # nobody would ask what became of it
        intent = intent_of("delete", self.file, item=item)
        intent.before, intent.is_recorded = self.before, self.is_recorded
        return intent

    def record(self) -> ScaleFile | None:
        if not self.is_recorded or (self.size is None and self.file.id is None):
            return None
        self.file.file_size = self.file.file_size if self.size is None else self.size
        self.file.set_deleted()
        return self.file


def _entries(directory: str, entries: Sequence[os.DirEntry[str]]) -> tuple[list[str], list[tuple[str, int]]]:
    """Paths of the directories, and paths and sizes of the files, in `directory`. Few steps each: there may be
    millions. Left out are links, special and unfinished files, and what vanished.
    """
    above = f"{directory}/" if directory else ""
    directories, files = [], []
    for entry in entries:
        name = entry.name
        if name.startswith(TEMPORARY_PREFIX):
            continue
        if entry.is_file(follow_symlinks=False):
            try:
                files.append((above + name, entry.stat(follow_symlinks=False).st_size))
            except FileNotFoundError:
                continue
        elif entry.is_dir(follow_symlinks=False):
            directories.append(above + name)
    return directories, files


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


def _regular_file(workspace: Directory, path: str) -> os.stat_result:
    """The status of the regular file at `path`, or of what a link there leads to.

    Raises:
        MissingFile: nothing is there, or something that is no regular file.
    """
    try:
        found = workspace.stat(path)
    except OSError as error:
        if is_gone(error):
            raise _no_file(path) from error
        raise
    if not stat.S_ISREG(found.st_mode):
        raise _no_regular_file(path, found)
    return found


def _no_file(path: str) -> MissingFile:
    return MissingFile(f"there is no file {quoted(path)} in the workspace")


def _no_regular_file(path: str, found: os.stat_result) -> MissingFile:
    what = "a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"
    return MissingFile(f"{quoted(path)} in the workspace is {what}")


def _look_at_source(group: Group[_Move], move: _Move) -> None:
    path, new_path = move.file.file_path, move.new_path
    check_file_path(path)
    check_file_path(new_path, "new_path")
    check_storable(move.file)
    group.take(path, new_path)
    with _opened(group, path) as (_, found):
        move.before = identity_of(found)


def _look_at_deleted(group: Group[_Deletion], deletion: _Deletion) -> None:
    path = deletion.file.file_path
    check_file_path(path)
    if deletion.is_recorded:
        check_storable(deletion.file)
    group.take(path)
    deletion.before = None
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        parent, name = group.parent(path)
        deletion.before = identity_of(parent.stat(name, follow=False))


def _remove(group: Group[_Deletion], deletion: _Deletion) -> None:
    path = deletion.file.file_path
    try:
        parent, name = group.parent(path)
        # Also if the file is gone already: whoever removed it may have been killed before this.
        deletion.directories.append(directory_of(path))
        found = parent.stat(name, follow=False)
        if stat.S_ISDIR(found.st_mode):
            raise InvalidPath(f"{quoted(path)} is a directory; only files are deleted")
        parent.refuse_covered(name)
        with deletion.changing():
            os.unlink(name, dir_fd=parent.fd)
        deletion.size = found.st_size
    except OSError as error:
        if not is_gone(error):
            raise


@contextmanager
def _opened(group: Group[_Move], path: str) -> Iterator[tuple[int, os.stat_result]]:
    """The regular file itself, before it is renamed: its new name may be somebody else's a moment later."""
    try:
        parent, name = group.parent(path)
        file = parent.open(name, os.O_PATH | os.O_NOFOLLOW)
    except OSError as error:
        if is_gone(error):
            raise _no_file(path) from error
        raise
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise _no_regular_file(path, found)
        yield file, found
    finally:
        os.close(file)


@contextmanager
def _given_mode(file: int, found: os.stat_result) -> Iterator[None]:
    """Give a file its mode before the block renames it, so that nothing fails after that; undone if it fails."""
    mode = stat.S_IMODE(found.st_mode)
    if mode == FILE_MODE:
        yield
        return
    with contextlib.suppress(PermissionError):  # somebody else's file: it is moved, its mode is theirs
        linux.change_mode(file, FILE_MODE)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            linux.change_mode(file, mode)
        raise

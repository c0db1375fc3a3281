"""What killed processes have left on a mounted volume: found out by which file is at a path, and tidied up."""

from __future__ import annotations

import contextlib
import os
import stat
import time

from storage import linux
from storage.exceptions import BackendUnavailable, StorageError
from storage.files import FILE_MODE, Directory, is_gone
from storage.journal import UNDONE, Identity, Intent, Verdict
from storage.os_errors import translate
from storage.transfer import temporary_name

# An unfinished file of another host that was written to within this time may be of an upload that goes on.
_IDLE_S = 24 * 60 * 60


def verdict_on(workspace: Directory, intent: Intent) -> Verdict | StorageError:
    """What became of an item. The error says what kept it from being found out."""
    try:
        match intent.verb:
            case "upload":
                return _of_upload(workspace, intent)
            case "move":
                return _of_move(workspace, intent)
            case _:
                return _of_deletion(workspace, intent)
    except OSError as error:
        return translate(error, "look what is there")
    except StorageError as error:
        return error


def _of_upload(workspace: Directory, intent: Intent) -> Verdict:
    """A file has its size in the journal before it gets its name, and its own inode."""
    _remove_unfinished(workspace, intent)
    found = _status(workspace, intent.file_path)
    if found is None or not stat.S_ISREG(found.st_mode) or _is_same(found, intent.before) or intent.size is None:
        return UNDONE
    if found.st_size == intent.size:
        _sync(workspace, intent.file_path)
        return Verdict(True, found.st_size)
    # Somebody else's, who came before it or after it: after it, if it would have replaced what was there before.
    return Verdict(True, found.st_size, is_its=False) if intent.overwrite else UNDONE


def _remove_unfinished(workspace: Directory, intent: Intent) -> None:
    name = temporary_name(intent.token)
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
        workspace.parent(intent.file_path) as (parent, _),
    ):
        found = parent.stat(name, follow=False)
        if not intent.is_of_dead_run and time.time() - found.st_mtime < _IDLE_S:
            raise BackendUnavailable("another host may be at it")
        os.unlink(name, dir_fd=parent.fd)


def _of_move(workspace: Directory, intent: Intent) -> Verdict:
    new_path, before = intent.new_path or "", intent.before
    old, new = _status(workspace, intent.file_path), _status(workspace, new_path)
    if new is not None and before and _is_same(new, before):
        if old is not None and _is_same(old, before) and new_path != intent.file_path:
            _remove_second_name(workspace, intent)
        _give_mode(workspace, new_path, before, FILE_MODE)
        _sync(workspace, new_path)
        _sync(workspace, intent.file_path)
        return Verdict(True, new.st_size)
    if old is None:
        return Verdict(True, new.st_size if new else None, is_its=False)
    if before:
        _give_mode(workspace, intent.file_path, before, stat.S_IMODE(before.mode))
    return UNDONE


def _remove_second_name(workspace: Directory, intent: Intent) -> None:
    """Where nothing renames without replacing (NFS), a move is a link and an unlink.

    No symbolic link is followed to the old name: what this process may remove, the caller perhaps might not.
    """
    strict = Directory(os.dup(workspace.fd), workspace.resolve | linux.RESOLVE_NO_SYMLINKS)
    with strict, strict.parent(intent.file_path) as (parent, name):
        if _is_same(parent.stat(name, follow=False), intent.before):
            os.unlink(name, dir_fd=parent.fd)


def _give_mode(workspace: Directory, path: str, before: Identity, mode: int) -> None:
    """Give the very file the mode of after the move, or of before: it is changed right before the rename."""
    with contextlib.suppress(OSError), workspace.parent(path) as (parent, name):
        file = parent.open(name, os.O_PATH | os.O_NOFOLLOW)
        try:
            found = os.fstat(file)
            if _is_same(found, before) and stat.S_IMODE(found.st_mode) != mode:
                linux.change_mode(file, mode)
        finally:
            os.close(file)


def _of_deletion(workspace: Directory, intent: Intent) -> Verdict:
    found = _status(workspace, intent.file_path)
    if found is None:
        _sync(workspace, intent.file_path)
        return Verdict(True)
    if _is_same(found, intent.before) and intent.before and found.st_mtime_ns == intent.before.mtime_ns:
        return UNDONE
    return Verdict(True, found.st_size, is_its=False)


def _is_same(found: os.stat_result, before: Identity | None) -> bool:
    return before is not None and found.st_ino == before.inode


def _status(workspace: Directory, path: str) -> os.stat_result | None:
    """What is at a path itself; None for nothing."""
    try:
        with workspace.parent(path) as (parent, name):
            return parent.stat(name, follow=False)
    except OSError as error:
        if is_gone(error):
            return None
        raise


def _sync(workspace: Directory, path: str) -> None:
    """Make the name durable, as the operation would have, or that it is gone."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), workspace.parent(path) as (parent, _):
        parent.sync()

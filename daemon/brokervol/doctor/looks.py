"""Looks at what may hang or be written meanwhile."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from storage import state_files
from storage.definitions import Definition, read_definitions
from storage.state_files import telling_damage

R = TypeVar("R")

LOOKS = 4
PAUSE_S = 0.1


class Uncopied(Exception):
    """There is no room for a copy of a file. The message says so, in a clause."""


def started(look: Callable[[], R]) -> Future[R]:
    """What a thread of its own finds, for which nobody waits when the program ends."""
    found: Future[R] = Future()

    def run() -> None:
        try:
            found.set_result(look())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return found


def within(limit_s: float, look: Callable[[], R], otherwise: R) -> R:
    """What it finds; or the other where that takes longer. Nobody waits for it then."""
    try:
        return started(look).result(limit_s)
    except TimeoutError:
        return otherwise


def at_copy(path: str, look: Callable[[str], R], again: type[Exception]) -> R:
    """What `look` returns of a copy of an SQLite file: to open one may write beside it.

    And SQLite opens no file in another process's root directory. After an error `again` it looks at another copy:
    somebody may have written between those of the file and of its log.

    Raises:
        OSError: the file cannot be read.
        Uncopied: see there.
        Exception: what `look` raises, with the path of the file in its message.
    """
    for _ in range(LOOKS - 1):
        with contextlib.suppress(again), _copied(path) as copy:
            return look(copy)
        time.sleep(PAUSE_S)
    with _copied(path) as copy:
        try:
            return look(copy)
        except again as error:
            error.args = tuple(str(arg).replace(copy, path) for arg in error.args)
            raise


@contextlib.contextmanager
def _copied(path: str) -> Iterator[str]:
    """The file and its log, or journal; that last, as what is in neither is lost, and what is in both is not."""
    contents = {"": _content(path)}
    for suffix in ("-wal", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            contents[suffix] = _content(f"{path}{suffix}")
    with contextlib.ExitStack() as stack:
        try:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="brokervol-doctor-"))
            copy = f"{directory}/{os.path.basename(path)}"
            for suffix, content in contents.items():
                with open(f"{copy}{suffix}", "wb") as file:
                    file.write(content)
        except OSError as error:
            raise Uncopied(f"{path} cannot be copied: {error.strerror}") from error
        yield copy


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def definitions(path: str) -> list[Definition]:
    """Every definition of that file. Raises as `read_definitions` does, and Uncopied."""
    return at_copy(path, _rolled_back, sqlite3.Error)


def _rolled_back(copy: str) -> list[Definition]:
    """Without what was only half written when the power went: SQLite undoes that where it may write."""
    with telling_damage(), contextlib.closing(state_files.connected(copy)) as connection:
        connection.execute("PRAGMA schema_version")
    return read_definitions(copy)

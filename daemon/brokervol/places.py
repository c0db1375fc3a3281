"""What a command line names: places, and the files found there. Python 3.8, standard library."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import stat
from typing import TYPE_CHECKING, NamedTuple

from brokervol.client import Client, FileDetails
from brokervol.console import Failure, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_PLACE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*):(.*)", re.DOTALL)
_MAGIC = re.compile(r"[*?\[]")
_SPELLED = re.compile(r"\[([*?\[])\]")


class Place(NamedTuple):
    """A path in a workspace or, where that is "", in the file system of this process.

    A path with `*`, `?` or `[` in a workspace is a pattern, unless `is_literal`; see `_named`.
    """

    workspace: str
    path: str
    is_literal: bool = False

    @property
    def is_pattern(self) -> bool:
        return bool(self.workspace and not self.is_literal and _MAGIC.search(_SPELLED.sub("", self.path)))

    @property
    def plain(self) -> Place:
        """What a source that is no pattern names: `[*]` stands for a star."""
        if self.is_literal or not self.workspace:
            return self
        return self._replace(path=_SPELLED.sub(r"\1", self.path), is_literal=True)

    @property
    def directory(self) -> str:
        """The path without a closing slash."""
        return self.path.rstrip("/")

    def __str__(self) -> str:
        return f"{self.workspace}:{self.path}" if self.workspace else self.path


class Found(NamedTuple):
    """A file that a source names.

    `top` is the last part of the source itself and `below` what follows it: of `cp -r data:2026 out` the file
    2026/07/a.tif has top 2026 and below 07/a.tif. A single file has nothing below. `size` is None where nobody
    has looked.
    """

    path: str
    top: str
    below: str
    size: int | None = None


def parse_place(argument: str) -> Place:
    """`NAME:path` is in a workspace, anything else is local; write ./a:b for a local name with a colon."""
    match = _PLACE.fullmatch(argument)
    return Place(match.group(1), match.group(2).lstrip("/")) if match else Place("", argument)


def parse_workspace_place(argument: str) -> Place:
    place = parse_place(argument)
    if not place.workspace:
        raise UsageError(f"{argument}: write NAME:path, where NAME is a workspace (`brokervol ws` shows them)")
    return place


def spelled(path: str) -> str:
    """A path as an argument that names nothing else: in patterns `[*]` stands for a star."""
    return _MAGIC.sub(r"[\g<0>]", path)


def refuse_directories(sources: Iterable[Place]) -> None:
    """Raises UsageError for a source whose spelling says that it is a directory of a workspace."""
    for source in sources:
        if source.workspace and (not source.path or source.path.endswith("/")):
            raise UsageError(f"{source} is a directory: use -r for all files below it")


def find_files(client: Client, source: Place, *, recursive: bool) -> Iterator[Found]:
    """The files of a workspace that `source` names: a file, a pattern or, if recursive, a directory.

    A file named plainly is not looked for: the operation itself will tell.

    Raises:
        Failure: where a pattern matches nothing.
    """
    source = _named(client, source, recursive=recursive)
    if source.is_pattern:
        return match_files(client, source, recursive=recursive)
    if recursive:
        return _files_below(client, source)
    return iter([Found(source.path, os.path.basename(source.path), "")])


def _named(client: Client, place: Place, *, recursive: bool) -> Place:
    """The place as it is meant: where something has that very name, `a[1].tif` is no pattern, and not a1.tif."""
    if not place.is_pattern:
        return place.plain
    literal = place._replace(is_literal=True)
    with contextlib.closing(client.files(place.workspace, f"{place.directory}/", recursive=True)) as below:
        is_there = find_file(client, literal) or (recursive and next(below, None))
    return literal if is_there else place


def _files_below(client: Client, source: Place) -> Iterator[Found]:
    prefix = f"{source.directory}/" if source.directory else ""
    top = os.path.basename(source.directory)
    is_empty = True
    for file, size in client.files(source.workspace, prefix=prefix, recursive=True):
        is_empty = False
        yield Found(file, top, file[len(prefix) :], size)
    if is_empty and source.directory:
        yield Found(source.directory, top, "")


def match_files(client: Client, source: Place, *, recursive: bool) -> Iterator[Found]:
    """The files that a pattern matches and, if recursive, those below what it matches.

    It is matched part by part, as a shell does: no `*` reaches across a `/`, nor to a leading dot.

    Raises:
        Failure: where nothing matches.
    """
    literal = _MAGIC.split(source.directory, 1)[0]
    parts = source.directory.split("/")
    pattern = [re.compile(fnmatch.translate(part)) for part in parts]
    is_deep = recursive or "/" in source.directory[len(literal) :]
    is_empty = True
    for file, size in client.files(source.workspace, prefix=literal, recursive=is_deep):
        names = file.split("/")
        head, below = names[: len(parts)], names[len(parts) :]
        if len(head) < len(parts) or (below and not recursive):
            continue
        if all(_matches(pattern[index], parts[index], name) for index, name in enumerate(head)):
            is_empty = False
            yield Found(file, head[-1], "/".join(below), size)
    if is_empty:
        raise Failure(str(source), "missing-file", "no file matches")


def _matches(pattern: re.Pattern[str], spelling: str, name: str) -> bool:
    is_hidden = name.startswith(".") and not spelling.startswith(".")
    return name == spelling or (not is_hidden and bool(pattern.match(name)))


def list_files(client: Client, place: Place, *, recursive: bool) -> Iterator[FileDetails]:
    """What `ls` shows: a directory's files, or else the file of that name, or else what begins with it."""
    place = _named(client, place, recursive=recursive)
    if place.is_pattern:
        matches = match_files(client, place, recursive=recursive)
        yield from (FileDetails(found.path, found.size or 0) for found in matches)
        return
    if place.path and not place.path.endswith("/"):
        inside = client.files(place.workspace, prefix=f"{place.path}/", recursive=recursive)
        first = next(inside, None)
        if first:
            yield first
            yield from inside
            return
        itself = find_file(client, place)
        if itself:
            yield itself
            return
    yield from client.files(place.workspace, prefix=place.path, recursive=recursive)


def find_file(client: Client, place: Place) -> FileDetails | None:
    files = client.files(place.workspace, prefix=place.path)
    return next((file for file in files if file.file == place.path), None)


def absolute(path: str) -> str:
    """A local path from the root on.

    Raises:
        Failure: it is relative, and the current directory was removed.
    """
    try:
        return os.path.abspath(path)
    except FileNotFoundError as error:
        raise Failure(path, "missing-file", "the current directory was removed") from error


def find_local(source: str, fail: Callable[[Failure], None], *, recursive: bool) -> Iterator[Found]:
    """The local files that `source` names, by absolute path.

    Links are followed, as their contents are what is wanted. What cannot be copied goes to `fail`.
    """
    path = absolute(source)
    is_itself = os.path.basename(source.rstrip("/")) in ("", ".", "..")
    top = "" if is_itself else os.path.basename(path)
    waiting: list[tuple[Found, frozenset[tuple[int, int]]]] = [(Found(path, top, ""), frozenset())]
    while waiting:
        found, above = waiting.pop()
        try:
            status = os.stat(found.path)
            refusal = _refusal(status, recursive, above)
            is_directory = stat.S_ISDIR(status.st_mode) and not refusal
            names = sorted(os.listdir(found.path), reverse=True) if is_directory else []
        except OSError as error:
            fail(Failure.of(found.path, error))
            continue
        if refusal:
            fail(Failure(found.path, "unsupported", refusal))
        elif not is_directory:
            yield found._replace(size=status.st_size)
        here = above | {(status.st_dev, status.st_ino)}
        waiting += [(_child(found, name), here) for name in names]


def _child(found: Found, name: str) -> Found:
    below = f"{found.below}/{name}" if found.below else name
    return Found(os.path.join(found.path, name), found.top, below)


def _refusal(status: os.stat_result, recursive: bool, above: frozenset[tuple[int, int]]) -> str:
    if (status.st_dev, status.st_ino) in above:
        return "it is a link to a directory that holds it"
    if stat.S_ISDIR(status.st_mode) and not recursive:
        return "it is a directory: use -r for all files below it"
    if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
        return "it is neither a file nor a directory"
    return ""

"""What the verbs do that change something: `cp`, `mv`, `rm`. Python 3.8, standard library."""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import os
import stat
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from brokervol.client import CHUNK_ITEMS, LONGEST_PATH, BrokerError, Client
from brokervol.console import Console, Failure, UsageError
from brokervol.places import (
    Found,
    Place,
    absolute,
    find_files,
    find_local,
    parse_place,
    parse_workspace_place,
    refuse_directories,
)
from brokervol.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    Pairs = Iterable[tuple[Found, dict[str, Any]]]

_UNAVAILABLE = ("backend-unavailable", "unreachable")

# After one of these the other files of the batch would only fail in the same way.
_HOPELESS = (*_UNAVAILABLE, "no-space", "unknown-workspace")


_TOO_LONG = f"its path, or that at the target, has more than {LONGEST_PATH:,} characters"

# How an operation that has -r fails for a directory.
_CODE_OF_DIRECTORY = {"download": "missing-file", "delete": "invalid-path", "upload": "invalid-path"}

# What a verb has done of files, and what its user does after an interrupt.
_DONE = {"cp": "copied", "mv": "moved", "rm": "deleted"}

STANDARD_STREAM = Place("", "-")


class Task(Console):
    """One run of a verb.

    Attributes:
        done: files that this run has copied, moved or deleted.
        kept: those that `-n` left as they were.
        total: of how many; it grows with each workspace whose turn comes.
    """

    def __init__(self, verb: str, client: Client, options: argparse.Namespace) -> None:
        super().__init__(verb)
        self.client = client
        self.options = options
        self.paths: list[str] = options.paths
        self.done = self.kept = self.total = 0

    def run(
        self, operation: str, workspace: str, pairs: Pairs, files: int, size: int | None, *, source: str = ""
    ) -> None:
        """Have the sidecar do the items of `pairs`, so many files and bytes, and report each as it happens.

        Args:
            source: of an upload, the workspace that its files are in; empty for none.
        """
        self.total += files
        options = {} if operation == "delete" else {"overwrite": not self.options.no_clobber}
        asked: collections.deque[Found] = collections.deque()  # whose results are still to come, in order

        def items() -> Iterator[dict[str, Any]]:
            for found, item in pairs:
                if any(isinstance(value, str) and len(value) > LONGEST_PATH for value in item.values()):
                    self.fail(Failure(_shortened(found.path), "invalid-path", _TOO_LONG))
                    continue  # the sidecar would refuse the whole request
                asked.append(found)
                yield item

        results = getattr(self.client, operation)(workspace, items(), on_error="continue", **options)
        with self.showing(files, size), contextlib.closing(results):
            for result in results:
                found = asked.popleft()
                if self.progress:
                    self.progress.files_done += 1
                    self.progress.bytes_done += found.size or 0
                own = Place(source if operation == "upload" else workspace, found.path)
                self._take(result, own, Place(workspace, result["file_path"]), operation)

    @property
    def is_watched(self) -> bool:
        """Whether there is a person to show progress to."""
        return not self.options.quiet and not self.options.json and sys.stderr.isatty()

    @contextlib.contextmanager
    def showing(self, files: int | None, size: int | None) -> Iterator[None]:
        """Show the progress of what is done in the block."""
        if not self.is_watched:
            yield
            return
        self.progress = Progress(files, size)
        try:
            yield
        finally:
            self.progress.close()
            self.progress = None

    def _take(self, result: dict[str, Any], own: Place, stored: Place, operation: str) -> None:
        """Report a result: of the file `own`, which is or was to be the workspace's `stored`."""
        self.done += result["status"] == "done"
        error = result.get("error") or {}
        is_kept = error.get("code") == "already-exists" and getattr(self.options, "no_clobber", False)
        self.kept += is_kept
        if self.options.json:
            self.print_json({"file_path": result["file_path"], "status": "kept"} if is_kept else result)
            self.flush()  # each as it happens
        if result["status"] != "failed" or is_kept:
            return
        code = error["code"]
        subject = own if operation == "upload" and code == "missing-file" else stored
        failure = Failure(str(subject), code, error["detail"])
        if code in _HOPELESS:
            raise failure
        if code == _CODE_OF_DIRECTORY.get(operation) and self._is_directory(own):
            failure = Failure(str(own), code, "it is a directory: use -r for all files below it")
        self.fail(failure)

    def _is_directory(self, place: Place) -> bool:
        """Whether what has failed would have been done with -r."""
        if self.options.recursive or not place.workspace:
            return False
        below = self.client.files(place.workspace, f"{place.path}/", recursive=True)
        with contextlib.suppress(BrokerError), contextlib.closing(below):
            return next(below, None) is not None
        return False

    def progress_so_far(self) -> str:
        """How many files were done, in words."""
        if not self.total:
            return f"no file was {_DONE[self.verb]}"
        kept = f" and {self.kept:,} left as they were" if self.kept else ""
        return f"{self.done:,} of {self.total:,} files were {_DONE[self.verb]}{kept}"

    def interrupted(self) -> str:
        """What an interrupt has left, and how to go on; what is in work when it comes is still finished."""
        if self.verb not in _DONE:
            return "interrupted"
        if self.verb == "cp" and not self.options.no_clobber and self.done:
            advice = "run the same command with -n to go on"
        else:
            advice = "run the same command again to go on"
        in_work = ", and those in work may yet be" if self.total > self.done + self.kept else ""
        return f"interrupted: {self.progress_so_far()}{in_work}; {advice}"


def _shortened(path: str) -> str:
    return path if len(path) <= 200 else f"{path[:120]}...{path[-60:]}"


def run_rm(task: Task) -> None:
    sources = [parse_workspace_place(argument) for argument in task.paths]
    if not task.options.recursive:
        refuse_directories(sources)
    for workspace, group in _by_workspace(sources):
        with reporting(task, workspace):
            found = _find(task, group, recursive=task.options.recursive)
            pairs = ((item, {"file_path": item.path}) for item in found)
            task.run("delete", workspace, pairs, len(found), None)


def run_mv(task: Task) -> None:
    *sources, place = [parse_workspace_place(argument) for argument in task.paths]
    refuse_directories(sources)
    if any(source.workspace != place.workspace for source in sources):
        raise UsageError("mv works within one workspace: use cp, then rm")
    target = _target(task, sources, place)
    with reporting(task, place.workspace):
        found = _find(task, sources, recursive=False)
        aimed = _aimed(task, found, target)
        pairs = ((item, {"file_path": item.path, "new_path": path}) for item, path in aimed)
        task.run("move", place.workspace, pairs, len(found), None)


def run_cp(task: Task) -> None:
    *sources, place = [parse_place(argument) for argument in task.paths]
    if not task.options.recursive:
        refuse_directories(sources)
    if not place.workspace and not all(source.workspace for source in sources):
        raise UsageError("neither side is in a workspace: write it NAME:path, or use the system's cp")
    if place == STANDARD_STREAM:
        raise UsageError("to write a file to standard output use brokervol cat")
    if STANDARD_STREAM in sources:
        _store_standard_input(task, sources, place)
        return
    target = _target(task, sources, place)
    for workspace, group in _by_workspace(sources):
        with reporting(task, workspace or place.workspace):
            found = _find(task, group, recursive=task.options.recursive)
            aimed = _aimed(task, found, target)
            size = _bytes_to_copy(task, workspace, place, found)
            if not place.workspace:
                task.run("download", workspace, _localized(task, aimed), len(found), size)
            elif workspace:
                pairs = _located(task, workspace, aimed)
                task.run("upload", place.workspace, pairs, len(found), size, source=workspace)
            else:
                pairs = ((item, {"local_path": item.path, "file_path": path}) for item, path in aimed)
                task.run("upload", place.workspace, pairs, len(found), size)


def _bytes_to_copy(task: Task, workspace: str, place: Place, found: list[Found]) -> int | None:
    """How many bytes the files have; None where not all are known, or where they are not copied but linked."""
    sizes = [item.size for item in found if item.size is not None]
    if not task.is_watched or len(sizes) < len(found) or (not place.workspace and _has_volume(task, workspace)):
        return None
    return sum(sizes)


def _has_volume(task: Task, name: str) -> bool:
    return any(found["name"] == name and found.get("volume") for found in task.client.workspaces())


def _store_standard_input(task: Task, sources: list[Place], place: Place) -> None:
    if len(sources) > 1 or not place.path or place.path.endswith("/"):
        raise UsageError("standard input (-) is one file: write cp - NAME:path, with the name of that file")
    if sys.stdin is None:
        raise Failure(STANDARD_STREAM.path, "unsupported", "standard input is closed")
    task.total = 1
    overwrite = not task.options.no_clobber
    with reporting(task, place), task.showing(None, _size_of_standard_input()):
        source = _Counting(task)
        try:
            stored = task.client.write(place.workspace, place.path, source, overwrite=overwrite)
        except BrokerError as error:
            if overwrite or error.code != "already-exists":
                raise
            task.kept = 1
            return
    task.done = 1
    if task.options.json:
        task.print_json({"file_path": place.path, "status": "done", "file": stored.record})


def _size_of_standard_input() -> int:
    """In bytes, where it is a file; else 0."""
    status = os.fstat(sys.stdin.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


class _Counting:
    """Standard input, whose bytes are counted as they go."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def read(self, size: int) -> bytes:
        block = os.read(sys.stdin.fileno(), size)
        if self._task.progress:
            self._task.progress.bytes_done += len(block)
        return block


def _by_workspace(sources: Sequence[Place]) -> Iterator[tuple[str, Iterator[Place]]]:
    return itertools.groupby(sources, key=lambda source: source.workspace)


def _find(task: Task, sources: Iterable[Place], *, recursive: bool) -> list[Found]:
    """The files of all `sources`; a source that fails is reported and left out.

    All are found before the first is touched: a command does not meet its own work, and the sidecar's listing
    does not wait for a client that is busy.
    """
    found: list[Found] = []
    for source in sources:
        with reporting(task, source):
            if source.workspace:
                found.extend(find_files(task.client, source, recursive=recursive))
            else:
                found.extend(find_local(source.path, task.fail, recursive=recursive))
    return found


def _localized(task: Task, aimed: Iterable[tuple[Found, str]]) -> Pairs:
    """Items of a download; the directories that a recursive one needs are made on the way."""
    made = ""
    for item, path in aimed:
        local_path = absolute(path)
        directory = os.path.dirname(local_path)
        if task.options.recursive and directory != made:
            try:
                os.makedirs(directory, exist_ok=True)
            except OSError as error:
                task.fail(Failure.of(directory, error))
                continue
            made = directory
        yield item, {"file_path": item.path, "local_path": local_path, "partial": False}


def _located(task: Task, workspace: str, aimed: Iterator[tuple[Found, str]]) -> Pairs:
    """Items of an upload from where `workspace`'s files appear in this process's file system."""
    for chunk in iter(lambda: list(itertools.islice(aimed, CHUNK_ITEMS)), []):
        paths = task.client.paths(workspace, [item.path for item, _ in chunk])
        if paths is None:
            raise Failure(workspace, "unsupported", "its files have no path here: download, then upload them")
        for index, (item, path) in enumerate(chunk):
            yield item, {"local_path": paths[index], "file_path": path}


class Target(NamedTuple):
    """Where files go: into `place` under their own names, or, where it is no directory, to exactly `place`."""

    place: Place
    is_directory: bool
    taken: set[str]

    def path_for(self, item: Found) -> str:
        parts = [self.place.directory or self.place.path, item.top if self.is_directory else "", item.below]
        return os.path.join(*filter(None, parts)) if any(parts) else ""


def _target(task: Task, sources: Sequence[Place], place: Place) -> Target:
    """The target as cp knows it.

    In a workspace only the spelling tells a directory (`NAME:` or a closing slash), so that running a command
    again does the same again; a local directory is one if it exists.
    """
    if place.workspace:
        is_directory = not place.path or place.path.endswith("/")
    else:
        is_directory = os.path.isdir(place.path)
        _check_local(task, place, is_directory)
    if not is_directory and (len(sources) > 1 or sources[0].is_pattern):
        spelling = f"{place}/" if place.workspace else "an existing directory"
        raise UsageError(f"{place}: several files need a directory as their target: {spelling}")
    return Target(place, is_directory, set())


def _check_local(task: Task, place: Place, is_directory: bool) -> None:
    recursive = getattr(task.options, "recursive", False)
    must_exist = place.path if place.path.endswith("/") and not recursive else os.path.dirname(place.directory)
    if not is_directory and not os.path.isdir(must_exist or "."):
        raise Failure(must_exist, "missing-file", "there is no such directory")
    if not is_directory and _is_special(place.path):
        raise Failure(place.path, "already-exists", "it is no file; what brokervol cat prints can be sent there")


def _is_special(path: str) -> bool:
    """Whether it is, or leads to, what must not be replaced: a device, a pipe, /dev/stdout, which is a link."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) or os.path.dirname(os.path.abspath(path)) == "/dev"


def _aimed(task: Task, found: Iterable[Found], target: Target) -> Iterator[tuple[Found, str]]:
    """Each file with its path at the target.

    A name that would lead out of the target (an S3 key can hold `..`) is refused, as is a second file of one name.
    """
    for item in found:
        path = target.path_for(item)
        if not _is_plain(item.below) or not _is_plain(item.top):
            task.fail(Failure(item.path, "invalid-path", "its name would lead out of the target"))
        elif not item.below and path in target.taken:
            task.fail(Failure(item.path, "already-exists", f"another source has the same target: {path}"))
        else:
            if not item.below:
                target.taken.add(path)
            yield item, path


def _is_plain(path: str) -> bool:
    return not path or not any(part in ("", ".", "..") for part in path.split("/"))


@contextlib.contextmanager
def reporting(task: Task, subject: object) -> Iterator[None]:
    """Report a failure and go on after the block, unless whatever comes next would fail in the same way."""
    try:
        yield
    except (Failure, BrokerError) as error:
        failure = error if isinstance(error, Failure) else Failure(str(subject), error.code, str(error))
        if failure.code in _UNAVAILABLE:
            raise failure from error
        task.fail(failure)

"""What the verbs of a task do: `ws`, `ls`, `cp`, `mv`, `rm`, `stat`. Python 3.8, standard library."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from brokervol.client import CHUNK_ITEMS, BrokerError, Client, FileDetails
from brokervol.console import Console, Failure, Progress, UsageError, complain, human_size
from brokervol.places import (
    Found,
    Place,
    find_file,
    find_files,
    find_local,
    list_files,
    parse_place,
    parse_workspace_place,
    refuse_directories,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_UNAVAILABLE = ("backend-unavailable", "unreachable")

# After one of these the other files of the batch would only fail in the same way.
_HOPELESS = (*_UNAVAILABLE, "no-space", "unknown-workspace")


SORTED_FILES = 10_000


class Task(Console):
    """One run of a verb."""

    def __init__(self, verb: str, client: Client, options: argparse.Namespace) -> None:
        super().__init__(verb)
        self.client = client
        self.options = options
        self.paths: list[str] = options.paths
        self.done = 0
        self.total = 0

    def run(self, operation: str, workspace: str, items: Iterable[dict[str, Any]], total: int) -> None:
        """Have the sidecar do `items`, about `total` of them, and report each one as it happens."""
        self.total += total
        if sys.stderr.isatty():
            self.progress = Progress(total)
        options = {} if operation == "delete" else {"overwrite": not self.options.no_clobber}
        results = getattr(self.client, operation)(workspace, items, on_error="continue", **options)
        try:
            with contextlib.closing(results):
                for count, result in enumerate(results, 1):
                    self._take(workspace, result)
                    if self.progress:
                        self.progress.draw(count)
        finally:
            if self.progress:
                self.progress.clear()
                self.progress = None

    def _take(self, workspace: str, result: dict[str, Any]) -> None:
        self.done += result["status"] == "done"
        if self.options.json:
            self.print_json(result)
            self.flush()  # each as it happens
        if result["status"] != "failed":
            return
        code = result["error"]["code"]
        failure = Failure(f"{workspace}:{result['file_path']}", code, result["error"]["detail"])
        if code in _HOPELESS:
            raise failure
        if code != "already-exists" or not getattr(self.options, "no_clobber", False):
            self.fail(failure)

    def progress_so_far(self) -> str:
        return f"{self.done} of {self.total} done"


def run_ws(task: Task) -> None:
    workspaces = task.client.workspaces()
    if task.options.json:
        for workspace in workspaces:
            task.print_json(workspace)
        return
    if not workspaces:
        complain(task.verb, "", "this container holds no workspace: none of their volumes is mounted into it")
        return
    rows = [("NAME", "TYPE", "PATH", "ACCESS")]
    for item in workspaces:
        access = "ro" if item["read_only"] else "rw"
        rows.append((item["name"], item["broker_type"], task.name(item["volume_path"] or "-"), access))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, kind, path, access in rows:
        task.print(f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {path:<{widths[2]}}  {access}")


def run_ls(task: Task) -> None:
    for argument in task.paths:
        place = parse_workspace_place(argument)
        with _reporting(task, place):
            is_empty = True
            for file, size in _in_order(list_files(task.client, place, recursive=task.options.recursive)):
                is_empty = False
                _print_file(task, file, size)
            if is_empty and place.path:
                _explain_empty(task, place)


def _in_order(files: Iterator[FileDetails]) -> Iterator[FileDetails]:
    """Sorted as far as memory is small; of a very long listing the rest comes as it is found."""
    first = sorted(
        itertools.islice(files, SORTED_FILES), key=lambda found: found.file.encode("utf-8", "surrogatepass")
    )
    return itertools.chain(first, files)


def _print_file(task: Task, file: str, size: int) -> None:
    if task.options.json:
        task.print_json({"file": file, "size": size})
    elif task.options.long:
        task.print(f"{size:>15} {human_size(size):>6}  {task.name(file)}")
    else:
        task.print(task.name(file))


def _explain_empty(task: Task, place: Place) -> None:
    """Nothing was listed: that is fine for a directory of directories, and for nothing else."""
    below = place._replace(path=f"{place.directory}/")
    if next(task.client.files(below.workspace, prefix=below.path, recursive=True), None) is None:
        raise Failure(str(place), "missing-file", "there is no file, nor one whose path begins so")
    if sys.stderr.isatty():
        complain(task.verb, str(place), "only directories here: use -r for the files below them")


def run_stat(task: Task) -> None:
    for argument in task.paths:
        place = parse_workspace_place(argument)
        if not place.path or place.path.endswith("/"):
            raise UsageError(f"{argument}: name a file")
        with _reporting(task, place):
            _print_stat(task, place)


def _print_stat(task: Task, place: Place) -> None:
    file = find_file(task.client, place)
    records = list(task.client.catalog(place.workspace, file_path=place.path))
    if file is None:
        # A path has a record for each file that ever lay there; the last one went last.
        when = records[-1].get("deleted") if records else None
        was = f" (it was deleted at {when})" if when else ""
        raise Failure(str(place), "missing-file", f"there is no such file{was}")
    record = next((record for record in records if not record["is_deleted"]), None)
    if task.options.json:
        task.print_json({"file": file.file, "size": file.size, "record": record})
        return
    task.print(f"file:   {place.workspace}:{task.name(file.file)}")
    task.print(f"size:   {file.size} ({human_size(file.size)})")
    if record is None:
        task.print("record: none (the catalog knows the files that came through brokervol)")
    for key, value in (record or {}).items():
        shown = value if isinstance(value, str) else json.dumps(value)
        task.print(f"record: {key} = {task.name(shown)}")


def run_rm(task: Task) -> None:
    sources = [parse_workspace_place(argument) for argument in task.paths]
    if not task.options.recursive:
        refuse_directories(sources)
    for workspace, group in _by_workspace(sources):
        with _reporting(task, workspace):
            found = _find(task, group, recursive=task.options.recursive)
            task.run("delete", workspace, ({"file_path": item.path} for item in found), len(found))


def run_mv(task: Task) -> None:
    *sources, place = [parse_workspace_place(argument) for argument in task.paths]
    refuse_directories(sources)
    if any(source.workspace != place.workspace for source in sources):
        raise UsageError("mv works within one workspace: use cp, then rm")
    target = _target(task, sources, place)
    with _reporting(task, place.workspace):
        found = _find(task, sources, recursive=False)
        items = ({"file_path": item.path, "new_path": path} for item, path in _aimed(task, found, target))
        task.run("move", place.workspace, items, len(found))


def run_cp(task: Task) -> None:
    *sources, place = [parse_place(argument) for argument in task.paths]
    if not task.options.recursive:
        refuse_directories(sources)
    if not place.workspace and not all(source.workspace for source in sources):
        raise UsageError("neither side is in a workspace: write it NAME:path, or use the system's cp")
    target = _target(task, sources, place)
    for workspace, group in _by_workspace(sources):
        with _reporting(task, workspace or place.workspace):
            found = _find(task, group, recursive=task.options.recursive)
            aimed = _aimed(task, found, target)
            if not place.workspace:
                task.run("download", workspace, _localized(task, aimed), len(found))
            elif workspace:
                task.run("upload", place.workspace, _located(task, workspace, aimed), len(found))
            else:
                items = ({"local_path": item.path, "file_path": path} for item, path in aimed)
                task.run("upload", place.workspace, items, len(found))


def _by_workspace(sources: Sequence[Place]) -> Iterator[tuple[str, Iterator[Place]]]:
    return itertools.groupby(sources, key=lambda source: source.workspace)


def _find(task: Task, sources: Iterable[Place], *, recursive: bool) -> list[Found]:
    """The files of all `sources`; a source that fails is reported and left out.

    All are found before the first is touched: a command does not meet its own work, and the sidecar's listing
    does not wait for a client that is busy.
    """
    found: list[Found] = []
    for source in sources:
        with _reporting(task, source):
            if source.workspace:
                found.extend(find_files(task.client, source, recursive=recursive))
            else:
                found.extend(find_local(source.path, task.fail, recursive=recursive))
    return found


def _localized(task: Task, aimed: Iterable[tuple[Found, str]]) -> Iterator[dict[str, Any]]:
    """Items of a download; the directories that a recursive one needs are made on the way."""
    made = ""
    for item, path in aimed:
        local_path = os.path.abspath(path)
        directory = os.path.dirname(local_path)
        if task.options.recursive and directory != made:
            try:
                os.makedirs(directory, exist_ok=True)
            except OSError as error:
                task.fail(Failure.of(directory, error))
                continue
            made = directory
        yield {"file_path": item.path, "local_path": local_path, "partial": False}


def _located(task: Task, workspace: str, aimed: Iterator[tuple[Found, str]]) -> Iterator[dict[str, Any]]:
    """Items of an upload from where `workspace`'s files appear in this process's file system."""
    for chunk in iter(lambda: list(itertools.islice(aimed, CHUNK_ITEMS)), []):
        paths = task.client.paths(workspace, [item.path for item, _ in chunk])
        if paths is None:
            raise Failure(workspace, "unsupported", "its files have no path here: download, then upload them")
        for index, (_, path) in enumerate(chunk):
            yield {"local_path": paths[index], "file_path": path}


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


def _aimed(task: Task, found: Iterable[Found], target: Target) -> Iterator[tuple[Found, str]]:
    """Each file with its path at the target.

    A name that would lead out of the target (an S3 key can hold `..`) is refused, as is a second file of one name.
    """
    for item in found:
        path = target.path_for(item)
        if not _is_plain(item.below) or not _is_plain(item.top):
            task.fail(Failure(item.path, "invalid-path", "its name would lead out of the target"))
        elif not item.below and path in target.taken:
            task.fail(Failure(item.path, "already-exists", f"{path} was written just before"))
        else:
            if not item.below:
                target.taken.add(path)
            yield item, path


def _is_plain(path: str) -> bool:
    return not path or not any(part in ("", ".", "..") for part in path.split("/"))


@contextlib.contextmanager
def _reporting(task: Task, subject: object) -> Iterator[None]:
    """Report a failure and go on after the block, unless whatever comes next would fail in the same way."""
    try:
        yield
    except (Failure, BrokerError) as error:
        failure = error if isinstance(error, Failure) else Failure(str(subject), error.code, str(error))
        if failure.code in _UNAVAILABLE:
            raise failure from error
        task.fail(failure)

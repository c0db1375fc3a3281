"""What the verbs do that only look: `ws`, `ls`, `find`, `stat`, `cat`. Python 3.8, standard library."""

from __future__ import annotations

import itertools
import json
import sys
from typing import TYPE_CHECKING

from brokervol.client import BrokerError, FileDetails, FileFacts
from brokervol.console import Failure, UsageError, complain, human_size
from brokervol.places import (
    Place,
    find_file,
    find_files,
    list_files,
    parse_workspace_place,
    refuse_directories,
    spelled,
)
from brokervol.selection import Selection, parse_range
from brokervol.verbs import Task, reporting

if TYPE_CHECKING:
    from collections.abc import Iterator

SORTED_FILES = 10_000


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
        with reporting(task, place):
            is_empty = True
            for file, size in _in_order(list_files(task.client, place, recursive=task.options.recursive)):
                is_empty = False
                _print_file(task, file, size)
            if is_empty and place.path:
                _explain_empty(task, place)


def _in_order(files: Iterator[FileDetails]) -> Iterator[FileDetails]:
    """Sorted as far as memory is small; of a very long listing the rest comes as it is found.

    What was found before the listing broke off is not kept from who asked.
    """
    first: list[FileDetails] = []
    broken: BrokerError | None = None
    try:
        for found in itertools.islice(files, SORTED_FILES):
            first.append(found)  # noqa: PERF402  # extend() need not keep what came before an error
    except BrokerError as error:
        broken = error
    yield from sorted(first, key=lambda found: found.file.encode("utf-8", "surrogatepass"))
    if broken is not None:
        raise broken
    yield from files


def _print_file(task: Task, file: str, size: int) -> None:
    if task.options.json:
        task.print_json({"file": file, "size": size})
    elif task.options.long:
        task.print(f"{size:>15} {human_size(size):>6}  {task.name(file)}")
    else:
        task.print(task.name(file))


def _explain_empty(task: Task, place: Place) -> None:
    """Nothing was listed: that is fine for a directory of directories, and for nothing else."""
    _check_any(task, place)
    if sys.stderr.isatty():
        complain(task.verb, str(place), "only directories here: use -r for the files below them")


def _check_any(task: Task, place: Place) -> None:
    below = place._replace(path=f"{place.directory}/")
    if next(task.client.files(below.workspace, prefix=below.path, recursive=True), None) is None:
        raise Failure(str(place), "missing-file", "there is no file, nor one whose path begins so")


def run_find(task: Task) -> None:
    if task.options.print0 and task.options.json:
        raise UsageError("--print0 and --json exclude each other")
    selection = Selection.parse(task.options)
    for argument in task.paths:
        place = parse_workspace_place(argument)
        with reporting(task, place):
            is_empty = True
            for found in _in_order(list_files(task.client, place, recursive=True)):
                is_empty = False
                if selection.takes_listed(found):
                    _find_by_time(task, place, found, selection)
            if is_empty and place.path:
                raise Failure(str(place), "missing-file", "there is no file, nor one whose path begins so")


def _find_by_time(task: Task, place: Place, found: FileDetails, selection: Selection) -> None:
    facts = None
    if selection.has_times:
        path = place._replace(path=found.file)
        with reporting(task, path):
            try:
                facts = task.client.facts(place.workspace, found.file)
            except BrokerError as error:
                if error.code == "missing-file":
                    return  # it went while we were looking
                raise
        if facts is None or not selection.takes_time(facts.last_modified):
            return
    _print_found(task, place, found, facts)


def _print_found(task: Task, place: Place, found: FileDetails, facts: FileFacts | None) -> None:
    if task.options.json:
        item = {"workspace": place.workspace, "file": found.file, "size": found.size}
        task.print_json({**item, **({"last_modified": _time(facts)} if facts else {})})
    elif task.options.print0:
        task.print(f"{place.workspace}:{spelled(found.file)}", end=b"\0")
    else:
        task.print(f"{place.workspace}:{task.name(found.file)}")


def run_stat(task: Task) -> None:
    for argument in task.paths:
        place = _parse_file(argument)
        with reporting(task, place):
            _print_stat(task, place)


def _parse_file(argument: str) -> Place:
    place = parse_workspace_place(argument)
    if not place.path or place.path.endswith("/"):
        raise UsageError(f"{argument}: name a file")
    return place.plain


def _print_stat(task: Task, place: Place) -> None:
    file, facts = _look_at(task, place)
    records = list(task.client.catalog(place.workspace, file_path=place.path))
    if file is None:
        # A path has a record for each file that ever lay there; the last one went last.
        when = records[-1].get("deleted") if records else None
        was = f" (it was deleted at {when})" if when else ""
        raise Failure(str(place), "missing-file", f"there is no such file{was}")
    record = next((record for record in records if not record["is_deleted"]), None)
    paths = task.client.paths(place.workspace, [place.path])
    path = paths[0] if paths else None
    if task.options.json:
        told = {
            "last_modified": _time(facts),
            "etag": facts and facts.etag,
            "media_type": facts and facts.media_type,
        }
        task.print_json({"file": file.file, "size": file.size, **told, "path": path, "record": record})
        return
    task.print(f"file:   {place.workspace}:{task.name(file.file)}")
    task.print(f"size:   {file.size} ({human_size(file.size)})")
    if path is not None:
        task.print(f"path:   {task.name(path)}")
    if facts is not None:
        task.print(f"time:   {_time(facts) or 'not told by the storage'}")
        task.print(f"type:   {task.name(facts.media_type)}")
        task.print(f"etag:   {task.name(facts.etag)}")
    if record is None:
        task.print("record: none (the catalog knows the files that came through brokervol)")
    for key, value in (record or {}).items():
        shown = value if isinstance(value, str) else json.dumps(value)
        task.print(f"record: {key} = {task.name(shown)}")


def _look_at(task: Task, place: Place) -> tuple[FileDetails | None, FileFacts | None]:
    """A file as the storage tells of it, or as it is listed where it cannot be opened; None if it is not there."""
    try:
        facts = task.client.facts(place.workspace, place.path)
    except BrokerError as error:
        if error.code not in ("missing-file", "permission-denied", "unsupported"):
            raise
        return find_file(task.client, place), None
    return FileDetails(place.path, facts.size), facts


def _time(facts: FileFacts | None) -> str | None:
    return facts.last_modified.isoformat() if facts and facts.last_modified else None


def run_cat(task: Task) -> None:
    places = [parse_workspace_place(argument) for argument in task.paths]
    refuse_directories(places)
    start, length = parse_range(task.options.range)
    is_shown = sys.stdout.isatty()  # then it is its own progress
    for place in places:
        with reporting(task, place):
            files = find_files(task.client, place, recursive=False)
            for path in sorted(found.path for found in files):
                with reporting(task, place._replace(path=path)):
                    blocks = task.client.read(place.workspace, path, start, length)
                    if is_shown:
                        task.print_bytes(blocks)
                    else:
                        _print_counted(task, blocks)


def _print_counted(task: Task, blocks: Iterator[bytes]) -> None:
    def counted() -> Iterator[bytes]:
        for block in blocks:
            yield block
            if task.progress:
                task.progress.bytes_done += len(block)

    with task.showing(None, 0):
        task.print_bytes(counted())

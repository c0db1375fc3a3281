"""Defines an S3 broker that utilizes the Amazon Web Services Simple Storage Service (S3) as its storage system"""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, starmap
from typing import Any, NamedTuple, TypeVar

from storage.brokers._parallel import Crew, Group
from storage.brokers._s3_content import ObjectContent
from storage.brokers._s3_groups import REQUESTS, TRANSFERS, Deletions, Downloads, Moves, Pace, Uploads
from storage.brokers._s3_jobs import Copying, Deleting, Uploading, about, check_media_type
from storage.brokers._s3_look_back import verdict_on
from storage.brokers._s3_objects import Found, Objects
from storage.brokers._s3_run import Planned, Run
from storage.brokers._s3_settings import LONGEST_KEY_BYTES, Settings, parse, unknown_keys
from storage.brokers.broker import (
    Broker,
    BrokerVolume,
    Content,
    FileDetails,
    FileDownload,
    FileMove,
    FileUpload,
    Readable,
    Written,
    path_order,
)
from storage.brokers.exceptions import InvalidBrokerConfiguration
from storage.configuration.warnings import ValidationWarning
from storage.exceptions import AlreadyExists, FileChanged, InvalidPath, MissingFile, StorageError
from storage.files import check_file_path, check_local_path, check_prefix, is_file_path
from storage.journal import Intent, Verdict, intent_of
from storage.models import ScaleFile, check_storable, require_catalog
from storage.os_errors import quoted

Item = TypeVar("Item")

_WORKERS = 48
_LOOK_BACKS = 16
_ITEMS_AT_ONCE = 10_000

# Chooses the SDK of the bulk path: `obstore`, or `boto3` for all.
BULK_VARIABLE = "BROKERVOL_S3_BULK"


class _Configured(NamedTuple):
    settings: Settings
    objects: Objects


class S3Broker(Broker):
    """Broker that utilizes the AWS Boto library to read/write files to S3 cloud storage.

    Configuration: `{"type": "s3", "bucket_name": ..., "region_name": ..., "credentials": ...}` and what
    docs/brokers.md lists. A file's key is the configured prefix and its path. A download is a copy; a partial one
    from a bucket that is mounted on the host (`host_path`) is a symbolic link into that volume.

    Several files are worked on at a time: when one fails, some after it may be done too. What is done is saved.
    S3 has no directories: none is made, and none is in the way of a file.
    """

    keeps_journal = True
    tells_outcomes = True

    def __init__(self) -> None:
        super().__init__("s3")
        self._loaded: _Configured | None = None

    def load_configuration(self, config: Mapping[str, Any]) -> None:
        settings = parse(config)
        self._loaded = _Configured(settings, _objects(settings))
        self._volume = BrokerVolume(None, settings.host_path) if settings.host_path else None

    def validate_configuration(self, config: Mapping[str, Any]) -> list[ValidationWarning]:
        """As the base class says; and asks for the bucket, with a warning `bucket_access` if that fails."""
        warnings = self.check_configuration(config)
        try:
            _objects(parse(config)).check_bucket()
        except StorageError as error:
            warnings.append(ValidationWarning("bucket_access", f"the bucket cannot be used now: {error}"))
        return warnings

    def check_configuration(self, config: Mapping[str, Any]) -> list[ValidationWarning]:
        parse(config)
        return unknown_keys(config)

    def list_files(self, volume_path: str | None, recursive: bool) -> Generator[FileDetails, None, None]:
        """As the base class says; with a relative `volume_path`, only the files whose paths begin with it."""
        is_prefix = volume_path is not None and not volume_path.startswith("/")
        yield from self._listed(recursive, volume_path if volume_path and is_prefix else "")

    def list_under(
        self, volume_path: str | None, recursive: bool, prefix: str
    ) -> Generator[FileDetails, None, None]:
        del volume_path
        yield from self._listed(recursive, prefix)

    def list_blocks(
        self, volume_path: str | None, recursive: bool, prefix: str
    ) -> Generator[list[tuple[str, int]], None, None]:
        del volume_path
        yield from self._pages(recursive, prefix)

    def list_page(
        self, volume_path: str | None, recursive: bool, *, prefix: str = "", after: str = "", limit: int
    ) -> list[FileDetails]:
        del volume_path
        objects = self._configured().objects
        with about("list the workspace"):
            is_ordered = objects.is_ordered()
        if not is_ordered:  # the whole listing for a page
            start = path_order(after)
            found = (details for details in self._listed(recursive, prefix) if path_order(details.file) > start)
            return heapq.nsmallest(limit, found, key=lambda details: path_order(details.file))
        with contextlib.closing(self._listed(recursive, prefix, after, limit)) as listed:
            return list(islice(listed, limit))

    def _listed(
        self, recursive: bool, prefix: str, after: str = "", page_size: int = 1000
    ) -> Generator[FileDetails, None, None]:
        with contextlib.closing(self._pages(recursive, prefix, after, page_size)) as pages:
            for page in pages:
                yield from starmap(FileDetails, page)

    def _pages(
        self, recursive: bool, prefix: str, after: str = "", page_size: int = 1000
    ) -> Generator[list[tuple[str, int]], None, None]:
        check_prefix(prefix)
        settings, objects = self._configured()
        above = settings.prefix
        start = above + after if after else ""
        pages = objects.pages(above + prefix, recursive=recursive, after=start, page_size=page_size)
        with (
            about(f"list {quoted(prefix)}" if prefix else "list the workspace"),
            contextlib.closing(pages),
        ):
            for page in pages:
                found = [(key[len(above) :], size) for key, size in page]
                taken = [one for one in found if is_file_path(one[0])]  # else no other operation would accept it
                if taken:
                    yield taken

    def download_files(self, volume_path: str | None, file_downloads: Sequence[FileDownload]) -> None:
        objects = self._configured().objects

        def linked(download: FileDownload, key: str) -> tuple[str, os.stat_result] | None:
            return self._linked(volume_path, key) if download.partial else None

        def group(some: Sequence[FileDownload]) -> Downloads:
            told, overwrite = self.outcomes, self.overwrite
            return Downloads(
                objects, self.view, some, key=self._key, linked=linked, outcomes=told, overwrite=overwrite
            )

        self._run(file_downloads, group, TRANSFERS)

    def _run(self, items: Sequence[Item], group: Callable[[Sequence[Item]], Group], pace: Pace) -> None:
        # Where each item's end is told, what comes before it must have ended, too.
        groups = 1 if self.outcomes is not None else pace.groups
        with Crew(_WORKERS, groups, is_alone=len(items) <= 1) as crew:
            _raise(crew.run(map(group, _chunks(items, pace.items))))

    def _linked(self, volume_path: str | None, key: str) -> tuple[str, os.stat_result] | None:
        """The object's path and status in the volume that shows the bucket; None where it is not to be seen."""
        if volume_path is None or self._configured().settings.host_path is None:
            return None
        with (
            contextlib.suppress(StorageError, OSError),
            self.view.acting(),
            self.view.open_workspace(volume_path) as bucket,
        ):
            fd = bucket.open_regular(key)
            try:
                return os.path.join(volume_path, key), os.fstat(fd)
            finally:
                os.close(fd)
        return None

    def upload_files(self, volume_path: str | None, file_uploads: Sequence[FileUpload]) -> None:
        del volume_path
        objects = self._configured().objects
        require_catalog()

        def job(planned: Planned[FileUpload]) -> Uploading:
            key = self._key(planned.item.file.file_path)
            return Uploading(objects, self.view, planned, key, overwrite=self.overwrite)

        def group(uploads: Sequence[FileUpload]) -> Uploads:
            run = Run(uploads, self._check_upload, self._planned_upload, overwrite=self.overwrite)
            return Uploads(objects, run, job, self.outcomes)

        self._change(file_uploads, lambda upload: {upload.file.file_path}, group, TRANSFERS)

    def _change(
        self,
        items: Sequence[Item],
        paths: Callable[[Item], set[str]],
        group: Callable[[Sequence[Item]], Group],
        pace: Pace,
    ) -> None:
        """Do the items in groups; those that touch a path of an earlier one, when that is done."""
        for some in _apart(items, paths):
            self._run(some, group, pace)

    def _check_upload(self, upload: FileUpload) -> None:
        self._key(upload.file.file_path)
        check_local_path(upload.local_path)
        check_storable(upload.file)
        check_media_type(upload.file)

    def _planned_upload(self, upload: FileUpload) -> Intent:
        return intent_of("upload", upload.file, item=self.keyed.get(id(upload.file)))

    def move_files(self, volume_path: str | None, file_moves: Sequence[FileMove]) -> None:
        del volume_path
        objects = self._configured().objects
        require_catalog()

        def check(move: FileMove) -> None:
            self._key(move.file.file_path)
            self._key(move.new_path, "new_path")
            check_storable(move.file)

        def plan(move: FileMove) -> Intent:
            return intent_of("move", move.file, move.new_path, item=self.keyed.get(id(move.file)))

        def job(planned: Planned[FileMove]) -> Copying:
            keys = self._key(planned.item.file.file_path), self._key(planned.item.new_path)
            return Copying(objects, planned, keys, overwrite=self.overwrite)

        def group(moves: Sequence[FileMove]) -> Moves:
            return Moves(objects, Run(moves, check, plan, overwrite=self.overwrite), job, self.outcomes)

        self._change(file_moves, lambda move: {move.file.file_path, move.new_path}, group, REQUESTS)

    def delete_files(self, volume_path: str | None, files: Sequence[ScaleFile], update_model: bool = True) -> None:
        del volume_path
        objects = self._configured().objects
        if update_model:
            require_catalog()

        def check(file: ScaleFile) -> None:
            self._key(file.file_path)
            if update_model:
                check_storable(file)

        def plan(file: ScaleFile) -> Intent | None:
            item = self.keyed.get(id(file))
            if not update_model and item is None:
                return None  # nobody would ask what became of it
            intent = intent_of("delete", file, item=item)
            intent.is_recorded = update_model
            return intent

        def job(planned: Planned[ScaleFile]) -> Deleting:
            return Deleting(objects, planned, self._key(planned.item.file_path), is_recorded=update_model)

        def group(some: Sequence[ScaleFile]) -> Deletions:
            return Deletions(objects, Run(some, check, plan), job, self.outcomes)

        self._change(files, lambda file: {file.file_path}, group, REQUESTS)

    def look_back(self, volume_path: str | None, intents: Sequence[Intent]) -> list[Verdict | StorageError]:
        del volume_path
        objects = self._configured().objects

        def look(intent: Intent) -> Verdict | StorageError:
            try:
                new_key = self._key(intent.new_path) if intent.new_path else ""
                return verdict_on(objects, self._key(intent.file_path), new_key, intent)
            except StorageError as error:
                return error

        with ThreadPoolExecutor(_LOOK_BACKS) as pool:
            return list(pool.map(look, intents))

    def open_file(self, volume_path: str | None, file: ScaleFile) -> Content:
        del volume_path
        objects, key, subject = self._configured().objects, self._key(file.file_path), _subject("read", file)
        with about(subject):
            return ObjectContent(objects, key, objects.head(key), subject)

    def write_file(
        self, volume_path: str | None, file: ScaleFile, source: Readable, *, expected: str | None = None
    ) -> Written:
        del volume_path
        objects, key = self._configured().objects, self._key(file.file_path)
        require_catalog()
        check_storable(file)
        check_media_type(file)
        with about(_subject("write", file)):
            is_new = self._is_new(key, expected)
            with Run([FileUpload(file, "")], bool, self._planned_upload, overwrite=self.overwrite) as run:
                (planned,) = run.items
                with planned.asking():
                    stored = objects.put_stream(
                        key,
                        source,
                        file.media_type,
                        overwrite=self.overwrite,
                        expected=expected,
                        stamp=planned.stamp,
                    )
                file.file_size, file.is_deleted, file.deleted = stored.size, False, None
                run.done(planned, file)
        return Written(stored.etag, is_new)

    def _is_new(self, key: str, expected: str | None) -> bool:
        """Whether nothing is at the key. What must not be replaced is refused before any of the source is read."""
        found: Found | None = None
        with contextlib.suppress(MissingFile):
            found = self._configured().objects.head(key)
        if found is not None and not self.overwrite:
            raise AlreadyExists("an object of this name is already there")
        if expected is not None and (found is None or found.etag != expected):
            raise FileChanged("what is there has another entity tag" if found else "no file is there")
        return found is None

    def _configured(self) -> _Configured:
        if self._loaded is None:
            raise RuntimeError("the broker has no configuration: call load_configuration first")
        return self._loaded

    def _key(self, path: str, field: str = "file_path") -> str:
        check_file_path(path, field)
        key = self._configured().settings.prefix + path
        if len(key.encode()) > LONGEST_KEY_BYTES:
            raise InvalidPath(
                f"{field} {quoted(path)} is too long: S3 keys, prefix included, have at most 1024 bytes"
            )
        return key


def _objects(settings: Settings) -> Objects:
    """The bucket's objects. The SDKs are imported here, since they are large and many need no S3."""
    match os.environ.get(BULK_VARIABLE, "obstore"):
        case "obstore":
            from storage.brokers._s3_obstore import ObstoreObjects  # noqa: PLC0415

            return ObstoreObjects(settings)
        case "boto3":
            from storage.brokers._s3_boto import BotoObjects  # noqa: PLC0415

            return BotoObjects(settings)
        case other:
            raise InvalidBrokerConfiguration(
                BULK_VARIABLE, f"{BULK_VARIABLE} is {other!r}; accepted are 'obstore' and 'boto3'"
            )


def _apart(items: Sequence[Item], paths: Callable[[Item], set[str]]) -> Iterator[list[Item]]:
    """The items in runs that can be worked on at a time, since no two of a run touch the same path.

    What one does to a path, a later one must find done. Nor may a path and one below it be in a run: SeaweedFS,
    which keeps its objects in directories, loses one of them when both are stored at once.
    """
    run: list[Item] = []
    touched: set[str] = set()
    above: set[str] = set()
    for item in items:
        mine = paths(item)
        mine_above = {path[:end] for path in mine for end, letter in enumerate(path) if letter == "/"}
        is_apart = touched.isdisjoint(mine) and touched.isdisjoint(mine_above) and above.isdisjoint(mine)
        if len(run) == _ITEMS_AT_ONCE or not is_apart:
            yield run
            run, touched, above = [], set(), set()
            mine = paths(item)  # as they are now, where an earlier item is of the same model
        run.append(item)
        touched |= mine
        above |= mine_above
    if run:
        yield run


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _subject(operation: str, file: ScaleFile) -> str:
    return f"{operation} {quoted(file.file_path)}"


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error

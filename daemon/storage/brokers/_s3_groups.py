"""Groups of the items of a call on S3: in the journal and recorded together, each item with an end of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from storage.brokers._parallel import Crew, Group
from storage.brokers._s3_jobs import Changing, Copying, Deleting, Downloading, Linking, Uploading, subject_of
from storage.brokers._s3_objects import Objects
from storage.brokers._s3_run import Planned, Run
from storage.brokers.broker import FileDownload, FileMove, FileUpload
from storage.exceptions import StorageError
from storage.files import Directory, FileView, check_local_path
from storage.models import ScaleFile
from storage.os_errors import os_errors

Item = TypeVar("Item")


class Pace(NamedTuple):
    """How many items are in the journal together, and how many such groups are under way at a time."""

    items: int
    groups: int


TRANSFERS = Pace(64, 2)  # each item holds a descriptor
REQUESTS = Pace(1000, 4)

# Of fewer, each is asked for by itself.
_WORTH_LISTING = 20

# Where in a call's `Broker.outcomes` it notes what became of an item.
Outcomes = dict[int, Exception | None]


C = TypeVar("C", bound=Changing)


class Changes(Group, Generic[Item, C]):
    """A group whose items change objects.

    Args:
        make: the job of a planned item; what it raises is why that one cannot be done.
        outcomes: see `Broker.outcomes`.
    """

    def __init__(
        self, objects: Objects, run: Run[Item], make: Callable[[Planned[Item]], C], outcomes: Outcomes | None
    ) -> None:
        self.objects, self.jobs = objects, list[C]()
        self._run, self._make, self._outcomes = run, make, {} if outcomes is None else outcomes
        self._done: list[C] = []
        self._is_known = False

    def begin(self) -> None:
        for at, planned in enumerate(self._run.items):
            try:
                job = self._make(planned)
            except Exception as error:
                self._run.cut(at, error)
                break
            self.jobs.append(job)
        self.is_cut = self._run.refused is not None
        try:
            self._run.begin()
        except Exception:
            self._run.items.clear()
            raise
        self._is_known = True

    def work(self, crew: Crew) -> None:
        self._is_known = False
        self._done = self.change(crew)
        self._is_known = True

    def change(self, crew: Crew) -> list[C]:
        """Do the jobs; those that are done."""
        raise NotImplementedError

    def end(self) -> BaseException | None:
        for job in self._done:
            self._run.done(job.planned, job.done())
        failed = [job for job in self.jobs if job.error is not None]
        self._outcomes.update((id(job.file), job.error) for job in failed if isinstance(job.error, Exception))
        try:
            self._run.record(is_known=self._is_known)
        except Exception as error:  # all of them are done, and none is recorded
            self._outcomes.update((id(job.file), error) for job in self._done)
            raise
        self._outcomes.update((id(job.file), None) for job in self._done)
        return failed[0].error if failed else self._run.refused


class Uploads(Changes[FileUpload, Uploading]):
    """Uploads of files that are open as long as the group is under way."""

    def change(self, crew: Crew) -> list[Uploading]:
        return crew.each(self, Uploading.store, self.jobs)

    def end(self) -> BaseException | None:
        try:
            return super().end()
        finally:
            for job in self.jobs:
                job.close()


class Moves(Changes[FileMove, Copying]):
    """Moves: looked at, copied, verified, and then their sources deleted."""

    def change(self, crew: Crew) -> list[Copying]:
        self._list(self.jobs, [job.key for job in self.jobs])
        looked = crew.each(self, Copying.look, self.jobs)
        looked = looked[: next((at for at, job in enumerate(self.jobs) if job.error is not None), None)]
        copied = crew.each(self, Copying.copy, looked)
        self._list(copied, [job.new_key for job in copied])
        crew.each(self, Copying.verify, [job for job in copied if not job.is_verified], whatever=True)
        for job in copied:
            if isinstance(job.error, StorageError):
                job.fail("the copy could not be looked at", job.error)
        verified = [job for job in copied if job.error is None]
        failed = self.objects.delete([job.key for job in verified if job.key != job.new_key])
        for job in verified:
            if job.key in failed:
                job.fail("the source could not be removed", failed[job.key])
        return [job for job in verified if job.key not in failed]

    def end(self) -> BaseException | None:
        for job in self.jobs:
            if job.left is not None:
                self._run.also(job.left)
        return super().end()

    def _list(self, jobs: Sequence[Copying], keys: Sequence[str]) -> None:
        """Ask for many at a time. What fails here is found out when each is asked for by itself."""
        found = {}
        if len(keys) >= _WORTH_LISTING:
            with contextlib.suppress(StorageError):
                found = self.objects.listed(keys)
        for job, key in zip(jobs, keys, strict=True):
            job.listed = found.get(key)


class Deletions(Changes[ScaleFile, Deleting]):
    """Deletions, by as few requests as they need."""

    def change(self, crew: Crew) -> list[Deleting]:
        asked = [job for job in self.jobs if job.is_asked]
        left = set(asked).difference(crew.each(self, Deleting.look, asked))
        jobs = self.jobs[: next((at for at, job in enumerate(self.jobs) if job in left), None)]
        if not crew.goes_on(self):
            return []
        failed = self.objects.delete([job.key for job in jobs if job.is_there])
        for job in jobs:
            if job.key in failed:
                job.keep(failed[job.key])
        return [job for job in jobs if job.key not in failed]


class Downloads(Group):
    """Downloads, synced and given their names together.

    Args:
        linked: the path and the status of the object in the volume that shows the bucket; None where it is not
            to be seen, or not wanted.
    """

    def __init__(
        self,
        objects: Objects,
        view: FileView,
        downloads: Sequence[FileDownload],
        *,
        key: Callable[[str], str],
        linked: Callable[[FileDownload, str], tuple[str, os.stat_result] | None],
        outcomes: Outcomes | None,
        overwrite: bool,
    ) -> None:
        self._objects, self._view, self._downloads, self._overwrite = objects, view, downloads, overwrite
        self._key, self._linked, self._outcomes = key, linked, {} if outcomes is None else outcomes
        self._jobs: list[Downloading | Linking] = []
        self._ready: set[Downloading] = set()
        self._parents: dict[str, Directory] = {}
        self._held = contextlib.ExitStack()
        self._refused: Exception | None = None

    def begin(self) -> None:
        for download in self._downloads:
            try:
                self._jobs.append(self._made(download))
            except Exception as error:
                self._refused, self.is_cut = error, True
                break

    def _made(self, download: FileDownload) -> Downloading | Linking:
        key = self._key(download.file.file_path)
        check_local_path(download.local_path)
        linked = self._linked(download, key)
        with os_errors(subject_of(download)), self._view.acting():
            parent = self._parent(download.local_path)
            if linked is not None:
                return Linking(download, parent, *linked, overwrite=self._overwrite)
            return Downloading(self._objects, download, key, parent, overwrite=self._overwrite)

    def _parent(self, local_path: str) -> Directory:
        head = local_path.rpartition("/")[0]
        if head not in self._parents:
            self._parents[head] = self._held.enter_context(self._view.local_parent(local_path))[0]
        return self._parents[head]

    def work(self, crew: Crew) -> None:
        fetched = crew.each(self, Downloading.fetch, [job for job in self._jobs if isinstance(job, Downloading)])
        self._ready.update(crew.each(self, Downloading.sync, fetched, whatever=True))

    def end(self) -> BaseException | None:
        try:
            ready = [job for job in self._jobs if isinstance(job, Linking) or job in self._ready]
            with self._view.acting():
                published = list(_taken(ready, lambda job: job.publish()))
                synced: set[Directory] = set()
                done = list(_taken(published, lambda job: _sync_parent(job, synced)))
        finally:
            with self._view.leaving():
                for job in self._jobs:
                    job.close()
                self._held.close()
        self._outcomes.update((id(job.file), None) for job in done)
        failed = [job for job in self._jobs if job.error is not None]
        self._outcomes.update((id(job.file), job.error) for job in failed if isinstance(job.error, Exception))
        return failed[0].error if failed else self._refused


L = TypeVar("L", Downloading, Linking, Downloading | Linking)


def _taken(jobs: Sequence[L], step: Callable[[L], object]) -> Iterator[L]:
    """The jobs with which a step is taken; the others fail."""
    for job in jobs:
        try:
            with os_errors(job.subject):
                step(job)
        except Exception as error:
            job.error = error
        else:
            yield job


def _sync_parent(job: Downloading | Linking, synced: set[Directory]) -> None:
    """Make a file's name durable, by a sync for all in its directory. A link that a crash takes holds no data."""
    if isinstance(job, Downloading) and job.parent not in synced:
        job.parent.sync()
        synced.add(job.parent)

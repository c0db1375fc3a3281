"""Batches of file operations to break, with what is on the disk and in the catalog before and after them."""

from __future__ import annotations

import io
import itertools
import os
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lab.faults import Fault, Kernel, descriptors
from storage import journal
from storage.brokers.broker import Broker, FileDownload, FileMove, FileUpload
from storage.brokers.factory import get_broker
from storage.catalog import Catalog, configure
from storage.exceptions import StorageError
from storage.files import TEMPORARY_PREFIX
from storage.journal import Intent
from storage.models import ScaleFile, use_catalog

_BLOCK = 4096
_OWNER = "lab"


@dataclass(frozen=True)
class Batch:
    """An operation on some files.

    Attributes:
        verb: "upload", "write", "move", "delete" or "download".
        items: (from, to) of each: names in the workspace, or beside it those of local files.
        present: names of the workspace's files before it. Their content is "old" and the name.
        private: whether those have mode 0600.
    """

    name: str
    verb: str
    items: tuple[tuple[str, str], ...]
    present: tuple[str, ...] = ()
    private: bool = False
    overwrite: bool = True

    @property
    def paths(self) -> list[str]:
        """The workspace path that each item is known by."""
        return [to if self.verb in ("upload", "write") else source for source, to in self.items]


_THREE_UPLOADS = (("one", "d/e/one"), ("two", "two"), ("three", "d/three"))
_THREE_MOVES = (("a", "d/e/a"), ("d/b", "b"), ("c", "kept"))

BATCHES = [
    Batch("upload new", "upload", (("one", "one"),)),
    Batch("upload replacing", "upload", (("one", "one"),), ("one",)),
    Batch("upload with holes", "upload", (("holes", "one"),)),
    Batch("upload into missing directories", "upload", (("one", "d/e/f/one"),), ("kept",)),
    Batch("upload without overwrite", "upload", (("one", "d/one"),), ("kept",), overwrite=False),
    Batch("three uploads", "upload", _THREE_UPLOADS, ("two", "d/three")),
    Batch("three uploads without overwrite", "upload", _THREE_UPLOADS, overwrite=False),
    Batch("write new", "write", (("one", "d/e/one"),), ("kept",)),
    Batch("write replacing", "write", (("one", "one"),), ("one",)),
    Batch("write without overwrite", "write", (("one", "d/one"),), overwrite=False),
    Batch("move", "move", (("a", "b"),), ("a",)),
    Batch("move of a private file", "move", (("a", "b"),), ("a",), private=True),
    Batch("move replacing", "move", (("a", "b"),), ("a", "b")),
    Batch("move into missing directories", "move", (("a", "d/e/b"),), ("a",)),
    Batch("move without overwrite", "move", (("a", "d/b"),), ("a",), overwrite=False),
    Batch("three moves", "move", _THREE_MOVES, ("a", "d/b", "c", "b", "kept"), private=True),
    Batch("delete", "delete", (("d/a", ""),), ("d/a",)),
    Batch("three deletes", "delete", (("a", ""), ("d/b", ""), ("c", "")), ("a", "d/b", "c", "kept")),
    Batch("download", "download", (("a", "out"),), ("a",)),
    Batch("download replacing", "download", (("a", "one"),), ("a",)),
    Batch("download without overwrite", "download", (("a", "out"),), ("a",), overwrite=False),
    Batch("three downloads", "download", (("a", "out"), ("d/b", "one"), ("a", "two")), ("a", "d/b")),
]

# (batch, size of its groups): all in one group, and those of several items also in two.
BATCHES_IN_GROUPS = [pytest.param(batch, 64, id=batch.name) for batch in BATCHES] + [
    pytest.param(batch, 2, id=f"{batch.name} in two groups") for batch in BATCHES if len(batch.items) > 2
]


@dataclass(frozen=True)
class State:
    """What there is.

    Attributes:
        files: content or link of each, by path.
        modes: of each of the files that is no link.
        directories: their paths.
        unfinished: paths of the temporary files.
        records: (path, size, whether deleted) of each in the catalog.
    """

    files: dict[str, str]
    modes: dict[str, int]
    directories: set[str]
    unfinished: list[str]
    records: list[tuple[str, int | None, bool]]


class World:
    """A workspace and local files before a batch, in a directory and a workspace of their own."""

    def __init__(self, directory: Path, batch: Batch, broker_type: str = "host") -> None:
        self.batch = batch
        self._directory = directory
        self._files: dict[str, ScaleFile] = {}
        self._workspace = directory / "workspace"
        self._local = directory / "local"
        for made in (directory, self._workspace, self._local):
            made.mkdir(exist_ok=True)
        self.volume_path = str(self._workspace)
        self.broker: Broker = get_broker(broker_type)
        self.broker.overwrite = batch.overwrite
        for name in ("one", "two", "three"):
            (self._local / name).write_text(f"the new {name}")
        _write_with_holes(self._local / "holes")
        for name in batch.present:
            path = self._workspace / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"old {name}")
            path.chmod(0o600 if batch.private else 0o644)

    def record_present(self, catalog: Catalog) -> None:
        """Save the records of the files that are there before the batch."""
        files = {name: self._new(name) for name in self.batch.present}
        for name, file in files.items():
            file.file_size = len(f"old {name}")
        catalog.save_all(list(files.values()))
        self._files = files

    def run(self, count: int | None = None) -> None:
        """Carry out the first `count` items, or all, as one batch."""
        models = [self._files.get(path) or self._new(path) for path in self.batch.paths]
        found = zip(models, self.batch.items[:count], strict=False)
        match self.batch.verb:
            case "upload":
                uploads = [FileUpload(file, str(self._local / source)) for file, (source, _) in found]
                self.broker.upload_files(self.volume_path, uploads)
            case "write":
                for file, (source, _) in found:
                    arriving = io.BytesIO((self._local / source).read_bytes())
                    self.broker.write_file(self.volume_path, file, arriving)
            case "move":
                self.broker.move_files(self.volume_path, [FileMove(file, to) for file, (_, to) in found])
            case "delete":
                self.broker.delete_files(self.volume_path, [file for file, _ in found])
            case "download":
                downloads = [FileDownload(file, str(self._local / to), False) for file, (_, to) in found]
                self.broker.download_files(self.volume_path, downloads)

    def state(self, catalog: Catalog) -> State:
        found = State({}, {}, set(), [], [])
        for above, directories, files in os.walk(self._directory):
            inside = os.path.relpath(above, self._directory)
            found.directories.update(os.path.join(inside, name) for name in directories)
            for name in files:
                self._add(found, os.path.join(above, name))
        records = catalog.page(self._name)
        found.records.extend(
            sorted(((file.file_path, file.file_size, file.is_deleted) for file in records), key=str)
        )
        return found

    def _add(self, state: State, path: str) -> None:
        inside = os.path.relpath(path, self._directory)
        if os.path.basename(path).startswith(TEMPORARY_PREFIX):
            state.unfinished.append(inside)
        elif os.path.islink(path):
            state.files[inside] = "link to " + os.path.relpath(os.readlink(path), self._directory)
        else:
            state.files[inside] = re.sub("\0+", lambda found: f"({len(found[0])} zeros)", Path(path).read_text())
            state.modes[inside] = os.stat(path).st_mode & 0o7777

    @property
    def _name(self) -> str:
        return self._directory.name

    def _new(self, path: str) -> ScaleFile:
        return ScaleFile(file_path=path, workspace=self._name)

    def recover(self, catalog: Catalog) -> int:
        """Settle what killed processes left; how much stays open."""
        return journal.recover(catalog, self.broker, self.volume_path, self._name)

    def open_intents(self, catalog: Catalog) -> list[Intent]:
        return catalog.journal.open_in(self._name, _OWNER, datetime.now(UTC))


class Course:
    """The states that a batch leads through: after none of its items, after one, and so on to all."""

    def __init__(self, states: Sequence[State]) -> None:
        self.states = states

    def done(self, state: State) -> int:
        """How many items are done, exactly: nothing else is different, on the disk or in the catalog.

        Raises:
            AssertionError: it is none of the states.
        """
        assert state in self.states, f"neither the old nor the new: {state}"
        return self.states.index(state)

    def settled(self, state: State) -> int:
        """As `done`, but for directories that were made in vain: they may stay, empty."""
        alike = [replace(known, directories=state.directories) for known in self.states]
        assert state in alike, f"half done after recovery: {state}"
        return alike.index(state)

    def recorded(self, state: State) -> int:
        """How many items are done for sure: those that are recorded, or for which there is nothing to record.

        More may be done, each as a whole; of directories, modes and unfinished files nothing is said.

        Raises:
            AssertionError: the catalog says what was never so, or more than the disk; or a file is half or lost.
        """
        counts = [count for count, known in enumerate(self.states) if known.records == state.records]
        for count in reversed(counts):
            if self._is_after(state.files, count):
                return count
        raise AssertionError(f"half, lost, or recorded and not done: {state}")

    def _is_after(self, files: Mapping[str, str], count: int) -> bool:
        """Whether these files can be there when the first `count` items are done, and others perhaps."""
        possible = [known.files for known in self.states[count:]]
        paths = set(files).union(*possible)
        kept = set.intersection(*(set(known.values()) for known in possible))
        return kept <= set(files.values()) and all(
            files.get(path) in [known.get(path) for known in possible] for path in paths
        )


class Lab:
    """Makes worlds below a directory, one after another, and carries out their batches.

    Attributes:
        catalog, url: in use, and in the same directory.
        is_nfs: whether the kernel is as on an NFS mount.
    """

    def __init__(self, directory: Path, *, is_nfs: bool = False) -> None:
        self.url = f"sqlite:///{directory}/catalog.sqlite"
        self.catalog: Catalog = configure(self.url)
        self.is_nfs = is_nfs
        journal.use_owner(_OWNER)
        self._directories = (directory / str(number) for number in itertools.count())

    def world(self, batch: Batch) -> World:
        return self.world_in(next(self._directories), batch)

    def world_in(self, directory: Path, batch: Batch) -> World:
        """A world in a new directory, whose name is not yet the one of another."""
        world = World(directory, batch, "nfs" if self.is_nfs else "host")
        world.record_present(self.catalog)
        return world

    def course(self, batch: Batch) -> Course:
        """The states of a batch, found by carrying it out without faults up to each of its items."""
        states = []
        for count in range(len(batch.items) + 1):
            world = self.world(batch)
            world.run(count)
            states.append(world.state(self.catalog))
        return Course(states)

    def steps(self, batch: Batch) -> list[str]:
        with Kernel(is_nfs=self.is_nfs).in_place() as kernel:
            self.world(batch).run()
        return kernel.steps

    def kill(self, world: World, step: int) -> None:
        """Carry out a batch in a process that gets SIGKILL before a step."""
        self.catalog.close()  # SQLite's connections cannot be taken through a fork
        child = os.fork()
        if child == 0:
            try:
                use_catalog(Catalog(self.url))
                journal.use_owner(_OWNER)
                with Kernel(Fault(step), self.is_nfs).in_place():
                    world.run()
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "it was not killed"

    def broken(self, batch: Batch, fault: Fault) -> tuple[Kernel, State, StorageError | None]:
        """Carry out a batch with a fault: what it met, what there is then, and what it raised."""
        world, raised = self.world(batch), None
        held = descriptors()
        with Kernel(fault, self.is_nfs).in_place() as kernel:
            try:
                world.run()
            except StorageError as error:
                raised = error
        assert descriptors() == held, "descriptors leak"
        return kernel, world.state(self.catalog), raised


def _write_with_holes(path: Path) -> None:
    with path.open("wb") as file:
        for start in (0, 3, 6):
            file.seek(start * _BLOCK)
            file.write(b"data")
        file.truncate(9 * _BLOCK)

"""What the sections of one run share: sizes, a directory, source files, an S3 server, a catalog, results."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import obstore
from obstore.store import S3Store

from bench.calls import Caller, Calls, take_turns
from bench.frame import Case, Figure, Outcome, race
from lab.s3 import S3Server, seaweed_server
from storage import catalog
from storage.models import use_catalog

BUCKET = "bench"
LISTED = "listed"  # what the keys that are only listed begin with
_MIB = 1024 * 1024
_FILES_A_DIRECTORY = 100
_WORKERS = 32


@dataclass(frozen=True)
class Sizes:
    """How much work the cases do."""

    large_bytes: int = 1024 * _MIB
    objects: int = 5_000
    keys: int = 100_000
    files: int = 10_000
    calls: int = 200

    def scaled(self, factor: float) -> Sizes:
        """All of them times `factor`, at least one unit each."""
        return Sizes(
            max(1, round(self.large_bytes * factor / _MIB)) * _MIB,
            *(max(1, round(number * factor)) for number in (self.objects, self.keys, self.files, self.calls)),
        )


@dataclass(frozen=True)
class Tree:
    """Files to be stored: `paths` below `directory`, a hundred in each sub-directory."""

    directory: Path
    paths: list[str]

    def make_directories(self, target: Path, paths: list[str] | None = None) -> None:
        """Make the directories for these paths, or all, below `target`."""
        for head in sorted({os.path.dirname(path) for path in paths or self.paths}):
            (target / head).mkdir(parents=True)


@dataclass
class Session:
    """One run. Whatever is made on the way is closed by the context that `opened` gives."""

    sizes: Sizes
    repeat: int
    is_large: bool
    directory: Path
    outcomes: list[Outcome] = field(default_factory=list)
    calls: list[Calls] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Session]:
        """Run sections in this context: their brokers save to the catalog of the run."""
        with self._stack:
            opened = catalog.configure(f"sqlite:///{self.directory}/catalog.sqlite")
            self._stack.callback(opened.close)
            self._stack.callback(use_catalog, None)
            yield self

    def race(self, section: str, case: Case, *, repeat: int | None = None) -> None:
        """Measure a case. Every contender begins with all that was written on the disk.

        Args:
            repeat: how often, if not as often as all others.
        """
        names = ", ".join(contender.name for contender in (case.ours, *case.rivals))
        repeat = repeat or self.repeat
        progress(f"{section}: {case.name}, {repeat} times, by {names}")
        self.outcomes.append(race(section, case, repeat, settle=os.sync))

    def take_turns(self, section: str, callers: Sequence[Caller]) -> None:
        """Measure single calls; see `race` of what is on the disk."""
        names = ", ".join(caller.name for caller in callers)
        progress(f"{section}: {callers[0].count} calls, {self.repeat} times, by {names}")
        self.calls += take_turns(section, callers, self.repeat, os.sync)

    def found(self, name: str) -> Calls:
        """What was measured under this name, "section: call"."""
        return next(calls for calls in self.calls if f"{calls.section}: {calls.name}" == name)

    def note(self, figure: Figure) -> None:
        """Take a figure into the results."""
        self.figures.append(figure)

    def note_excess(self, name: str, floor: str, target_ms: float) -> None:
        """Take into the results by how much ours took longer than `floor` for a call that was measured."""
        calls = self.found(name)
        about = f"over {floor}, of medians"
        self.note(Figure(calls.section, calls.name, calls.less_ms(floor), target_ms, "ms", about))

    def leave_out(self, section: str, reason: str) -> None:
        """Take into the results that a section, or a part of one, could not be measured here."""
        progress(f"{section}: left out, it {reason}")
        self.left_out[section] = reason

    def new_directory(self, name: str) -> Path:
        """An empty directory of this run."""
        path = self.directory / name
        path.mkdir(parents=True)
        return path

    def small_files(self, name: str, count: int) -> Tree:
        """So many files of 4 KiB, in a directory of this name."""
        progress(f"making {count:,} source files")
        tree = Tree(self.new_directory(name), [_small_path(number) for number in range(count)])
        tree.make_directories(tree.directory)
        for number, path in enumerate(tree.paths):
            (tree.directory / path).write_bytes(number.to_bytes(4, "big") * 1024)
        return tree

    @functools.cached_property
    def large_file(self) -> Tree:
        """One large file, of bytes that nothing can compress or share."""
        tree = Tree(self.new_directory("large"), ["data/large.dat"])
        tree.make_directories(tree.directory)
        with (tree.directory / tree.paths[0]).open("wb") as file:
            for _ in range(self.sizes.large_bytes // _MIB):
                file.write(os.urandom(_MIB))
        return tree

    @functools.cached_property
    def server(self) -> S3Server:
        """SeaweedFS, with an empty bucket."""
        progress("starting SeaweedFS")
        server = self._stack.enter_context(seaweed_server())
        server.client().create_bucket(Bucket=BUCKET)
        return server

    @functools.cached_property
    def listed_keys(self) -> int:
        """How many keys lie below `LISTED`, in two halves, `0/` and `1/`. Empty objects: these are made faster."""
        count = 2 * self.sizes.keys
        progress(f"storing {count:,} keys to be listed")
        store = S3Store(
            BUCKET,
            endpoint=self.server.endpoint_url,
            region=self.server.region_name,
            access_key_id=self.server.access_key_id,
            secret_access_key=self.server.secret_access_key,
            client_options={"allow_http": True},
        )

        def put(number: int) -> None:
            key = f"{LISTED}/{number % 2}/{number // 1000:04}/{number:07}.dat"
            obstore.put(store, key, b"", use_multipart=False)

        with ThreadPoolExecutor(_WORKERS) as pool:
            for start in range(0, count, 1000):  # so that a Ctrl-C need not wait for all
                list(pool.map(put, range(start, min(start + 1000, count))))
        return count


def run(*command: str | Path, **environment: str) -> None:
    """Run a rival's program, told apart from ours by nothing but its arguments and environment.

    Raises:
        RuntimeError: it failed, with what it said.
    """
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} failed with {done.returncode}: {done.stderr[-2000:]}")


def exhaust(items: Iterable[object]) -> None:
    """Take every item, and keep none."""
    deque(items, maxlen=0)


def progress(text: str) -> None:
    """Say what is going on, beside the table."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _small_path(number: int) -> str:
    return f"{number // _FILES_A_DIRECTORY:03}/{number:06}.dat"

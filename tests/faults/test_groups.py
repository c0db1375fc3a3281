"""A batch on a mounted volume is done in groups: cheaper than one after another, with the same outcome."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.faults import Kernel, descriptors
from storage import catalog
from storage.brokers._group import DIRECTORIES, GROUP_FILES, OPEN_FILES, Change, Group
from storage.brokers.broker import Broker, FileDownload, FileMove, FileUpload
from storage.brokers.factory import get_broker
from storage.catalog import Catalog
from storage.exceptions import AlreadyExists, BackendUnavailable, MissingFile
from storage.files import Directory, SelfView
from storage.journal import Intent
from storage.models import ScaleFile, use_catalog

MANY = 600


class Place:
    """A broker, its workspace, and local files beside it."""

    def __init__(self, directory: Path) -> None:
        self.workspace, self.local = directory / "workspace", directory / "local"
        self.workspace.mkdir()
        self.local.mkdir()
        self.volume_path = str(self.workspace)
        self.database = f"sqlite:///{directory}/catalog.sqlite"
        self.broker: Broker = get_broker("host")

    def source(self, content: str) -> str:
        path = self.local / f"{len(os.listdir(self.local))}"
        path.write_text(content)
        return str(path)

    def upload(self, *pairs: tuple[str, str]) -> None:
        """Upload (local path, path in the workspace) of each."""
        uploads = [FileUpload(ScaleFile(file_path=path), local_path) for local_path, path in pairs]
        self.broker.upload_files(self.volume_path, uploads)

    def read(self, path: str) -> str:
        return (self.workspace / path).read_text()


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Catalog]:
    opened = catalog.configure(f"sqlite:///{tmp_path}/catalog.sqlite")
    yield opened
    use_catalog(None)
    opened.close()


@pytest.fixture
def place(tmp_path: Path, records: Catalog) -> Place:
    return Place(tmp_path)


def operations(place: Place) -> Iterator[tuple[str, Callable[[], None]]]:
    """Each operation on many files, every one in a directory of its own."""
    source, files = place.source("x"), [ScaleFile(file_path=f"{number}/f") for number in range(MANY)]
    broker, volume_path = place.broker, place.volume_path
    uploads = [FileUpload(file, source) for file in files]
    yield "upload", lambda: broker.upload_files(volume_path, uploads)
    downloads = [FileDownload(file, f"{place.local}/{number}.out", False) for number, file in enumerate(files)]
    yield "download", lambda: broker.download_files(volume_path, downloads)
    moves = [FileMove(file, f"{number}/to/f") for number, file in enumerate(files)]
    yield "move", lambda: broker.move_files(volume_path, moves)
    yield "delete", lambda: broker.delete_files(volume_path, files)


def test_descriptors_are_bounded(place: Place) -> None:
    for _, run in operations(place):
        held, seen = descriptors(), set[int]()

        def count(_: str, seen: set[int] = seen) -> None:
            seen.add(descriptors())

        with Kernel(meanwhile=count).in_place():
            run()
        assert max(seen) - held <= 180
        assert descriptors() == held


def test_directories_are_synced_once_a_group(place: Place) -> None:
    source = place.source("x")
    with Kernel().in_place() as kernel:
        place.upload(*((source, f"new/{number}") for number in range(256)))
    # The files, their directory once a group, and where it was made.
    assert kernel.steps.count("fsync") == 256 + 256 // OPEN_FILES + 1
    moves = [FileMove(ScaleFile(file_path=f"new/{number}"), f"new/to-{number}") for number in range(256)]
    with Kernel().in_place() as kernel:
        place.broker.move_files(place.volume_path, moves)
    assert kernel.steps.count("fsync") == 256 // GROUP_FILES


def test_an_upload_that_replaces_a_link_on_the_way_of_others_is_a_group_of_its_own(
    place: Place, records: Catalog
) -> None:
    """A directory made by an earlier one is synced after; by then its path may lead elsewhere."""
    (place.workspace / "c").mkdir()
    (place.workspace / "d").symlink_to("c")
    (place.workspace / "e").symlink_to("d")
    source = place.source("x")
    place.upload(*((source, path) for path in ("e/h/j", "d", "z")))
    assert place.read("c/h/j") == place.read("d") == place.read("z") == "x"
    assert [record.file_path for record in records.page("")] == ["e/h/j", "d", "z"]


class Witness(SelfView):
    """The process's own view, which keeps count of how it is used."""

    def __init__(self) -> None:
        self.is_acting = False
        self.acted = self.opened = 0

    @contextmanager
    def acting(self) -> Iterator[None]:
        assert not self.is_acting
        self.is_acting, self.acted = True, self.acted + 1
        try:
            yield
        finally:
            self.is_acting = False

    def open_workspace(self, volume_path: str) -> Directory:
        assert self.is_acting
        self.opened += 1
        return super().open_workspace(volume_path)


class Wary(Catalog):
    """A catalog that must not be used with somebody else's identity."""

    def __init__(self, place: Place, witness: Witness) -> None:
        super().__init__(place.database)
        self._witness = witness
        self.begun = self.saved = 0

    def begin(self, intents: Sequence[Intent]) -> None:
        assert not self._witness.is_acting
        self.begun += 1
        super().begin(intents)

    def finish(self, files: Sequence[ScaleFile], done: Sequence[Intent], dropped: Sequence[Intent]) -> None:
        assert not self._witness.is_acting
        self.saved += 1
        super().finish(files, done, dropped)


def test_identity_and_transaction_are_taken_once_a_group(place: Place, records: Catalog) -> None:
    for operation, run in operations(place):
        place.broker.view = witness = Witness()
        use_catalog(wary := Wary(place, witness))
        run()
        wary.close()
        is_change = operation != "download"
        together = {"download": GROUP_FILES, "upload": OPEN_FILES, "move": DIRECTORIES // 2, "delete": DIRECTORIES}
        groups = -(-MANY // together[operation])  # each is in a directory of its own, and moves to another
        # To look, to change, and to tidy up.
        assert (witness.acted, witness.opened) == (3 * groups if is_change else groups, groups)
        assert (wary.begun, wary.saved) == ((groups, groups) if is_change else (0, 0))


def test_nothing_is_touched_without_a_catalog(place: Place) -> None:
    place.upload((place.source("old"), "a"))
    use_catalog(None)
    with pytest.raises(RuntimeError, match="no catalog is in use"):
        place.upload((place.source("new"), "a"))
    with pytest.raises(RuntimeError, match="no catalog is in use"):
        place.broker.move_files(place.volume_path, [FileMove(ScaleFile(file_path="a"), "b")])
    with pytest.raises(RuntimeError, match="no catalog is in use"):
        place.broker.delete_files(place.volume_path, [ScaleFile(file_path="a")])
    assert os.listdir(place.workspace) == ["a"]
    assert place.read("a") == "old"
    place.broker.delete_files(place.volume_path, [ScaleFile(file_path="a")], update_model=False)
    assert os.listdir(place.workspace) == []


class Failing(Catalog):
    """It takes down what is begun, and nothing of what came of it."""

    def finish(self, files: Sequence[ScaleFile], *_: object) -> None:
        raise BackendUnavailable(f"the database is gone for {len(files)}")


def test_files_are_whole_when_the_catalog_fails(place: Place) -> None:
    use_catalog(failing := Failing(place.database))
    failing.upgrade()
    with pytest.raises(BackendUnavailable, match="the database is gone"):
        place.upload((place.source("one"), "a"), (place.source("two"), "b/c"))
    failing.close()
    assert (place.read("a"), place.read("b/c")) == ("one", "two")
    assert sorted(os.listdir(place.workspace)) == ["a", "b"]


def test_a_second_upload_of_a_path_without_overwrite_is_refused(place: Place, records: Catalog) -> None:
    place.broker.overwrite = False
    with pytest.raises(AlreadyExists, match="upload 'a'"):
        place.upload((place.source("first"), "a"), (place.source("second"), "a"), (place.source("x"), "b"))
    assert place.read("a") == "first"
    assert [file.file_path for file in records.page("")] == ["a"]
    assert os.listdir(place.workspace) == ["a"]


@pytest.mark.parametrize("alias", ["itself", "hard link", "link", "link that is replaced"])
def test_a_source_that_the_batch_replaces_is_found_replaced(place: Place, alias: str) -> None:
    """By whatever name: the kernel says which file it is."""
    (place.workspace / "a").write_text("old")
    source = place.workspace / "a"
    if alias == "hard link":
        source = place.workspace / "alias"
        source.hardlink_to(place.workspace / "a")
    elif alias == "link":
        source = place.local / "alias"
        source.symlink_to(place.workspace / "a")
    elif alias == "link that is replaced":
        (place.workspace / "a").rename(place.workspace / "elsewhere")
        source.symlink_to("elsewhere")
    place.upload((place.source("new"), "a"), (str(source), "b"))
    assert place.read("a") == "new"
    assert place.read("b") == ("old" if alias == "hard link" else "new")


def test_a_broker_tells_what_became_of_each_item(place: Place, records: Catalog) -> None:
    """Done, failed, or nothing at all: so whoever asked for many knows it of each."""
    files = [ScaleFile(file_path=path) for path in ("a", "b", "c", "d")]
    source = place.source("x")
    uploads = [FileUpload(file, source) for file in files]
    uploads[2] = FileUpload(files[2], "/missing")
    outcomes: dict[int, Exception | None] = {}
    place.broker.outcomes = outcomes
    with pytest.raises(MissingFile) as raised:
        place.broker.upload_files(place.volume_path, uploads)
    assert outcomes == {id(files[0]): None, id(files[1]): None, id(files[2]): raised.value}
    outcomes.clear()
    place.broker.delete_files(place.volume_path, files[:2])
    assert outcomes == {id(files[0]): None, id(files[1]): None}


def test_what_is_in_place_and_not_recorded_has_failed(place: Place) -> None:
    use_catalog(failing := Failing(place.database))
    failing.upgrade()
    files = [ScaleFile(file_path=path) for path in ("a", "b")]
    place.broker.outcomes = {}
    source = place.source("x")
    with pytest.raises(BackendUnavailable) as raised:
        place.broker.upload_files(place.volume_path, [FileUpload(file, source) for file in files])
    failing.close()
    assert place.broker.outcomes == {id(file): raised.value for file in files}
    assert sorted(os.listdir(place.workspace)) == ["a", "b"]


def test_a_group_that_ends_early_forgets_what_failed_behind_its_end(place: Place) -> None:
    """Else that would be told, and the items in between neither done nor told of."""
    changes = [Change(ScaleFile(file_path=path)) for path in ("a", "b", "c")]
    group = Group(changes)
    failures = []
    for step in (
        lambda change: _raise(MissingFile("c")) if change is changes[2] else None,
        lambda change: group.end_before_this() if change is changes[1] else None,
    ):
        group.each(step)
        failures.append(str(group.failure))
    assert failures == ["c", "None"]
    assert group.items == changes[:1]


def _raise(error: Exception) -> None:
    raise error

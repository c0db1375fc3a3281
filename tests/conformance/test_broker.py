"""The broker contract (`storage.brokers.broker.Broker`), over every registered type.

A type takes part through a `Backend` in `BACKENDS`: where its bytes are can be seen without the broker, and a
type without one fails the suite.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.directories import remove_chain
from lab.hostile import ESCAPING_LINKS, REFUSED_PATHS, WEIRD_NAMES, exchange
from storage import catalog
from storage.brokers.broker import Broker, FileDetails, FileDownload, FileMove, FileUpload
from storage.brokers.exceptions import InvalidBrokerConfiguration
from storage.brokers.factory import get_broker, get_broker_types
from storage.catalog import Catalog
from storage.exceptions import AlreadyExists, InvalidPath, MissingFile, NoSpace, StorageError
from storage.models import ScaleFile, use_catalog

OPERATIONS = ("download", "upload", "move from", "move to", "delete", "paths")


class Backend:
    """A configured broker beside the place where its files really are, here a directory."""

    def __init__(self, broker_type: str, directory: Path, configuration: dict[str, str] | None = None) -> None:
        self.outside = directory
        self.disk = directory / "workspace"
        self.local = directory / "local"
        self.disk.mkdir()
        self.local.mkdir()
        (directory / "secret").write_text("secret")
        self.volume_path = str(self.disk)
        self.broker: Broker = get_broker(broker_type)
        self.configuration = configuration or {"host_path": self.volume_path}
        self.broker.load_configuration({"type": broker_type, **self.configuration})

    def put(self, path: str, content: str = "content") -> ScaleFile:
        """A file that is there without the broker's help."""
        target = self.disk / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
        return ScaleFile(file_path=path, workspace="w")

    def source(self, content: str = "content", name: str = "source") -> str:
        path = self.local / name
        path.write_text(content)
        return str(path)

    def upload(self, path: str, content: str = "content") -> ScaleFile:
        file = ScaleFile(file_path=path, workspace="w")
        self.broker.upload_files(self.volume_path, [FileUpload(file, self.source(content))])
        return file

    def download(self, file: ScaleFile, local_path: str) -> None:
        self.broker.download_files(self.volume_path, [FileDownload(file, local_path, False)])

    def move(self, file: ScaleFile, new_path: str) -> None:
        self.broker.move_files(self.volume_path, [FileMove(file, new_path)])

    def listed(self, recursive: bool = True) -> dict[str, int]:
        return {found.file: found.size for found in self.broker.list_files(self.volume_path, recursive)}

    def attempt(self, operation: str, path: str) -> None:
        """One operation with a path that a stranger chose."""
        file = ScaleFile(file_path=path, workspace="w")
        match operation:
            case "download":
                self.download(file, str(self.local / "out"))
            case "upload":
                self.broker.upload_files(self.volume_path, [FileUpload(file, self.source("evil"))])
            case "move from":
                self.move(file, "moved")
            case "move to":
                self.move(self.put("victim"), path)
            case "delete":
                self.broker.delete_files(self.volume_path, [file])
            case "paths":
                self.broker.get_file_system_paths(self.volume_path, [file])

    def everything(self) -> dict[str, str]:
        """Every path on the disk, with content or link target."""
        found = {}
        for directory, names, files in os.walk(self.outside):
            for name in names + files:
                path = Path(directory, name)
                is_plain = path.is_file() and not path.is_symlink()
                found[str(path)] = (
                    path.read_text() if is_plain else os.readlink(path) if path.is_symlink() else "dir"
                )
        return found


def nfs(broker_type: str, directory: Path) -> Backend:
    """An export is for its broker a mounted directory; mounts by the kernel are the driver's matter."""
    return Backend(broker_type, directory, {"nfs_path": "server:/export"})


BACKENDS = {"host": Backend, "nfs": nfs}


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Catalog]:
    opened = catalog.configure(f"sqlite:///{tmp_path}/catalog.sqlite")
    yield opened
    use_catalog(None)
    opened.close()


@pytest.fixture(params=get_broker_types())
def backend(request: pytest.FixtureRequest, tmp_path: Path, records: Catalog) -> Backend:
    directory = tmp_path / "b"
    directory.mkdir()
    return BACKENDS[request.param](request.param, directory)


def test_upload_stores_the_bytes_with_mode_0644_in_made_directories(backend: Backend, records: Catalog) -> None:
    os.umask(0o077)
    try:
        file = backend.upload("a/b/c.txt", "hello")
    finally:
        os.umask(0o022)
    stored = backend.disk / "a/b/c.txt"
    assert stored.read_text() == "hello"
    assert stored.stat().st_mode & 0o7777 == 0o644
    assert (backend.disk / "a").stat().st_mode & 0o7777 == 0o755
    saved = records.find_path("w", "a/b/c.txt")
    assert saved == file
    assert (file.file_size, file.file_name) == (5, "c.txt")


def test_upload_makes_and_on_failure_removes_a_thousand_directories(backend: Backend) -> None:
    deep = "/".join(["d"] * 1500)
    with pytest.raises(MissingFile):
        backend.move(ScaleFile(file_path="gone"), f"{deep}/f")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("storage.transfer.os.fsync", _disk_full)
        with pytest.raises(NoSpace):
            backend.upload(f"{deep}/f")
    assert os.listdir(backend.disk) == []
    try:
        backend.upload(f"{deep}/f", "x")
        assert (backend.disk / deep / "f").read_text() == "x"
    finally:
        remove_chain(backend.disk, f"{deep}/f")


def _disk_full(*_: object) -> None:
    raise OSError(28, "ENOSPC")


def test_upload_replaces_a_file_whole_and_keeps_its_record(backend: Backend, records: Catalog) -> None:
    first = backend.upload("a", "long content")
    second = backend.upload("a", "new")
    assert (backend.disk / "a").read_text() == "new"
    assert (second.id, second.uuid) == (first.id, first.uuid)
    assert [file.file_size for file in records.page("w")] == [3]


def test_upload_without_overwrite_leaves_what_is_there(backend: Backend) -> None:
    backend.put("a", "old")
    backend.broker.overwrite = False
    with pytest.raises(AlreadyExists):
        backend.upload("a", "new")
    assert (backend.disk / "a").read_text() == "old"
    assert os.listdir(backend.disk) == ["a"]
    backend.upload("b", "new")
    assert (backend.disk / "b").read_text() == "new"


def test_upload_onto_a_directory_is_refused(backend: Backend) -> None:
    backend.put("a/b")
    with pytest.raises(AlreadyExists):
        backend.upload("a")
    assert sorted(backend.listed()) == ["a/b"]


def test_upload_of_a_missing_local_file_is_missing_file_and_leaves_no_directory(backend: Backend) -> None:
    file = ScaleFile(file_path="new/dir/file", workspace="w")
    with pytest.raises(MissingFile, match="nowhere"):
        backend.broker.upload_files(backend.volume_path, [FileUpload(file, str(backend.local / "nowhere"))])
    assert os.listdir(backend.disk) == []
    assert file.id is None


@pytest.mark.parametrize("special", ["directory", "fifo", "socket", "device", "proc"])
def test_upload_takes_only_regular_files_and_never_blocks(backend: Backend, special: str) -> None:
    path = str(backend.local / "special")
    match special:
        case "directory":
            os.mkdir(path)
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
        case "device":
            path = "/dev/zero"
        case "proc":
            path = "/proc/self/environ"
    with pytest.raises(InvalidPath, match=r"regular file|pseudo-file"):
        backend.broker.upload_files(backend.volume_path, [FileUpload(ScaleFile(file_path="x"), path)])
    assert os.listdir(backend.disk) == []


def test_sparse_files_stay_sparse(backend: Backend) -> None:
    path = backend.local / "sparse"
    with path.open("wb") as file:
        file.seek(6 << 30)
        file.write(b"end")
    backend.broker.upload_files(backend.volume_path, [FileUpload(ScaleFile(file_path="s"), str(path))])
    stored = backend.disk / "s"
    assert stored.stat().st_size == (6 << 30) + 3
    assert stored.stat().st_blocks * 512 < 1 << 20
    with stored.open("rb") as file:
        file.seek(6 << 30)
        assert file.read() == b"end"


def test_empty_file_and_odd_sizes_arrive_as_they_are(backend: Backend) -> None:
    for size in (0, 1, 4095, 4097, 3 * 1024 * 1024 + 1):
        content = "x" * size
        backend.upload(f"size-{size}", content)
        assert (backend.disk / f"size-{size}").read_text() == content


def test_copying_without_copy_file_range_gives_the_same_bytes(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(18, "EXDEV")

    monkeypatch.setattr("storage.transfer.os.copy_file_range", refuse)
    content = "abc" * 1_500_000
    backend.upload("f", content)
    assert (backend.disk / "f").read_text() == content


def test_download_is_a_link_into_the_volume(backend: Backend) -> None:
    file = backend.put("a/b.txt", "hello")
    local = backend.local / "out"
    backend.download(file, str(local))
    assert os.readlink(local) == f"{backend.volume_path}/a/b.txt"
    assert local.read_text() == "hello"


def test_download_of_a_missing_file_is_missing_file_and_leaves_nothing(backend: Backend) -> None:
    with pytest.raises(MissingFile, match="gone"):
        backend.download(ScaleFile(file_path="dir/gone"), str(backend.local / "out"))
    assert os.listdir(backend.local) == []


def test_download_into_a_missing_directory_is_refused(backend: Backend) -> None:
    file = backend.put("a")
    with pytest.raises(StorageError):
        backend.download(file, str(backend.local / "no/such/dir/out"))
    assert os.listdir(backend.local) == []


def test_download_of_a_directory_is_missing_file(backend: Backend) -> None:
    backend.put("dir/a")
    with pytest.raises(MissingFile):
        backend.download(ScaleFile(file_path="dir"), str(backend.local / "out"))


def test_download_onto_the_file_itself_does_not_lose_it(backend: Backend) -> None:
    file = backend.put("a", "precious")
    with pytest.raises(AlreadyExists):
        backend.download(file, str(backend.disk / "a"))
    assert (backend.disk / "a").read_text() == "precious"


def test_download_replaces_a_file_but_not_a_directory(backend: Backend) -> None:
    file = backend.put("a", "new")
    old = Path(backend.source("old", "out"))
    backend.download(file, str(old))
    assert old.read_text() == "new"
    (backend.local / "dir").mkdir()
    with pytest.raises(AlreadyExists):
        backend.download(file, str(backend.local / "dir"))
    backend.broker.overwrite = False
    with pytest.raises(AlreadyExists):
        backend.download(file, str(old))


def test_move_renames_and_updates_the_record(backend: Backend, records: Catalog) -> None:
    file = backend.upload("a.txt", "hello")
    os.chmod(backend.disk / "a.txt", 0o600)
    backend.move(file, "new/place/b.txt")
    assert backend.listed() == {"new/place/b.txt": 5}
    assert (backend.disk / "new/place/b.txt").stat().st_mode & 0o7777 == 0o644
    assert (file.file_path, file.file_name) == ("new/place/b.txt", "b.txt")
    assert records.find_path("w", "a.txt") is None
    assert records.find_path("w", "new/place/b.txt") == file


def test_directories_made_inherit_the_group_of_a_setgid_directory(backend: Backend) -> None:
    os.chmod(backend.disk, 0o2755)  # noqa: S103
    backend.upload("new/f")
    assert (backend.disk / "new").stat().st_mode & 0o7777 == 0o2755


def test_move_onto_a_file_replaces_it_and_marks_its_record_deleted(backend: Backend, records: Catalog) -> None:
    moved, displaced = backend.upload("a", "A"), backend.upload("b", "B")
    backend.move(moved, "b")
    assert (backend.disk / "b").read_text() == "A"
    assert [(file.id, file.is_deleted) for file in records.page("w")] == [(moved.id, False), (displaced.id, True)]


def test_move_without_overwrite_leaves_both(backend: Backend) -> None:
    file, _ = backend.upload("a", "A"), backend.upload("b", "B")
    backend.broker.overwrite = False
    with pytest.raises(AlreadyExists):
        backend.move(file, "b")
    assert {path: (backend.disk / path).read_text() for path in backend.listed()} == {"a": "A", "b": "B"}
    assert file.file_path == "a"


def test_move_of_a_missing_file_is_missing_file_and_makes_no_directory(backend: Backend) -> None:
    with pytest.raises(MissingFile):
        backend.move(ScaleFile(file_path="gone"), "new/dir/file")
    assert os.listdir(backend.disk) == []


def test_move_onto_itself_changes_nothing(backend: Backend) -> None:
    file = backend.upload("a", "A")
    backend.move(file, "a")
    assert (backend.disk / "a").read_text() == "A"


def test_move_into_its_own_name_as_directory_is_refused(backend: Backend) -> None:
    file = backend.upload("a", "A")
    with pytest.raises(StorageError):
        backend.move(file, "a/b")
    assert (backend.disk / "a").read_text() == "A"


def test_delete_removes_the_file_never_its_directory(backend: Backend, records: Catalog) -> None:
    file = backend.upload("dir/a")
    backend.broker.delete_files(backend.volume_path, [file])
    assert os.listdir(backend.disk) == ["dir"]
    assert os.listdir(backend.disk / "dir") == []
    (saved,) = records.page("w")
    assert saved.is_deleted
    assert saved.deleted is not None
    assert saved.deleted.tzinfo is not None


def test_delete_of_a_directory_is_refused(backend: Backend) -> None:
    backend.put("dir/a")
    with pytest.raises(InvalidPath):
        backend.broker.delete_files(backend.volume_path, [ScaleFile(file_path="dir")])
    assert backend.listed() == {"dir/a": 7}


def test_delete_of_a_file_already_gone_is_no_error(backend: Backend, records: Catalog) -> None:
    file = backend.upload("a")
    (backend.disk / "a").unlink()
    backend.broker.delete_files(backend.volume_path, [file])
    assert file.is_deleted
    backend.broker.delete_files(backend.volume_path, [ScaleFile(file_path="never/was", workspace="w")])
    assert [found.file_path for found in records.page("w")] == ["a"]


def test_delete_without_update_model_leaves_the_record(backend: Backend, records: Catalog) -> None:
    file = backend.upload("a")
    backend.broker.delete_files(backend.volume_path, [file], update_model=False)
    assert backend.listed() == {}
    assert [found.is_deleted for found in records.page("w")] == [False]


def test_delete_of_a_link_removes_the_link_only(backend: Backend) -> None:
    (backend.disk / "link").symlink_to(backend.outside / "secret")
    backend.broker.delete_files(backend.volume_path, [ScaleFile(file_path="link")])
    assert not (backend.disk / "link").is_symlink()
    assert (backend.outside / "secret").read_text() == "secret"


def test_paths_are_below_the_volume_path(backend: Backend) -> None:
    files = [ScaleFile(file_path="a/b"), ScaleFile(file_path="c")]
    found = backend.broker.get_file_system_paths("/data", files)
    assert found == ["/data/a/b", "/data/c"]


def test_listing_shows_regular_files_only(backend: Backend) -> None:
    backend.put("top", "1")
    backend.put("dir/inner", "22")
    (backend.disk / "empty").mkdir()
    (backend.disk / "link").symlink_to("top")
    (backend.disk / ".brokervol-0011.part").write_text("unfinished")
    (backend.disk / ".brokervol-dir").mkdir()
    (backend.disk / ".brokervol-dir" / "f").write_text("cannot be named")
    os.mkfifo(backend.disk / "fifo")
    assert backend.listed() == {"top": 1, "dir/inner": 2}
    page = backend.broker.list_page(backend.volume_path, True, limit=10)
    assert [details.file for details in page] == ["dir/inner", "top"]
    assert backend.listed(recursive=False) == {"top": 1}


def test_listing_with_a_prefix_is_as_in_s3(backend: Backend) -> None:
    for path in ("ab", "a/1", "a/b/2", "a/b2", "ac/3"):
        backend.put(path, "")

    def listed(prefix: str, recursive: bool) -> list[str]:
        unordered = backend.broker.list_under(backend.volume_path, recursive, prefix)
        page = backend.broker.list_page(backend.volume_path, recursive, prefix=prefix, limit=100)
        assert sorted(unordered) == sorted(page)
        return [details.file for details in page]

    assert listed("", False) == ["ab"]
    assert listed("a", False) == ["ab"]
    assert listed("a/", False) == ["a/1", "a/b2"]
    assert listed("a/b", False) == ["a/b2"]
    assert listed("a/b", True) == ["a/b/2", "a/b2"]
    assert listed("a", True) == ["a/1", "a/b/2", "a/b2", "ab", "ac/3"]
    assert listed("none/", True) == []
    with pytest.raises(InvalidPath):
        listed("../", True)


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_pages_give_every_file_once_in_byte_order_while_files_come_and_go(backend: Backend, limit: int) -> None:
    paths = ["a-b", "a/b", "a0", "z", "m/n/o", "m/n-o", "é", "e", *(f"many/{n:03}" for n in range(30))]
    for path in paths:
        backend.put(path, "")
    seen: list[FileDetails] = []
    after = ""
    while page := backend.broker.list_page(backend.volume_path, True, after=after, limit=limit):
        seen += page
        after = page[-1].file
        (backend.disk / after).unlink()  # what was shown goes away, something earlier comes
        backend.put("a", "") if not (backend.disk / "a").exists() else None
    assert [details.file for details in seen] == sorted(paths, key=lambda path: path.encode())


def test_listing_ten_thousand_files_and_a_deep_tree(backend: Backend) -> None:
    flat = backend.disk / "flat"
    flat.mkdir()
    for number in range(10_000):
        os.close(os.open(flat / str(number), os.O_CREAT, 0o644))
    deep = "/".join(["d"] * 900)
    (backend.disk / deep).mkdir(parents=True)
    (backend.disk / deep / "bottom").write_text("b")
    listed = backend.listed()
    remove_chain(backend.disk, f"{deep}/bottom")
    assert len(listed) == 10_001
    assert listed[f"{deep}/bottom"] == 1
    page = backend.broker.list_page(backend.volume_path, True, after="flat", limit=3)
    assert [details.file for details in page] == ["flat/0", "flat/1", "flat/10"]


@pytest.mark.parametrize("name", WEIRD_NAMES)
def test_weird_names_work_exactly(backend: Backend, records: Catalog, name: str) -> None:
    file = backend.upload(name, "x")
    assert (backend.disk / name).read_text() == "x"
    assert list(backend.listed()) == [name]
    backend.download(file, str(backend.local / "out"))
    assert (backend.local / "out").read_text() == "x"
    backend.move(file, "plain")
    backend.move(file, name)
    assert records.find_path("w", name) == file
    backend.broker.delete_files(backend.volume_path, [file])
    assert backend.listed() == {}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("path", REFUSED_PATHS)
def test_refused_paths_change_nothing(backend: Backend, records: Catalog, operation: str, path: str) -> None:
    backend.put("victim")
    backend.source("evil")
    before = backend.everything()
    with pytest.raises(StorageError) as caught:
        backend.attempt(operation, path)
    assert isinstance(caught.value, InvalidPath), caught.value
    assert "Traceback" not in str(caught.value)
    assert backend.everything() == before
    assert records.page("w") == []


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != "paths"])
@pytest.mark.parametrize(("link", "target"), ESCAPING_LINKS)
def test_links_in_the_workspace_lead_nowhere(backend: Backend, operation: str, link: str, target: str) -> None:
    backend.put("victim")
    backend.source("evil")
    (backend.disk / link).symlink_to(target.format(outside=backend.outside))
    before = backend.everything()
    for path in (f"{link}/secret", f"{link}/passwd", f"{link}/new/file"):
        with pytest.raises(InvalidPath):
            backend.attempt(operation, path)
    assert backend.everything() == before
    assert f"{link}/secret" not in backend.listed()


@pytest.mark.parametrize("operation", ["download", "upload", "move from", "move to", "delete"])
def test_a_directory_swapped_for_a_link_during_operations_leads_nowhere(backend: Backend, operation: str) -> None:
    """`dir` alternates between a directory and a link to one outside; a sentinel lies behind the link."""
    outside = backend.outside / "elsewhere"
    outside.mkdir()
    (outside / "file").write_text("sentinel")
    stop = threading.Event()
    swaps = 0

    def swap() -> None:
        nonlocal swaps
        while not stop.is_set():
            exchange(backend.disk / "dir", backend.disk / "link")
            swaps += 1

    (backend.disk / "dir").mkdir()
    (backend.disk / "link").symlink_to(outside)
    backend.source("evil")
    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        for _ in range(300):
            with contextlib.suppress(StorageError):
                if operation in ("download", "move from", "delete"):
                    backend.upload("dir/file", "inside")
                backend.attempt(operation, "dir/file")
    finally:
        stop.set()
        swapping.join()
    assert swaps > 100
    assert (outside / "file").read_text() == "sentinel"
    assert os.listdir(outside) == ["file"]


def test_the_first_failure_stops_and_what_was_done_is_saved(backend: Backend, records: Catalog) -> None:
    uploads = [
        FileUpload(ScaleFile(file_path="one", workspace="w"), backend.source()),
        FileUpload(ScaleFile(file_path="two", workspace="w"), "/nowhere"),
        FileUpload(ScaleFile(file_path="three", workspace="w"), backend.source()),
    ]
    with pytest.raises(MissingFile):
        backend.broker.upload_files(backend.volume_path, uploads)
    assert list(backend.listed()) == ["one"]
    assert [file.file_path for file in records.page("w")] == ["one"]


# type -> (key, wrong values, the volume of the right one)
CONFIGURATIONS = {
    "host": ("host_path", [None, 1, "", "rel", "/a/../b", "/a//b", "/a\0"], (None, "{disk}")),
    "nfs": (
        "nfs_path",
        [
            *(None, 1, "", "/export", "server", "server:", "server:export", ":/e", "a b:/e", "[::g]:/e", "::1:/e"),
            *("-s:/e", "s;reboot:/e", "s:/e/../x", "s:/e\0", "[server]:/e"),
        ],
        ("nfs", "server:/export"),
    ),
}


def test_configuration_is_validated(backend: Backend) -> None:
    key, wrong, (driver, remote_path) = CONFIGURATIONS[backend.broker.broker_type]
    for value in wrong:
        for check in (backend.broker.validate_configuration, backend.broker.load_configuration):
            with pytest.raises(InvalidBrokerConfiguration, match=key) as caught:
                check({key: value} if value is not None else {})
            assert caught.value.name == key
    right = {"type": backend.broker.broker_type, **backend.configuration}
    assert backend.broker.validate_configuration(right) == []
    (warning,) = backend.broker.validate_configuration({**right, "typo": 1})
    assert "typo" in warning.description
    with pytest.raises(InvalidBrokerConfiguration, match="type"):
        backend.broker.load_configuration({**right, "type": "other"})
    volume = backend.broker.volume
    assert volume is not None
    assert (volume.driver, volume.remote_path) == (driver, remote_path.format(disk=backend.disk))
    assert volume.host is (driver is None)


@pytest.mark.parametrize(
    "path", ["s:/", "s:/e/f/", "nas-1.example.org:/e", "10.0.0.1:/e", "[fe80::1%eth0]:/e", "[::1]:/"]
)
def test_nfs_paths_that_are_accepted(path: str) -> None:
    broker = get_broker("nfs")
    broker.load_configuration({"nfs_path": path})
    assert broker.volume is not None
    assert broker.volume.remote_path == path


def test_every_registered_type_is_tested() -> None:
    assert sorted(BACKENDS) == get_broker_types()


def test_an_unknown_type_says_which_are_known() -> None:
    for unknown in ("floppy", None, 1, ["host"]):
        with pytest.raises(InvalidBrokerConfiguration, match="host"):
            get_broker(unknown)

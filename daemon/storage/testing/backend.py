"""The other side of the suite: a configured broker beside the place where its files really are."""

from __future__ import annotations

import contextlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from storage.brokers.broker import Broker, FileDownload, FileMove, FileUpload
from storage.brokers.factory import get_broker
from storage.models import ScaleFile
from storage.testing.traits import Traits

WORKSPACE = "w"


class Backend(ABC):
    """A configured broker, and its storage as seen without it.

    Args:
        directory: an empty directory of this backend's own; local files lie in it.
        configuration: the broker part of a workspace's configuration, with `type`.
        traits: what the type is like, and the server behind it.

    Attributes:
        broker: the broker, configured.
        volume_path: what is given to the operations as `volume_path`.
        local: a directory for the local side of downloads and uploads.
        workspace: the workspace's directory, for types that have directories.
    """

    volume_path: str | None = None
    workspace: Path | None = None

    # For each key of the configuration, values that are refused; None stands for leaving it out.
    wrong_values: ClassVar[Mapping[str, Sequence[object]]]
    # Driver and remote path of the broker's volume; None where it has none.
    volume: tuple[str | None, str] | None = None
    # A change of the configuration that names storage which is not there.
    unreachable: ClassVar[Mapping[str, object]]
    # Texts of the configuration that must never be shown.
    secrets: Sequence[str] = ()
    # How much is listed, and how large a large file is: less where the server is slow.
    many_files: int = 10_000
    large_file_bytes: int = (6 << 30) + 3

    def __init__(self, directory: Path, configuration: Mapping[str, Any], traits: Traits) -> None:
        self.directory = directory
        self.local = directory / "local"
        self.local.mkdir()
        self.configuration = dict(configuration)
        self.traits = traits
        self.broker = self.configured()

    # What a type must tell, by other means than its broker

    @abstractmethod
    def put(self, path: str, content: bytes = b"content") -> None:
        """Have a file in the workspace."""

    @abstractmethod
    def read(self, path: str) -> bytes | None:
        """The bytes of a file of the workspace, None if it is not there."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Take a file of the workspace away, and directories that are empty without it."""

    @abstractmethod
    def stored(self) -> dict[str, object]:
        """All that is in the storage, in the workspace and beside it, also unfinished uploads, with its content.

        Compared before and after, this is how nothing changed. The files of the workspace are named
        `workspace/` and their path; something else lies beside them.
        """

    def size(self, path: str) -> int:
        """The size in bytes of a file of the workspace."""
        content = self.read(path)
        assert content is not None, path
        return len(content)

    def tail(self, path: str, count: int) -> bytes:
        """The last `count` bytes of a file of the workspace, which may be large."""
        return (self.read(path) or b"")[-count:]

    def media_type(self, path: str) -> str | None:
        """The media type that the storage keeps of a file; None where it keeps none."""
        del path
        return None

    def put_many(self, paths: Iterable[str]) -> None:
        """Have many files, one byte each, in the workspace."""
        for path in paths:
            self.put(path, b"1")

    def put_unlisted(self) -> None:  # noqa: B027  # a storage may hold nothing else
        """Put into the workspace whatever the storage can hold that is no file to be listed."""

    # What is done with all of them

    def configured(self, **changes: object) -> Broker:
        """Another broker, with the same configuration but for these changes."""
        broker = get_broker(self.configuration["type"])
        broker.load_configuration({**self.configuration, **changes})
        return broker

    def cut_off(self) -> tuple[Broker, str | None]:
        """A broker, and the `volume_path` for it, whose storage is not there."""
        return self.configured(**self.unreachable), self.volume_path

    def file(self, path: str, **fields: Any) -> ScaleFile:
        """A model that is not saved."""
        return ScaleFile(file_path=path, workspace=WORKSPACE, **fields)

    def present(self, path: str, content: bytes = b"content") -> ScaleFile:
        """The unsaved model of a file that is there without the broker's help."""
        self.put(path, content)
        return self.file(path)

    def source(self, content: bytes = b"content", name: str = "source") -> str:
        """The path of a local file."""
        path = self.local / name
        path.write_bytes(content)
        return str(path)

    def upload(self, path: str, content: bytes = b"content", **fields: Any) -> ScaleFile:
        file = self.file(path, **fields)
        self.broker.upload_files(self.volume_path, [FileUpload(file, self.source(content))])
        return file

    def upload_from(self, path: str, local_path: str) -> None:
        self.broker.upload_files(self.volume_path, [FileUpload(self.file(path), local_path)])

    def download(self, file: ScaleFile, local_path: str, *, partial: bool = False) -> None:
        self.broker.download_files(self.volume_path, [FileDownload(file, local_path, partial)])

    def move(self, file: ScaleFile, new_path: str) -> None:
        self.broker.move_files(self.volume_path, [FileMove(file, new_path)])

    def delete(self, file: ScaleFile, *, update_model: bool = True) -> None:
        self.broker.delete_files(self.volume_path, [file], update_model)

    def listed(self, recursive: bool = True) -> dict[str, int]:
        """Size in bytes by path, as the broker lists them; no path twice."""
        found = list(self.broker.list_files(self.volume_path, recursive))
        sizes = {details.file: details.size for details in found}
        assert len(sizes) == len(found), "a file is listed twice"
        return sizes

    def everything(self) -> dict[str, object]:
        """All that is stored, and all that is local."""
        return {**self.stored(), **tree(self.local, "local")}


class DirectoryBackend(Backend):
    """A backend whose workspace is a directory, as for every broker with a mounted volume.

    `configuration` may hold `{workspace}` in its texts for the path of that directory.
    """

    def __init__(self, directory: Path, configuration: Mapping[str, Any], traits: Traits) -> None:
        self.workspace: Path = directory / "workspace"
        self.workspace.mkdir()
        self.volume_path = str(self.workspace)
        # What lies beside a workspace must stay as it is: a file, and a neighbour whose name begins the same.
        (directory / "secret").write_bytes(b"secret")
        (directory / "workspace-2").mkdir()
        (directory / "workspace-2" / "secret").write_bytes(b"secret")
        in_place = {
            key: value.format(workspace=self.workspace) if isinstance(value, str) else value
            for key, value in configuration.items()
        }
        super().__init__(directory, in_place, traits)

    def put(self, path: str, content: bytes = b"content") -> None:
        target = self.workspace / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def read(self, path: str) -> bytes | None:
        try:
            with open(self._open(path), "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def remove(self, path: str) -> None:
        with self._held() as workspace:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path, dir_fd=workspace)
            parent = path.rpartition("/")[0]
            with contextlib.suppress(OSError):
                while parent:
                    os.rmdir(parent, dir_fd=workspace)
                    parent = parent.rpartition("/")[0]

    def stored(self) -> dict[str, object]:
        found = tree(self.directory, "")
        return {path: content for path, content in found.items() if not path.startswith("local/")}

    def size(self, path: str) -> int:
        return os.stat(self.workspace / path).st_size

    def tail(self, path: str, count: int) -> bytes:
        fd = self._open(path)
        try:
            return os.pread(fd, count, os.fstat(fd).st_size - count)
        finally:
            os.close(fd)

    def cut_off(self) -> tuple[Broker, str | None]:
        return self.broker, str(self.directory / "not mounted")

    def put_unlisted(self) -> None:
        workspace = self.workspace
        (workspace / "empty").mkdir()
        (workspace / "link").symlink_to("top")
        (workspace / "dangling").symlink_to("nothing")
        (workspace / "linked-directory").symlink_to("dir")
        (workspace / ".brokervol-0011.part").write_text("unfinished")
        (workspace / ".brokervol-dir").mkdir()
        (workspace / ".brokervol-dir" / "f").write_text("cannot be named")
        os.mkfifo(workspace / "fifo")

    @contextlib.contextmanager
    def _held(self) -> Iterator[int]:
        """A descriptor of the workspace: paths relative to it may be as long as the kernel allows."""
        fd = os.open(self.workspace, os.O_PATH | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)

    def _open(self, path: str) -> int:
        with self._held() as workspace:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=workspace)


def tree(directory: Path, name: str) -> dict[str, object]:
    """What is below a directory: bytes of files, targets of links, the kind of everything else."""
    found: dict[str, object] = {}
    for above, directories, files in os.walk(directory):
        for entry in directories + files:
            path = Path(above, entry)
            mode = path.lstat().st_mode
            key = f"{name}/{path.relative_to(directory)}" if name else str(path.relative_to(directory))
            if stat.S_ISREG(mode):
                found[key] = path.read_bytes()
            elif stat.S_ISLNK(mode):
                found[key] = f"link to {os.readlink(path)}"
            else:
                found[key] = "directory" if stat.S_ISDIR(mode) else "special file"
    return found

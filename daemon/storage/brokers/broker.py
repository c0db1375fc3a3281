"""Defines the base broker class: the contract that every storage backend fulfils.

Each obligation stands here once. An implementation documents only where it differs, and
`tests/conformance/test_broker.py` runs over every registered type.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from storage.configuration.warnings import ValidationWarning
from storage.exceptions import StorageError, Unsupported
from storage.files import FileView, SelfView, check_prefix

if TYPE_CHECKING:
    from storage.journal import Intent, KeyedItem, Verdict
    from storage.models import ScaleFile


class BrokerVolume:
    """The volume that must be mounted into a container for a broker to work.

    Attributes:
        driver: what mounts it: None for a host directory, else for instance "nfs".
        remote_path: what is mounted: an absolute host directory, or `server:/export`.
        host: whether it is a directory of the host.
    """

    def __init__(self, driver: str | None, remote_path: str) -> None:
        self.driver = driver
        self.remote_path = remote_path
        self.host = driver is None

    def __repr__(self) -> str:
        return f"BrokerVolume({self.driver!r}, {self.remote_path!r})"


class FileDetails(NamedTuple):
    """A listed file: its path relative to the workspace, and its size in bytes."""

    file: str
    size: int


class FileDownload(NamedTuple):
    """A file to download, the absolute local path for it, and whether only a part of it will be read."""

    file: ScaleFile
    local_path: str
    partial: bool


class FileMove(NamedTuple):
    """A file to move and its new path relative to the workspace."""

    file: ScaleFile
    new_path: str


class FileUpload(NamedTuple):
    """A file to upload, its recommended `file_path` in the model, and the absolute local path of the bytes."""

    file: ScaleFile
    local_path: str


class Content(ABC):
    """The bytes of one version of a file. Closed by `close` or as a context manager.

    Attributes:
        size: in bytes.
        etag: the version's entity tag, printable ASCII without quotes: another version has another one.
        last_modified: when that version was made, with zone; None where the storage does not tell.
    """

    def __init__(self, size: int, etag: str, last_modified: datetime | None) -> None:
        self.size = size
        self.etag = etag
        self.last_modified = last_modified

    def __enter__(self) -> Content:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def read(self, start: int, length: int) -> Generator[bytes, None, None]:
        """The `length` bytes from `start` on, all within the size, in blocks of at most 1 MiB; in constant memory.

        Raises:
            BackendUnavailable: the file was cut short or replaced meanwhile. What came before is of this version.
        """

    def close(self) -> None:  # noqa: B027  # not every storage holds something
        """Let go of the file, after all that `read` gave has been read or closed."""


class Readable(Protocol):
    """Where the bytes of a new file come from: an open file, or a request that is still arriving."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most `size` and at least one; none at the end."""


class Written(NamedTuple):
    """What a written file has become: its entity tag, empty if that cannot be told; whether none was there."""

    etag: str
    is_new: bool


class Broker(ABC):
    """A storage backend: it lists, downloads, uploads, moves and deletes the files of one workspace.

    Common to all operations:

    * `volume_path` is the absolute path at which the broker's volume is mounted, in the view's terms; None for
      a broker without a volume.
    * Paths of models are relative to the workspace, in their one canonical spelling (no empty, `.` or `..`
      component, UTF-8). They cannot lead outside the workspace, whatever links or races are inside it.
    * Files are touched through `view`: with the caller's paths and the caller's identity.
    * Items are worked on in order; the first failure is raised. Items before it are done and saved, the failed
      one and those after it are as they were: nothing half-written stays, under no name. A broker that works on
      several at a time (s3) may have done, and saved, some after the failed one. Where the disk or the catalog
      fails at the very end, files can be in place, whole, that are not recorded.
    * Errors are `storage.exceptions.StorageError` by kind: InvalidPath, PermissionDenied, ReadOnly, NoSpace,
      TooLarge, AlreadyExists, BackendUnavailable, Unsupported, and MissingFile where said. Their text is one
      sentence naming operation and file, never a secret.

    Attributes:
        view: where local paths and volumes are found, and as whom. The process itself unless set.
        overwrite: whether downloads, uploads and moves replace a file at their destination (the default), or
            raise AlreadyExists. What is no file (a directory, a device) is never replaced.
        keyed: of what request with an idempotency key the models are that the next call is for, by their `id()`.
            What is done of them is then remembered, see `storage.journal`.
        outcomes: where a broker that `tells_outcomes` notes what became of the items of a call, by the `id()` of
            their models: None for done, or why it failed. Nothing was done of what is not in it. Nobody asks
            unless it is set.
        keeps_journal: whether it writes down what it is about to change, and `look_back` finds out what became of
            it. Of the class.
        tells_outcomes: whether it tells of each item what became of it, so that a call for many is as good as one
            for each. Of the class.
    """

    keeps_journal: ClassVar[bool] = False
    tells_outcomes: ClassVar[bool] = False

    def __init__(self, broker_type: str) -> None:
        self._broker_type = broker_type
        self._volume: BrokerVolume | None = None
        self.view: FileView = SelfView()
        self.overwrite = True
        self.keyed: dict[int, KeyedItem] = {}
        self.outcomes: dict[int, Exception | None] | None = None

    @property
    def broker_type(self) -> str:
        """The type of this broker, as in the configuration's `type`."""
        return self._broker_type

    @property
    def volume(self) -> BrokerVolume | None:
        """The volume that must be mounted for this broker, None if it needs none. Set by `load_configuration`."""
        return self._volume

    @abstractmethod
    def load_configuration(self, config: Mapping[str, Any]) -> None:
        """Take the configuration (the broker part of a workspace's) into use. Touches no backend.

        Raises:
            InvalidBrokerConfiguration: a key is missing or wrong.
        """

    @abstractmethod
    def validate_configuration(self, config: Mapping[str, Any]) -> list[ValidationWarning]:
        """Check the configuration without taking it into use.

        Returns:
            What is doubtful; an empty list if nothing is.

        Raises:
            InvalidBrokerConfiguration: as `load_configuration`.
        """

    def check_configuration(self, config: Mapping[str, Any]) -> list[ValidationWarning]:
        """As `validate_configuration`, but without asking a backend: for configurations that strangers send.

        A broker whose validation reaches out, with credentials of ours, overrides it.
        """
        return self.validate_configuration(config)

    @abstractmethod
    def list_files(self, volume_path: str | None, recursive: bool) -> Generator[FileDetails, None, None]:
        """List the workspace's regular files, in no particular order, in constant memory.

        Directories, symbolic links and special files are not listed, nor are unfinished uploads.

        Args:
            recursive: also the files below directories; otherwise one level.
        """

    @abstractmethod
    def download_files(self, volume_path: str | None, file_downloads: Sequence[FileDownload]) -> None:
        """Make each file available at its local path, in one step; the local directory must exist.

        Raises:
            MissingFile: a file is not there, or is not a regular file.
        """

    @abstractmethod
    def upload_files(self, volume_path: str | None, file_uploads: Sequence[FileUpload]) -> None:
        """Store each local file under its model's `file_path` (which the broker may alter) and save the model.

        Missing directories are made with mode 0755; the file gets 0644. When it returns the bytes are durable.

        Raises:
            MissingFile: there is no file at a local path.
        """

    @abstractmethod
    def move_files(self, volume_path: str | None, file_moves: Sequence[FileMove]) -> None:
        """Move each file to its new path, set the model's `file_path` to it, and save the model.

        The source is gone only when the destination is complete. Directories and mode as for uploads.

        Raises:
            MissingFile: a file is not there, or is not a regular file.
        """

    @abstractmethod
    def delete_files(self, volume_path: str | None, files: Sequence[ScaleFile], update_model: bool = True) -> None:
        """Delete each file, never a directory. A file already gone is no error.

        Args:
            update_model: set `is_deleted` and `deleted` and save. A model that was never saved and whose file
                was not there is left alone.
        """

    def open_file(self, volume_path: str | None, file: ScaleFile) -> Content:
        """Open a file to read its bytes: not part of the reference, and not of every broker.

        Raises:
            MissingFile: it is not there, or is not a regular file.
            Unsupported: this broker cannot.
        """
        del volume_path, file
        raise Unsupported(f"the {self.broker_type} broker cannot open files; it can download them")

    def write_file(
        self, volume_path: str | None, file: ScaleFile, source: Readable, *, expected: str | None = None
    ) -> Written:
        """Store what `source` gives, of any length, under the model's `file_path`, and save the model.

        As an upload otherwise. Nothing is there under the file's name before the source has ended, nor if it
        raises, and then its error is raised. It is read in constant memory, and never with the caller's identity,
        since it may wait for somebody.

        Args:
            expected: the entity tag of the file that may be replaced. It is looked at before the source is read
                and again after; where the storage cannot compare and replace in one step (a file system), a change
                in that last moment goes unnoticed.

        Raises:
            FileChanged: what is there has another tag than `expected`, or nothing is.
            Unsupported: this broker cannot.
        """
        del volume_path, file, source, expected
        raise Unsupported(f"the {self.broker_type} broker cannot write files; it can upload them")

    def look_back(self, volume_path: str | None, intents: Sequence[Intent]) -> list[Verdict | StorageError]:
        """Find out what became of items whose process was killed, and finish those that are half done.

        Only of a broker that keeps a journal, see `storage.journal`. The order is that of the intents; an error
        stands for what cannot be found out now.
        """
        del volume_path
        return [Unsupported(f"the {self.broker_type} broker keeps no journal")] * len(intents)

    def get_file_system_paths(self, volume_path: str | None, files: Sequence[ScaleFile]) -> list[str] | None:
        """The local path of each file, whether it exists or not; None where the broker has no such paths."""
        del volume_path, files
        return None

    def list_under(
        self, volume_path: str | None, recursive: bool, prefix: str
    ) -> Generator[FileDetails, None, None]:
        """As `list_files`, only the paths that `selection` of the prefix takes.

        This general form filters the whole listing; a broker that can start in the middle overrides it.
        """
        check_prefix(prefix)
        wanted = Selection(recursive, prefix)
        for details in self.list_files(volume_path, recursive or "/" in prefix):
            if wanted.takes(details.file):
                yield details

    def list_blocks(
        self, volume_path: str | None, recursive: bool, prefix: str
    ) -> Generator[Sequence[tuple[str, int]], None, None]:
        """As `list_under`, as (path, size in bytes): as many at a time, one at least, as are found together."""
        for details in self.list_under(volume_path, recursive, prefix):
            yield (details,)

    def list_page(
        self, volume_path: str | None, recursive: bool, *, prefix: str = "", after: str = "", limit: int
    ) -> list[FileDetails]:
        """The first `limit` files that sort after `after`, in the byte order of their paths.

        A page goes on from a name, so it stays valid while files come and go. This general form reads the whole
        listing for a page; a broker that can start in the middle overrides it.
        """
        check_prefix(prefix)
        wanted = Selection(recursive, prefix, after)
        everything = self.list_files(volume_path, recursive or "/" in prefix)
        taken = (details for details in everything if wanted.takes(details.file))
        return heapq.nsmallest(limit, taken, key=lambda details: path_order(details.file))


def path_order(path: str) -> bytes:
    """The sort key of listings: the bytes of the path, as S3 orders its keys."""
    return path.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which paths a listing shows, S3's way.

    Attributes:
        recursive: all levels, otherwise only the one below the last `/` of the prefix.
        prefix: paths begin with it: `2026/` is a directory's content, `2026/a` what begins so.
        after: paths sort after it; empty for all.
    """

    recursive: bool
    prefix: str = ""
    after: str = ""

    @property
    def start(self) -> str:
        """The deepest directory that holds all that is selected; empty for the workspace itself."""
        return self.prefix.rpartition("/")[0]

    def takes(self, path: str) -> bool:
        """Whether the file at `path` is shown."""
        is_on_level = self.recursive or path.count("/") == self.prefix.count("/")
        is_after = not self.after or path_order(path) > path_order(self.after)
        return is_on_level and is_after and path.startswith(self.prefix)

    def takes_all_in(self, directory: str) -> bool:
        """Whether every file right in `directory`, which is entered, is shown."""
        return not self.after and (not self.prefix or f"{directory}/".startswith(self.prefix))

    def enters(self, directory: str) -> bool:
        """Whether anything below `directory` (a path without final `/`) can be shown."""
        below = f"{directory}/"
        if not self.recursive or not below.startswith(self.prefix):
            return self.prefix.startswith(below)
        return path_order(below) > path_order(self.after) or self.after.startswith(below)

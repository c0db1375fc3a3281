"""What a mount of a caller says that it holds: volumes compared with mounts, by device and directory.

A mount that shows the very directory of a volume holds its workspace. One that shows a directory in it (a
sub-path, or a bind of it) holds that *part*: to its caller the part is the workspace, whose paths begin there.
`sidecar.records` keeps the records of the part apart from the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from storage.brokers._filesystem import FilesystemBroker
from storage.brokers.broker import Broker
from storage.brokers.factory import get_broker_types
from storage.configuration.workspace_configuration import load_broker
from storage.definitions import Definition, mountpoint
from storage.exceptions import InvalidPath
from storage.files import FileView, is_file_path
from storage.mountinfo import Mount
from storage.os_errors import quoted

log = structlog.get_logger()

# Options of a volume that say how it is made and mounted; all others configure its broker. What other packages'
# brokers call their keys is for them to say, but for one that the driver itself reads.
_VOLUME_OPTIONS = frozenset(("create", "mode", "uid", "gid", "read_only", "mount_options"))
_OURS = frozenset(("host", "nfs", "s3"))


@dataclass(frozen=True, slots=True)
class Holding:
    """A workspace that a caller holds.

    Attributes:
        volume_path: where its volume, or its token, is mounted in the caller; None in the view of the process
            itself for a broker without a volume.
        is_read_only: whether the caller's mount of it is.
        is_by_mount: whether that mount is what the caller holds it by.
        part: the directory of the workspace, as a path in it, that is all the caller has; empty for the whole.
        mountpoint: where the whole volume is mounted here; None where that is `volume_path` itself.
        token: our own mount of the token that is mounted at `volume_path`; None where there are files.
    """

    name: str
    configuration: Mapping[str, Any]
    volume_path: str | None
    is_read_only: bool
    is_by_mount: bool
    part: str = ""
    token: str | None = None
    mountpoint: str | None = None

    def broker(self, view: FileView) -> Broker:
        """The workspace's broker, working through `view`."""
        broker = load_broker(self.configuration)
        broker.view = view
        return broker

    def check_token(self, fd: int) -> None:
        """See to it that `fd` is of the token itself, where there is one.

        What mountinfo says of two processes is not said at one moment, and numbers of devices and mounts come
        again. While it is open, those of `fd` belong to nothing else.

        Raises:
            InvalidPath: it is not, or the token is not mounted any more.
        """
        if self.token is not None and not _is_same_file(os.fstat(fd), self.token):
            raise InvalidPath(f"what is mounted at {quoted(self.volume_path or '')} is no longer the workspace's")


@dataclass(frozen=True, slots=True)
class Known:
    """A definition as far as it says what a caller holds.

    Attributes:
        is_token: what is mounted shows no files, since the broker needs no volume.
        has_parts: a directory of the volume is a part of the workspace. Of a bucket that is mounted on the host it
            need not be, since the workspace's keys have a prefix.
        is_frozen: nobody may write, however it is mounted.
    """

    name: str
    mountpoint: str
    configuration: Mapping[str, Any]
    is_token: bool
    has_parts: bool
    is_frozen: bool

    def is_shown(self, published: Mount, mount: Mount, part: str) -> bool:
        """Whether a mount that shows this directory of the file system `published` here is one of this volume.

        A token's device number may have been another's until a moment ago; its source is the volume's own.
        """
        if part:
            return self.has_parts and is_file_path(part)  # a directory that was removed is none: `sub//deleted`
        return not self.is_token or mount.source == published.source


@dataclass(frozen=True, slots=True)
class Claim:
    """A mount of the caller by which it holds a workspace, or a part of it."""

    known: Known
    mount: Mount
    part: str

    @property
    def is_read_only(self) -> bool:
        """Whether the caller may only read. A token's file system is read-only for everybody."""
        mount, known = self.mount, self.known
        return known.is_frozen or (mount.is_mounted_read_only if known.is_token else mount.is_read_only)

    def rank(self) -> tuple[int, bool]:
        """The least counts: the widest, and of those one that can be written."""
        return len(self.part.split("/")) if self.part else 0, self.is_read_only

    def holding(self) -> Holding:
        known = self.known
        return Holding(
            known.name,
            known.configuration,
            self.mount.mountpoint,
            self.is_read_only,
            is_by_mount=True,
            part=self.part,
            token=known.mountpoint if known.is_token else None,
            mountpoint=known.mountpoint,
        )


class Volumes:
    """The volumes that are mounted here, by the directories that they show.

    One may lie inside another. A mount counts only for the nearest volume whose directory it shows or lies in:
    whoever was given the inner one is not told what the outer one's catalog says of it.
    """

    def __init__(self, volumes: Iterable[tuple[Known, Mount]]) -> None:
        self._showing: dict[tuple[str, str], list[tuple[Known, Mount]]] = {}
        for known, published in volumes:
            self._showing.setdefault((published.device, _prefix(published)), []).append((known, published))
        # Few, whatever callers mount: the lengths of the paths above, longest first.
        self._lengths: dict[str, list[int]] = {}
        for device, prefix in sorted(self._showing, key=lambda directory: -len(directory[1])):
            lengths = self._lengths.setdefault(device, [])
            if len(prefix) not in lengths:
                lengths.append(len(prefix))

    def shown_by(self, mount: Mount) -> list[Claim]:
        """What a caller with this mount has of which volumes."""
        path = _prefix(mount)
        for length in self._lengths.get(mount.device, ()):
            nearest = self._showing.get((mount.device, path[:length]))
            if nearest and path[length : length + 1] in ("", "/"):
                part = path[length + 1 :]
                return [
                    Claim(known, mount, part)
                    for known, published in nearest
                    if known.is_shown(published, mount, part)
                ]
        return []


def known_workspace(root: str, definition: Definition) -> Known | None:
    """None for what is no workspace here: the sidecar's own volume, and what this version cannot use."""
    options = definition.options
    broker_type = options.get("type")
    if broker_type not in get_broker_types():
        return None
    beside = _VOLUME_OPTIONS if broker_type in _OURS else {"read_only"}
    configuration = {key: value for key, value in options.items() if key not in beside}
    try:
        broker = load_broker(configuration)
        volume = broker.volume
    except Exception as error:  # another package's broker may raise anything, and must hide no other workspace
        reason = f"{type(error).__name__}: {error}"
        log.warning("workspace is not usable", workspace=definition.name, reason=reason)
        return None
    return Known(
        definition.name,
        mountpoint(root, definition.name),
        configuration,
        is_token=volume is None,
        has_parts=isinstance(broker, FilesystemBroker),
        is_frozen=options.get("read_only") == "true",
    )


def _is_same_file(opened: os.stat_result, path: str) -> bool:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    return (opened.st_dev, opened.st_ino) == (found.st_dev, found.st_ino)


def _prefix(mount: Mount) -> str:
    """What the paths of all that the mount shows begin with; a slash follows."""
    return mount.root.rstrip("/")

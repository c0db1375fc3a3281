"""A volume: its name, where it is mounted, and who holds it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from volumedriver.errors import InvalidVolume, quoted
from volumedriver.options import VolumeOptions

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}", re.ASCII)
_MOUNT_ID = re.compile(r"[\x21-\x7e]{1,255}")


SOURCE_OF_TOKENS = "brokervol:"
"""What the source of a token begins with, see `mounter`; the rest is its volume's alone."""


_REMOVED = "//deleted"


class Shown(NamedTuple):
    """Which directory is mounted: its file system by device number and source, and its path in that, as mountinfo
    says them. Device numbers come again when a file system is gone.
    """

    device: str
    root: str
    source: str

    @property
    def is_removed(self) -> bool:
        """Whether the directory was removed since it was mounted. The kernel says so behind its former path, by a
        double slash, which no path has.
        """
        return self.root.endswith(_REMOVED)

    def is_removed_of(self, other: Shown) -> bool:
        """Whether this is what was removed where `other` is, or was; not what was in it."""
        return self.is_removed and self.root.removesuffix(_REMOVED) == other.root.removesuffix(_REMOVED)

    @property
    def holding(self) -> Shown:
        """What is alike in all that show the same volume: tokens of a volume are file systems of their own."""
        return Shown("", "/", self.source) if self.source.startswith(SOURCE_OF_TOKENS) else self

    @property
    def export(self) -> Shown | None:
        """What is alike in all mounts of an NFS export: another device, mounted anew. None for what is none.

        The kernel has the path in the source and the same root for all; `storage.mountinfo` makes the root of it.
        """
        server, colon, path = self.source.partition(":/")
        return Shown("", self.root, server) if colon and self.root == f"/{path}" else None

    def is_now(self, now: Shown) -> bool:
        """Whether `now`, at the same mountpoint, is this directory, which may have been renamed since: the kernel
        then tells the new name for all its mounts, for an NFS export in the source.
        """
        is_one_export = self.export is not None and now.export is not None
        return self.device == now.device and (self.source == now.source or is_one_export)


@dataclass(frozen=True, slots=True)
class Volume:
    """One defined volume. Never altered: a change makes a new one, so that readers need no lock.

    `references` counts, for each Mount ID, the Mounts that no Unmount has answered yet (`docker cp` mounts
    again with the ID of the running container). `shown` is what was mounted for them, as far as it is known.
    `stale` is a sentence on who holds a mount of what is no more: a directory that was removed on the host, or one
    that its NFS server does not know any more; empty for nobody known.
    """

    name: str
    options: VolumeOptions
    created: datetime
    mountpoint: str
    references: Mapping[str, int] = field(default_factory=dict)
    shown: Shown | None = None
    stale: str = ""

    @property
    def is_mounted(self) -> bool:
        return bool(self.references)


def check_name(name: str) -> None:
    """Raise InvalidVolume unless `name` may be a volume's name."""
    if _NAME.fullmatch(name) is None:
        raise InvalidVolume(
            f"volume name {quoted(name)} is not accepted: a name has 1 to 255 characters out of"
            " A-Z a-z 0-9 _ . - and begins with a letter or digit"
        )


def check_mount_id(mount_id: str) -> None:
    """Raise InvalidVolume unless `mount_id` may be a Mount ID."""
    if _MOUNT_ID.fullmatch(mount_id) is None:
        raise InvalidVolume(
            f"ID {quoted(mount_id)} is not accepted: a Mount ID has 1 to 255 printable ASCII characters"
            " and no space"
        )

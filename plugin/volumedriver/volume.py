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


class Shown(NamedTuple):
    """Which directory is mounted: its file system by device number and source, and its path in that, as mountinfo
    says them. Device numbers come again when a file system is gone.
    """

    device: str
    root: str
    source: str

    @property
    def holding(self) -> Shown:
        """What is alike in all that show the same volume: tokens of a volume are file systems of their own."""
        return Shown("", "/", self.source) if self.source.startswith(SOURCE_OF_TOKENS) else self

    def is_renamed(self, now: Shown) -> bool:
        """Whether `now` is a directory of the same file system under another path: the host has renamed it."""
        return (self.device, self.source) == (now.device, now.source) and self.root != now.root


@dataclass(frozen=True, slots=True)
class Volume:
    """One defined volume. Never altered: a change makes a new one, so that readers need no lock.

    `references` counts, for each Mount ID, the Mounts that no Unmount has answered yet (`docker cp` mounts
    again with the ID of the running container). `shown` is what was mounted for them, as far as it is known.
    """

    name: str
    options: VolumeOptions
    created: datetime
    mountpoint: str
    references: Mapping[str, int] = field(default_factory=dict)
    shown: Shown | None = None

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

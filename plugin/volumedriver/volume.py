"""A volume: its name, where it is mounted, and who holds it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from volumedriver.errors import InvalidVolume, quoted
from volumedriver.options import VolumeOptions

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}", re.ASCII)
_MOUNT_ID = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True, slots=True)
class Volume:
    """One defined volume. Never altered: a change makes a new one, so that readers need no lock.

    `references` counts, for each Mount ID, the Mounts that no Unmount has answered yet (`docker cp` mounts
    again with the ID of the running container).
    """

    name: str
    options: VolumeOptions
    created: datetime
    mountpoint: str
    references: Mapping[str, int] = field(default_factory=dict)

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

"""What is mounted, as the kernel tells it: /proc/<pid>/mountinfo, see proc_pid_mountinfo(5)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_ESCAPE = re.compile(rb"\\([0-7]{3})")

# Of these the kernel says the root `/` whichever directory is mounted, and the directory in the source.
_ROOT_IN_SOURCE = ("nfs", "nfs4")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount of one mount namespace.

    `device` and `root` say which directory of which file system is mounted: two mounts that agree in both
    show the same files; one whose `root` lies below the other's shows a part of them. `mountpoint` is relative to
    the root of the process whose mountinfo was read.
    Nothing can be written where `is_read_only`; `is_mounted_read_only` is that of the mount alone, whatever its
    file system is.
    """

    mount_id: int
    parent_id: int
    device: str
    root: str
    mountpoint: str
    is_read_only: bool
    is_mounted_read_only: bool
    fs_type: str
    source: str
    is_shared: bool  # what is mounted and unmounted beneath it appears in its peers too

    @property
    def identity(self) -> tuple[str, str]:
        """Which directory of which file system is shown."""
        return self.device, self.root

    def shows_same_as(self, other: Mount) -> bool:
        """Whether both mounts show the same directory of the same file system."""
        return self.identity == other.identity


def read_mounts(path: str = "/proc/self/mountinfo") -> list[Mount]:
    """All mounts in the order the kernel lists them: of two on one mountpoint the later one covers the other.

    Raises:
        OSError: the file cannot be read, for instance because the process has exited.
    """
    with open(path, "rb") as lines:
        return list(parse_mounts(lines))


def parse_mounts(lines: Iterable[bytes]) -> Iterator[Mount]:
    """Parse lines of mountinfo. Names keep bytes that are not UTF-8 as `os.fsdecode` does."""
    for line in lines:
        fields = line.rstrip(b"\n").split(b" ")  # not split(): a source may be empty
        end_of_optional = fields.index(b"-", 6)
        fs_type, source, super_options = fields[end_of_optional + 1 :][:3]
        kind, origin = _unescape(fs_type), _unescape(source)
        is_mounted_read_only = b"ro" in fields[5].split(b",")
        yield Mount(
            mount_id=int(fields[0]),
            parent_id=int(fields[1]),
            device=fields[2].decode("ascii"),
            root=_root_in(origin) if kind in _ROOT_IN_SOURCE else _unescape(fields[3]),
            mountpoint=_unescape(fields[4]),
            is_read_only=is_mounted_read_only or b"ro" in super_options.split(b","),
            is_mounted_read_only=is_mounted_read_only,
            fs_type=kind,
            source=origin,
            is_shared=any(field.startswith(b"shared:") for field in fields[6:end_of_optional]),
        )


def mount_at(mounts: Iterable[Mount], mountpoint: str) -> Mount | None:
    """The mount visible at exactly `mountpoint`, never one whose path merely begins the same."""
    found = None
    for mount in mounts:
        if mount.mountpoint == mountpoint:
            found = mount
    return found


def _root_in(source: str) -> str:
    """The path in `server:/path`; the server, which may be an IPv6 address in brackets, has no slash."""
    return f"/{source.partition(':/')[2]}"


def _unescape(field: bytes) -> str:
    raw = _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field)
    return raw.decode("utf-8", "surrogateescape")

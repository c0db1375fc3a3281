"""What differs between broker types by design. The suite asserts a difference as strictly as what is common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a type is like; the defaults are those of a workspace that is a mounted directory.

    Attributes:
        download_is_link: a download is a symbolic link into the volume; else a copy of its own.
        has_volume: operations need the path at which a volume is mounted; else volume_path may be None.
        has_directories: directories exist, so that one can be in a file's way; else a path is only a name.
        has_modes: files have modes and directories pass their group on.
        has_links: a workspace can hold symbolic links and special files.
        has_file_system_paths: `get_file_system_paths` has an answer; else it is None.
        has_credentials: the configuration holds secrets (`Backend.secrets`).
        is_sequential: items after the first failed one are as they were; else several are worked on at a time, and
            each of the others may be done, and is saved if it is, or not.
        keeps_holes: the holes of a sparse file take no space in the storage.
        keeps_media_type: the storage keeps the media type beside the bytes (`Backend.media_type`).
        lists_from_prefix: a relative `volume_path` is the prefix of what `list_files` lists.
        orders_by_bytes: pages are sorted by the bytes of the paths; else in an order of the storage's own.
        reports_access: `validate_configuration` asks the storage, and warns with `bucket_access` where that fails.
        largest_path_bytes: the longest path that can be stored.
        unstorable_names: names from the suite's table that the storage behind the broker cannot keep.
    """

    download_is_link: bool = True
    has_volume: bool = True
    has_directories: bool = True
    has_modes: bool = True
    has_links: bool = True
    has_file_system_paths: bool = True
    has_credentials: bool = False
    is_sequential: bool = True
    keeps_holes: bool = True
    keeps_media_type: bool = False
    lists_from_prefix: bool = False
    orders_by_bytes: bool = True
    reports_access: bool = False
    largest_path_bytes: int = 4095
    unstorable_names: frozenset[str] = frozenset()

    def are(self, expected: Mapping[str, object]) -> bool:
        """Whether these traits have all the expected values."""
        return all(getattr(self, name) == value for name, value in expected.items())


# The built-in types. A server of an S3 service may differ further: see `Backend.traits`.
TRAITS: dict[str, Traits] = {
    "host": Traits(),
    "nfs": Traits(),
    "s3": Traits(
        download_is_link=False,
        has_volume=False,
        has_directories=False,
        has_modes=False,
        has_links=False,
        has_file_system_paths=False,
        has_credentials=True,
        is_sequential=False,
        keeps_holes=False,
        keeps_media_type=True,
        lists_from_prefix=True,
        reports_access=True,
        largest_path_bytes=1024,
    ),
}

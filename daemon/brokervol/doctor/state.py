"""Checks of the driver's state on disk. Nothing there is written, locked or renamed."""

from __future__ import annotations

import contextlib
import glob
import os
import sqlite3
import time
from collections.abc import Iterator

from brokervol.doctor.findings import Finding, fault, ok, skipped, unseen, warning
from brokervol.doctor.host import no_state_cure
from brokervol.doctor.looks import LOOKS, PAUSE_S, Uncopied, at_copy, definitions
from brokervol.doctor.site import Site
from storage.definitions import Definition, backup_path, definitions_path, read_backup
from storage.state_files import Damaged, NewerState
from volumedriver.errors import StateDamaged, StateUnavailable
from volumedriver.store import ReferenceStore

_COPY_CURE = "make room in /tmp, or name another: `TMPDIR`"
_NEWER_CURE = "install the newer version of brokervol again, which wrote it"


def check_definitions(site: Site) -> Iterator[Finding]:
    """Whether the definitions of volumes are what was written, of a known version, and their backup agrees."""
    if site.root is None:
        yield unseen("no state is to be seen", no_state_cure())
        return
    path = definitions_path(site.root)
    try:
        defined = definitions(path)
    except PermissionError:
        yield unseen(f"{path} is closed to this user")
    except Uncopied as error:
        yield unseen(str(error), _COPY_CURE)
    except NewerState as error:
        yield fault(str(error), _NEWER_CURE)
    except Damaged as error:
        yield _damaged(site, path, f"the definitions of volumes in {path} are damaged: {error}")
    except (OSError, sqlite3.Error) as error:
        yield _unreadable(site, path, error)
    else:
        yield ok(f"{len(defined)} volumes are defined, and what is written there is whole")
        yield _agreement(site, path)


def _unreadable(site: Site, path: str, error: Exception) -> Finding:
    if not os.path.exists(path):
        return _lost(site, path)
    return fault(f"the definitions in {path} cannot be read: {error}", f"`ls -l {path}`, `dmesg | tail`")


def _lost(site: Site, path: str) -> Finding:
    if os.path.exists(backup_path(path)) or os.path.exists(f"{os.path.dirname(path)}/mounts.sqlite"):
        return _damaged(site, path, f"the definitions of volumes, {path}, are gone")
    return skipped(f"no driver has worked with {site.root} yet")


def _damaged(site: Site, path: str, problem: str) -> Finding:
    """With the cure that the backup allows."""
    try:
        volumes = len(read_backup(path))
    except (OSError, ValueError) as error:
        return fault(
            f"{problem}; and their backup is not usable: {error}",
            f"move {os.path.dirname(path)} away, and bring the volumes back from an export:"
            f" `brokervol volumes import --root {site.root} FILE`",
        )
    return fault(
        f"{problem}; their backup has {volumes} volumes and is whole",
        f"have the driver build them anew from it, at a start: {site.restart}",
    )


def _agreement(site: Site, path: str) -> Finding:
    """A driver at work changes one after the other, so it is looked again."""
    told = ""
    for _ in range(LOOKS):
        try:
            told = _difference(definitions(path), read_backup(path))
        except (OSError, ValueError, sqlite3.Error, Uncopied) as error:
            told = f"is not usable: {getattr(error, 'strerror', None) or error}"
        if not told:
            return ok("their backup says the same", "backup")
        time.sleep(PAUSE_S)
    return warning(
        f"the backup of the definitions, {backup_path(path)}, {told}",
        f"have the driver write it anew, at a start; the other is kept beside it: {site.restart}",
        "backup",
    )


def _difference(defined: list[Definition], backup: list[Definition]) -> str:
    ours, theirs = ({one.name: one for one in each} for each in (defined, backup))
    if differing := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        return f"says something else of {', '.join(differing[:3])}{more}"
    return ""


def check_references(site: Site) -> Iterator[Finding]:
    """Whether what the driver remembers of mounts is what was written."""
    state = site.state
    if state is None:
        yield unseen("no state is to be seen", no_state_cure())
        return
    path = f"{state}/mounts.sqlite"
    try:
        mounted = at_copy(path, _held, StateUnavailable)
    except PermissionError:
        yield unseen(f"{path} is closed to this user")
    except FileNotFoundError:
        yield skipped("no driver has mounted anything yet")
    except Uncopied as error:
        yield unseen(str(error), _COPY_CURE)
    except OSError as error:
        yield fault(f"{path} cannot be read: {error.strerror}", f"`ls -l {path}`, `dmesg | tail`")
    except StateUnavailable as error:
        yield _unusable(site, path, error)
    else:
        yield ok(f"the record of mounts is whole: {mounted} volumes are held")


def _held(path: str) -> int:
    """How many volumes are held, by the driver's record of that path."""
    with contextlib.closing(ReferenceStore(path)) as store:
        return len(store.load())


def _unusable(site: Site, path: str, error: StateUnavailable) -> Finding:
    if isinstance(error, StateDamaged):
        return fault(
            str(error), f"have the driver build it anew from what the kernel shows, at a start: {site.restart}"
        )
    return fault(str(error), _NEWER_CURE if isinstance(error.__cause__, NewerState) else f"`ls -l {path}`")


def check_kept_aside(site: Site) -> Iterator[Finding]:
    """What the driver found damaged, and kept under another name for somebody to look at."""
    state = site.state
    if state is None or not os.access(state, os.R_OK | os.X_OK):
        yield unseen("no state is to be seen", no_state_cure())
        return
    kept = sorted(
        glob.glob(f"{glob.escape(state)}/*.damaged-*Z") + glob.glob(f"{glob.escape(state)}/*.differs-*Z")
    )
    for path in kept:
        what = "found damaged" if ".damaged-" in path else "found to say something else"
        yield warning(
            f"{os.path.basename(path)} was {what} and set aside; the driver works with another",
            f"see that `brokervol status` lists all your volumes, then `rm {path}*`",
            os.path.basename(path),
        )
    if not kept:
        yield ok("nothing of it was ever found damaged and set aside")

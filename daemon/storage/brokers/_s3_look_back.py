"""What killed processes have left in a bucket: found out by stamps and digests of objects, and tidied up."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from storage.brokers._s3_objects import Found, Objects
from storage.exceptions import MissingFile, PermissionDenied, Unsupported
from storage.journal import UNDONE, Intent, Verdict

log = logging.getLogger(__name__)

# The service's clock is told to the second.
_CLOCK_STEP = timedelta(seconds=2)

# Parts that came within this time may be of another host's upload that goes on.
_IDLE_S = 60 * 60


def verdict_on(objects: Objects, key: str, new_key: str, intent: Intent) -> Verdict:
    """What became of an item.

    Raises:
        StorageError: what kept it from being found out.
    """
    match intent.verb:
        case "upload":
            return _of_upload(objects, key, intent)
        case "move":
            return _of_move(objects, key, new_key, intent)
        case _:
            return _of_deletion(objects, key, intent)


def _of_upload(objects: Objects, key: str, intent: Intent) -> Verdict:
    found = _object(objects, key)
    if not intent.is_rivalled:
        try:
            objects.abort_uploads(key, intent.started, idle_s=0 if intent.is_of_dead_run else _IDLE_S)
        except (PermissionDenied, Unsupported) as error:  # then they are for the bucket's lifecycle rule
            log.warning("unfinished uploads are not looked for: %s: %s", intent.subject, error)
    if found is not None and found.stamp == intent.token:
        return Verdict(True, found.size)
    return UNDONE


def _of_move(objects: Objects, key: str, new_key: str, intent: Intent) -> Verdict:
    old, new = _object(objects, key), _object(objects, new_key)
    if old is None:
        return Verdict(True, new.size if new else None)
    if key == new_key:
        return Verdict(True, old.size)
    # What was there before and must not be replaced is not taken for the copy, even if it is the same.
    if new is None or (not intent.overwrite and _is_older(new, intent)):
        return UNDONE
    if _is_copy(old, new, intent):
        for error in objects.delete([key]).values():
            raise error
        return Verdict(True, new.size)
    if old.size == new.size and not _is_older(new, intent):
        return Verdict(False, warning="both objects are there and perhaps the same; both are kept")
    return UNDONE


def _is_copy(old: Found, new: Found, intent: Intent) -> bool:
    is_by_stamp = new.stamp != "" and new.stamp in (old.stamp, intent.token)
    is_by_digest = old.digest != "" and old.digest == new.digest
    return old.size == new.size and (is_by_stamp or is_by_digest)


def _of_deletion(objects: Objects, key: str, intent: Intent) -> Verdict:
    found = _object(objects, key)
    if found is None:
        return Verdict(True)
    # What somebody has put there since then is theirs. In doubt, its size tells.
    is_other = not _is_older(found, intent) and found.size != intent.file.file_size
    return Verdict(True, found.size, is_its=False) if is_other or _is_younger(found, intent) else UNDONE


def _is_younger(found: Found, intent: Intent) -> bool:
    """Whether an object was certainly made after the intent."""
    return timedelta(seconds=found.age_s) + _CLOCK_STEP < datetime.now(UTC) - intent.started


def _is_older(found: Found, intent: Intent) -> bool:
    """Whether an object was certainly made before the intent."""
    return timedelta(seconds=found.age_s) - _CLOCK_STEP > datetime.now(UTC) - intent.started


def _object(objects: Objects, key: str) -> Found | None:
    try:
        return objects.head(key, with_all=True)
    except MissingFile:
        return None

"""Cursors: where the next page begins.

A cursor says after which name, or which record, the page before ended. So it stays valid whatever happens to the
files meanwhile, that one included; and it opens nothing: a forged one begins at another place of the same listing.
"""

from __future__ import annotations

import base64
import json
import os
from typing import TypeVar

from sidecar.errors import InvalidRequest

T = TypeVar("T", str, int)


def cursor(after: str | int) -> str:
    """The cursor of a page that ended with `after`."""
    return base64.urlsafe_b64encode(json.dumps(after).encode("ascii")).decode("ascii")


def position(cursor: str, first: T) -> T:
    """What a cursor of ours says; `first` for none.

    Raises:
        InvalidRequest: it is no cursor, or one of another kind of listing.
    """
    if not cursor:
        return first
    try:
        found = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii")))
    except (ValueError, RecursionError):
        found = None
    if type(found) is not type(first) or not _is_storable(found):
        raise InvalidRequest("cursor: it is not one of ours; take `next_cursor` of the page before as it is")
    return found


def _is_storable(value: object) -> bool:
    """Whether a name can be a file's, or a number a record's id."""
    if isinstance(value, int):
        return 0 <= value < 2**63
    try:
        os.fsencode(str(value))
    except UnicodeEncodeError:
        return False
    return True

"""The definition of a volume, as a row of a table and as an entry of a document, in both with a digest of it.

The document is the backup of all definitions, and without digests what is exported, which may be edited by hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Row = tuple[str, str, str, str]
"""Name, options as JSON, time of creation; and their digest, or nothing."""

_FORMAT = "brokervol volumes"
_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Definition:
    """A volume as `docker volume create` asked for it. `options` are the accepted `-o` keys and values."""

    name: str
    options: dict[str, str]
    created: datetime


def to_row(definition: Definition) -> Row:
    """The definition as it is kept."""
    options, created = json.dumps(definition.options, sort_keys=True), definition.created.isoformat()
    return definition.name, options, created, digest_of(definition.name, options, created)


def from_row(row: Row) -> Definition:
    """What `to_row` has made, or a version before, which knew no digest.

    Raises:
        ValueError: it is another than was written.
    """
    name, options, created, digest = row
    if digest and digest != digest_of(name, options, created):
        raise ValueError(f"the definition of volume {name!r:.80} is not what was written")
    return Definition(name, _options(json.loads(options)), datetime.fromisoformat(created).astimezone(UTC))


def digest_of(*parts: str) -> str:
    """Of the other columns of a row."""
    return hashlib.blake2b(json.dumps(parts).encode("ascii"), digest_size=8).hexdigest()


def in_utc(created: str) -> str:
    """The same time in UTC."""
    return datetime.fromisoformat(created).astimezone(UTC).isoformat()


def _options(options: Any) -> dict[str, str]:
    if not isinstance(options, dict) or not all(isinstance(value, str) for value in options.values()):
        raise ValueError("the options of a volume must be an object of strings")
    return options


def to_json(definitions: Iterable[Definition]) -> str:
    """Definitions as a document of their own, which may be edited by hand: without digests."""
    return to_document([(*to_row(definition)[:3], "") for definition in definitions]).decode("ascii")


def to_document(rows: Sequence[Row]) -> bytes:
    """All rows, as the backup has them."""
    lines = ",\n".join(map(_line, rows))
    return f'{{"format": "{_FORMAT}", "version": {_FORMAT_VERSION}, "volumes": [\n{lines}\n]}}\n'.encode("ascii")


def _line(row: Row) -> str:
    """Put together by hand, since there may be thousands, at every change."""
    name, options, created, digest = row
    last = f', "digest": "{digest}"' if digest else ""
    return f'{{"name": {json.dumps(name)}, "created": "{created}", "options": {options}{last}}}'


def from_json(text: str | bytes) -> list[Definition]:
    """What `to_json` has written, or a backup.

    Raises:
        ValueError: it is something else, of a newer version, or damaged.
    """
    try:
        document = json.loads(text.decode() if isinstance(text, bytes) else text)
    except RecursionError as error:
        raise ValueError("it must not be nested so deeply") from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(f'it must be a JSON object with "format": "{_FORMAT}"')
    version = document.get("version")
    if type(version) is not int or version != _FORMAT_VERSION:
        raise ValueError(
            f"it has version {json.dumps(version)[:40]}; this brokervol knows version {_FORMAT_VERSION} only"
        )
    volumes = document.get("volumes")
    if not isinstance(volumes, list):
        raise ValueError("volumes must be an array")  # noqa: TRY004  # of the document, not of an argument
    definitions = [_entry(number, entry) for number, entry in enumerate(volumes)]
    if len({definition.name for definition in definitions}) != len(definitions):
        raise ValueError("a volume is in it twice")
    return definitions


def _entry(number: int, entry: Any) -> Definition:
    try:
        definition = Definition(entry["name"], _options(entry["options"]), _created(entry["created"]))
        if not isinstance(definition.name, str):
            raise TypeError("name must be a string")
        if entry.get("digest", found := to_row(definition)[-1]) != found:
            raise ValueError("its digest is another's; leave the digest out where the rest was edited")
    except (KeyError, TypeError) as error:
        raise ValueError(f"volumes[{number}] must have name, created and options as strings: {error}") from error
    except (ValueError, OverflowError) as error:
        raise ValueError(f"volumes[{number}]: {error}") from error
    return definition


def _created(text: str) -> datetime:
    """In UTC, as docker must be able to read it."""
    with contextlib.suppress(ValueError):
        created = datetime.fromisoformat(text)
        offset = created.utcoffset()
        if offset is not None and not offset.total_seconds() % 60:
            return created.astimezone(UTC)
    raise ValueError(f"created must be a time with zone, as in 2026-01-02T03:04:05+01:00, not {text!r:.80}")

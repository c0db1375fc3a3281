"""What became of the items of a batch, and how files and failures are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import structlog

from sidecar import answers
from sidecar.errors import STATUS_OF_CODE
from storage.exceptions import StorageError
from storage.models import ScaleFile

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item of a batch.

    Attributes:
        seconds: what it took; where several were done together, its share.
    """

    file_path: str
    status: Literal["done", "failed", "skipped"]
    file: ScaleFile | None = None
    error: tuple[str, str] | None = None
    seconds: float = 0

    def to_json(self) -> answers.Result:
        found = answers.Result(file_path=self.file_path, status=self.status)
        if self.file is not None:
            found["file"] = record(self.file)
        if self.error is not None:
            found["error"] = {"code": self.error[0], "detail": self.error[1]}
        return found


def record(file: ScaleFile) -> answers.Record:
    """A record as the API shows it: times in RFC 3339; identifiers are null for a file not in the catalog."""
    is_saved = file.id is not None
    return {
        "id": file.id,
        "uuid": file.uuid if is_saved else None,
        "file_name": file.file_name,
        "file_path": file.file_path,
        "file_size": file.file_size,
        "media_type": file.media_type,
        "workspace": file.workspace,
        "is_deleted": file.is_deleted,
        "deleted": file.deleted.isoformat() if file.deleted else None,
        "created": file.created.isoformat() if is_saved else None,
        "last_modified": file.last_modified.isoformat() if is_saved else None,
        "checksum": file.checksum,
        "tags": file.tags,
    }


def told(error: Exception, what: str = "operation", **facts: str) -> tuple[str, str]:
    """Code and detail of a failure. What was not foreseen is logged in full and told without its insides."""
    if isinstance(error, StorageError) and error.code in STATUS_OF_CODE and error.code != "internal-error":
        return error.code, str(error)
    log.error(f"{what} failed unexpectedly", exc_info=error, **facts)
    return "internal-error", "the sidecar failed; its log says why"

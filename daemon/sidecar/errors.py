"""Errors on the wire: one table from kind to status, and RFC 9457 problem documents."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from storage.exceptions import StorageError

# Every code the API answers with; docs/api.md lists them, and a test compares.
STATUS_OF_CODE: dict[str, int] = {
    "missing-file": 404,
    "unknown-workspace": 404,
    "not-found": 404,
    "method-not-allowed": 405,
    "read-only": 403,
    "permission-denied": 403,
    "invalid-path": 400,
    "invalid-request": 400,
    "already-exists": 409,
    "unsupported": 501,
    "backend-unavailable": 503,
    "no-space": 507,
    "too-large": 413,
    "invalid-broker-configuration": 422,
    "internal-error": 500,
}

RETRY_AFTER_S = 5


class UnknownWorkspace(StorageError):
    """The caller holds no workspace of this name; whether one exists is not told."""

    code = "unknown-workspace"


class InvalidRequest(StorageError):
    """The request is malformed; the text names the field and what is accepted."""

    code = "invalid-request"


class InvalidConfiguration(StorageError):
    """A configuration to validate is not valid."""

    code = "invalid-broker-configuration"


def problem(code: str, detail: str, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The problem document of an error."""
    status = STATUS_OF_CODE[code]
    return {
        "type": f"urn:brokervol:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        **(extra or {}),
    }

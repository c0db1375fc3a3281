"""Errors on the wire: one table from kind to status, and RFC 9457 problem documents."""

from __future__ import annotations

import json
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
    "in-progress": 409,
    "precondition-failed": 412,
    "range-not-satisfiable": 416,
    "unsupported": 501,
    "backend-unavailable": 503,
    "no-space": 507,
    "too-large": 413,
    "too-slow": 408,
    "busy": 503,
    "invalid-broker-configuration": 422,
    "internal-error": 500,
}

RETRY_AFTER_S = 5

# What the same request may get past a little later.
RETRIED = ("backend-unavailable", "busy", "in-progress")


class UnknownWorkspace(StorageError):
    """The caller holds no workspace of this name; whether one exists is not told."""

    code = "unknown-workspace"


class InvalidRequest(StorageError):
    """The request is malformed; the text names the field and what is accepted."""

    code = "invalid-request"


class InProgress(StorageError):
    """A request with the same idempotency key is being worked on."""

    code = "in-progress"


class InvalidConfiguration(StorageError):
    """A configuration to validate is not valid."""

    code = "invalid-broker-configuration"


class BodyTooLarge(StorageError):
    """A body that has to be held whole is larger than what is held."""

    code = "too-large"


class BodyTooSlow(StorageError):
    """A body was not sent fast enough."""

    code = "too-slow"


class Busy(StorageError):
    """As many requests are being worked on as there may be; this one was not begun."""

    code = "busy"


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


# What the server answers itself, to whatever call, with a status that is not its code's: the request line or the
# headers are too long; an expectation or a version of HTTP is not known.
CODE_OF_REFUSED_HEAD = {414: "too-large", 431: "too-large", 417: "invalid-request", 505: "invalid-request"}

_CODE_OF_REFUSAL = {
    **CODE_OF_REFUSED_HEAD,
    405: "method-not-allowed",
    408: "too-slow",
    413: "too-large",
    500: "internal-error",
    501: "unsupported",
    503: "busy",
}


def refusal(status: int, sentence: str) -> tuple[str, bytes]:
    """The answer to what is no request, too much or too slow; see `brokervol.server`."""
    code = _CODE_OF_REFUSAL.get(status, "invalid-request")
    detail = f"the request is malformed: {sentence}" if code == "invalid-request" else sentence
    said = {"status": status, "title": HTTPStatus(status).phrase}
    return "application/problem+json", json.dumps(problem(code, detail, said)).encode("ascii")

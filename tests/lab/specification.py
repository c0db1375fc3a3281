"""Cases that schemathesis draws from the sidecar's specification, sent to a running sidecar with real files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from zlib import crc32

import schemathesis
from schemathesis.checks import CheckFunction
from schemathesis.core.deserialization import DeserializationContext
from schemathesis.core.parameters import ParameterLocation
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import negative_data_rejection

from lab.directories import temporary_directory
from lab.processes import Running
from lab.s3 import Place, S3Server
from lab.sidecar import self_sidecar
from lab.unix_requests import BASE_URL, unix_session
from sidecar.cursors import cursor
from sidecar.requests import WORKSPACE_PATH

Case = schemathesis.Case[Any]

FILES = ["2026/scene.tif", "scene.tif", "2026/a/b", "\u00fc", "with space"]
WORKSPACES = ["data", "data", "bucket"]
_LINES = "application/x-ndjson"
_FEW, _MOST = 20, 10_000
_LONGEST_LOCAL_PATH = 4096


@schemathesis.serializer(_LINES)
def _to_lines(context: object, value: object) -> bytes:
    del context
    items = value if isinstance(value, list) else [value]
    return "".join(f"{json.dumps(item)}\n" for item in items).encode()


@schemathesis.deserializer(_LINES)
def _from_lines(context: DeserializationContext, response: Response) -> list[Any]:
    del context
    return _lines(response)


def _lines(response: Response) -> list[Any]:
    return [json.loads(line) for line in response.content.splitlines()]


class Site:
    """A running sidecar with the workspaces `data`, of the host, and `bucket`; and a directory for local files."""

    def __init__(self, process: Running, directory: Path) -> None:
        self.process = process
        self._disk = directory / "data"
        self._local = directory / "local"
        self._session = unix_session(process.socket_path)
        self._keys = count()

    def close(self) -> None:
        self._session.close()

    def send(self, case: Case) -> Response:
        """Send a case, aimed at what is there, and check the answer in every way."""
        self._refill()
        self._aim(case)
        response = case.call(base_url=BASE_URL, session=self._session)
        # A stream is refused line by line, see below.
        excluded: list[CheckFunction] = [negative_data_rejection] if case.media_type == _LINES else []
        case.validate_response(response, excluded_checks=excluded)
        _check_more(case, response)
        return response

    def _refill(self) -> None:
        """Have the files there again, whatever was done to them."""
        for path in (*(self._disk / name for name in FILES), self._local / "source"):
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("content")

    def _aim(self, case: Case) -> None:
        """Point what is drawn at files, records and pages that are there; and never at files that are not ours.

        What is not valid stays as it is, for the sidecar to refuse. Long batches are cut, since they take long.
        """
        choice = crc32(repr((case.path_parameters, case.query, case.headers, case.body)).encode())
        if _is_positive_at(case, ParameterLocation.PATH) and choice % 4:
            there = {"ws": WORKSPACES[choice % len(WORKSPACES)], "file_path": FILES[choice % len(FILES)]}
            case.path_parameters.update({name: there[name] for name in case.path_parameters})
        if case.operation.method == "GET" and choice % 2:
            case.headers["Accept"] = _LINES
        if _is_positive_at(case, ParameterLocation.QUERY) and case.query.get("cursor"):
            case.query["cursor"] = cursor(FILES[choice % 5] if case.path.endswith("/files") else choice % 5)
            case.headers.pop("Accept", None)
        if _is_positive_at(case, ParameterLocation.HEADER) and "Idempotency-Key" in case.headers:
            case.headers["Idempotency-Key"] = f"key {next(self._keys)}"  # each can be used for one request only
        body: Any = case.body
        if isinstance(body, dict) and isinstance(body.get("broker"), dict) and choice % 2:
            body["broker"].update(type="host", host_path="/srv")
        files = body.get("files") if isinstance(body, dict) else body
        if isinstance(files, list) and _FEW < len(files) <= _MOST:
            del files[_FEW:]
        for item in files if isinstance(files, list) else ():
            if isinstance(item, dict):
                self._aim_item(item)

    def _aim_item(self, item: dict[str, Any]) -> None:
        choice = crc32(repr(item).encode())
        if _is_file_path(item.get("file_path")) and choice % 2:
            item["file_path"] = FILES[choice % len(FILES)]
        if _is_id(item.get("id")):
            item["id"] = 1 + choice % 20
        local_path = item.get("local_path")
        if isinstance(local_path, str) and local_path.startswith("/") and len(local_path) <= _LONGEST_LOCAL_PATH:
            name = local_path.rpartition("/")[2][:50]
            item["local_path"] = f"{self._local}/{'source' if choice % 2 and name else name}"


@contextmanager
def site(server: S3Server, place: Place) -> Iterator[Site]:
    """The site, with its bucket in `place`."""
    with temporary_directory() as directory:
        (directory / "data").mkdir()
        (directory / "local").mkdir()
        bucket = {
            "type": "s3",
            "endpoint_url": server.endpoint_url,
            "region_name": server.region_name,
            "bucket_name": place.bucket,
            "credentials": server.credentials(),
            **({"prefix": place.prefix} if place.prefix else {}),
        }
        host = {"type": "host", "host_path": str(directory / "data")}
        workspaces = {"data": {"broker": host}, "bucket": {"broker": bucket}}
        with self_sidecar(directory, workspaces) as process:
            found = Site(process, directory)
            yield found
            found.close()
            assert "Traceback" not in process.log()


def _is_positive_at(case: Case, location: ParameterLocation) -> bool:
    return case.meta is not None and not case.meta.is_negative_at(location)


def _check_more(case: Case, response: Response) -> None:
    """What schemathesis cannot: a stream is refused by its lines; only for their state are valid paths refused."""
    assert case.meta is not None
    if response.status_code == 400 and case.meta.generation.mode.is_positive:
        code = response.json()["code"] if response.content else "invalid-path"  # HEAD does not say
        assert code == "invalid-path", f"it was allowed: {response.text}"
    is_stream = case.media_type == _LINES and response.status_code == 200
    if is_stream and case.meta.is_negative_at(ParameterLocation.BODY):
        told = [line.get("error", {}).get("code", line["status"]) for line in _lines(response)]
        # A list, which is no item, is sent as lines of its items: those may be valid, of files that are not there.
        refused = {"invalid-request", "invalid-path", "skipped", "missing-file"}
        assert refused & {*told}, "a line that is not valid was not refused"


def _is_file_path(value: object) -> bool:
    return isinstance(value, str) and re.search(str(WORKSPACE_PATH["pattern"]), value) is not None


def _is_id(value: object) -> bool:
    """Also 1.0, which is an integer to JSON Schema and none to us."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and value == value // 1

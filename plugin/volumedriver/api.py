"""The VolumeDriver protocol on the wire: requests to verbs, results and errors to JSON. Decides nothing.

The engine sends no Content-Type and strange Host headers, so neither is looked at. When it repeats a request
after a transport error the body is empty: that is refused, never taken for a volume without a name.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import structlog
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from storage import linux
from volumedriver.driver import Driver
from volumedriver.engines import Engine, engine_of
from volumedriver.errors import STATUS, DriverError, InvalidRequest, VolumeNotFound
from volumedriver.health import State
from volumedriver.metrics import CONTENT_TYPE, Metrics
from volumedriver.options import NfsOptions
from volumedriver.status import Health, Status
from volumedriver.volume import Volume

log = structlog.get_logger()

STATUS_PATH, METRICS_PATH = "/brokervol/status", "/metrics"
MAX_BODY_BYTES = 16 * 1024 * 1024
_CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"
_LONGEST_LOGGED = 255  # of a volume's name, which may be anything until it is looked at
_KINDS = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
_KINDS |= {list: "an array", dict: "an object"}

Body = dict[str, Any]
Call = Callable[[], Body]


def create_app(driver: Driver, status: Status, metrics: Metrics) -> Flask:
    """The WSGI application that serves `driver`, tells its `status`, and counts calls in `metrics`."""
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    calls = _Calls(driver, status)
    for path, call in calls.table().items():
        app.add_url_rule(
            path, endpoint=path, view_func=_answering(call), methods=["POST"], provide_automatic_options=False
        )
    for path, view in _told(status, metrics).items():
        app.add_url_rule(path, endpoint=path, view_func=view, methods=["GET"], provide_automatic_options=False)
    _count(app, metrics, {path: path.rpartition(".")[2] for path in calls.table()})
    app.register_error_handler(DriverError, _driver_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected_error)
    return app


def refusal(status: int, sentence: str) -> tuple[str, bytes]:
    """The answer to what is no request, too much or too slow; see `brokervol.server`."""
    error = f"the request is malformed: {sentence}" if status == 400 else sentence
    return _CONTENT_TYPE, json.dumps({"Err": error}).encode("ascii")


def _told(status: Status, metrics: Metrics) -> dict[str, Callable[[], Response]]:
    """What whoever watches over the driver may ask, beside the protocol."""
    return {
        STATUS_PATH: lambda: Response(msgspec.json.encode(status.report()), content_type="application/json"),
        METRICS_PATH: lambda: Response(metrics.text(), content_type=CONTENT_TYPE),
    }


def _count(app: Flask, metrics: Metrics, calls: Mapping[str, str]) -> None:
    """Have each call of the protocol, `calls` by path, counted: refusals and failures too.

    And give each request an id, which the lines of the log have that it causes.
    """
    metrics.expect(calls.values())

    @app.before_request
    def began() -> None:
        g.request_id = os.urandom(8).hex()
        structlog.contextvars.clear_contextvars()  # a connection's thread has one request after another
        structlog.contextvars.bind_contextvars(request=g.request_id)
        if (call := calls.get(request.path)) is not None:
            g.began = time.perf_counter()
            metrics.began(call)

    @app.after_request
    def ended(response: Response) -> Response:
        response.headers["X-Request-Id"] = g.request_id
        if (call := calls.get(request.path)) is not None:
            metrics.ended(call, response.status_code, time.perf_counter() - g.began)
        return response


class _Calls:
    """One method a call: reads the fields, asks the driver, names the result."""

    def __init__(self, driver: Driver, status: Status) -> None:
        self._driver = driver
        self._status = status

    def table(self) -> dict[str, Call]:
        return {
            "/Plugin.Activate": self.activate,
            "/VolumeDriver.Create": self.create,
            "/VolumeDriver.Remove": self.remove,
            "/VolumeDriver.Mount": self.mount,
            "/VolumeDriver.Path": self.path,
            "/VolumeDriver.Unmount": self.unmount,
            "/VolumeDriver.Get": self.get,
            "/VolumeDriver.List": self.list,
            "/VolumeDriver.Capabilities": self.capabilities,
        }

    def activate(self) -> Body:
        return {"Implements": ["VolumeDriver"]}

    def capabilities(self) -> Body:
        return {"Capabilities": {"Scope": "local"}}

    def create(self) -> Body:
        body = _body()
        self._driver.create(_name(body), _options(body))
        return {}

    def remove(self) -> Body:
        self._driver.remove(_name(_body()))
        return {}

    def mount(self) -> Body:
        body = _body()
        name, mount_id = _name(body), _text(body, "ID")
        mountpoint = self._driver.mount(name, mount_id, _engine())
        if _is_client_gone():  # the engine has dropped this Mount and will never unmount it
            log.warning("client gone during mount, rolled back", volume=name)
            self._driver.unmount(name, mount_id)
        return {"Mountpoint": mountpoint}

    def unmount(self) -> Body:
        body = _body()
        self._driver.unmount(_name(body), _text(body, "ID"))
        return {}

    def path(self) -> Body:
        return {"Mountpoint": _mountpoint(self._driver.get(_name(_body())))}

    def get(self) -> Body:
        return {"Volume": self._described(self._driver.get(_name(_body())))}

    def list(self) -> Body:
        return {"Volumes": [self._described(volume) for volume in self._driver.list()]}

    def _described(self, volume: Volume) -> Body:
        status: Body = {**volume.options.effective, "references": sum(volume.references.values())}
        health = self._status.health(volume)
        if health is not None or isinstance(volume.options, NfsOptions):
            status |= _health(health)
        return {
            "Name": volume.name,
            "Mountpoint": _mountpoint(volume),
            "CreatedAt": volume.created.isoformat(),
            "Status": status,
        }


def _health(found: Health | None) -> Body:
    """How a volume does; not known of an NFS volume only."""
    if found is None:
        return {"health": State.UNKNOWN, "health_reason": "no volume of this server is mounted"}
    since = f" since {found.since:%Y-%m-%dT%H:%M:%SZ}" if found.since is not None else ""
    return {"health": found.word + since, "health_reason": found.reason}


def _mountpoint(volume: Volume) -> str:
    return volume.mountpoint if volume.is_mounted else ""


def _body() -> Body:
    raw = request.get_data(cache=False)
    if not raw:
        raise InvalidRequest(f"the request to {request.path} has no body: it needs a JSON object")
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body of {request.path} is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body of {request.path} must be a JSON object, not {_kind(body)}")
    return body


def _name(body: Body) -> str:
    """The volume's name, which all lines of the log have that the call causes."""
    name = _text(body, "Name")
    structlog.contextvars.bind_contextvars(volume=name[:_LONGEST_LOGGED])
    return name


def _text(body: Body, field: str) -> str:
    if field not in body:
        raise InvalidRequest(f"{field} is missing in the body of {request.path}: it must be a string")
    value = body[field]
    if not isinstance(value, str):
        raise InvalidRequest(f"{field} must be a string, not {_kind(value)}")
    return value


def _options(body: Body) -> dict[str, str]:
    options = body.get("Opts")
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise InvalidRequest(f"Opts must be an object of strings, or null, not {_kind(options)}")
    wrong = [f"{key!r:.40} is {_kind(value)}" for key, value in options.items() if not isinstance(value, str)]
    if wrong:
        raise InvalidRequest(f"Opts must be an object of strings: {', '.join(wrong[:20])}")
    return options


def _kind(value: object) -> str:
    return _KINDS[type(value)]


def _is_client_gone() -> bool:
    connection = request.environ.get("brokervol.connection")
    return connection is not None and connection.is_peer_gone()


def _engine() -> Engine | None:
    connection = request.environ.get("brokervol.connection")
    if connection is None:
        return None
    pid, _, _ = linux.peer_credentials(connection.socket)
    return engine_of(pid)


def _answering(call: Call) -> Callable[[], Response]:
    return lambda: _response({**call(), "Err": ""}, 200)


def _response(body: Body, status: int) -> Response:
    return Response(json.dumps(body), status, content_type=_CONTENT_TYPE)


def _driver_error(error: DriverError) -> Response:
    status = STATUS[type(error)]
    level = logging.ERROR if status == 500 else logging.INFO
    if isinstance(error, VolumeNotFound) and request.path == "/VolumeDriver.Get":
        level = logging.DEBUG  # the engine asks so before each Create
    log.log(level, "call refused", call=request.path, status=status, error=str(error))
    return _response({"Err": str(error)}, status)


def _http_error(error: HTTPException) -> Response:
    facts = {
        404: f"there is no call {request.path[:100]!r} here: this is a volume driver",
        405: f"{request.path} is called with {_method(request.path)}, not {request.method[:20]}",
    }
    status = error.code or 500
    return _response({"Err": facts.get(status, error.description or error.name)}, status)


def _method(path: str) -> str:
    return "GET" if path in {STATUS_PATH, METRICS_PATH} else "POST"


def _unexpected_error(_: Exception) -> Response:
    log.exception("internal error", call=request.path)
    return _response({"Err": f"internal error in {request.path}, see the log of brokervol"}, 500)

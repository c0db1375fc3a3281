"""What those who run this host may look at: metrics, status, and a page of it. Never on the socket of tasks.

It is served on a socket that only root may use and, where STATUS_LISTEN says so, on a loopback port: by the
sidecar, which has given up the power over mounts, and not by the driver, which it asks. However many look, the
driver is asked once a second.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from brokervol import __version__
from brokervol.kinds import Address
from brokervol.server import Limits, Load, TcpServer, UnixServer
from sidecar.metrics import Metrics

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

log = structlog.get_logger()

_FRESH_S = 1.0
_DRIVER_S = 5
_HOSTS = frozenset(("localhost", "127.0.0.1", "::1"))
_ALWAYS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
_TEXT = "text/plain; charset=utf-8"

# All who look together. A slow one holds one of these threads, and none of those that serve tasks.
_LIMITS = Limits(
    requests=8, requests_per_caller=4, waiting_per_caller=16, connections_per_caller=32, wait_s=10, client_s=10
)

Document = dict[str, Any]


class DriverSilent(Exception):
    """The driver does not answer; the message says why, in a clause."""


class Answer(NamedTuple):
    """A status, headers and a body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Operators:
    """The application: `GET /metrics`, `/status` and `/`, and nothing else.

    Args:
        driver_socket: where the driver answers.
        load: tells what the sidecar has to do.
    """

    def __init__(self, driver_socket: str, metrics: Metrics, load: Callable[[], Load]) -> None:
        self._driver_socket, self._metrics, self._load = driver_socket, metrics, load
        self._began = time.monotonic()
        self._paths = {"/metrics": self._told_metrics, "/status": self._told_status, "/": self._page}
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, Answer]] = {}

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        answer = self._answer(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        headers = {**_ALWAYS, **answer.headers, "Content-Length": str(len(answer.body))}
        start_response(f"{answer.status} {HTTPStatus(answer.status).phrase}", [*headers.items()])
        return [answer.body] if environ["REQUEST_METHOD"] != "HEAD" else []

    def _answer(self, method: str, path: str) -> Answer:
        make = self._paths.get(path)
        if make is None:
            return _sentence(404, f"there are {', '.join(self._paths)} here, and nothing else")
        if method not in ("GET", "HEAD"):
            return _sentence(405, f"{path} can only be looked at", Allow="GET, HEAD")
        with self._lock:  # who comes meanwhile has the same answer
            until, answer = self._known.get(path, (0.0, None))
            if answer is None or time.monotonic() >= until:
                answer = make()
                self._known[path] = time.monotonic() + _FRESH_S, answer
        return answer

    def _told_metrics(self) -> Answer:
        from sidecar import exposition  # noqa: PLC0415  # most sidecars are never asked

        try:
            of_driver = ask_driver(self._driver_socket, "/metrics")
        except DriverSilent:
            of_driver = None
        ours = exposition.text(self._metrics.counts(), self._load(), is_driver_up=of_driver is not None)
        return Answer(200, {"Content-Type": exposition.CONTENT_TYPE}, (of_driver or b"") + ours)

    def _told_status(self) -> Answer:
        document = self._document()
        status = 503 if "error" in document else 200
        return Answer(status, {"Content-Type": "application/json"}, json.dumps(document).encode("ascii"))

    def _page(self) -> Answer:
        from sidecar import page  # noqa: PLC0415  # most sidecars are never asked

        policy = f"{_ALWAYS['Content-Security-Policy']}; style-src '{page.STYLE_HASH}'"
        headers = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": policy}
        return Answer(200, headers, page.page(self._document(), datetime.now(UTC)).encode())

    def _document(self) -> Document:
        """The driver's status, or `error` in its place, and the sidecar's own below `sidecar`."""
        load = self._load()
        ours: Document = {
            "version": __version__,
            "uptime_s": round(time.monotonic() - self._began, 3),
            **load._asdict(),
        }
        try:
            document: Document = json.loads(ask_driver(self._driver_socket, "/brokervol/status"))
        except DriverSilent as silence:
            return {"error": f"the driver does not answer at {self._driver_socket}: {silence}", "sidecar": ours}
        for volume in document["volumes"]:
            for key in ("shown", "host_path"):  # of use to `brokervol status` alone
                del volume[key]
        return {"socket": self._driver_socket, **document, "sidecar": ours}


class Guarded:
    """An application on a port, for browsers of this host only.

    A page of another host, whose name somebody has made to mean this one, sends that name in `Host`.
    """

    def __init__(self, app: WSGIApplication, address: Address) -> None:
        self._app, self._hosts = app, _HOSTS | {address.host}

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if _host(environ.get("HTTP_HOST", "")) in self._hosts:
            return self._app(environ, start_response)
        answer = _sentence(421, f"Host must be {', '.join(sorted(self._hosts))}, with any port")
        headers = {**_ALWAYS, **answer.headers, "Content-Length": str(len(answer.body))}
        start_response("421 Misdirected Request", [*headers.items()])
        return [answer.body]


def serve(app: Operators, socket_path: str, address: Address | None) -> None:
    """Serve in threads of their own. What cannot be opened is told in the log: tasks are served without it."""
    with _tolerating(socket_path):
        private = UnixServer(
            socket_path, app, mode=0o600, limits=_LIMITS, refusal=_refusal, caller=lambda _: "anybody"
        )
        private.prepare()
        private.run_beside()
    if address is not None:
        with _tolerating(str(address)):
            port = TcpServer(
                *address, Guarded(app, address), limits=_LIMITS, refusal=_refusal, caller=lambda _: "anybody"
            )
            port.prepare()
            port.run_beside()
            log.info("status is served", address=str(address._replace(port=port.port)))


@contextlib.contextmanager
def _tolerating(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.warning("status is not served", where=where, reason=error.strerror or str(error))


def ask_driver(socket_path: str, path: str) -> bytes:
    """The body of what the driver answers.

    Raises:
        DriverSilent: it does not.
    """
    import http.client  # noqa: PLC0415  # with the whole of email; most sidecars are never asked
    import socket  # noqa: PLC0415

    connection = http.client.HTTPConnection("driver", timeout=_DRIVER_S)
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(_DRIVER_S)
        connection.sock.connect(socket_path)
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise DriverSilent(
            (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
        ) from error
    finally:
        connection.close()
    if response.status != HTTPStatus.OK:
        raise DriverSilent(f"it says {response.status}, as when it is starting")
    return body


def _host(header: str) -> str:
    """The name in a `Host` header."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


def _sentence(status: int, sentence: str, **headers: str) -> Answer:
    return Answer(status, {"Content-Type": _TEXT, **headers}, f"{sentence}\n".encode())


def _refusal(_: int, sentence: str) -> tuple[str, bytes]:
    return _TEXT, f"{sentence}\n".encode()

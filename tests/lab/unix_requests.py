"""The `requests` library over a Unix socket, for tools that speak through it. The host of a URL is ignored."""

from __future__ import annotations

from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from lab.unix_http import connected

BASE_URL = "http://broker"


def unix_session(socket_path: str) -> requests.Session:
    """A session whose requests to `BASE_URL` go to the socket."""
    session = requests.Session()
    session.trust_env = False  # no proxy, and nobody's .netrc
    session.mount(BASE_URL, _UnixAdapter(socket_path))
    return session


class _UnixAdapter(HTTPAdapter):
    def __init__(self, socket_path: str) -> None:
        super().__init__()
        self._pool = _Pool(socket_path)

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> _Pool:
        return self._pool

    def close(self) -> None:
        super().close()
        self._pool.close()


class _Pool(HTTPConnectionPool):
    def __init__(self, socket_path: str) -> None:
        super().__init__("broker", timeout=60)
        self._socket_path = socket_path

    def _new_conn(self) -> _Connection:
        return _Connection(self._socket_path)


class _Connection(HTTPConnection):
    def __init__(self, socket_path: str) -> None:
        super().__init__("broker", timeout=60)
        self._socket_path = socket_path

    def connect(self) -> None:
        self.sock = connected(self._socket_path)

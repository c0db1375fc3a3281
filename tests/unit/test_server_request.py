"""Request lines that are read without cheroot are read as cheroot reads them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokervol import server
from brokervol.reception import Limits
from brokervol.server import UnixServer, _Request

_READ = ("method", "uri", "path", "qs", "authority", "scheme", "request_protocol", "response_protocol", "ready")


def parsed(head: bytes, *, by_cheroot: bool) -> dict[str, Any]:
    """What is read of a head, or how it is refused."""
    refused: list[bytes] = []
    stream = SimpleNamespace(take_head=lambda: head)
    connection = SimpleNamespace(stream=stream, wfile=SimpleNamespace(write=refused.append))
    serving = UnixServer("x", cast(Any, None), mode=0, limits=Limits(), refusal=lambda _, text: (text, b""))
    request = _Request(serving, cast(Any, connection))
    with pytest.MonkeyPatch.context() as patch:
        if by_cheroot:
            patch.setattr(request, "_read_plain_line", lambda: False)
        request.parse_request()
    return {name: getattr(request, name, None) for name in _READ} | {"refused": refused}


@given(
    st.sampled_from(["GET", "PUT", "POST", "HEAD", "get", "DELETE", "CONNECT"]),
    st.text("/a.%2F?=&#-_~:;@*+, \u00e9", max_size=12),
    st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.11"]),
)
def test_a_plain_request_line_is_read_as_cheroot_reads_it(method: str, target: str, version: str) -> None:
    for path in (target, f"/{target}"):
        head = f"{method} {path} {version}\r\nHost: b\r\n\r\n".encode()
        assert parsed(head, by_cheroot=False) == parsed(head, by_cheroot=True)


def test_what_clients_ask_for_is_plain() -> None:
    for line in (
        b"GET /v1/workspaces HTTP/1.1\r\n",
        b"GET /v1/workspaces/data/files?recursive=true&prefix=a/b&limit=10 HTTP/1.1\r\n",
        b"POST /VolumeDriver.Mount HTTP/1.1\r\n",
    ):
        assert server._PLAIN_LINE.match(line)


def test_a_file_that_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("kept")
    serving = UnixServer(
        str(precious), cast(Any, None), mode=0, limits=Limits(), refusal=lambda _, text: (text, b"")
    )
    with pytest.raises(FileExistsError, match="no socket; name another path"):
        serving.prepare()
    assert precious.read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]

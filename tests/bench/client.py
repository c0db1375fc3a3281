"""The cheapest client there is, so that what is timed is the server: one connection, bytes ready made."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence

from lab.unix_http import connected

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_BLOCK_BYTES = 1 << 20


class Client:
    """One connection to the server on a Unix socket, which it keeps, as the Docker engine does."""

    def __init__(self, socket_path: str) -> None:
        self._socket = connected(socket_path)

    def close(self) -> None:
        self._socket.close()

    def timed(self, path: str, **fields: object) -> float:
        """The seconds of one POST, which must succeed."""
        return self.timed_of("POST", path, json.dumps(fields).encode())

    def timed_of(self, method: str, path: str, body: bytes = b"") -> float:
        """The seconds of one request, which must succeed."""
        length = f"Content-Length: {len(body)}\r\n" if method == "POST" else ""
        request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n".encode() + body
        began = time.perf_counter()
        self._socket.sendall(request)
        answer = self._received(has_body=method != "HEAD")
        took_s = time.perf_counter() - began
        if not answer.startswith(b"HTTP/1.1 2"):
            raise RuntimeError(f"{method} {path} was answered by {answer[-1000:].decode(errors='replace')}")
        return took_s

    def _received(self, *, has_body: bool) -> bytes:
        answer = b""
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer += self._part()
        length = _LENGTH.search(answer, 0, end) if has_body else None
        missing = end + 4 + (int(length[1]) if length else 0) - len(answer)
        parts = [answer]
        while missing > 0:
            parts.append(self._part())
            missing -= len(parts[-1])
        return b"".join(parts)

    def _part(self) -> bytes:
        part = self._socket.recv(_BLOCK_BYTES)
        if not part:
            raise RuntimeError("the server has closed the connection")
        return part


class VolumeCalls:
    """The life of volumes over a driver's socket, each call timed.

    Args:
        options: what each volume is created with.
    """

    def __init__(self, client: Client, **options: str) -> None:
        self._client = client
        self._options = options

    def lives(self, count: int) -> dict[str, list[float]]:
        """So many volumes, one after another, created, mounted once and removed."""
        return lives([self._life(number) for number in range(count)])

    def _life(self, number: int) -> dict[str, float]:
        name, mount_id = f"bench-{number}", f"{number:064}"
        steps: Sequence[tuple[str, dict[str, object]]] = (
            ("Create", {"Opts": self._options}),
            ("Mount", {"ID": mount_id}),
            ("Unmount", {"ID": mount_id}),
            ("Remove", {}),
        )
        return {verb: self._client.timed(f"/VolumeDriver.{verb}", Name=name, **more) for verb, more in steps}


def lives(each: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """The seconds of the calls of several lives, by call, and those of both halves of a mount together."""
    found = {call: [life[call] for life in each] for call in each[0]}
    if "Mount" in found:
        found["Mount and Unmount"] = [life["Mount"] + life["Unmount"] for life in each]
    return found

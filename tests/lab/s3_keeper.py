"""The process that an S3 server of the laboratory lives and dies with: `s3.py` starts it.

It answers with one JSON line, where the server listens and its credentials, once objects can be stored. When its
standard input closes, however the test run ended, it ends the server and removes all that the server made.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import random
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lab.directories import temporary_directory

_START_TIMEOUT_S = 30
_START_ATTEMPTS = 3
_POLL_S = 0.02
# Below Linux's ephemeral range: no outgoing connection is given one of these before the server has bound it.
_PORTS = range(10240, 32768)
_SERVICES = ("master", "volume", "filer", "s3")


class NotStarted(Exception):
    """The server ended, or was not ready in time."""


@contextlib.contextmanager
def moto() -> Iterator[dict[str, str]]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request otherwise
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    yield _answer(server.get_host_and_port()[1])  # its threads end with the process


@contextlib.contextmanager
def seaweedfs() -> Iterator[dict[str, str]]:
    with temporary_directory() as directory, contextlib.ExitStack() as stack:
        for attempt in range(_START_ATTEMPTS):
            try:
                answer = stack.enter_context(_weed(directory / str(attempt)))
                break
            except NotStarted:  # somebody took a port between our look and its bind
                if attempt == _START_ATTEMPTS - 1:
                    raise
        yield answer


@contextlib.contextmanager
def _weed(directory: Path) -> Iterator[dict[str, str]]:
    directory.mkdir()
    ports = _free_ports(2 * len(_SERVICES))
    http_ports = dict(zip(_SERVICES, ports[: len(_SERVICES)], strict=True))
    grpc_ports = dict(zip(_SERVICES, ports[len(_SERVICES) :], strict=True))
    answer = _answer(http_ports["s3"])
    config = directory / "s3.json"
    config.write_text(json.dumps(_identities(answer)))
    process = subprocess.Popen(
        _weed_command(directory, config, http_ports, grpc_ports),
        env=_weed_environment(directory),
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
    )
    try:
        _wait_until_ready(process, http_ports)
        yield answer
    finally:
        process.kill()
        process.wait()
        for service, port in grpc_ports.items():  # it makes these whatever TMPDIR or an option says
            Path(f"/tmp/seaweedfs-{service}-grpc-{port}.sock").unlink(missing_ok=True)


def _weed_environment(directory: Path) -> dict[str, str]:
    """Nothing of ours: an AWS_ACCESS_KEY_ID would be one more administrator, ~/.seaweedfs would be settings."""
    return {
        "HOME": str(directory),
        "WEED_S3_SSE_KEY": secrets.token_hex(),  # without a key it refuses server-side encryption
    }


def _weed_command(
    directory: Path, config: Path, http_ports: dict[str, int], grpc_ports: dict[str, int]
) -> list[str]:
    options = {
        "dir": directory,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.peers": "none",  # it leads at once; by election it may miss the volume server's first heartbeat
        "master.telemetry": "false",
        "volume.max": 10000,  # each bucket has volumes of its own; an empty one takes no room
        "master.volumeSizeLimitMB": 1024,
        "master.volumePreallocate": "false",
        "filer.localSocket": directory / "filer.sock",
        "s3": "true",
        "s3.autoCreateBucket": "false",  # AWS makes none either
        "s3.config": config,
        "s3.localSocket": directory / "s3.sock",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        **{f"{service}.port": port for service, port in http_ports.items()},
        **{f"{service}.port.grpc": port for service, port in grpc_ports.items()},
    }
    weed = Path(sys.executable).with_name("weed")
    mortal = ["setpriv", "--pdeathsig", "KILL", "--"]  # with the keeper; SIGTERM it survives
    return [
        *mortal,
        str(weed),
        "-logtostderr=true",
        "server",
        *(f"-{name}={value}" for name, value in options.items()),
    ]


def _answer(port: int) -> dict[str, str]:
    return {
        "endpoint_url": f"http://127.0.0.1:{port}",
        "access_key_id": f"LAB{secrets.token_hex(8).upper()}",
        "secret_access_key": secrets.token_hex(20),
    }


def _identities(answer: dict[str, str]) -> dict[str, object]:
    credentials = {"accessKey": answer["access_key_id"], "secretKey": answer["secret_access_key"]}
    return {"identities": [{"name": "lab", "credentials": [credentials], "actions": ["Admin"]}]}


def _free_ports(count: int) -> list[int]:
    free: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            free.append(port)
        if len(free) == count:
            break
    return free


def _wait_until_ready(process: subprocess.Popen[bytes], ports: dict[str, int]) -> None:
    """Wait until the S3 gateway answers and the master has a volume to write to."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not (_is_ok(ports["s3"], "/healthz") and _is_ok(ports["master"], "/dir/assign")):
        if process.poll() is not None:
            raise NotStarted(f"weed ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise NotStarted(f"weed was not ready in {_START_TIMEOUT_S} s")
        time.sleep(_POLL_S)


def _is_ok(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    with {"moto": moto, "seaweedfs": seaweedfs}[sys.argv[1]]() as answer:
        print(json.dumps(answer), flush=True)
        sys.stdin.read()

"""`make pictures`: the pictures in docs/pictures, each of a real run.

A picture is a function in OF_SITE or OF_HOST that writes the file of its name.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from docker.errors import APIError

from brokervol.doctor.checks import CHECKS
from lab import chromium, images
from lab.directories import temporary_directory
from lab.engine import Engine
from lab.stage import PLUGIN, stage
from lab.status_site import Site, status_site
from lab.terminal import sent_by

DIRECTORY = Path(__file__).parents[1] / "docs/pictures"
_COLUMNS = 110


def status_page(site: Site, file: Path) -> None:
    """The status page in a browser."""
    chromium.picture(f"http://{site.address}/", file, width=1100, height=960)


@contextlib.contextmanager
def host() -> Iterator[Engine]:
    """An engine with the plugin, containers that hold volumes, and an NFS server that is down."""
    settings = {"NFS_MOUNT_TIMEOUT_S": "2", "NFS_BOOT_S": "0"}
    with contextlib.ExitStack() as stack:
        files, engine = stack.enter_context(temporary_directory()), stack.enter_context(stage(settings=settings))
        engine.execute("mount", "--bind", str(files), "/srv")
        closed = stack.enter_context(socket.socket())
        closed.bind(("127.0.0.1", 0))  # so that nobody else listens there
        port = f"port={closed.getsockname()[1]}"
        for name, options in {
            "imagery": {"host_path": "/srv/imagery", "create": "true"},
            "products": {"host_path": "/srv/products", "create": "true"},
            "broker": {"type": "sidecar"},
            "scenes": {"bucket_name": "scenes", "prefix": "2026/"},
            "archive": {"nfs_path": "127.0.0.1:/archive", "mount_options": port},
        }.items():
            engine.client.volumes.create(name, driver=PLUGIN, driver_opts=options)
        broker = "broker:/run/brokervol"
        for name, volumes in {
            "tiler": ["imagery:/data:ro", "products:/out", broker],
            "reports": ["products:/data:ro", broker],
        }.items():
            command = engine.running(images.TINY, "sleep", "1000", name=name, volumes=volumes)
            stack.enter_context(command)
        with contextlib.suppress(APIError), engine.running(images.TINY, "true", volumes=["archive:/data"]):
            pass
        yield engine


def status_command(engine: Engine, file: Path) -> None:
    """What `brokervol status` shows on a terminal."""
    draw("brokervol status", terminal(engine, "status"), file)


def doctor_command(engine: Engine, file: Path) -> None:
    """What `brokervol doctor` shows on a terminal: an NFS server is down.

    Without what differs from machine to machine: who reaches AWS, whose kernel has an NFS client.
    """
    left_out = ("s3-credentials", "s3-bucket", "s3-clock", "nfs-client", "live-restore")
    here = [word for check in CHECKS if check.name not in left_out for word in ("--only", check.name)]
    draw("brokervol doctor", terminal(engine, "doctor", *here), file)


def terminal(engine: Engine, *words: str) -> str:
    """What a terminal is sent by a command beside the engine."""
    command = [*engine.entering, sys.executable, "-m", "brokervol", *words]
    shown, _ = sent_by(command, _COLUMNS, {"DOCKER_HOST": engine.url})
    return shown.replace("\r\n", "\n")


def draw(title: str, shown: str, file: Path) -> None:
    """Draw what a terminal was sent."""
    from rich.console import Console
    from rich.text import Text

    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=_COLUMNS, force_terminal=True, file=nowhere)
        console.print(Text.from_ansi(shown))
    svg = console.export_svg(title=title)
    file.write_text(re.sub(r"@font-face {.*?}\s*", "", svg, flags=re.DOTALL))  # from elsewhere; there are others


def copy_command(site: Site, file: Path) -> None:
    """What `brokervol cp` shows on a terminal while it is half-way."""
    with temporary_directory() as directory:
        (directory / "scenes").mkdir()
        for number in range(4000):
            (directory / "scenes" / f"{number:04}.tif").write_bytes(bytes(8192))
        words = ["cp", "-r", "scenes", "data:2026/"]
        command = [sys.executable, "-m", "brokervol", *words]
        shown, code = sent_by(command, _COLUMNS, {"BROKERVOL_SOCKET": site.sidecar.socket_path}, directory)
        if code:
            raise RuntimeError(shown)
    frames = [line for frame in shown.split("\r") if (line := frame.replace("\x1b[K", "").strip())]
    draw("brokervol cp", f"$ brokervol {' '.join(words)}\n{frames[len(frames) // 2]}", file)


OF_SITE: Mapping[str, Callable[[Site, Path], None]] = {"status-page.png": status_page, "cp.svg": copy_command}
OF_HOST: Mapping[str, Callable[[Engine, Path], None]] = {
    "status.svg": status_command,
    "doctor.svg": doctor_command,
}


def main() -> int:
    if absence := chromium.absence():
        print(f"pictures: {absence}", file=sys.stderr)
        return 1
    DIRECTORY.mkdir(exist_ok=True)
    with temporary_directory() as directory, status_site(directory) as site:
        _draw_all(OF_SITE, site)
    with host() as engine:
        _draw_all(OF_HOST, engine)
    return 0


def _draw_all(pictures: Mapping[str, Callable[[Any, Path], None]], of: object) -> None:
    for name, picture in pictures.items():
        picture(of, DIRECTORY / name)
        print(f"  {(DIRECTORY / name).relative_to(DIRECTORY.parents[1])}")


if __name__ == "__main__":
    sys.exit(main())

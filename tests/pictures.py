"""`make pictures`: the pictures in docs/pictures, each of a real run.

A picture is a function in PICTURES that writes the file of its name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from brokervol import status, tables
from brokervol.doctor.checks import CHECKS
from lab import chromium, doctor
from lab.directories import temporary_directory
from lab.status_site import Site, status_site

DIRECTORY = Path(__file__).parents[1] / "docs/pictures"
_COLUMNS = 110


def status_page(site: Site, file: Path) -> None:
    """The status page in a browser."""
    chromium.picture(f"http://{site.address}/", file, width=1100, height=960)


def status_command(site: Site, file: Path) -> None:
    """What `brokervol status` shows on a terminal, by the processes that hold volumes: there is no engine here."""
    from rich.console import Console

    os.environ["DOCKER_HOST"] = "unix:///nowhere"
    with site.driver.host.container(site.driver.mountpoint("imagery")), open(os.devnull, "w") as nowhere:
        page = status.page(status.look(site.driver.process.socket_path), datetime.now(UTC))
        console = Console(record=True, width=_COLUMNS, force_terminal=True, file=nowhere)
        console.print(tables._rich(page, _COLUMNS))
    svg = console.export_svg(title="brokervol status")
    file.write_text(re.sub(r"@font-face {.*?}\s*", "", svg, flags=re.DOTALL))  # from elsewhere; there are others


def doctor_command(site: Site, file: Path) -> None:
    """What `brokervol doctor` shows on a terminal: there is no engine here, and an NFS server is down.

    Without what differs from machine to machine: who reaches AWS, whose kernel has an NFS client. And without the
    sidecar, which is elsewhere here than the driver would say.
    """
    from rich.console import Console
    from rich.text import Text

    left_out = ("s3-credentials", "s3-bucket", "s3-clock", "nfs-client", "sidecar")
    here = [word for check in CHECKS if check.name not in left_out for word in ("--only", check.name)]
    driver = site.driver
    shown = doctor.on_terminal(
        _COLUMNS, "--socket", driver.process.socket_path, *here, prefix=driver.host.entering
    )
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=_COLUMNS, force_terminal=True, file=nowhere)
        console.print(Text.from_ansi(shown.replace("\r\n", "\n")))
    svg = console.export_svg(title="brokervol doctor")
    file.write_text(re.sub(r"@font-face {.*?}\s*", "", svg, flags=re.DOTALL))


def copy_command(site: Site, file: Path) -> None:
    """What `brokervol cp` shows on a terminal while it is half-way."""
    from rich.console import Console
    from rich.text import Text

    with temporary_directory() as directory:
        (directory / "scenes").mkdir()
        for number in range(4000):
            (directory / "scenes" / f"{number:04}.tif").write_bytes(bytes(8192))
        words = ["cp", "-r", "scenes", "data:2026/"]
        frames = frames_of([sys.executable, "-m", "brokervol", *words], site.sidecar.socket_path, directory)
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=_COLUMNS, force_terminal=True, file=nowhere)
        console.print(Text.from_ansi(f"$ brokervol {' '.join(words)}\n{frames[len(frames) // 2]}"))
    svg = console.export_svg(title="brokervol cp")
    file.write_text(re.sub(r"@font-face {.*?}\s*", "", svg, flags=re.DOTALL))


def frames_of(command: Sequence[str], socket_path: str, directory: Path) -> list[str]:
    """What the last line of a terminal was, one after the other."""
    controller, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, _COLUMNS, 0, 0))
    environment, text = {**os.environ, "BROKERVOL_SOCKET": socket_path}, b""
    with (
        open(controller, "rb", buffering=0) as output,
        subprocess.Popen(command, cwd=directory, env=environment, stdout=terminal, stderr=terminal) as process,
    ):
        os.close(terminal)
        with contextlib.suppress(OSError):  # the terminal's other side is closed
            while part := output.read(65536):
                text += part
        if process.wait() != 0:
            raise RuntimeError(text.decode())
    return [line for frame in text.decode().split("\r") if (line := frame.replace("\x1b[K", "").strip())]


PICTURES: Mapping[str, Callable[[Site, Path], None]] = {
    "status-page.png": status_page,
    "status.svg": status_command,
    "doctor.svg": doctor_command,
    "cp.svg": copy_command,
}


def main() -> int:
    if absence := chromium.absence():
        print(f"pictures: {absence}", file=sys.stderr)
        return 1
    DIRECTORY.mkdir(exist_ok=True)
    with temporary_directory() as directory, status_site(directory) as site:
        for name, draw in PICTURES.items():
            draw(site, DIRECTORY / name)
            print(f"  {(DIRECTORY / name).relative_to(DIRECTORY.parents[1])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

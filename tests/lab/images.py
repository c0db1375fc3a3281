"""What containers of the tests and the demo run on, made here: no registry is needed."""

from __future__ import annotations

import io
import subprocess
import tarfile

from docker.errors import DockerException

import build
from lab.engine import Engine

TASK = "brokervol-task"  # Debian with Python and curl
TINY = "brokervol-busybox"  # only busybox: the fastest to start
USER = 1000  # `task` in both of them; any number does as well

_BUSYBOX = "/bin/busybox"


def load_task(engine: Engine) -> None:
    """Make TASK known to an engine, and the same as the base that plugins are built on."""
    build.import_base(engine.client)
    engine.client.images.get(build.BASE).tag(TASK)


def load_tiny(engine: Engine) -> None:
    """Make TINY known to an engine."""
    answer = engine.client.api.import_image_from_data(busybox(), repository=TINY, tag="latest")
    if "errorDetail" in answer:
        raise DockerException(f"{TINY} was not taken as an image: {answer.strip()}")


def busybox() -> bytes:
    """A root file system of busybox and its names."""
    names = subprocess.run([_BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.add(_BUSYBOX, "bin/busybox")
        for name in names:
            if name != "busybox":
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        for name, mode in (("tmp", 0o1777), ("etc", 0o755), ("root", 0o700)):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, mode
            tar.addfile(directory)
        for name, text in (
            ("etc/passwd", f"root:x:0:0::/root:/bin/sh\ntask:x:{USER}:{USER}::/tmp:/bin/sh\n"),
            ("etc/group", f"root:x:0:\ntask:x:{USER}:\n"),
        ):
            file = tarfile.TarInfo(name)
            file.size = len(text)
            tar.addfile(file, io.BytesIO(text.encode()))
    return content.getvalue()

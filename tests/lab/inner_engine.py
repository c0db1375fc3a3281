"""A Docker engine in a machine of the tests' own, where nothing of this machine's can be touched (lab/uml.py)."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lab.images import busybox
from lab.processes import wait_until

IMAGE = "tiny"
_DIRECTORY = Path("/run/engine")
_HOST = f"unix://{_DIRECTORY}/docker.sock"
_START_S = 40
# Go looks for vector instructions by itself, and must not use them either (uml.py). runc gives its first process
# in a container an environment without this; crun does all that in C, and is called in its place. And what runs in
# a container has to be told what all others in this machine know.
_WITHOUT_VECTORS = {"GODEBUG": "cpu.avx=off,cpu.avx2=off,cpu.fma=off"}
_RUNC = r"""#!/bin/sh
option=
for word; do
    case $option in
        --bundle) files="$files $word/config.json" ;;
        --process) files="$files $word" ;;
    esac
    option=$word
done
[ -z "$files" ] || sed -i "s/\"env\":\[/&\"GLIBC_TUNABLES=$GLIBC_TUNABLES\",/" $files
exec /usr/bin/crun "$@"
"""


class InnerEngine:
    """A running engine, by its command line. `url` is where it answers."""

    url = _HOST

    def __init__(self) -> None:
        self._environment = {**os.environ, **_WITHOUT_VECTORS, "DOCKER_HOST": _HOST}

    @property
    def log(self) -> str:
        """What the engine wrote so far, and through it the plugins."""
        return (_DIRECTORY / "log").read_text(errors="replace")

    def run(self, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["docker", *arguments],
            env=self._environment,
            input=stdin,
            capture_output=True,
            check=False,
            timeout=60,
        )

    def done(self, *arguments: str, stdin: bytes | None = None) -> bytes:
        """The output of a command that must succeed."""
        result = self.run(*arguments, stdin=stdin)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def error(self, *arguments: str) -> str:
        """What a command says that must fail."""
        result = self.run(*arguments)
        assert result.returncode != 0, result.stdout
        return result.stderr.decode()


@contextlib.contextmanager
def inner_engine(plugin: str, socket_path: str) -> Iterator[InnerEngine]:
    """An engine that knows the image IMAGE, and a volume plugin of this name at the socket."""
    for directory in ("/etc/docker/plugins", _DIRECTORY / "data", _DIRECTORY / "bin", "/sys/fs/cgroup"):
        os.makedirs(directory, exist_ok=True)
    (_DIRECTORY / "bin/runc").write_text(_RUNC)
    (_DIRECTORY / "bin/runc").chmod(0o755)
    Path(f"/etc/docker/plugins/{plugin}.spec").write_text(f"unix://{socket_path}")
    subprocess.run(["/run/modprobe", "-d", "/run/modules", "overlay"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "engine", str(_DIRECTORY / "data")], check=True)
    _mount_control_groups()
    places = [f"--data-root={_DIRECTORY}/data", f"--exec-root={_DIRECTORY}/exec", f"--pidfile={_DIRECTORY}/pid"]
    command = ["dockerd", "--iptables=false", "--bridge=none", f"--host={_HOST}", *places]
    environment = {**os.environ, **_WITHOUT_VECTORS, "PATH": f"{_DIRECTORY}/bin:{os.environ['PATH']}"}
    with (
        open(_DIRECTORY / "log", "wb") as log,
        subprocess.Popen(command, env=environment, stderr=log) as process,
    ):
        try:
            engine = InnerEngine()
            wait_until(lambda: engine.run("version").returncode == 0, "the engine answers", _START_S)
            engine.done("import", "-", IMAGE, stdin=busybox())
            yield engine
        finally:
            process.terminate()
    subprocess.run(["umount", "--lazy", str(_DIRECTORY / "data")], check=True)


def _mount_control_groups() -> None:
    if os.listdir("/sys/fs/cgroup"):
        return
    subprocess.run(["mount", "-t", "tmpfs", "cgroup", "/sys/fs/cgroup"], check=True)
    for line in Path("/proc/cgroups").read_text().splitlines()[1:]:
        controller = line.split()[0]
        os.mkdir(f"/sys/fs/cgroup/{controller}")
        command = ["mount", "-t", "cgroup", "-o", controller, "cgroup", f"/sys/fs/cgroup/{controller}"]
        subprocess.run(command, check=False, stderr=subprocess.DEVNULL)  # not every one can be had alone

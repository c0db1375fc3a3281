"""What the laboratory needs of this machine: `python3 tests/lab/prerequisites.py` installs what is missing.

Standard library only, and any Python 3.11: this runs before there is a virtual environment.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

# Debian package -> the file that shows it is there, whoever installed it (an engine of another maker is as good).
TOOLS = {
    "docker.io": "dockerd",
    "mmdebstrap": "mmdebstrap",
    "busybox-static": "/usr/share/doc/busybox-static",
}
PACKAGES = {
    **TOOLS,
    "systemd": "systemd-analyze",  # not running: it judges our unit
    "e2fsprogs": "mkfs.ext4",
    "postgresql": "/usr/lib/postgresql/*/bin/initdb",
    "chromium-headless-shell": "/usr/bin/chromium*",  # a quarter less than the browser with a window
    "docker-compose": "docker-compose",
    "nodejs": "node",
    "jq": "jq",
    "zsh": "zsh",
    "fish": "fish",
}

# What the tests' own machine (lab/uml.py) is made of. It is unpacked, not installed: to install a file server
# would start it, now and at every boot. Its kernel is there for x86-64 only.
_OF_MACHINE = ("user-mode-linux", "nfs-kernel-server", "nfs-common", "rpcbind", "kmod", "iproute2", "crun")
MACHINE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../.cache/machine")
_LAST_OF_MACHINE = os.path.join(MACHINE, "usr/bin/crun")  # of the package that older machines lack

# When it is installed, Debian's PostgreSQL makes and starts a server, unless told not to. Nobody here needs that.
_CLUSTERS = "/etc/postgresql-common/createcluster.conf"


def search_path() -> str:
    """PATH with the places of system programs, which a plain `su` leaves out."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


def missing(packages: Mapping[str, str] = PACKAGES) -> list[str]:
    """The packages that are not installed."""
    return [package for package, file in packages.items() if not _is_there(file)]


def absence() -> str:
    """Why a system test cannot run here, in a few words; empty where it can."""
    if os.geteuid() != 0:
        return "needs root"
    if packages := missing(TOOLS):
        return f"needs {', '.join(packages)}: `make lab` installs what is missing on Debian"
    return ""


def absence_of_machine() -> str:
    """Why the tests' own machine cannot run here, in a few words; empty where it can."""
    if os.uname().machine != "x86_64":
        return "needs user-mode Linux, which is for x86-64 only"
    if os.geteuid() != 0:
        return "needs root"
    return "" if os.path.exists(_LAST_OF_MACHINE) else "needs user-mode Linux: `make lab` unpacks it on Debian"


def unpack_machine() -> None:
    """Unpack the packages of the machine, and what they need that is not installed, into `MACHINE`."""
    partial = os.path.abspath(f"{MACHINE}.{os.getpid()}")
    os.makedirs(f"{partial}/packages/partial")
    options = ["-o", f"Dir::Cache::archives={partial}/packages", "-o", "APT::Sandbox::User=root"]
    _apt_get("update")
    _apt_get(*options, "install", "--yes", "--no-install-recommends", "--download-only", *_OF_MACHINE)
    for directory in ("bin", "sbin", "lib", "lib64"):  # where Debian's root has links
        os.makedirs(f"{partial}/usr/{directory}")
        os.symlink(f"usr/{directory}", f"{partial}/{directory}")
    for package in glob.glob(f"{partial}/packages/*.deb"):
        contents = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, capture_output=True).stdout
        unpack = ["tar", "--extract", "--keep-directory-symlink", "--no-same-owner", "--directory", partial]
        subprocess.run(unpack, check=True, input=contents)
        os.unlink(package)
    shutil.rmtree(f"{partial}/packages")
    if os.path.isdir(MACHINE):
        os.rename(MACHINE, f"{partial}.old")
    os.rename(partial, MACHINE)
    shutil.rmtree(f"{partial}.old", ignore_errors=True)


def _is_there(file: str) -> bool:
    if file.startswith("/"):
        return bool(glob.glob(file))
    return shutil.which(file, path=search_path()) is not None


def _has_venv() -> bool:
    return importlib.util.find_spec("venv") is not None and importlib.util.find_spec("ensurepip") is not None


def install(packages: list[str]) -> None:
    """Install Debian packages, without questions and without recommendations."""
    if "postgresql" in packages and not os.path.exists(_CLUSTERS):
        os.makedirs(os.path.dirname(_CLUSTERS), exist_ok=True)
        with open(_CLUSTERS, "w", encoding="ascii") as configuration:
            configuration.write("create_main_cluster = false\n")
    _apt_get("update")
    _apt_get("install", "--yes", "--no-install-recommends", *packages)


def _apt_get(*command: str) -> None:
    print(f"prerequisites: apt-get {' '.join(command)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "-qq", *command], check=True, env=environment, stdout=subprocess.DEVNULL)


def main(arguments: list[str]) -> int:
    """What to install. `venv`: what a virtual environment needs; `tools`: what a plugin is built with and the demo
    needs; nothing: the laboratory. `root`: nothing, only look whether this is root.
    """
    if arguments == ["root"]:
        if os.geteuid() != 0:
            print("this starts a Docker engine of its own, and needs root for it", file=sys.stderr)
        return int(os.geteuid() != 0)
    is_venv = arguments == ["venv"]
    if is_venv:
        needed = [] if _has_venv() else ["python3-venv"]
    else:
        needed = missing(TOOLS if arguments == ["tools"] else PACKAGES)
    is_of_lab = not arguments and os.uname().machine == "x86_64"
    is_machine_wanted = is_of_lab and not os.path.exists(_LAST_OF_MACHINE)
    if not needed and not is_machine_wanted:
        return 0
    if os.geteuid() != 0 or not _is_there("apt-get"):
        return _explain([*needed, *(_OF_MACHINE if is_machine_wanted else ())], is_venv)
    try:
        if needed:
            install(needed)
        if is_machine_wanted:
            unpack_machine()
    except subprocess.CalledProcessError as error:
        print(f"prerequisites: {' '.join(map(str, error.cmd))} failed with exit code {error.returncode}")
        return 1
    return 0


def _explain(needed: list[str], is_venv: bool) -> int:
    if is_venv:
        print(
            "this Python cannot make virtual environments: have root run apt-get install python3-venv",
            file=sys.stderr,
        )
        return 1
    print(f"prerequisites: MISSING {', '.join(needed)}, to be installed by root, with apt-get: what needs")
    print("prerequisites: them is SKIPPED: tests with a real Docker engine, NFS server or PostgreSQL", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What the laboratory needs of this machine: `python3 tests/lab/prerequisites.py` installs what is missing.

Standard library only, and any Python 3.11: this runs before there is a virtual environment.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys

# Debian package -> the file that shows it is there, whoever installed it (an engine of another maker is as good).
PACKAGES = {
    "docker.io": "dockerd",
    "mmdebstrap": "mmdebstrap",
    "busybox-static": "/usr/share/doc/busybox-static",
}


def search_path() -> str:
    """PATH with the places of system programs, which a plain `su` leaves out."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


def missing() -> list[str]:
    """The packages that are not installed."""
    return [package for package, file in PACKAGES.items() if not _is_there(file)]


def absence() -> str:
    """Why a system test cannot run here, in a few words; empty where it can."""
    if os.geteuid() != 0:
        return "needs root"
    if packages := missing():
        return f"needs {', '.join(packages)}: `make lab` installs what is missing on Debian"
    return ""


def _is_there(file: str) -> bool:
    if file.startswith("/"):
        return os.path.exists(file)
    return shutil.which(file, path=search_path()) is not None


def _has_venv() -> bool:
    return importlib.util.find_spec("venv") is not None and importlib.util.find_spec("ensurepip") is not None


def install(packages: list[str]) -> None:
    """Install Debian packages, without questions and without recommendations."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
        print(f"prerequisites: apt-get {' '.join(command)}", flush=True)
        subprocess.run(["apt-get", "-qq", *command], check=True, env=environment, stdout=subprocess.DEVNULL)


def main(arguments: list[str]) -> int:
    """`venv`: what a virtual environment needs; `root`: only look whether this is root; none: the laboratory."""
    if arguments == ["root"]:
        if os.geteuid() != 0:
            print("this starts a Docker engine of its own, and needs root for it", file=sys.stderr)
        return int(os.geteuid() != 0)
    is_venv = arguments == ["venv"]
    needed = missing() if not is_venv else [] if _has_venv() else ["python3-venv"]
    if not needed:
        return 0
    if os.geteuid() != 0 or not _is_there("apt-get"):
        return _explain(needed, is_venv)
    try:
        install(needed)
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
    print("prerequisites: them is SKIPPED, that is all tests with a real Docker engine", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

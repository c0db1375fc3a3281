"""Make what a release consists of, in `dist`: `make release`.

    brokervol-VERSION-py3-none-any.whl              for a host: pipx install, and the daemon
    brokervol-plugin-VERSION-MACHINE.tar.gz         the managed plugin, for `docker plugin create`
    brokervol-plugin-VERSION-MACHINE.cdx.json       what the plugin consists of (CycloneDX)
    brokervol-VERSION-requirements.lock             what the wheel was tried with: pip install --constraint
    SHA256SUMS                                      of these, for sha256sum --check

The same tree, on the same base image, gives the same bytes whenever and by whomever it is made.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import platform
import re
import shutil
import tarfile
import tomllib
from pathlib import Path

import build
import sbom

DIST = build.ROOT / "dist"
SUMS = "SHA256SUMS"
_OURS = re.compile(rf"{SUMS}|brokervol-.*\.(whl|tar\.gz|cdx\.json|lock)")


def version() -> str:
    text: str = tomllib.loads((build.ROOT / "pyproject.toml").read_text())["project"]["version"]
    return text


def compress(archive: Path, target: Path) -> None:
    """Write `archive` to `target` in gzip's format, without a name or a time in its head."""
    with (
        archive.open("rb") as content,
        target.open("wb") as written,
        gzip.GzipFile("", "wb", 6, written, mtime=0) as compressed,
    ):
        shutil.copyfileobj(content, compressed, 1 << 20)


def write_sums(directory: Path) -> None:
    """Write the digests of all files beside it as sha256sum does."""
    lines = []
    for path in sorted(directory.iterdir()):
        if path.name != SUMS:
            with path.open("rb") as content:
                lines.append(f"{hashlib.file_digest(content, 'sha256').hexdigest()}  {path.name}\n")
    (directory / SUMS).write_text("".join(lines))


def clear(directory: Path) -> None:
    """An empty `directory`.

    Raises:
        build.BuildFailed: there is what no release consists of, which is not ours to remove.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        if not _OURS.fullmatch(path.name):
            raise build.BuildFailed(f"{path} is of no release: remove it, or name another directory by --dist")
    for path in directory.iterdir():
        path.unlink()


def release(archive: Path, directory: Path) -> None:
    """Fill `directory` with a release of this tree, of which `archive` is the plugin."""
    clear(directory)
    named = f"brokervol-plugin-{version()}-{platform.machine()}"
    with build.step("wheel"):
        build.make_wheel(directory)
    with build.step("plugin"):
        compress(archive, directory / f"{named}.tar.gz")
    with build.step("list of what is in it"), tarfile.open(archive) as content:
        (directory / f"{named}.cdx.json").write_text(sbom.of_plugin(content, version()))
    (directory / f"brokervol-{version()}-requirements.lock").write_bytes(build.LOCK.read_bytes())
    write_sums(directory)
    for path in sorted(directory.iterdir()):
        print(f"  {path.name}: {path.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make release ARGS=...", description="Make the files of a release.")
    parser.add_argument("--dist", type=Path, default=DIST, metavar="DIR", help="where (default: dist)")
    parser.add_argument("--engine", metavar="URL", help="default: DOCKER_HOST, else unix:///var/run/docker.sock")
    parser.add_argument("--base", metavar="IMAGE", help="as of plugin/build.py")
    given = parser.parse_args()
    with build.told():
        release(build.build(build.connect(given.engine), given.base), given.dist)


if __name__ == "__main__":
    main()

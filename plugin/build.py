"""Build the managed plugin: `python plugin/build.py --help`.

Needs an engine, pip's package index, and either a registry or a Debian mirror; nothing else. The root file system
is built by the Dockerfile and kept as one tar file, build/plugin/plugin-KEY.tar; KEY stands for everything that
went into it: an unchanged plugin is not built again. A tar file and not a folder, so that ownership is right
without being root, and so that replacing it never removes a tree.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import docker
import requests
from docker.errors import APIError, BuildError, DockerException, ImageNotFound, NotFound
from docker.models.plugins import Plugin

from storage.definitions import definitions_path, read_backup

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "plugin"
CACHE = ROOT / ".cache"
LOCK = ROOT / "plugin" / "requirements.lock"  # made from pyproject.toml by `make lock`
BASE = "brokervol-base"
PULLED_BASE = "debian:12-slim"
PYTHON = "3.11"  # bookworm's
PULL_SILENCE_S = 15
ENABLE_TIMEOUT_S = 30
# The time of every file that is built, so that what is built twice is the same: as old as a zip file can say.
EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH", "315532800"))
# Wheels that glibc 2.36 (bookworm's) can load. pip knows no "this and older", so the tags in use are named.
WHEEL_TAGS = ("manylinux_2_34", "manylinux_2_31", "manylinux_2_28", "manylinux_2_17", "manylinux2014")


class BuildFailed(Exception):
    """The one sentence that the person who builds needs."""


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Print what is being done, then how long it took."""
    print(f"  {title} ... ", end="", flush=True)
    start = time.monotonic()
    try:
        yield
    except BaseException:
        print("failed", flush=True)
        raise
    print(f"{time.monotonic() - start:.1f} s", flush=True)


def run(what: str, command: list[str]) -> None:
    """Run a command; its output is shown only if it fails."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env=os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH)},
        )
    except FileNotFoundError as error:
        raise BuildFailed(f"{what}: {command[0]} is not installed; `make tools` installs it") from error
    if done.returncode != 0:
        raise BuildFailed(f"{what}: {command[0]} failed:\n{done.stdout.strip()[-2000:]}")


def remove_tree(path: Path) -> None:
    """Remove a directory of ours, never through a mount: what is mounted there is somebody's data."""
    inside = f"{path}/"
    with open("/proc/self/mountinfo", "rb") as lines:
        mountpoints = [os.fsdecode(line.split(b" ")[4]) for line in lines]
    if mounted := [point for point in mountpoints if f"{point}/".startswith(inside)]:
        raise BuildFailed(f"{path} is not removed, because {mounted[0]} is mounted there: unmount it first")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


# Base image


def base_tar() -> Path:
    """A minimal Debian with Python and curl as a tar file, made once and cached.

    mmdebstrap and not debootstrap: 18 s against 41 s on the same machine, 160 MB against 270 MB, and it writes a
    tar file, where debootstrap leaves a tree with device nodes to remove.
    """
    tar = CACHE / f"base-bookworm-{platform.machine()}.tar"
    if tar.exists():
        return tar
    CACHE.mkdir(exist_ok=True)
    unfinished = tar.with_suffix(f".{os.getpid()}")
    unneeded = ("doc", "man", "info", "locale", "i18n", "bug", "lintian")
    command = ["mmdebstrap", "--quiet", "--variant=essential", "--format=tar"]
    command += ["--include=python3,curl,ca-certificates"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in unneeded]
    command += ["bookworm", str(unfinished), *os.environ.get("DEBIAN_MIRROR", "").split()]
    try:
        run("base image", command)
        unfinished.rename(tar)
    finally:
        unfinished.unlink(missing_ok=True)
    return tar


def has_image(engine: docker.DockerClient, name: str) -> bool:
    try:
        engine.images.get(name)
    except ImageNotFound:
        return False
    return True


def import_base(engine: docker.DockerClient, name: str = BASE) -> None:
    """Make the home-made base an image of this engine."""
    answer = engine.api.import_image_from_file(str(base_tar()), repository=name, tag="latest")
    if "errorDetail" in answer:
        raise BuildFailed(f"the engine did not take {base_tar()} as an image: {answer.strip()}")


def can_pull(engine: docker.DockerClient, image: str) -> bool:
    """Whether a registry gave `image`, without having been silent for PULL_SILENCE_S."""
    patience_s = engine.api.timeout
    engine.api.timeout = PULL_SILENCE_S
    try:
        return all("error" not in line for line in engine.api.pull(image, stream=True, decode=True))
    except (DockerException, requests.RequestException):
        return False
    finally:
        engine.api.timeout = patience_s


def base_image(engine: docker.DockerClient, wanted: str | None) -> str:
    """The name of an image of this engine to build on."""
    if wanted:
        if not has_image(engine, wanted) and not can_pull(engine, wanted):
            raise BuildFailed(f"the base image {wanted} is neither in this engine nor to be pulled")
        return wanted
    if has_image(engine, BASE):
        return BASE
    with step(f"pulling {PULLED_BASE}"):
        pulled = can_pull(engine, PULLED_BASE)
    if pulled:
        return PULLED_BASE
    with step("no registry: making a base with mmdebstrap"):
        import_base(engine)
    return BASE


# Packages


def sources() -> list[Path]:
    """Every file that goes into the wheel."""
    files = [ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE")]
    for top in ("daemon", "plugin"):
        files += [path for path in (ROOT / top).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return sorted(files)


def pip(what: str, *arguments: str) -> None:
    run(what, [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments])


def install(what: str, target: Path, *arguments: str) -> None:
    """Install wheels for the plugin's Python into an empty `target`, whatever Python and machine this is."""
    remove_tree(target)
    tags = [f"--platform={tag}_{platform.machine()}" for tag in WHEEL_TAGS]
    pip(
        what,
        *("install", f"--target={target}", "--no-compile", "--only-binary=:all:"),
        *("--implementation=cp", f"--python-version={PYTHON}", *tags),
        *arguments,
    )
    remove_tree(target / "bin")  # scripts for this machine's interpreter


def install_dependencies(target: Path) -> None:
    """Fill `target` with what LOCK names, each by its digest, unless it was filled from the same list before."""
    stamp = target.with_suffix(".stamp")
    wanted = "\n".join((LOCK.read_text(), PYTHON, platform.machine(), ""))
    if stamp.exists() and stamp.read_text() == wanted:
        return
    stamp.unlink(missing_ok=True)
    install("dependencies", target, "--no-deps", "--require-hashes", f"--requirement={LOCK}")
    stamp.write_text(wanted)


def make_wheel(directory: Path) -> Path:
    """A wheel of this tree in `directory`, made in a copy: setuptools litters, and keeps deleted modules."""
    with tempfile.TemporaryDirectory(prefix="brokervol-build-") as temporary:
        for path in sources():
            place = Path(temporary, path.relative_to(ROOT))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
            place.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)  # whatever this user's umask
        pip("wheel", "wheel", "--no-deps", f"--wheel-dir={directory}", temporary)
    return next(directory.glob("brokervol-*.whl"))


def install_brokervol(target: Path) -> None:
    """Fill `target` from a wheel of this tree."""
    with tempfile.TemporaryDirectory(prefix="brokervol-wheel-") as temporary:
        make_wheel(Path(temporary))
        # By name: of a file that is named pip would note the path, another one at each build.
        install("wheel", target, "--no-deps", "--no-index", f"--find-links={temporary}", "brokervol")


# The plugin's archive


def build_key(base: str) -> str:
    """A name for everything that goes into the plugin."""
    digest = hashlib.sha256(f"{base}\0{platform.machine()}\0".encode())
    for path in (ROOT / "Dockerfile", ROOT / "config.json", Path(__file__), *sources()):
        content = path.read_bytes()
        digest.update(
            f"{path.relative_to(ROOT)}\0{path.stat().st_mode & 0o111}\0{len(content)}\0".encode() + content
        )
    return digest.hexdigest()[:16]


def config(key: str) -> bytes:
    """config.json, with a word of which build this is: `docker plugin inspect` shows it."""
    content = json.loads((ROOT / "config.json").read_text())
    content["env"].append({"name": "BROKERVOL_BUILD", "settable": [], "value": key})
    return json.dumps(content, indent=2).encode()


def build_image(engine: docker.DockerClient, base: str) -> str:
    """Run the Dockerfile; the new image's id."""
    try:
        image, _ = engine.images.build(
            path=str(BUILD / "context"),
            dockerfile=str(ROOT / "Dockerfile"),
            buildargs={"BASE": base},
            network_mode="host",
            rm=True,
            forcerm=True,
        )
    except BuildError as error:
        lines = "".join(str(line.get("stream", "")) for line in error.build_log)
        raise BuildFailed(f"the Dockerfile failed: {error.msg}\n{lines[-2000:]}") from error
    return str(image.id)


def export(engine: docker.DockerClient, image: str, target: IO[bytes]) -> None:
    """Write the image's file system as one tar file."""
    container = engine.api.create_container(image, network_disabled=True)["Id"]
    try:
        for chunk in engine.api.export(container):
            target.write(chunk)
    finally:
        engine.api.remove_container(container)


def pack(root_fs: IO[bytes], key: str, archive: Path) -> None:
    """Write the plugin as the engine takes it: config.json beside rootfs/. The same files give the same bytes."""
    root_fs.seek(0)
    unfinished = archive.with_suffix(f".{os.getpid()}")
    with tarfile.open(fileobj=root_fs) as old, tarfile.open(unfinished, "w", format=tarfile.PAX_FORMAT) as new:
        content = config(key)
        entry = tarfile.TarInfo("config.json")
        entry.size, entry.mtime = len(content), EPOCH
        new.addfile(entry, io.BytesIO(content))
        # Hard links last: what they link to must have come before.
        for member in sorted(old, key=lambda member: (member.islnk(), member.name)):
            member.name = f"rootfs/{member.name}"
            member.mtime, member.pax_headers = EPOCH, {}
            if member.islnk():
                member.linkname = f"rootfs/{member.linkname}"
            new.addfile(member, old.extractfile(member) if member.isreg() else None)
    unfinished.rename(archive)


def build(engine: docker.DockerClient, base: str | None = None) -> Path:
    """The plugin's archive, built only if anything that goes into it has changed."""
    (BUILD / "context").mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests and demo may build at the same time
        key = build_key(base or "")
        archive = BUILD / f"plugin-{key}.tar"
        if archive.exists():
            print(f"  {archive.relative_to(ROOT)} is up to date")
        else:
            build_anew(engine, base_image(engine, base), key, archive)
    return archive


def build_anew(engine: docker.DockerClient, base: str, key: str, archive: Path) -> None:
    with step("dependencies"):
        install_dependencies(BUILD / "context" / "dependencies")
    with step("wheel of this tree"):
        install_brokervol(BUILD / "context" / "brokervol")
    with step(f"Dockerfile on {base}"):
        image = build_image(engine, base)
    with step("archive"), tempfile.TemporaryFile(dir=BUILD) as root_fs:
        export(engine, image, root_fs)
        pack(root_fs, key, archive)
    for old in set(BUILD.glob("plugin-*.tar")) - {archive}:
        old.unlink()
    print(f"  {archive.relative_to(ROOT)}: {archive.stat().st_size / 1e6:.0f} MB")


# The engine's plugin


def existing(engine: docker.DockerClient, name: str) -> Plugin | None:
    try:
        plugin: Plugin = engine.plugins.get(name)  # type: ignore[no-untyped-call]
    except NotFound:
        return None
    return plugin


def remove(engine: docker.DockerClient, plugin: Plugin) -> None:
    """Make room for a new build, unless volumes would lose their driver and their state."""
    if volumes := volumes_of(engine, plugin):
        raise BuildFailed(
            f"the plugin {plugin.name} is replaced by removing it, and its volumes ({', '.join(volumes[:5])})"
            " would be lost: export them and remove it yourself (docs/operations.md, Upgrading the plugin),"
            " or build under another --name"
        )
    if plugin.enabled:
        plugin.disable()
    plugin.remove()


def volumes_of(engine: docker.DockerClient, plugin: Plugin) -> list[str]:
    """The names of its volumes. Of a disabled plugin the engine tells none: they are in its state."""
    if plugin.enabled:
        return sorted(str(volume.name) for volume in engine.volumes.list(filters={"driver": plugin.name}))
    directory = Path(engine.info()["DockerRootDir"], "plugins", str(plugin.id))
    try:
        os.stat(directory)
        with contextlib.suppress(FileNotFoundError):
            return sorted(one.name for one in read_backup(definitions_path(f"{directory}/propagated-mount")))
    except (OSError, ValueError) as error:
        raise BuildFailed(
            f"the plugin {plugin.name} is disabled, so the engine does not tell which volumes it has, and its"
            f" state in {directory} cannot be read ({error}): enable it, or remove it (`docker plugin rm`)"
        ) from error
    return []


def changed_settings(plugin: Plugin) -> dict[str, str]:
    """What somebody has set, by variable."""
    defaults = {setting["Name"]: setting["Value"] or "" for setting in plugin.attrs["Config"]["Env"]}
    given = dict(text.partition("=")[::2] for text in plugin.attrs["Settings"]["Env"])
    return {name: value for name, value in given.items() if value != defaults.get(name, value)}


def create(engine: docker.DockerClient, name: str, archive: Path) -> Plugin:
    """The plugin of this name made from the archive, as it is if it was made from it before.

    One that was made from another is replaced, if it has no volumes; what was set of it is set again.
    """
    key = archive.stem.removeprefix("plugin-")
    settings: dict[str, str] = {}
    if plugin := existing(engine, name):
        if f"BROKERVOL_BUILD={key}" in (plugin.settings or {}).get("Env", []):
            print(f"  plugin {plugin.name} is up to date")
            return plugin
        settings = changed_settings(plugin)
        with step(f"removing the earlier build of {plugin.name}"):
            remove(engine, plugin)
    with step(f"creating plugin {name}"), archive.open("rb") as content:
        # Not `create_plugin`, which takes a folder and packs it again.
        answer = engine.api.post(
            f"{engine.api.base_url}/v{engine.api.api_version}/plugins/create",
            params={"name": name},
            data=content,
            headers={"Content-Type": "application/x-tar"},
            timeout=300,
        )
    if not answer.ok:
        raise BuildFailed(f"the engine refused the plugin: {answer.text.strip()}")
    created: Plugin = engine.plugins.get(name)  # type: ignore[no-untyped-call]
    known = {setting["Name"] for setting in created.attrs["Config"]["Env"] if setting["Settable"]}
    if kept := {name: value for name, value in settings.items() if name in known}:
        configure(created, kept)
    return created


def enable(plugin: Plugin, settings: dict[str, str]) -> None:
    """Change settings, for which the plugin has to be disabled, and enable it."""
    try:
        if settings:
            configure(plugin, settings)
    finally:
        if not plugin.enabled:
            with step(f"enabling plugin {plugin.name}"):
                plugin.enable(timeout=ENABLE_TIMEOUT_S)


def configure(plugin: Plugin, settings: dict[str, str]) -> None:
    if plugin.enabled:
        try:
            plugin.disable()
        except APIError as error:
            raise BuildFailed(
                f"settings can only be changed while {plugin.name} is disabled, and the engine answered to that: "
                f"{error.explanation}; remove its volumes first (`docker volume rm`)"
            ) from error
    plugin.configure(settings)


def setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return name, value


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build brokervol's managed plugin and create it in an engine.")
    parser.add_argument("--engine", metavar="URL", help="default: DOCKER_HOST, else unix:///var/run/docker.sock")
    parser.add_argument("--name", default="brokervol", help="the plugin's name (default: %(default)s)")
    parser.add_argument("--base", metavar="IMAGE", help=f"default: {BASE}, else {PULLED_BASE}, else made here")
    parser.add_argument("--install", action="store_true", help="enable the plugin as well")
    parser.add_argument("--set", metavar="KEY=VALUE", type=setting, action="append", default=[], dest="settings")
    return parser.parse_args()


def connect(url: str | None) -> docker.DockerClient:
    try:
        return docker.DockerClient(base_url=url, version="auto") if url else docker.from_env(version="auto")
    except DockerException as error:
        where = url or os.environ.get("DOCKER_HOST", "/var/run/docker.sock")
        raise BuildFailed(
            f"no Docker engine answers at {where}: start one, or name another by --engine"
        ) from error


@contextlib.contextmanager
def told() -> Iterator[None]:
    """End the program with a sentence where there is one to tell, and with 1."""
    try:
        yield
    except BuildFailed as error:
        sys.exit(f"{sys.argv[0]}: {error}")
    except APIError as error:
        sys.exit(f"{sys.argv[0]}: the engine answered: {error.explanation or error}")
    except (DockerException, requests.RequestException) as error:
        sys.exit(f"{sys.argv[0]}: the engine failed: {error}")


def main() -> None:
    given = arguments()
    settings = dict(given.settings)
    with told():
        engine = connect(given.engine)
        plugin = create(engine, given.name, build(engine, given.base))
        if given.install:
            enable(plugin, settings)
        elif settings:
            configure(plugin, settings)


if __name__ == "__main__":
    main()

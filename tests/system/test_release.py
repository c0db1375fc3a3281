"""What `make release` makes: the same twice, and each file does on a real engine or host what it is for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

import build
import release
from lab.engine import Engine
from lab.images import TASK
from lab.processes import running
from lab.volume_driver import Calls

UNIT = build.ROOT / "plugin/brokervol.service"
_COMMAND = "/usr/local/bin/brokervol"


@pytest.fixture(scope="module")
def archive(shared_engine: Engine) -> Path:
    return build.build(shared_engine.client)


@pytest.fixture(scope="module")
def made(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("release")
    release.release(archive, directory)
    return directory


@pytest.fixture(scope="module")
def installed(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The command as the wheel brings it. Its dependencies are those of the tests' environment."""
    prefix = tmp_path_factory.mktemp("installed")
    wheel = next(made.glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([*pip, "--prefix", str(prefix), str(wheel)], check=True)
    packages = next(prefix.glob("lib/python*/site-packages"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(packages))  # before this tree, which the environment has installed
        yield str(prefix / "bin/brokervol")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_release_made_again_is_the_same(made: Path, archive: Path, tmp_path: Path) -> None:
    release.release(archive, tmp_path)
    assert names(tmp_path) == names(made)
    assert (tmp_path / "SHA256SUMS").read_text() == (made / "SHA256SUMS").read_text()
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=tmp_path, check=True)
    version, machine = release.version(), os.uname().machine
    assert names(made) == [
        "SHA256SUMS",
        f"brokervol-{version}-py3-none-any.whl",
        f"brokervol-{version}-requirements.lock",
        f"brokervol-plugin-{version}-{machine}.cdx.json",
        f"brokervol-plugin-{version}-{machine}.tar.gz",
    ]


def test_what_is_in_the_way_of_a_release_is_kept(made: Path, tmp_path: Path) -> None:
    (tmp_path / "brokervol-0.0.1-py3-none-any.whl").touch()
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(build.BuildFailed, match=r"thesis\.txt is of no release"):
        release.release(made, tmp_path)
    assert names(tmp_path) == ["brokervol-0.0.1-py3-none-any.whl", "thesis.txt"]


def test_archive_is_a_plugin_that_works(made: Path, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "plugin").mkdir()
    subprocess.run(["tar", "-C", str(tmp_path / "plugin"), "-xzf", str(next(made.glob("*.tar.gz")))], check=True)
    docker = ["docker", "--host", engine.url]
    host = tmp_path / "host"
    host.mkdir()
    (host / "a.txt").write_text("from the host")
    try:
        for words in (
            ("plugin", "create", "released", str(tmp_path / "plugin")),
            ("plugin", "enable", "released"),
            ("volume", "create", "--driver", "released", "--opt", f"host_path={host}", "released-data"),
        ):
            subprocess.run([*docker, *words], check=True, stdout=subprocess.DEVNULL)
        output = engine.run(TASK, "cat", "/data/a.txt", volumes=["released-data:/data:ro"]).output
        assert output == "from the host"
    finally:
        for words in (("volume", "rm", "--force", "released-data"), ("plugin", "rm", "--force", "released")):
            subprocess.run([*docker, *words], check=False, stdout=subprocess.DEVNULL)


def test_list_of_contents_is_valid_and_whole(made: Path) -> None:
    text = next(made.glob("*.cdx.json")).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    purls = {component["purl"].partition("?")[0] for component in json.loads(text)["components"]}
    locked = {f"pkg:pypi/{line.split()[0].replace('==', '@')}" for line in locked_lines()}
    assert {purl for purl in purls if purl.startswith("pkg:pypi/")} == locked | {
        f"pkg:pypi/brokervol@{release.version()}"
    }
    debian = {purl.partition("@")[0].removeprefix("pkg:deb/debian/") for purl in purls if "pkg:deb/" in purl}
    assert {"libc6", "libssl3", "libsqlite3-0", "python3.11-minimal"} <= debian
    assert not {"bash", "dash", "apt", "coreutils"} & debian, "no shell and no package manager is in the plugin"


def locked_lines() -> list[str]:
    return [line for line in build.LOCK.read_text().splitlines() if line[:1].isalnum()]


def test_wheel_brings_the_command(installed: str) -> None:
    done = subprocess.run([installed, "--help"], capture_output=True, text=True, check=True)
    assert "daemon" in done.stdout
    assert "status" in done.stdout


def test_service_runs_from_the_wheel(installed: str, tmp_path: Path) -> None:
    """The unit's own command line and capabilities, with sockets and state elsewhere."""
    settings = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if "=" in line and line[0] != "#")
    assert settings["ExecStart"] == f"{_COMMAND} daemon"
    kept = ",".join(f"+{name.lower().removeprefix('cap_')}" for name in settings["CapabilityBoundingSet"].split())
    command = ["setpriv", f"--bounding-set=-all,{kept}", f"--inh-caps=-all,{kept}", "--no-new-privs"]
    listening = str(tmp_path / "brokervol.sock")
    (tmp_path / "data").mkdir()
    environment = {"BROKERVOL_SOCKET": listening, "BROKERVOL_ROOT": str(tmp_path / "root")}
    in_own_namespace = ["unshare", "--mount", "--propagation", "private", "--"]
    with running([*in_own_namespace, *command, installed, "daemon"], environment, listening) as daemon:
        calls = Calls(daemon)
        calls.done("Create", Name="data", Opts={"host_path": str(tmp_path / "data")})
        mounted = calls.done("Mount", Name="data", ID="a" * 64).json["Mountpoint"]
        assert Path(f"/proc/{daemon.pid}/root{mounted}").samefile(tmp_path / "data")
        calls.done("Unmount", Name="data", ID="a" * 64)
        assert daemon.terminate() == 0


def test_service_is_as_systemd_wants_it(installed: str, tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(_COMMAND, installed))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")

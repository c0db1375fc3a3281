"""The settings: what is accepted, what is said of what is not, and that code, config.json and docs agree."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brokervol import settings
from brokervol.settings import ALL, DAEMON, DRIVER, SIDECAR, Address, Setting, Settings
from lab import declared
from sidecar.limits import DEFAULTS, Limits, limits_of
from storage.brokers.s3_broker import BULK_VARIABLE
from unit.sidecar_process import clean_environment
from volumedriver import nfs, nfs_servers, reconcile

ROOT = Path(__file__).parents[2]
WHOLE = re.compile(r"a whole number from (\d+) to (\d+)")
NUMBERS = [setting for setting in ALL if WHOLE.fullmatch(setting.kind.accepted)]
VARIABLE = re.compile(
    r"(?:BROKERVOL|AWS|ALLOWED|NFS)_[A-Z0-9]+(?:_[A-Z0-9]+)*|LOG_LEVEL|DATABASE_URL|STATUS_LISTEN|HTTPS_PROXY"
)
# Not for operators: of the client, of the tests and the build, or between our own processes.
OTHERS = {"BROKERVOL_SUPERVISED", "BROKERVOL_BUILD", "BROKERVOL_DEBUG"}
# The SDK's names of what is no setting of ours: the keys in a profile, and what only AWS gives a machine.
OF_SDK = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}


def read(process: str, *argv: str, **environment: str) -> Settings:
    return settings.read(process, "", argv, environment)


def refused(capfd: pytest.CaptureFixture[str], process: str, *argv: str, **environment: str) -> list[str]:
    with pytest.raises(SystemExit) as end:
        read(process, *argv, **environment)
    assert end.value.code == 2
    out, err = capfd.readouterr()
    assert out == ""
    return err.splitlines()


def test_an_option_goes_before_its_variable_and_an_empty_one_is_none() -> None:
    found = read(
        SIDECAR, "--max-waiting", "3", BROKERVOL_MAX_WAITING="9", BROKERVOL_MAX_REQUESTS="7", LOG_LEVEL=""
    )
    assert (found.max_waiting, found.max_requests, found.log_level) == (3, 7, "info")
    assert limits_of(found) == DEFAULTS._replace(max_requests=7, max_waiting=3)
    assert found.environment() == {"BROKERVOL_MAX_WAITING": "3", "BROKERVOL_MAX_REQUESTS": "7"}


def test_values_have_types() -> None:
    found = read(DRIVER, NFS_PROBE_S="5", LOG_LEVEL="WARNING")
    assert (found.nfs_probe_s, found.log_level, found.root) == (5, "warning", "/var/lib/brokervol")
    assert read(SIDECAR).status_listen is None
    assert read(SIDECAR, STATUS_LISTEN="127.0.0.1:9323").status_listen == Address("127.0.0.1", 9323)
    assert str(read(SIDECAR, STATUS_LISTEN="[::1]:0").status_listen) == "[::1]:0"


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda setting: setting.name)
def test_numbers_have_a_range_and_say_so(setting: Setting[int]) -> None:
    match = WHOLE.fullmatch(setting.kind.accepted)
    assert match is not None
    least, most = map(int, match.groups())
    assert least <= setting.value("") <= most
    assert (setting.value(str(least)), setting.value(str(most))) == (least, most)
    for text in (str(least - 1), str(most + 1), "-1", "1.5", "many", "1e3", " 5", "9" * 1000, "٣"):
        with pytest.raises(ValueError, match=f"^{setting.variable} .*is .*; accepted is {match[0]}$") as told:
            setting.value(text)
        assert len(str(told.value)) < 250


@pytest.mark.parametrize(
    ("process", "variable", "text", "accepted"),
    [
        (DAEMON, "BROKERVOL_VIEW", "mine", "caller or self"),
        (DAEMON, "LOG_LEVEL", "loud", "debug, info, warning or error"),
        (DAEMON, "BROKERVOL_MAX_REQUESTS", "0", "a whole number from 1 to 4096"),
        (DAEMON, "NFS_MOUNT_TIMEOUT_S", "25", "a whole number from 1 to 24"),
        (SIDECAR, "BROKERVOL_S3_BULK", "curl", "obstore or boto3"),
        *(
            (SIDECAR, "STATUS_LISTEN", text, "a loopback address with a port")
            for text in ("9323", ":9323", "0.0.0.0:9323", "10.0.0.1:9323", "localhost:9323", "::1:9323", "[::1]")
        ),
        *(
            (SIDECAR, "STATUS_LISTEN", text, "a loopback address with a port")
            for text in ("127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:x", "[127.0.0.1]:9323", "127.0.0.1:9323 ")
        ),
    ],
)
def test_a_wrong_value_is_told_with_its_variable_and_what_is_accepted(
    capfd: pytest.CaptureFixture[str], process: str, variable: str, text: str, accepted: str
) -> None:
    (sentence,) = refused(capfd, process, **{variable: text})
    assert sentence.startswith(f"brokervol {process}: {variable} (--")
    assert f") is {text!r}; accepted is {accepted}" in sentence


def test_all_that_is_wrong_is_told_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    sentences = refused(capfd, DAEMON, "--nfs-probe-s", "0", BROKERVOL_VIEW="x", AWS_MAX_ATTEMPTS="no")
    assert [sentence.split()[2] for sentence in sentences] == ["NFS_PROBE_S", "BROKERVOL_VIEW", "AWS_MAX_ATTEMPTS"]


def test_a_password_is_not_repeated(capfd: pytest.CaptureFixture[str]) -> None:
    (sentence,) = refused(capfd, SIDECAR, DATABASE_URL="postgres//me:hunter2@host/x")
    assert "hunter2" not in sentence
    assert "DATABASE_URL (--database-url) is something that is not repeated here; accepted is an URL" in sentence


def test_an_unknown_option_is_told_in_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    (sentence,) = refused(capfd, DAEMON, "--sock", "x")
    assert sentence == "brokervol daemon: unrecognized arguments: --sock x; --help lists what is accepted"


@pytest.mark.parametrize(
    ("variable", "text", "why"),
    [
        ("ALLOWED_HOST_PATHS", "/srv:data", "the allowed host path 'data' is not accepted"),
        ("ALLOWED_NFS_SERVERS", "nas export:", "export:"),
        ("BROKERVOL_MAX_REQUESTS", "0", "accepted is a whole number from 1 to 4096"),
    ],
)
def test_the_daemon_ends_before_anything_is_served(tmp_path: Path, variable: str, text: str, why: str) -> None:
    """What only the driver can judge ends the supervisor, too."""
    environment = {
        **clean_environment(),
        "BROKERVOL_ROOT": str(tmp_path / "root"),
        "BROKERVOL_SOCKET": str(tmp_path / "driver.sock"),
        "BROKERVOL_LISTEN": str(tmp_path / "broker.sock"),
        variable: text,
    }
    command = [sys.executable, "-m", "brokervol", "daemon"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert (
        f": {variable} (--{variable.lower().removeprefix('brokervol_').replace('_', '-')}) is {text!r}; "
        in sentence
    )
    assert why in sentence
    assert not (tmp_path / "driver.sock").exists()


def test_in_the_plugin_the_daemon_waits_for_the_engine_to_end_it() -> None:
    """An engine starts a plugin again that ends by itself, and loses track of it."""
    environment = {**clean_environment(), "BROKERVOL_BUILD": "x", "LOG_LEVEL": "loud"}
    command = [sys.executable, "-m", "brokervol", "daemon"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stderr is not None
        assert "LOG_LEVEL (--log-level) is 'loud'" in daemon.stderr.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.wait(0.3)
        daemon.terminate()
        assert daemon.wait(20) == 2


@pytest.mark.parametrize("process", [DRIVER, SIDECAR, DAEMON])
def test_help_lists_all_that_a_process_reads(process: str) -> None:
    command = [sys.executable, "-m", "brokervol", process, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50)
    said = re.sub(r"\s+", "", done.stdout)
    for setting in ALL:
        assert (setting.variable in said) == setting.is_read_by(process), setting.variable
        if setting.is_read_by(process) and not setting.is_of_sdk:
            assert re.sub(r"\s+", "", f"{setting.option}TEXT") in said
            assert re.sub(r"\s+", "", f"accepted: {setting.kind.accepted}") in said


def test_what_the_modules_take_for_defaults_is_what_is_declared() -> None:
    assert Settings.nfs_mount_timeout_s.value("") == nfs.TIMEOUT_S
    assert Settings.nfs_probe_s.value("") == nfs_servers.PROBE_INTERVAL_S
    assert Settings.nfs_boot_s.value("") == nfs_servers.BOOT_S
    assert Settings.reference_grace_s.value("") == reconcile.GRACE_S
    assert Settings.s3_bulk.variable == BULK_VARIABLE
    assert {*Limits._fields} <= {setting.name for setting in ALL}


# What is written down


def test_the_plugin_is_told_what_is_declared() -> None:
    written = declared.CONFIG.read_text()
    assert json.loads(written) == json.loads(declared.config(written)), "write it anew: tests/lab/declared.py"
    entries: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in json.loads(written)["env"]}
    for setting in ALL:
        entry = entries.get(setting.variable)
        assert (entry is not None) == setting.is_of_plugin
        if entry is not None:
            setting.value(entry.get("value", ""))  # is accepted
            assert ("value" in entry["settable"]) == setting.is_settable


def test_the_page_lists_what_is_declared() -> None:
    written = declared.PAGE.read_text()
    assert written == declared.page(written), "write it anew: tests/lab/declared.py"


def test_every_variable_in_the_code_is_in_the_docs_and_the_other_way_round() -> None:
    in_code = {name for path in sources() for name in names(path)}
    declared_names = {setting.variable for setting in ALL}
    assert in_code - declared_names <= OTHERS | OF_SDK | {"DOCKER_HOST"}, "declare it in brokervol.settings"
    pages = {path.name: path.read_text() for path in ROOT.glob("docs/*.md")}
    in_docs = {name for text in pages.values() for name in re.findall(rf"`{VARIABLE.pattern}`", text)}
    in_docs = {name.strip("`") for name in in_docs}
    assert declared_names | OTHERS <= in_docs
    tests = re.compile(r"BROKERVOL_(TEST|REQUIRE)_")
    unknown = {name for name in in_docs - declared_names - OTHERS - OF_SDK if not tests.match(name)}
    assert not unknown, f"docs tell of {unknown}, which nothing reads"


def sources() -> Iterator[Path]:
    yield from ROOT.glob("daemon/**/*.py")
    yield from ROOT.glob("plugin/**/*.py")


def names(path: Path) -> Iterator[str]:
    """The variables that are named in a module, as a whole string."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and VARIABLE.fullmatch(node.value):
            yield node.value

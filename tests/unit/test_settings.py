"""The settings: what is accepted, what is said of what is not, and that code, config.json and docs agree."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brokervol import premises, settings
from brokervol.kinds import Address
from brokervol.settings import ALL, DAEMON, DRIVER, SIDECAR, Setting, Settings
from lab import declared
from sidecar.limits import DEFAULTS, Limits, limits_of
from storage.brokers.s3_broker import BULK_VARIABLE
from unit.sidecar_process import clean_environment
from volumedriver import nfs, nfs_policy, nfs_servers, policy, reconcile

ROOT = Path(__file__).parents[2]
WHOLE = re.compile(r"a whole number from (\d+) to (\d+)")
NUMBERS = [setting for setting in ALL if WHOLE.fullmatch(setting.kind.accepted)]
VARIABLE = re.compile(
    r"(?:BROKERVOL|AWS|ALLOWED|NFS)_[A-Z0-9]+(?:_[A-Z0-9]+)*|LOG_(?:LEVEL|FORMAT)|DATABASE_URL|STATUS_LISTEN|HTTPS_PROXY"
)
# Not for operators: of the client, of the tests and the build, or between our own processes.
OTHERS = {"BROKERVOL_SUPERVISED", "BROKERVOL_BUILD", "BROKERVOL_DEBUG"}
# The SDK's names of what is no setting of ours: the keys in a profile, and what only AWS gives a machine.
OF_SDK = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}

NO_URLS = (
    *("not a url", " ", "ftp://host", "http://", "host:3128", "HTTP://host", "https://a b", "http://host\n"),
    *(
        "https://host:0",
        "https://host:65536",
        "https://host:x",
        "https://host:٣",
        "https://host/x",
        "https://host?x",
    ),
)


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
        (SIDECAR, "STATUS_LISTEN", "[::1%lo]:9323", "a loopback address with a port"),
        *(
            (DAEMON, f"BROKERVOL_{name}", text, "an absolute path")
            for name in ("ROOT", "HOSTFS", "SOCKET", "LISTEN", "WORKSPACES", "CREDENTIALS")
            for text in ("srv/volumes", "/srv/volumes ", " /srv", "/srv\n", "/srv/\udcff", "~/srv")
        ),
        *(
            (SIDECAR, "BROKERVOL_AUDIT_LOG", text, "a file, below ROOT/.state")
            for text in ("../x", "/a/../x", "x/")
        ),
        *((SIDECAR, "BROKERVOL_AUDIT_LOG", text, "a file, below ROOT/.state") for text in (".", "x\n", " ")),
    ],
)
def test_a_wrong_value_is_told_with_its_variable_and_what_is_accepted(
    capfd: pytest.CaptureFixture[str], process: str, variable: str, text: str, accepted: str
) -> None:
    (sentence,) = refused(capfd, process, **{variable: text})
    assert sentence.startswith(f"brokervol {process}: {variable} (--")
    assert f") is {text!r}; accepted is {accepted}" in sentence


@pytest.mark.parametrize(
    ("variable", "text", "accepted"),
    [
        *(("AWS_ENDPOINT_URL_S3", text, "https://host or http://host:port") for text in NO_URLS),
        *(
            ("HTTPS_PROXY", text, "an URL, such as http://proxy:3128")
            for text in (*NO_URLS, "socks5://proxy:1080")
        ),
        *(
            ("AWS_DEFAULT_REGION", text, "a region's name")
            for text in ("Frankfurt!", " eu-central-1", "eu_central")
        ),
        ("AWS_CA_BUNDLE", "ca.pem", "an absolute path"),
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", "an absolute path"),
    ],
)
def test_what_the_sdk_reads_is_checked_as_well(
    capfd: pytest.CaptureFixture[str], variable: str, text: str, accepted: str
) -> None:
    (sentence,) = refused(capfd, SIDECAR, **{variable: text})
    assert sentence.startswith(f"brokervol sidecar: {variable} is {text!r}; accepted is {accepted}")


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        *(
            ("AWS_ENDPOINT_URL_S3", text)
            for text in ("https://s3.example", "http://[fd00::1]:9000", "http://minio:9000/")
        ),
        *(
            ("HTTPS_PROXY", text)
            for text in ("http://proxy:3128", "http://me:a%40b@proxy:3128/", "https://10.0.0.1")
        ),
        ("DATABASE_URL", "sqlite:////srv/a catalog.sqlite?timeout=3"),
        ("DATABASE_URL", "postgresql+psycopg://me:p@host/db"),
        ("BROKERVOL_AUDIT_LOG", "OFF"),
        ("BROKERVOL_AUDIT_LOG", "/var/log/brokervol/audit..jsonl"),
    ],
)
def test_what_is_right_is_taken(variable: str, text: str) -> None:
    assert read(SIDECAR, **{variable: text}).environment() == {variable: text}


def test_no_password_of_an_url_is_repeated(capfd: pytest.CaptureFixture[str]) -> None:
    told = refused(
        capfd,
        DAEMON,
        DATABASE_URL="sqlite://:memory:",
        HTTPS_PROXY="me:hunter2@proxy:3128",
        AWS_ENDPOINT_URL_S3="https://me:hunter2@host",
        BROKERVOL_ROOT="https://me:hunter2@host",
    )
    assert len(told) == 4
    assert all("is something that is not repeated here; accepted is " in sentence for sentence in told)


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


# What is on this machine


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory, and where the process is, with a file, links, a pipe, certificates and a directory of state."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "lost").symlink_to("nowhere")
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----")
    (tmp_path / "root/.state/directory").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "wrong",
    [
        (DAEMON, "root", "HERE/file", "HERE/file is no directory"),
        (DAEMON, "root", "HERE/file/below", "HERE/file is no directory"),
        (DRIVER, "socket", "HERE/lost/socket", "HERE/lost is a link to nothing"),
        (DRIVER, "root", "/..", "no directory of this host could be a volume then"),
        (SIDECAR, "root", f"/{'x' * 100}", "of its sidecar/broker.sock, Linux takes 107 bytes of a socket's path"),
        (DRIVER, "root", f"/{'x' * 256}", "file name too long"),
        (DRIVER, "hostfs", "HERE/none", "there is no such directory"),
        (DRIVER, "socket", "HERE/file", "there is something that is no socket"),
        (DAEMON, "socket", "HERE/file/socket", "HERE/file is no directory"),
        (SIDECAR, "listen", "HERE", "there is something that is no socket"),
        (SIDECAR, "listen", f"/{'x' * 107}", "Linux takes 107 bytes of a socket's path"),
        (SIDECAR, "listen", f"/{'x' * 98}/s", "98 of them its directory's"),
        (SIDECAR, "listen", "/run/docker/plugins/brokervol.sock", "that is the socket that the engine calls"),
        (SIDECAR, "database_url", "sqlite:////none/x", "there is no directory /none"),
        (
            SIDECAR,
            "database_url",
            "sqlite:///none/x",
            "there is no directory HERE/none (an absolute path has four",
        ),
        (SIDECAR, "database_url", "sqlite:///HERE", "it is there, and no file"),
        (SIDECAR, "database_url", "sqlite:///HERE/root/.state/mounts.sqlite", "that brokervol keeps there itself"),
        (SIDECAR, "audit_log", "/etc", "it is a directory"),
        (SIDECAR, "audit_log", "directory", "it is a directory"),
        (SIDECAR, "audit_log", "none/x", "there is no directory HERE/root/.state/none"),
        (SIDECAR, "audit_log", "/none/x", "there is no directory /none"),
        (SIDECAR, "audit_log", "HERE/link", "it is a link"),
        (SIDECAR, "audit_log", "HERE/pipe", "it is a pipe"),
        (SIDECAR, "audit_log", "definitions.sqlite", "is a file that brokervol keeps there itself"),
        (SIDECAR, "audit_log", "HERE/root/.state/log.jsonl", "is a file that brokervol keeps there itself"),
        (SIDECAR, "aws_ca_bundle", "/none.pem", "there is no such file"),
        (SIDECAR, "aws_ca_bundle", "/etc", "it is a directory"),
        (SIDECAR, "aws_ca_bundle", "HERE/file", "it holds no certificate"),
        (SIDECAR, "aws_ca_bundle", "HERE/pipe", "it holds no certificate"),
        (SIDECAR, "credentials", "/etc", "it is a directory"),
        (SIDECAR, "aws_shared_credentials_file", "/etc", "it is a directory"),
    ],
    ids=lambda wrong: f"{wrong[1]}-{wrong[2]:.30}",
)
def test_what_is_not_as_a_setting_says_is_told(
    place: Path, capfd: pytest.CaptureFixture[str], wrong: tuple[str, str, str, str]
) -> None:
    process, name, text, why = wrong
    given = {"root": str(place / "root"), name: text.replace("HERE", str(place))}
    with pytest.raises(SystemExit) as end:
        premises.check(process, Settings(given))
    assert end.value.code == 2
    (sentence,) = capfd.readouterr().err.splitlines()
    assert sentence.startswith(f"brokervol {process}: {vars(Settings)[name].variable}")
    assert why.replace("HERE", str(place)) in sentence


def test_in_the_plugin_it_is_told_where_the_files_of_the_host_are(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = {"root": str(place), "hostfs": str(place), "aws_ca_bundle": "/etc/ca.pem"}
    with pytest.raises(SystemExit):
        premises.check(SIDECAR, Settings(given))
    assert f"there is no such file; the host's files are below {place}\n" in capfd.readouterr().err


@pytest.mark.parametrize("file", ["", "HERE/none.json", "HERE"])
def test_the_view_of_its_own_needs_a_file_of_workspaces(
    place: Path, capfd: pytest.CaptureFixture[str], file: str
) -> None:
    given = {"root": str(place), "workspaces": file.replace("HERE", str(place))}
    premises.check(SIDECAR, Settings(given))
    with pytest.raises(SystemExit):
        premises.check(SIDECAR, Settings({**given, "view": "self"}))
    assert "BROKERVOL_WORKSPACES (--workspaces) is '" in capfd.readouterr().err


def test_what_is_there_or_can_be_made_passes(place: Path) -> None:
    given = {
        "root": "lost/root",
        "socket": "new/run/driver.sock",
        "listen": "root/../new/broker.sock",
        "credentials": "none",
        "aws_ca_bundle": "ca.pem",
        "workspaces": "pipe",
        "audit_log": "file",
    }
    absolute = {name: str(place / path) for name, path in given.items()}
    absolute |= {"view": "self", "database_url": f"sqlite:///{place}/link"}
    premises.check(DAEMON, Settings(absolute))
    for text in ("-", "off", "audit.jsonl", "lock.jsonl", "/dev/null"):
        premises.check(DAEMON, Settings({**absolute, "audit_log": text}))
    assert not {"new", "nowhere"} & {*os.listdir(place)}, "nothing is made"


HOSTILE = (
    *(
        " ",
        "\n",
        "x ",
        "-1",
        "+5",
        "5s",
        "1e3",
        "0x10",
        "1_000",
        "٣",
        "9" * 5000,
        "nan",
        "true",
        "\udcff",
        ",",
        ":",
    ),
    *(
        "/",
        "//",
        "/etc",
        "/etc/",
        "/etc/passwd",
        "/none/x",
        "../x",
        "x/y",
        "/srv\n/data",
        f"/{'x' * 300}",
        "/x" * 3000,
    ),
    *(
        "ftp://host",
        "http://me:hunter2@host/x",
        "sqlite://",
        "sqlite:///:memory:",
        "[::1]:1",
        "127.0.0.1:1",
        "off",
        "-",
    ),
)


@pytest.mark.parametrize("setting", ALL, ids=lambda setting: setting.name)
def test_whatever_is_given_is_taken_or_refused_in_one_sentence(
    capfd: pytest.CaptureFixture[str], setting: Setting[object]
) -> None:
    lists = {"allowed_host_paths": policy.parse_allowed, "allowed_nfs_servers": nfs_policy.parse_allowed}
    for text in HOSTILE:
        sentences = []
        try:
            setting.value(text)
            lists.get(setting.name, str)(text)
            premises.check(DAEMON, Settings({setting.name: text}))
        except ValueError as error:
            sentences = [str(error)]
        except SystemExit:
            sentences = capfd.readouterr().err.splitlines()
        for sentence in sentences:
            assert setting.variable in sentence or "is not accepted: " in sentence or "it names no " in sentence
            assert len(sentence.splitlines()) == 1
            assert "hunter2" not in sentence or setting.name in lists or setting.name == "audit_log"
        assert len(sentences) <= 1


@pytest.mark.parametrize(
    ("variable", "text", "why"),
    [
        ("ALLOWED_HOST_PATHS", "/srv:data", "the allowed host path 'data' is not accepted"),
        ("ALLOWED_NFS_SERVERS", "nas export:", "export:"),
        ("ALLOWED_HOST_PATHS", ",", "it names no directory; empty allows all but the system's"),
        ("ALLOWED_NFS_SERVERS", " ", "it names no server; empty allows all"),
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


def test_variables_that_are_nearly_settings_are_found() -> None:
    given = ("LOG_LEVLE", "BROKERVOL_LOG_LEVEL", "ALLOWED_HOST_PATH", "BROKERVOL_S3_BULKK", "BROKERVOL_ROOTS")
    others = ("BROKERVOL_BUILD", "BROKERVOL_DEBUG", "BROKERVOL_SUPERVISED", "HTTP_PROXY", "AWS_PROFILE", "PATH")
    environment = dict.fromkeys([*given, *others, *(setting.variable for setting in settings.ALL)], "x")
    both = {"BROKERVOL_LOG_LEVEL": "LOG_LEVEL", "BROKERVOL_ROOTS": "BROKERVOL_ROOT", "LOG_LEVLE": "LOG_LEVEL"}
    of_driver = {"ALLOWED_HOST_PATH": "ALLOWED_HOST_PATHS", **both}
    of_sidecar = {**both, "BROKERVOL_S3_BULKK": "BROKERVOL_S3_BULK"}
    assert settings.mistaken(settings.DRIVER, environment) == of_driver
    assert settings.mistaken(settings.SIDECAR, environment) == of_sidecar
    assert settings.mistaken(settings.DAEMON, environment) == of_driver | of_sidecar


def test_a_variable_that_is_nearly_a_setting_is_told_in_the_log(tmp_path: Path) -> None:
    environment = {**clean_environment(), "LOG_LEVLE": "debug"}
    (tmp_path / "w.json").write_text("{}")
    for module, arguments in (
        ("volumedriver", ("--socket", str(tmp_path / "d.sock"))),
        ("sidecar", ("--view", "self", "--workspaces", str(tmp_path / "w.json"))),
    ):
        command = [sys.executable, "-m", module, "--root", str(tmp_path), *arguments]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            first = json.loads(process.stdout.readline())
            process.terminate()
            process.communicate(timeout=50)
        assert (first["event"], first["variable"]) == ("a variable is no setting", "LOG_LEVLE")
        assert first["meant"] == "LOG_LEVEL"


@pytest.mark.parametrize(("variable", "text"), [("LOG_LEVEL", "loud"), ("AWS_CA_BUNDLE", "/hostfs/none.pem")])
def test_in_the_plugin_the_daemon_waits_for_the_engine_to_end_it(variable: str, text: str) -> None:
    """An engine starts a plugin again that ends by itself, and loses track of it."""
    environment = {**clean_environment(), "BROKERVOL_BUILD": "x", variable: text}
    command = [sys.executable, "-m", "brokervol", "daemon"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stderr is not None
        line = daemon.stderr.readline()
        assert line.startswith(f"brokervol daemon: {variable} ")
        assert f" is {text!r}; " in line
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.wait(0.3)
        daemon.terminate()
        assert daemon.wait(20) == 2


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://me:hunter2@host:port/x", "the port in the database's URL is not a number"),
        ("postgresql+nope://me:hunter2@host/x", "Can't load plugin: sqlalchemy.dialects:postgresql.nope"),
    ],
)
def test_what_only_the_sidecar_can_judge_ends_it_as_any_wrong_setting(tmp_path: Path, url: str, why: str) -> None:
    (tmp_path / "w.json").write_text("{}")
    command = [sys.executable, "-m", "sidecar", "--root", str(tmp_path), "--view", "self"]
    command += ["--workspaces", str(tmp_path / "w.json"), "--database-url", url]
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 2
    hidden = "DATABASE_URL (--database-url) is something that is not repeated here"
    assert done.stderr == f"brokervol sidecar: {hidden}; {why}\n"


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

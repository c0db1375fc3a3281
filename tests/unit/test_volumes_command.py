"""`brokervol volumes export` and `import`, with a driver that runs and without one."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from brokervol.__main__ import TOOLS, main
from lab.memory_driver import Machine
from lab.namespaces import in_private_namespace
from lab.processes import wait_until
from storage.definitions import backup_path, definitions_path
from storage.volume_records import from_json
from unit.sidecar_process import clean_environment
from volumedriver.errors import StateDamaged

HOST = {"host_path": "/srv/data"}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "one")
    machine.driver.create("data", HOST)
    machine.driver.create("bucket", {"bucket_name": "imagery", "read_only": "true"})
    yield machine
    machine.stop()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "other")
    yield machine
    machine.stop()


def run(machine: Machine, *arguments: str) -> int:
    return main(["volumes", "--root", str(machine.root), *arguments])


def described(machine: Machine) -> list[tuple[object, ...]]:
    return [(volume.name, volume.options, volume.created) for volume in machine.driver.list()]


def test_what_was_exported_is_imported_elsewhere(
    machine: Machine, other: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "volumes.json"
    assert run(machine, "export", str(file)) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run(other, "import", str(file)) == 0
    told = f"2 volumes imported into {other.root}: bucket, data; 0 were there already"
    assert capsys.readouterr().out.splitlines()[-1] == told
    assert other.driver.list() == [], "not yet noticed"
    other.reconciler.notice()
    assert described(other) == described(machine)
    (other.hostfs / "srv/data").mkdir(exist_ok=True)
    other.driver.mount("data", "x")
    assert run(other, "import", str(file)) == 0
    told = f"0 volumes imported into {other.root}; 2 were there already"
    assert capsys.readouterr().out.splitlines()[-1] == told
    assert other.start().get("data").references == {"x": 1}
    assert described(other) == described(machine)


def test_standard_output_and_input_and_a_host_without_a_driver(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(machine, "export") == 0
    exported = capsys.readouterr().out
    assert [found.name for found in from_json(exported)] == ["bucket", "data"]
    reading, writing = os.pipe()
    os.write(writing, exported.encode())
    os.close(writing)
    root = tmp_path / "new/root"
    root.mkdir(parents=True)
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert main(["volumes", "--root", str(root), "import", "-"]) == 0
    assert stat.S_IMODE((root / ".state").stat().st_mode) == 0o700
    fresh = Machine(tmp_path / "new")
    assert described(fresh) == described(machine)
    fresh.stop()


def test_backup_beside_the_state_can_be_imported(machine: Machine, other: Machine) -> None:
    assert run(other, "import", backup_path(definitions_path(str(machine.root)))) == 0
    assert described_after_start(other) == described(machine)


def described_after_start(machine: Machine) -> list[tuple[object, ...]]:
    machine.start()
    return described(machine)


def test_conflict_is_told_by_name_and_nothing_is_imported(
    machine: Machine, other: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "volumes.json")
    run(machine, "export", file)
    other.driver.create("data", {"host_path": "/srv/data", "read_only": "true"})
    assert run(other, "import", file) == 6
    assert capsys.readouterr().err == (
        "brokervol: volumes import: volume data exists with other options: it differs in read_only\n"
    )
    other.reconciler.notice()
    assert [volume.name for volume in other.driver.list()] == ["data"]


def entry(name: str, **options: str) -> dict[str, object]:
    return {"name": name, "created": "2026-01-02T03:04:05+00:00", "options": options}


def test_everything_that_is_wrong_is_told_and_nothing_is_imported(
    other: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volumes = [entry("good", **HOST), entry("../x", **HOST), entry("bad", host_path="srv"), entry("odd", kind="x")]
    file = tmp_path / "volumes.json"
    file.write_text(json.dumps({"format": "brokervol volumes", "version": 1, "volumes": volumes}))
    assert run(other, "import", str(file)) == 1
    told = capsys.readouterr().err
    for said in ("'../x' is not accepted", "host_path='srv' is not accepted", "option type is missing"):
        assert said in told
    assert described_after_start(other) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "volumes.json is no export of volumes: Expecting"),
        (
            "[]",
            'volumes.json is no export of volumes: it must be a JSON object with "format": "brokervol volumes"',
        ),
        (None, "volumes.json: No such file or directory"),
    ],
)
def test_what_is_no_export_is_refused(
    other: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    file = tmp_path / "volumes.json"
    if content is not None:
        file.write_text(content)
    assert run(other, "import", str(file)) == 1
    told = capsys.readouterr().err
    assert told.startswith("brokervol: volumes import: ")
    assert said in told
    assert described_after_start(other) == []


def test_documentation_shows_the_tools() -> None:
    document = (Path(__file__).parents[2] / "docs/command-line.md").read_text()
    for name in TOOLS:
        assert f"`brokervol {name}" in document


def test_wrong_places_are_told(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["volumes", "--root", str(tmp_path / "none"), "export"]) == 1
    assert "none holds no volumes: --root must be the driver's" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert run(machine, "export", "/proc/none/file") == 1
    assert "No such file or directory" in capsys.readouterr().err
    machine.stop()
    Path(definitions_path(str(machine.root))).write_bytes(b"damaged" * 1000)
    assert run(machine, "export", str(tmp_path / "saved")) == 0
    told = capsys.readouterr().err
    assert "are not usable: file is not a database; what is exported is their backup" in told
    assert [found.name for found in from_json((tmp_path / "saved").read_text())] == ["bucket", "data"]
    Path(backup_path(definitions_path(str(machine.root)))).write_text("{")
    assert run(machine, "export") == 1
    assert "file is not a database; and their backup" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        run(machine, "import")
    assert end.value.code == 2


def test_import_and_creates_at_the_same_time_agree(machine: Machine, other: Machine, tmp_path: Path) -> None:
    """Both write: what the driver created in between is compared like any other volume."""
    file = str(tmp_path / "volumes.json")
    run(machine, "export", file)
    other.driver.create("data", HOST)
    other.driver.create("own", HOST)
    assert run(other, "import", file) == 0
    other.driver.create("later", HOST)
    other.reconciler.notice()
    assert [volume.name for volume in other.driver.list()] == ["bucket", "data", "later", "own"]
    before = described(other)
    assert described_after_start(other) == before


def imported(machine: Machine, tmp_path: Path, text: str) -> int:
    file = tmp_path / "volumes.json"
    file.write_text(text)
    return run(machine, "import", str(file))


def document(*entries: object) -> str:
    return json.dumps({"format": "brokervol volumes", "version": 1, "volumes": entries})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (document({**entry("a", **HOST), "created": "2026-01-01T00:00:00+00:00:30"}), "a time with zone, as in"),
        (document({**entry("a", **HOST), "created": "2026-01-01T00:00:00"}), "a time with zone, as in"),
        (document({**entry("a", **HOST), "created": "0001-01-01T00:00:00+23:59"}), "date value out of range"),
        (document(entry("a", host_path="/srv/\ud800")), "option 'host_path' is not accepted: it holds half a"),
        (document(entry("a\ud800", **HOST)), "is not accepted: a name has 1 to 255 characters"),
        ("[" * 200_000, "it must not be nested so deeply"),
        (document().replace('"version": 1', '"version": true'), "it has version true"),
        (document().replace('"version": 1', '"version": 1.0'), "it has version 1.0"),
        (document({**entry("a", **HOST), "digest": "edited"}), "leave the digest out where the rest was edited"),
    ],
)
def test_what_create_would_not_accept_is_refused_in_a_sentence(
    other: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    assert imported(other, tmp_path, text) == 1
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert described_after_start(other) == []


def test_times_are_told_to_the_engine_in_utc(other: Machine, tmp_path: Path) -> None:
    """It reads RFC 3339 only, and no List at all if one time in it is anything else."""
    created = ["2026-01-01T01:00:00+01:00", "2026-W01-4T00:00:00Z", "20260101T000000+00:00"]
    entries = [{**entry(f"v{number}", **HOST), "created": text} for number, text in enumerate(created)]
    assert imported(other, tmp_path, document(*entries)) == 0
    other.reconciler.notice()
    for _ in range(2):
        times = {volume.created.isoformat() for volume in other.driver.list()}
        assert times == {"2026-01-01T00:00:00+00:00"}
        other.start()


def test_export_into_what_is_no_regular_file_replaces_nothing(machine: Machine, tmp_path: Path) -> None:
    pipe, link, linked = tmp_path / "pipe", tmp_path / "link", tmp_path / "linked"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    linked.write_text("longer than what is exported" * 1000)
    link.symlink_to(linked)
    for target in (pipe, link):  # never a device of the host's: what replaces it breaks the host
        assert run(machine, "export", str(target)) == 0
    exported = os.read(reading, 1 << 16).decode()
    os.close(reading)
    assert linked.read_text() == exported
    assert [found.name for found in from_json(exported)] == ["bucket", "data"]
    assert link.is_symlink()
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_export_leaves_other_files_alone_and_only_its_owner_reads_it(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "volumes.json"
    other = tmp_path / "volumes.json.part"
    for path in (file, other):
        path.write_text("precious")
        path.chmod(0o644)
    assert run(machine, "export", str(file)) == 0
    assert len(from_json(file.read_text())) == 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert other.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [file.name, other.name]


def test_export_of_the_backup_alone(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine.stop()
    state = machine.root / ".state"
    (state / "definitions.sqlite").unlink()
    assert run(machine, "export") == 0
    told = capsys.readouterr()
    assert [found.name for found in from_json(told.out)] == ["bucket", "data"]
    assert "what is exported is their backup" in told.err
    assert not (state / "definitions.sqlite").exists(), "nothing is written for an export"


@pytest.mark.root
@in_private_namespace
def test_export_of_a_read_only_state(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.driver.create("data", HOST)
    state = str(machine.root / ".state")
    subprocess.run(["mount", "--bind", state, state], check=True)
    for has_driver in (True, False):
        if not has_driver:
            machine.stop()
        subprocess.run(["mount", "-o", "remount,bind,ro", state], check=True)
        assert run(machine, "export", str(tmp_path / "saved")) == 0
        assert [found.name for found in from_json((tmp_path / "saved").read_text())] == ["data"]
        subprocess.run(["mount", "-o", "remount,bind,rw", state], check=True)


def test_import_where_the_definitions_were_lost(machine: Machine, tmp_path: Path) -> None:
    file = str(tmp_path / "saved")
    run(machine, "export", file)
    before = described(machine)
    machine.stop()
    for path in (machine.root / ".state").glob("definitions.*"):
        path.unlink()
    with pytest.raises(StateDamaged, match="brokervol volumes import"):
        machine.start()
    assert run(machine, "import", file) == 0
    assert described_after_start(machine) == before


def as_process(machine: Machine, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "brokervol", "volumes", "--root", str(machine.root), *arguments]


def exporting(machine: Machine, stdout: int, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    """The exit code of an export to a standard output, and what is said of it."""
    command = [*prefix, *as_process(machine, "export")]
    done = subprocess.run(
        command, env=clean_environment(), stdout=stdout, stderr=subprocess.PIPE, timeout=50, check=False, text=True
    )
    return done.returncode, done.stderr


def test_an_export_that_cannot_be_written_to_standard_output_ends_in_a_sentence(machine: Machine) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    assert exporting(machine, writing) == (141, ""), "as `| head`"
    os.close(writing)
    with open("/dev/full", "w") as full:
        told = "brokervol: volumes export: standard output: No space left on device\n"
        assert exporting(machine, full.fileno()) == (1, told)
    closed = ("sh", "-c", 'exec "$@" >&-', "sh")
    told = "brokervol: volumes export: standard output is closed\n"
    assert exporting(machine, subprocess.DEVNULL, closed) == (1, told)


def test_what_was_done_is_no_failure_where_nobody_reads_so(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert run(machine, "export", str(tmp_path / "saved")) == 0
    assert len(from_json((tmp_path / "saved").read_text())) == 2


def test_an_import_from_standard_input_is_ended_by_ctrl_c(other: Machine) -> None:
    command = as_process(other, "import", "-")
    with subprocess.Popen(
        command, env=clean_environment(), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as importing:
        assert importing.stdin is not None
        importing.stdin.write("{")
        importing.stdin.flush()
        pipe = importing.stdin.fileno()
        wait_until(lambda: not is_unread(pipe), "it reads")
        importing.send_signal(signal.SIGINT)
        _, told = importing.communicate(timeout=20)
    assert (importing.returncode, told) == (130, "brokervol: volumes import: interrupted\n")
    assert described_after_start(other) == []


def is_unread(pipe: int) -> bool:
    return fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)) != bytes(4)


def test_an_import_never_ends_for_want_of_memory(other: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(other, "import", "/dev/zero") == 1
    assert capsys.readouterr().err.endswith("/dev/zero is no export of volumes: it has more than 67108864 bytes\n")


def test_the_root_is_named_before_or_behind_the_action_or_by_a_variable(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["volumes", "export", "--root", str(machine.root)]) == 0
    exported = capsys.readouterr().out
    assert run(machine, "export", "-") == 0
    assert capsys.readouterr().out == exported
    monkeypatch.setenv("BROKERVOL_ROOT", str(machine.root))
    assert main(["volumes", "export"]) == 0
    assert capsys.readouterr().out == exported


@pytest.mark.root
def test_where_no_driver_is_to_be_seen_one_is_told_to_name_it(tmp_path: Path) -> None:
    """In a mount namespace of its own, without the places where this machine's drivers would be found."""
    hide = 'for each in /var/lib /run; do mount -t tmpfs none $each; done; exec "$@"'
    command = [sys.executable, "-m", "brokervol", "volumes", "export", str(tmp_path / "saved")]
    # The Docker SDK leaves a socket to the garbage collector where no engine listens.
    environment = {**clean_environment(), "DOCKER_HOST": "unix:///nowhere", "PYTHONWARNINGS": ""}
    line = ["unshare", "-m", "sh", "-c", hide, "sh", *command]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 1
    told = "no driver's directory is to be seen: name it by --root, or make /var/lib/brokervol"
    assert done.stderr == f"brokervol: volumes export: {told}\n"
    assert not (tmp_path / "saved").exists()


def test_names_that_are_no_text_are_told_and_do_not_talk_to_the_terminal(machine: Machine, tmp_path: Path) -> None:
    name = b"v\x1b[31m\xff.json"
    command = [*map(os.fsencode, as_process(machine, "export")), os.fsencode(tmp_path) + b"/" + name]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, check=False, timeout=50)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(rb"v\x1b[31m\udcff.json" + b"\n")
    assert (tmp_path / os.fsdecode(name)).exists()
    command = [*map(os.fsencode, as_process(machine, "import")), b"/none/" + name]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, check=False, timeout=50)
    assert done.stderr == b"brokervol: volumes import: /none/v\\x1b[31m\xff.json: No such file or directory\n"


def test_a_root_that_is_not_there_is_refused_and_not_made(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, typo = str(tmp_path / "saved"), tmp_path / "rot"
    assert run(machine, "export", file) == 0
    assert main(["volumes", "--root", str(typo), "import", file]) == 1
    assert f"{typo} is no directory: --root must be the driver's; make it first" in capsys.readouterr().err
    assert not typo.exists()
    assert main(["volumes", "--root", file, "import", file]) == 1
    assert "saved is no directory" in capsys.readouterr().err


def test_an_export_that_fails_leaves_nothing_and_names_its_target(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    longest = "x" * 255
    for target in ("here", longest):
        assert run(machine, "export", target) == 0
        assert len(from_json(Path(target).read_text())) == 2
    before = set(os.listdir())

    def full(_: int) -> None:
        (unfinished,) = set(os.listdir()) - before
        assert stat.S_IMODE(os.stat(unfinished).st_mode) == 0o600
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    capsys.readouterr()
    assert run(machine, "export", "here") == 1
    assert capsys.readouterr().err == "brokervol: volumes export: here: No space left on device\n"
    assert set(os.listdir()) == before
    assert run(machine, "export", "none/here") == 1
    assert capsys.readouterr().err == "brokervol: volumes export: none/here: No such file or directory\n"


def test_an_export_never_replaces_what_the_driver_keeps(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    before = described(machine)
    assert run(machine, "export", definitions_path(str(machine.root))) == 1
    assert "would be among the driver's own files; name another directory" in capsys.readouterr().err
    assert described_after_start(machine) == before

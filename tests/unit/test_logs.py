"""What the daemon's processes say, kept beside the state, and `brokervol logs`, which shows it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from brokervol import logs as logs_command
from brokervol.logfile import LogFile, log_path
from lab import doctor
from lab.processes import wait_until
from unit.sidecar_process import clean_environment

SUPERVISE = """
import signal, sys
from brokervol.logfile import LogFile, Relay, log_path
from brokervol.logs import in_words
from brokervol.supervisor import Program, Supervisor, json_log
kept = LogFile(log_path(sys.argv[1]))
shown = in_words if sys.argv[3] == "console" else None
relay = Relay(kept, shown)
program = Program("driver", [sys.executable, "-I", "-S", "-c", sys.argv[2]], {}, relay.output("driver"))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD])
relay.start()
try:
    code = Supervisor([program], json_log("info", kept, shown)).run()
finally:
    relay.close()
sys.exit(code)
"""

# Says what all do, and waits; says one thing more before it ends.
CHILD = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.write(1, b'{"event": "serving", "level": "info", "timestamp": "2026-01-02T03:04:05Z"}\\n')
os.write(2, b"Traceback: it broke\\n")
os.write(1, b"half a ")
os.write(1, b"line\\nup\\n")
signal.sigwait([signal.SIGTERM])
os.write(1, b"x" * 200000 + b"\\nthe last")
"""


@contextlib.contextmanager
def supervised(root: Path, program: str = CHILD, log_format: str = "json") -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, str(root), program, log_format],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(),
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def kept(root: Path) -> list[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError):
        return [json.loads(line) for line in Path(log_path(str(root))).read_text().splitlines()]
    return []


def said_up(root: Path) -> bool:
    return any(entry["event"] == "up" for entry in kept(root))


def test_what_is_said_can_be_shown_in_words_and_is_kept_as_ever(tmp_path: Path) -> None:
    with supervised(tmp_path, log_format="console") as process:
        wait_until(lambda: said_up(tmp_path), "the child is up")
        process.send_signal(signal.SIGTERM)
        out, err = (text.decode().splitlines() for text in process.communicate(timeout=20))
    assert "2026-01-02T03:04:05Z  info     driver      serving" in out
    assert [line.partition("Z  ")[2] for line in err] == ["error    driver      Traceback: it broke"]
    assert any(
        line.partition("Z  ")[2].startswith("info     supervisor  started  child=driver pid=") for line in out
    ), out
    assert ("driver", "serving") in [(entry["process"], entry["event"]) for entry in kept(tmp_path)]


def test_what_a_child_says_is_passed_on_and_kept_with_whose_it_is(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with supervised(root) as process:
        wait_until(lambda: said_up(root), "the child says so")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert err == b"Traceback: it broke\n"
    lines = out.decode().splitlines()
    assert {"half a line", "up", "x" * 200_000, "the last"} <= {*lines}
    found = kept(root)
    by_event = {entry["event"]: entry for entry in found}
    assert by_event["serving"] == {
        "process": "driver",
        "event": "serving",
        "level": "info",
        "timestamp": "2026-01-02T03:04:05Z",
    }
    assert by_event["Traceback: it broke"]["level"] == "error"
    assert by_event["the last"]["process"] == "driver", "to the last word"
    assert [entry["event"] for entry in found if entry["process"] == "supervisor"] == [
        *("started", "stopping", "stopped")
    ]
    file = Path(log_path(str(root)))
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.parametrize("end", ["\n", "\r", "\x0b", "\x1e", "\x85", "\u2028", "\u2029"])
def test_a_name_does_not_look_like_a_line_of_its_own(root: Path, end: str) -> None:
    entry = {"event": "no such file", "path": f"a{end}volume removed  volume=data", "level": "info"}
    assert logs_command.in_words(json.dumps(entry).encode()).count(b"\n") == 1
    with open(log_path(str(root)), "a", encoding="utf-8") as file:
        file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    (line,) = logs(root, "-n", "1")
    assert "no such file" in line
    assert line.endswith('volume=data"')


def test_a_child_of_a_killed_supervisor_may_speak_until_it_ends(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    program = f"""
import ctypes, os, signal
signal.alarm(60)  # whatever happens to the test
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.write(1, b"up\\n")
signal.sigwait([signal.SIGTERM])
os.write(1, b"speaking\\n")
open({str(marker)!r}, "w").close()
"""
    with supervised(tmp_path, program) as process:
        wait_until(lambda: said_up(tmp_path), "the child says so")
        process.kill()
        wait_until(marker.exists, "the child has spoken, and lives")


def test_the_file_is_turned_over_and_bounded(tmp_path: Path) -> None:
    path = log_path(str(tmp_path))
    file = LogFile(path, most_bytes=1000)
    for number in range(100):
        file.write(b"%03d" % number + b"x" * 96)
    file.close()
    newest, older = Path(path).read_text().splitlines(), Path(f"{path}.1").read_text().splitlines()
    assert [int(line[:3]) for line in [*older, *newest]] == [*range(100 - len(older) - len(newest), 100)]
    assert len(older) == 10
    assert {*os.listdir(tmp_path / ".state")} == {"log.jsonl", "log.jsonl.1"}


def test_a_file_that_cannot_be_written_is_no_error_and_is_tried_again(tmp_path: Path) -> None:
    path = log_path(str(tmp_path))
    Path(path).mkdir(parents=True)
    file = LogFile(path)
    file.write(b"lost")
    Path(path).rmdir()
    file.write(b"kept")
    file.close()
    assert Path(path).read_text() == "kept\n"


# The command

NOW = datetime.now(UTC)


def entry(event: str, minutes_ago: int = 0, level: str = "info", **facts: object) -> str:
    told = {"process": "driver", "event": event, "level": level, **facts}
    return json.dumps({**told, "timestamp": (NOW - timedelta(minutes=minutes_ago)).isoformat()})


LINES = [
    entry("long ago", 600),
    entry("volume mounted", 90, volume="data", id="3f2a", request="aa11"),
    "no entry",
    entry("workspace is not usable", 5, "warning", workspace="data", reason="it has no bucket"),
    entry("it broke", 1, "error", exception="Traceback\n  File x", request="bb22"),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A driver's directory with a log, the first line of it in the older file."""
    path = Path(log_path(str(tmp_path)))
    path.parent.mkdir()
    Path(f"{path}.1").write_text(f"{LINES[0]}\n")
    path.write_text("".join(f"{line}\n" for line in LINES[1:]))
    return tmp_path


def command(root: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "brokervol", "logs", "--root", str(root), *arguments]


def logs(root: Path, *arguments: str) -> list[str]:
    done = subprocess.run(
        command(root, *arguments), capture_output=True, text=True, check=False, timeout=50, env=clean_environment()
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_lines_are_shown_for_people(root: Path) -> None:
    _, mounted, _, broke, traceback, at = logs(root)
    stamp = f"{(NOW - timedelta(minutes=90)).isoformat()[:19]}Z"
    assert mounted == f"info     {stamp}  driver      volume mounted  volume=data id=3f2a request=aa11"
    assert broke.split("  ")[-2:] == ["it broke", "request=bb22"]
    assert (traceback.strip(), at.rstrip().endswith("  File x")) == ("Traceback", True)


@pytest.mark.parametrize(
    ("arguments", "events"),
    [
        ([], ["long ago", "volume mounted", "workspace is not usable", "it broke"]),
        (["-n", "1"], ["it broke"]),
        (["-n", "0"], []),
        (["--since", "2h"], ["volume mounted", "workspace is not usable", "it broke"]),
        (["--since", (NOW - timedelta(minutes=10)).isoformat()], ["workspace is not usable", "it broke"]),
        (["--level", "warning", "-n", "1"], ["it broke"]),
        (["--level", "error"], ["it broke"]),
        (["--volume", "data"], ["volume mounted", "workspace is not usable"]),
        (["--request", "aa11"], ["volume mounted"]),
    ],
)
def test_what_is_asked_for_is_shown(root: Path, arguments: list[str], events: list[str]) -> None:
    found = logs(root, "--json", *arguments)
    assert [json.loads(line)["event"] for line in found] == events
    assert all(line in LINES for line in found), "as they are kept"


def test_it_follows_over_a_change_of_files_until_it_is_interrupted(root: Path) -> None:
    path = log_path(str(root))
    arguments = command(root, "-f", "-n", "1", "--json")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=clean_environment()) as process:
        assert process.stdout is not None
        shown = [json.loads(process.stdout.readline())["event"]]
        file = LogFile(path, most_bytes=2000)
        for start in range(0, 36, 12):  # at most one change of files between two looks
            for number in range(start, start + 12):
                file.write(entry(f"line {number}").encode())
            shown += [json.loads(process.stdout.readline())["event"] for _ in range(12)]
        file.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert shown == ["it broke", *(f"line {number}" for number in range(36))]
    assert "line 0" not in Path(path).read_text(), "it was turned over"


@contextlib.contextmanager
def following(root: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    line = command(root, "-f", *arguments)
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=clean_environment()) as process:
        try:
            yield process
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_it_follows_a_file_that_is_emptied_in_place(root: Path) -> None:
    path = Path(log_path(str(root)))
    with following(root, "-n", "1", "--json") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "it broke"
        os.truncate(path, 0)
        with path.open("a") as file:
            file.write(f"{entry('after')}\n")
        assert json.loads(process.stdout.readline())["event"] == "after"


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (150 << 20,) * 2)
from brokervol.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_line_that_never_ends_takes_no_memory(root: Path) -> None:
    with open(log_path(str(root)), "ab") as file:
        file.write(b'{"event": "')
        file.truncate(file.tell() + (400 << 20))
        file.seek(0, os.SEEK_END)
        file.write(f'"}}\n{entry("after")}\n'.encode())
    line = [sys.executable, "-c", LIMITED, *command(root, "--json")[3:]]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=50, env=clean_environment())
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()][-2:] == ["it broke", "after"]


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.1"])
def test_what_is_no_file_is_refused(root: Path, name: str) -> None:
    path = root / ".state" / name
    path.unlink()
    os.mkfifo(path)
    done = subprocess.run(command(root), capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 1
    assert done.stderr.startswith(f"brokervol: logs: {path} is no regular file")


HOSTILE = [
    "[" * 100_000,
    '{"event": ' * 900 + "1" + "}" * 900,
    '{"event": ' + "[" * 900 + "]" * 900 + "}",
    '{"other": ' + "[" * 900 + "]" * 900 + ', "event": "deep"}',
    '{"event": "half \\ud800 a character"}',
    "{}",
    '{"event": null, "level": [], "timestamp": {}, "process": 1, "exception": ["x"]}',
    '{"event": "\u009b2J\x7f",\r"a": 1}',
    '{"n": ' + "9" * 5000 + "}",
]


@pytest.mark.parametrize("arguments", [(), ("--json",), ("--since", "1d"), ("--volume", "data")])
def test_hostile_lines_hide_no_other_and_talk_to_no_terminal(root: Path, arguments: tuple[str, ...]) -> None:
    with open(log_path(str(root)), "a", newline="") as file:
        file.write("".join(f"{line}\n" for line in HOSTILE) + entry("last", volume="data") + "\n")
    shown = logs(root, *arguments)
    assert "last" in shown[-1]
    assert all(line.isprintable() for line in shown)


def test_what_the_locale_has_not_is_spelled_out(root: Path) -> None:
    with open(log_path(str(root)), "a") as file:
        file.write('{"event": "gr\\u00fc\\u00dfe"}\n')
    environment = {**clean_environment(), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command(root, "-n", "1"), capture_output=True, check=True, timeout=50, env=environment)
    assert b"gr\\xfc\\xdfe" in done.stdout


@pytest.mark.parametrize("level", ["WARNING", "Warning", "warning"])
def test_levels_are_taken_in_whatever_case(root: Path, level: str) -> None:
    with open(log_path(str(root)), "a") as file:
        file.write('{"event": "loud", "level": "ERROR"}\n{"event": "quiet", "level": "INFO"}\n')
    found = [json.loads(line)["event"] for line in logs(root, "--json", "--level", level)]
    assert found == ["workspace is not usable", "it broke", "loud"]


def test_a_time_without_a_zone_is_as_shown(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for zone in ("UTC", "Asia/Tokyo"):
        monkeypatch.setenv("TZ", zone)
        found = logs(root, "--json", "--since", (NOW - timedelta(minutes=10)).replace(tzinfo=None).isoformat())
        assert [json.loads(line)["event"] for line in found] == ["workspace is not usable", "it broke"]


@pytest.mark.parametrize(
    "time",
    ["soon", "", "999999d", "\u0661d", "\uff12026-01-01", "0001-01-01T00:00+14:00", "9999-12-31T23:59-14:00"],
)
def test_a_time_that_is_none_is_refused(time: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not accepted: 30s, 10m, 2h, 1d, or a time"):
        logs_command._since(time)


@pytest.mark.parametrize("columns", [20, 40, 60, 80])
def test_on_a_narrow_terminal_all_is_shown(root: Path, columns: int) -> None:
    shown = doctor.at_terminal(columns, command(root), 0)
    assert all(len(line) <= columns for line in shown.splitlines())
    words = "".join(shown.split())
    for wanted in ("volumemounted", "volume=data", "request=aa11", "warning", "workspaceisnotusable", "Filex"):
        assert wanted in words


def test_where_there_is_no_log_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path), capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 1
    assert done.stderr.startswith(f"brokervol: logs: {tmp_path}/.state/log.jsonl is not to be seen")
    wrong = subprocess.run(
        command(tmp_path, "--since", "soon"), capture_output=True, text=True, check=False, timeout=50
    )
    assert wrong.returncode == 2
    assert "'soon' is not accepted: 30s, 10m, 2h, 1d" in wrong.stderr

"""The client at a terminal: its progress, and Ctrl-C, against a real sidecar that is at work."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from unit.sidecar_process import Client, clean_environment, sidecar_process

COUNT = 4000
# As many as the sidecar does at a time: so many may be done when their client is gone.
GROUP = 256
CONTENT = b"content of one file."
_PATIENCE_S = 60


class Place(NamedTuple):
    """A workspace's directory, a directory `in` of many files, and the client, run beside it."""

    data: Path
    task: Path
    run: Client


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("terminal")
    for name in ("data", "in"):
        (directory / name).mkdir()
    for number in range(COUNT):
        (directory / "in" / f"{number:04}").write_bytes(CONTENT)
    workspace = {"version": "1.0", "broker": {"type": "host", "host_path": str(directory / "data")}}
    with sidecar_process(directory, {"data": workspace}) as volume:
        yield Place(directory / "data", directory, Client(volume / "brokervol", directory))


@pytest.fixture(autouse=True)
def _emptied(place: Place) -> Iterator[None]:
    yield
    shutil.rmtree(place.data)
    place.data.mkdir()


class Screen:
    """The client on a pseudo-terminal of so many columns: all that it prints, or all but its `stdout`."""

    def __init__(self, place: Place, *arguments: str, columns: int = 80, stdout: int | None = None) -> None:
        self._controller, self._terminal = os.openpty()
        self.resize(columns)
        self.shown = ""
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", place.run.executable, *arguments],
            cwd=place.task,
            stdin=self._terminal,
            stdout=self._terminal if stdout is None else stdout,
            stderr=self._terminal,
            env=clean_environment(),
        )
        os.close(self._terminal)

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self._controller, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def wait_until(self, is_shown: Callable[[str], object]) -> None:
        """Read what is shown until that holds."""
        deadline = time.monotonic() + _PATIENCE_S
        while not is_shown(self.shown):
            assert time.monotonic() < deadline, self.shown[-500:]
            assert self._read(), f"it ended: {self.shown[-500:]}"

    def press_ctrl_c(self) -> None:
        os.write(self._controller, b"\x03")

    def end(self) -> int:
        """The exit code, after all is read."""
        while self._read():
            pass
        return self.process.wait(_PATIENCE_S)

    def close(self) -> None:
        os.close(self._controller)
        self.process.wait(_PATIENCE_S)

    @property
    def lines(self) -> list[str]:
        """What was drawn, each time, without what takes it away."""
        return [line for line in re.split("\r|\n|\x1b\\[K", self.shown) if line]

    def _read(self) -> bool:
        if not select.select([self._controller], [], [], _PATIENCE_S)[0]:
            return False
        try:
            block = os.read(self._controller, 65536)
        except OSError:  # EIO: nobody has the other end any more
            return False
        self.shown += block.decode()
        return bool(block)


@contextlib.contextmanager
def screen(place: Place, *arguments: str, columns: int = 80, stdout: int | None = None) -> Iterator[Screen]:
    with contextlib.closing(Screen(place, *arguments, columns=columns, stdout=stdout)) as shown:
        yield shown


def names_in(directory: Path) -> list[str]:
    """All names, also of what is hidden or unfinished."""
    return sorted(os.listdir(directory)) if directory.exists() else []


def test_progress_counts_files_and_bytes_and_takes_its_line_away(place: Place) -> None:
    with screen(place, "cp", "-r", "in", "data:") as shown:
        assert shown.end() == 0
    drawn = [re.fullmatch(r"\[(#*)-*\]  ([\d,]+)/4,000 files  (\S+)/78K  \S+/s  [\d:]+:\d\d (left|passed)", line)
             for line in shown.lines]  # fmt: skip
    assert drawn
    assert all(drawn), shown.lines
    counts = [int(match[2].replace(",", "")) for match in drawn if match]
    assert counts == sorted(counts)
    assert 0 < max(counts) <= COUNT
    assert shown.shown.endswith("\r\x1b[K")
    assert len(names_in(place.data / "in")) == COUNT


def test_failure_is_told_above_the_progress(place: Place) -> None:
    with screen(place, "cp", "in/0001", "nowhere", "data:") as shown:
        assert shown.end() == 3
    told = f"brokervol: cp: {place.task}/nowhere: no such file or directory"
    assert told in shown.lines
    assert shown.shown.endswith("\r\x1b[K")


def test_progress_follows_the_width_of_the_terminal(place: Place) -> None:
    with screen(place, "cp", "-r", "in", "data:", columns=32) as shown:
        shown.wait_until(lambda text: "files" in text)
        narrow = len(shown.lines)
        shown.resize(100)
        assert shown.end() == 0
    assert all(len(line) < 32 for line in shown.lines[:narrow])
    assert any(line.startswith("[") for line in shown.lines[narrow:])


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_progress_can_be_left_out(place: Place, option: str) -> None:
    with (
        open(os.devnull, "wb") as nowhere,
        screen(place, "cp", option, "-r", "in", "data:", stdout=nowhere.fileno()) as shown,
    ):
        assert shown.end() == 0
    assert shown.shown == ""


def test_ctrl_c_leaves_whole_files_and_the_same_command_goes_on(place: Place) -> None:
    target = place.data / "in"
    for _ in range(5):  # a fast sidecar, or a slow test, may have it end before
        shutil.rmtree(target, ignore_errors=True)
        with screen(place, "cp", "-r", "in", "data:") as shown:
            shown.wait_until(lambda text: re.search(r"[1-9]\d*/4,000 files", text))
            shown.press_ctrl_c()
            if shown.end() == 130:
                break
    told = re.fullmatch(
        r"brokervol: cp: interrupted: ([\d,]+) of 4,000 files were copied, and those in work may yet be; "
        "run the same command with -n to go on",
        shown.lines[-1],
    )
    assert told, shown.lines[-3:]
    count = int(told[1].replace(",", ""))
    place.run("stat", "data:in/0000")  # the sidecar has ended what was in work before it is seen
    before = {name: (target / name).stat().st_ino for name in names_in(target)}
    assert 0 < count <= len(before) <= count + GROUP < COUNT
    assert list(before) == [f"{number:04}" for number in range(len(before))]
    assert {(target / name).read_bytes() for name in before} == {CONTENT}

    done = place.run("cp", "-n", "-r", "in", "data:")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert names_in(target) == names_in(place.task / "in")
    assert {name: (target / name).stat().st_ino for name in before} == before


def test_interrupt_in_a_pipe_says_the_same(place: Place) -> None:
    """Of `rm`, whose command can be run again as it is."""
    shutil.copytree(place.task / "in", place.data / "in")
    command = [str(place.run.executable), "rm", "--json", "-r", "data:in"]
    with subprocess.Popen(
        command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment()
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()  # and no more: what a buffer held, communicate() would not see
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=_PATIENCE_S)
    assert process.returncode == 130
    told = re.fullmatch(
        rb"brokervol: rm: interrupted: ([\d,]+) of 4,000 files were deleted,.*again to go on\n", err
    )
    assert told, err
    printed = (first + rest).count(b"\n")
    assert int(told[1].replace(b",", b"")) in range(printed - 1, printed + 2)
    assert place.run("rm", "-r", "data:in").code == 0
    assert names_in(place.data / "in") == []


def test_interrupted_standard_input_leaves_nothing(place: Place) -> None:
    command = [str(place.run.executable), "cp", "-", "data:new/out.tar"]
    reader, writer = os.pipe()
    with (
        open(writer, "wb", buffering=0) as given,
        subprocess.Popen(command, stdin=reader, stderr=subprocess.PIPE, env=clean_environment()) as process,
    ):
        os.close(reader)
        given.write(bytes(1 << 20))  # more than a pipe holds: so it is being read
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=_PATIENCE_S)
    assert process.returncode == 130
    assert err.startswith(b"brokervol: cp: interrupted: 0 of 1 files were copied")
    assert place.run("ls", "-r", "data:").out == ""
    with open(place.task / "in/0001", "rb") as source:
        subprocess.run(command, stdin=source, env=clean_environment(), check=True)
    assert (place.data / "new/out.tar").read_bytes() == CONTENT
    assert names_in(place.data / "new") == ["out.tar"]


def test_bytes_of_standard_input_and_cat_are_counted(place: Place) -> None:
    """Both against a pipe that is held up, so that there is something to see."""
    size = 32 << 20
    (place.data / "large").write_bytes(bytes(size))
    reader, writer = os.pipe()
    with open(reader, "rb") as slow, screen(place, "cat", "data:large", stdout=writer) as shown:
        os.close(writer)
        slow.read(8 << 20)
        shown.wait_until(lambda text: re.search(r"8\.\dM  \S+/s  \d:\d\d passed", text))
        assert len(slow.read()) == size - (8 << 20)
        assert shown.end() == 0
    assert shown.shown.endswith("\r\x1b[K")

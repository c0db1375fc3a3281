"""Completion of command lines, by real shells that ask the client, which asks a real sidecar.

bash is asked at a terminal, by pressing Tab; zsh too, and fish by its own command, where they are installed.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from brokervol import commands
from brokervol.completion import SCRIPTS, candidates
from unit.scripted_sidecar import Request, answer, lines, scripted_sidecar
from unit.sidecar_process import clean_environment, sidecar_process

_PATIENCE_S = 60

# A line up to the cursor, and what each shell makes of it by Tab.
COMPLETED = [
    ("brokervol comp", "brokervol completion "),
    ("brokervol ls da", "brokervol ls data:"),
    ("brokervol cat data:zed data:2026/0", "brokervol cat data:zed data:2026/07/"),
    ("brokervol rm data:w", "brokervol rm data:with\\ space "),
    ("brokervol ls 'data:2026/a", "brokervol ls 'data:2026/a.tif'"),
    ('brokervol ls "data:w', 'brokervol ls "data:with space"'),
    ("brokervol cp local/o", "brokervol cp local/out.tif "),
    ("brokervol cp ~/local/o", "brokervol cp ~/local/out.tif "),
    ("brokervol cp ~/lo", "brokervol cp ~/local/"),
    ("brokervol cp '~/lo", "brokervol cp '~/lo"),
    ("brokervol find data: --newe", "brokervol find data: --newer "),
    ("brokervol ls data:.h", "brokervol ls data:.hidden "),
    ("brokervol ls nowhere:a", "brokervol ls nowhere:a"),
]


class Place(NamedTuple):
    """The directory of the client, and that in which the shells are."""

    volume: Path
    here: Path

    @property
    def environment(self) -> dict[str, str]:
        found = clean_environment()
        return {**found, "PATH": f"{self.volume}:{found['PATH']}", "TERM": "xterm", "HOME": str(self.here)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("completion")
    for name in ("2026/a.tif", "2026/07/b.tif", "with space", "quo'te", "zed", ".hidden", "new\nline"):
        file = directory / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (directory / "here/local").mkdir(parents=True)
    (directory / "here/local/out.tif").touch()
    workspace = {"version": "1.0", "broker": {"type": "host", "host_path": str(directory / "data")}}
    with sidecar_process(directory, {"data": workspace}) as volume:
        yield Place(volume, directory / "here")


# Each tells the line that is being typed when Ctrl-T is pressed, and takes it away.
TELLING = {
    "bash": r"""
        eval "$(brokervol completion bash)"
        told() { printf 'line-is:[%s]:end' "$READLINE_LINE"; READLINE_LINE=; READLINE_POINT=0; }
        bind -x '"\C-t": told'
    """,
    "zsh": r"""
        autoload -U compinit; compinit -u -D
        eval "$(brokervol completion zsh)"
        told() { print -rn -- "line-is:[$BUFFER]:end"; BUFFER= }
        zle -N told; bindkey '^T' told
    """,
}
STARTED = {"bash": ["bash", "--noprofile", "--norc", "-i"], "zsh": ["zsh", "-f", "-i"]}


class Shell:
    """A shell at a terminal, that completes."""

    def __init__(self, name: str, place: Place) -> None:
        self._controller, terminal = os.openpty()
        self._process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *STARTED[name]],
            cwd=place.here,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=place.environment,
        )
        os.close(terminal)
        os.write(self._controller, TELLING[name].encode())
        self._told(r"line-is:\[\]:end", again=b"\n\x14")

    def complete(self, line: str) -> str:
        """What the line has become after Tab. Empty ones may have been told more than once before."""
        os.write(self._controller, f"{line}\t\x14".encode())
        return self._told(r"line-is:\[(brokervol .*?)\]:end")

    def _told(self, pattern: str, again: bytes = b"") -> str:
        """What matches the pattern in what is shown from now on; `again` is typed while nothing does."""
        shown, deadline = "", time.monotonic() + _PATIENCE_S
        while not (match := re.search(pattern, shown)):
            assert time.monotonic() < deadline, shown
            if select.select([self._controller], [], [], 0.5 if again else _PATIENCE_S)[0]:
                shown += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", os.read(self._controller, 65536).decode())
            else:
                os.write(self._controller, again)
        return match[match.lastindex or 0]

    def close(self) -> None:
        os.close(self._controller)  # hangs up
        self._process.wait(_PATIENCE_S)


def require(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} IS NOT INSTALLED: its completion is not tested here (apt-get install {shell})")


@pytest.mark.parametrize("name", STARTED)
def test_tab_completes_at_a_terminal(place: Place, name: str) -> None:
    require(name)
    with contextlib.closing(Shell(name, place)) as shell:
        completed = {line: shell.complete(line) for line, _ in COMPLETED}
    expected = dict(COMPLETED)
    if name == "zsh":  # which adds a space after a quote, too
        expected = {line: f"{end} " if end[-1] in "'\"" else end for line, end in expected.items()}
    assert completed == expected


def test_fish_completes(place: Place) -> None:
    require("fish")
    asked = [line for line, _ in COMPLETED]
    script = "brokervol completion fish | source\n" + "".join(
        f"printf '%s;' (complete -C {shlex.quote(line)}); echo\n" for line in asked
    )
    done = subprocess.run(
        ["fish", "--no-config"], input=script, cwd=place.here, env=place.environment,
        capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    found = dict(zip(asked, (line.rstrip(";") for line in done.stdout.splitlines()), strict=True))
    assert found["brokervol comp"] == "completion"
    assert found["brokervol ls da"] == "data:"
    assert found["brokervol rm data:w"] == "data:with space"
    assert found["brokervol ls 'data:2026/a"] == "data:2026/a.tif"
    assert found["brokervol cp ~/local/o"] == "~/local/out.tif"
    assert found["brokervol ls nowhere:a"] == ""


def test_bash_functions_completes_the_client_by_its_path(place: Place) -> None:
    """As a script sees it: COMPREPLY for a line, of a client that is not in PATH."""
    program = place.volume / "brokervol"
    line = f"{program} ls data:"
    script = f"""
        eval "$({shlex.quote(str(program))} completion bash)"
        COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}
        COMP_WORDS=({shlex.quote(str(program))} ls data :) COMP_CWORD=3
        _brokervol {shlex.quote(str(program))} "" ls
        printf '%s\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", script], env=clean_environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["2026/", "quo\\'te ", "with\\ space ", "zed "]
    assert done.stderr == ""


HOSTILE = ["$(touch RUN)", "`touch RUN`", '";touch RUN;"', "';touch RUN;'", "back\\slash", "bang!x"]


@pytest.mark.parametrize(
    ("quote", "offered"),
    [('"', ["';touch RUN;'"]), ("'", [*HOSTILE[:3], *HOSTILE[4:]]), ("", HOSTILE)],
)
def test_bash_is_given_nothing_that_it_would_run(place: Place, quote: str, offered: list[str]) -> None:
    """What is inserted is typed by whoever completes it, and file names are anybody's."""
    hostile = place.volume.parent / "data/hostile"
    hostile.mkdir(exist_ok=True)
    for name in HOSTILE:
        (hostile / name).touch()
    try:
        line = f"brokervol stat {quote}data:hostile/"
        command = [str(place.volume / "brokervol"), "__complete", "bash", ":", line]
        done = subprocess.run(command, env=place.environment, capture_output=True, text=True, check=True)
        typed = [
            line + each.removeprefix("data:hostile/" if quote else "hostile/") for each in done.stdout.splitlines()
        ]
        script = "\n".join(f"printf '%s\\n' {each[len('brokervol stat ') :].rstrip()}{quote}" for each in typed)
        ran = subprocess.run(["bash", "-c", script], cwd=hostile, capture_output=True, text=True, check=True)
        assert sorted(ran.stdout.splitlines()) == sorted(f"data:hostile/{name}" for name in offered)
        assert not (hostile / "RUN").exists()
    finally:
        shutil.rmtree(hostile)


OPTIONS = {
    name: [commands.OPTIONS[option][0][0] for option in verb.options] for name, verb in commands.VERBS.items()
}


def test_without_a_sidecar_completion_is_silent_and_knows_what_needs_none(place: Place, tmp_path: Path) -> None:
    program = [str(place.volume / "brokervol"), "__complete"]
    for shell, words in (
        ("zsh", ["--socket", str(tmp_path / "none"), "ls", "data:"]),
        ("csh", []),
        ("bash", [":"]),
    ):
        done = subprocess.run(
            [*program, shell, *words], env=place.environment, capture_output=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    socket = str(tmp_path / "none")
    assert candidates(["c"], OPTIONS, socket) == ["cat", "completion", "cp"]
    assert candidates(["mv", "-"], OPTIONS, socket) == ["--help", "--json", "--socket", "-n", "-q"]
    assert candidates(["completion", ""], OPTIONS, socket) == sorted(SCRIPTS)
    assert candidates(["ls", ""], OPTIONS, socket) == []
    assert candidates(["status", ""], OPTIONS, socket) == []


def test_paths_of_a_workspace_that_is_not_mounted_come_from_its_listing(tmp_path: Path) -> None:
    def script(request: Request, write: Callable[[bytes], object]) -> None:
        if request.target == "/v1/workspaces":
            write(answer({"workspaces": [{"name": "bucket", "volume": None, "volume_path": "/b"}]}))
        else:
            files = ("2026/a.tif", "2026/07/b.tif", "2026/07/c.tif", "2026/b")
            write(answer(lines(*({"file": file, "size": 1} for file in files)), kind="application/x-ndjson"))

    with scripted_sidecar(str(tmp_path / "s"), script) as requests:
        found = candidates(["ls", "bucket:2026/"], OPTIONS, str(tmp_path / "s"))
    assert found == ["bucket:2026/07/", "bucket:2026/a.tif", "bucket:2026/b"]
    assert requests[-1].target == "/v1/workspaces/bucket/files?prefix=2026%2F&recursive=true"

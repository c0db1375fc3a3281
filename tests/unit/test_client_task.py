"""The client's parts that need no sidecar: what it is made of, what it accepts, what it says."""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import brokervol
from brokervol import __main__ as host
from brokervol import bundle, commands, console, places, task
from brokervol.console import Failure, UsageError, human_size
from brokervol.places import Place, parse_place
from brokervol.progress import Progress
from sidecar.errors import STATUS_OF_CODE
from unit.scripted_sidecar import Request, answer, scripted_sidecar
from unit.sidecar_process import clean_environment

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "daemon/brokervol" / name for name in bundle.CLIENT_MODULES]
DOCUMENT = (ROOT / "docs/command-line.md").read_text()


# --- what the executable is ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_client_is_written_in_python_3_8_and_its_standard_library(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    ours = {f"brokervol.{path.stem}" for path in SOURCES} | {"brokervol"}
    for node in ast.walk(tree):
        assert type(node).__name__ not in ("Match", "TryStar")
        if isinstance(node, ast.Import):
            assert {name.name.partition(".")[0] for name in node.names} <= sys.stdlib_module_names
        if isinstance(node, ast.ImportFrom):
            assert node.module in ours or str(node.module).partition(".")[0] in sys.stdlib_module_names


def test_the_client_holds_its_modules_and_nothing_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(bundle.write_client(str(tmp_path))) as archive:
        assert archive.namelist() == ["__main__.py", *(f"brokervol/{name}" for name in bundle.CLIENT_MODULES)]
        assert archive.testzip() is None


def test_the_client_is_executable_and_always_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
        assert bundle.write_client(str(directory)) == str(directory / "brokervol")
        assert [path.name for path in directory.iterdir()] == ["brokervol"]
        assert stat.S_IMODE((directory / "brokervol").stat().st_mode) == 0o755
    assert (first / "brokervol").read_bytes() == (second / "brokervol").read_bytes()
    assert (first / "brokervol").read_bytes().startswith(b"#!/usr/bin/env python3\n")


def test_a_client_that_is_right_is_left_alone_and_a_wrong_one_replaced(tmp_path: Path) -> None:
    path = Path(bundle.write_client(str(tmp_path)))
    before = path.stat()
    bundle.write_client(str(tmp_path))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    path.chmod(0o644)
    bundle.write_client(str(tmp_path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    path.write_bytes(b"an older version")
    (tmp_path / ".brokervol.new").write_bytes(b"left by a crash")
    bundle.write_client(str(tmp_path))
    assert path.read_bytes() == bundle.client_bytes()
    assert [found.name for found in tmp_path.iterdir()] == ["brokervol"]


def test_the_client_takes_the_socket_beside_itself(tmp_path: Path) -> None:
    executable = bundle.write_client(str(tmp_path))
    elsewhere = tmp_path / "link"
    elsewhere.symlink_to(executable)
    workspace = {"name": "data", "broker_type": "s3", "volume_path": None, "read_only": False}

    def script(_: Request, write: Callable[[bytes], object]) -> None:
        write(answer({"workspaces": [workspace]}))

    with scripted_sidecar(str(tmp_path / "broker.sock"), script):
        done = subprocess.run(
            [elsewhere, "ws"], capture_output=True, text=True, env=clean_environment(), check=True
        )
    assert done.stdout.splitlines()[1].split() == ["data", "s3", "-", "rw"]


@pytest.mark.parametrize("interpreter", [[sys.executable], [sys.executable, "-I", "-S"]])
def test_the_client_runs_by_an_interpreter_too(tmp_path: Path, interpreter: list[str]) -> None:
    executable = bundle.write_client(str(tmp_path))
    done = subprocess.run([*interpreter, executable, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"brokervol {brokervol.__version__}\n"


def test_the_version_is_the_distributions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert brokervol.__version__ == project["version"]


# --- the command line ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "brokervol: write brokervol COMMAND ...; brokervol --help shows what there is"),
        (["copy"], "brokervol: there is no command copy; brokervol --help shows what there is"),
        (["ls"], "brokervol: ls: write brokervol ls [-l] [-r] [--json] NAME:[PATH] ..."),
        (["ls", "data"], "brokervol: ls: data: write NAME:path, where NAME is a workspace"),
        (["ls", "-x", "data:"], "brokervol: ls: unrecognized arguments: -x"),
        (["ws", "data:"], "brokervol: ws: write brokervol ws [--json]"),
        (["cp", "data:a"], "brokervol: cp: write brokervol cp [-r] [-n] [-q] [--json] SOURCE... TARGET"),
        (["cp", "a", "b"], "brokervol: cp: neither side is in a workspace"),
        (["cp", "data:a", "b", "./c"], "brokervol: cp: neither side is in a workspace"),
        (["cp", "a", "b", "data:c"], "brokervol: cp: data:c: several files need a directory as their target"),
        (["cp", "data:*", "no"], "brokervol: cp: no: several files need a directory as their target"),
        (["cp", "data:2026/", "."], "brokervol: cp: data:2026/ is a directory: use -r"),
        (["cp", "data:", "."], "brokervol: cp: data: is a directory: use -r"),
        (["mv", "data:a", "other:b"], "brokervol: mv: mv works within one workspace"),
        (["mv", "data:a/", "data:b/"], "brokervol: mv: data:a/ is a directory"),
        (["mv", "-r", "data:a", "data:b"], "brokervol: mv: unrecognized arguments: -r"),
        (["rm", "data:"], "brokervol: rm: data: is a directory: use -r"),
        (["rm", "a"], "brokervol: rm: a: write NAME:path"),
        (["stat", "data:2026/"], "brokervol: stat: data:2026/: name a file"),
        (["cp", "data:a", "-"], "brokervol: cp: to write a file to standard output use brokervol cat"),
        (["cp", "-", "data:in/"], "brokervol: cp: standard input (-) is one file: write cp - NAME:path"),
        (["cp", "-", "a", "data:in"], "brokervol: cp: standard input (-) is one file: write cp - NAME:path"),
        (["cat", "data:2026/"], "brokervol: cat: data:2026/ is a directory"),
        (["cat", "--range", "9-1", "data:a"], "brokervol: cat: --range 9-1: write FIRST-LAST, FIRST- or"),
        (["cat", "--range", "\u0663-", "data:a"], "brokervol: cat: --range \u0663-: write FIRST-LAST, FIRST- or"),
        (["find", "--larger", "\u0663k", "data:"], "brokervol: find: --larger \u0663k: write a number of bytes"),
        (["cp", "", "data:x"], "brokervol: cp: an argument is empty: write NAME:path, or a local path"),
        (["cp", "data:x", ""], "brokervol: cp: an argument is empty: write NAME:path, or a local path"),
        (["rm", "-r", "data:x", ""], "brokervol: rm: an argument is empty: write NAME:path"),
        (["cat", "--range", f"{'9' * 5000}-", "data:a"], "brokervol: cat: --range 9999"),
        (["find", "--print0", "--json", "data:"], "brokervol: find: --print0 and --json exclude each other"),
        (["find", "--larger", "9" * 5000, "data:"], "brokervol: find: --larger 9999"),
        (["find", "--older", f"{'9' * 5000}d", "data:"], "brokervol: find: --older 9999"),
        (["cat", "--range", "-", "data:a"], "brokervol: cat: --range -: write FIRST-LAST, FIRST- or"),
        (["find", "--larger", "1x", "data:"], "brokervol: find: --larger 1x: write a number of bytes"),
        (["find", "--newer", "soon", "data:"], "brokervol: find: --newer soon: write an age such as 30s"),
        (["find", "--older", "2026-02-30", "data:"], "brokervol: find: --older 2026-02-30: write an age"),
        (["find", "--older", "2026-02-20Z", "data:"], "brokervol: find: --older 2026-02-20Z: write an age"),
        (["find", "--newer", "999999999w", "data:"], "brokervol: find: --newer 999999999w: write an age"),
        (["completion", "csh"], "brokervol: completion: csh: accepted are bash, zsh, fish"),
        (["--socket"], "brokervol: argument --socket: expected one argument"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_sentence_and_exit_code_2(
    capfd: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert task.main(arguments) == 2
    out, err = capfd.readouterr()
    assert err.startswith(sentence)
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize("verb", commands.VERBS)
def test_each_verb_has_help_with_examples_that_are_right(capfd: pytest.CaptureFixture[str], verb: str) -> None:
    with pytest.raises(SystemExit) as end:
        task.main([verb, "--help"])
    out, _ = capfd.readouterr()
    assert end.value.code == 0
    examples = re.findall(r"^  brokervol (.*?)(?: {2,}| \||$)", out, re.MULTILINE)
    assert examples
    for example in examples:
        name, *arguments = shlex.split(example)
        assert name == verb
        task._parse(name, arguments)


def test_options_may_stand_anywhere_before_two_dashes() -> None:
    options = task._parse("cp", ["a", "-r", "b", "--socket", "s", "data:", "--", "-n"])
    assert (options.paths, options.recursive, options.no_clobber, options.socket) == (
        ["a", "b", "data:", "-n"],
        True,
        False,
        "s",
    )


def test_the_hosts_help_names_its_processes_and_the_clients_does_not(capfd: pytest.CaptureFixture[str]) -> None:
    for main, shown in ((host.main, True), (task.main, False)):
        with pytest.raises(SystemExit):
            main(["--help"])
        out, _ = capfd.readouterr()
        for name in host.PROCESSES:
            assert bool(re.search(rf"^  {name} +run ", out, re.MULTILINE)) is shown
        for name in commands.VERBS:
            assert re.search(rf"^  {name} +\w", out, re.MULTILINE)


def test_help_and_the_verbs_load_no_server() -> None:
    program = (
        "import sys, json\n"
        "from brokervol.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "import brokervol.supervisor\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert not {"flask", "structlog", "sqlalchemy", "cheroot", "msgspec", "storage"} & set(loaded)


def test_a_hosts_tool_behind_an_option_of_the_verbs_is_told_of(capfd: pytest.CaptureFixture[str]) -> None:
    assert host.main(["--socket", "/x", "status"]) == 2
    told = "brokervol: options of status stand behind it: brokervol status --help shows them\n"
    assert capfd.readouterr() == ("", told)


@pytest.mark.parametrize("name", host.PROCESSES)
def test_the_hosts_processes_are_reached_by_name(capfd: pytest.CaptureFixture[str], name: str) -> None:
    try:
        code: object = host.main([name, "--help"])
    except SystemExit as end:
        code = end.code
    assert code == 0
    assert f"brokervol {name}" in capfd.readouterr().out


# --- words and numbers -----------------------------------------------------------------------------------


def test_every_code_of_the_api_has_the_exit_code_of_its_status() -> None:
    by_status = {404: 3, 403: 4, 503: 5}
    for code, status in STATUS_OF_CODE.items():
        expected = 1 if code == "not-found" else by_status.get(status, 1)  # not-found: no such address
        assert console.EXIT_BY_CODE.get(code, console.EXIT_FAILED) == expected, code


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (1023, "1023"),
        (1024, "1.0K"),
        (10 * 1024, "10K"),
        (10187, "9.9K"),
        (10188, "9.9K"),
        (10200, "10K"),
        (1024**2 - 1, "1.0M"),
        (5 * 1024**4, "5.0T"),
        (3 * 1024**6, "3.0E"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (100, "[#########---------------]  120/1,500 files  60M/84M  30M/s  0:03 left"),
        (70, "[#########---------------]  120/1,500 files  60M/84M  30M/s  0:03 left"),
        (60, "120/1,500 files  60M/84M  30M/s  0:03 left"),
        (33, "120/1,500 files  60M/84M  30M/s"),
        (20, "120/1,500 files"),
        (5, "120/1"),
    ],
)
def test_the_progress_line_fits_the_terminal(columns: int, text: str) -> None:
    with contextlib.closing(Progress(1500, 84 << 20)) as progress:
        progress.files_done, progress.bytes_done = 120, 60 << 20
        assert progress.text(2.0, columns) == text


@pytest.mark.parametrize(
    ("files", "size", "done", "text"),
    [
        (500, None, (120, 0), "[#####-------------------]  120/500 files  60.0/s  0:06 left"),
        (500, None, (0, 0), "[------------------------]  0/500 files  0.0/s  0:02 passed"),
        (None, 0, (0, 4096), "[------------------------]  4.0K  2.0K/s  0:02 passed"),
        (None, 8192, (0, 4096), "[############------------]  4.0K/8.0K  2.0K/s  0:02 left"),
        (9000, None, (1, 0), "[------------------------]  1/9,000 files  0.5/s  4:59:58 left"),
        (1, 10, (1, 20), "[########################]  1/1 files  20/10  10/s  0:00 left"),
    ],
)
def test_the_progress_line_says_what_is_known(
    files: int | None, size: int | None, done: tuple[int, int], text: str
) -> None:
    with contextlib.closing(Progress(files, size)) as progress:
        progress.files_done, progress.bytes_done = done
        assert progress.text(2.0, 100) == text


def test_python_imports_the_client_from_the_archive(tmp_path: Path) -> None:
    executable = bundle.write_client(str(tmp_path))
    program = f"""
import sys
sys.path.insert(0, {executable!r})
from brokervol.client import BrokerError, Client
try:
    Client({str(tmp_path / "none")!r}).workspaces()
except BrokerError as error:
    print(error.code, sys.modules["brokervol"].__file__)
"""
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"unreachable {executable}/brokervol/__init__.py\n"


@pytest.mark.parametrize(
    ("argument", "place"),
    [
        ("data:", Place("data", "")),
        ("data:/a//b", Place("data", "a//b")),
        ("a-b_c.d:x:y", Place("a-b_c.d", "x:y")),
        ("data:a\nb", Place("data", "a\nb")),
        ("./data:a", Place("", "./data:a")),
        (":a", Place("", ":a")),
        ("-data:a", Place("", "-data:a")),
        ("/a:b", Place("", "/a:b")),
        ("", Place("", "")),
    ],
)
def test_places_are_told_by_their_colon(argument: str, place: Place) -> None:
    assert parse_place(argument) == place


def test_a_place_in_no_workspace_is_refused() -> None:
    with pytest.raises(UsageError, match="write NAME:path"):
        places.parse_workspace_place("./data:a")


def test_directories_deeper_than_pythons_stack_are_walked(tmp_path: Path) -> None:
    deep = os.path.join(tmp_path, *("d" * 1200))
    subprocess.run(["mkdir", "-p", deep], check=True)
    failures: list[Failure] = []
    try:
        os.mknod(f"{deep}/f")
        [found] = places.find_local(str(tmp_path / "d"), failures.append, recursive=True)
        assert (found.path, found.top, failures) == (f"{deep}/f", "d", [])
    finally:  # pytest's own removal has no stack for it
        subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)


# --- the documentation -----------------------------------------------------------------------------------


def test_the_documentation_names_every_verb_option_and_exit_code() -> None:
    options = {name for names, _, _ in commands.OPTIONS.values() for name in names} | {"--socket", "--version"}
    for verb in (*commands.VERBS, *host.PROCESSES):
        assert f"`brokervol {verb}" in DOCUMENT
    for option in options:
        assert f"`{option}" in DOCUMENT
    codes = {value for name, value in vars(console).items() if name.startswith("EXIT_") and isinstance(value, int)}
    for code in codes:
        assert f"| {code} |" in DOCUMENT


def test_the_documentation_names_every_option_and_variable_of_the_daemon(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with contextlib.suppress(SystemExit):
        host.main(["daemon", "--help"])
    shown = capfd.readouterr().out
    settings = (ROOT / "docs/operations.md").read_text()
    words = set(re.findall(r"--[a-z0-9-]+|\[[A-Z0-9_]+\]", shown)) - {"--help"}
    assert len(words) > 20
    for word in words:
        assert f"`{word.strip('[]')}" in DOCUMENT + settings


def test_the_examples_of_the_documentation_are_right() -> None:
    examples = re.findall(
        r"^(?:/run/brokervol/)?brokervol ((?:ws|ls|find|cp|mv|rm|stat|cat|completion)\b.*?)(?: +#.*| \| .*)?$",
        DOCUMENT,
        re.M,
    )
    assert len(examples) > 8
    for example in examples:
        verb, *arguments = shlex.split(example)
        assert isinstance(task._parse(verb, arguments), argparse.Namespace)

"""The verbs of a task: the zipapp as a process, against a real sidecar, observed on the disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from brokervol import client, task, verbs
from lab.processes import wait_until
from unit.scripted_sidecar import CHUNKED, Request, answer, chunk, lines, scripted_sidecar
from unit.sidecar_process import Client, Outcome, clean_environment, killable_sidecar, sidecar_process

Here = Callable[..., Outcome]


class Disk(NamedTuple):
    """What the tests look at: two workspaces, a read-only one, and the task's own directory."""

    data: Path
    other: Path
    frozen: Path
    task: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    directory = tmp_path_factory.mktemp("sidecar")

    def workspace(name: str) -> dict[str, object]:
        (directory / name).mkdir()
        return {
            "version": "1.0",
            "broker": {"type": "host", "host_path": str(directory / name)},
            "read_only": name == "frozen",
        }

    with sidecar_process(directory, {name: workspace(name) for name in ("data", "other", "frozen")}) as volume:
        yield volume, directory


@pytest.fixture
def disk(served: tuple[Path, Path], tmp_path: Path) -> Iterator[Disk]:
    _, directory = served
    found = Disk(directory / "data", directory / "other", directory / "frozen", tmp_path)
    yield found
    for workspace in found[:3]:
        shutil.rmtree(workspace)
        workspace.mkdir()


@pytest.fixture
def run(served: tuple[Path, Path], disk: Disk) -> Client:
    return Client(served[0] / "brokervol", disk.task)


@pytest.fixture
def here(served: tuple[Path, Path], disk: Disk, capfd: pytest.CaptureFixture[str]) -> Here:
    """The client in this process: where it is not the process that matters, as that takes ten times as long."""

    def run(*arguments: str) -> Outcome:
        code = task.main(["--socket", str(served[0] / "broker.sock"), *arguments])
        return Outcome(code, *capfd.readouterr())

    return run


def write(root: Path, *names: str) -> None:
    """Files at these paths, each holding its own path."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


# --- ws --------------------------------------------------------------------------------------------------


def test_ws_shows_a_table_of_workspaces(run: Client, disk: Disk) -> None:
    done = run("ws")
    rows = [line.split() for line in done.out.splitlines()]
    assert rows == [
        ["NAME", "TYPE", "PATH", "ACCESS"],
        ["data", "host", str(disk.data), "rw"],
        ["frozen", "host", str(disk.frozen), "ro"],
        ["other", "host", str(disk.other), "rw"],
    ]
    assert (done.code, done.err) == (0, "")


def test_ws_as_json_is_one_object_a_line(run: Client) -> None:
    assert [(item["name"], item["read_only"]) for item in run("ws", "--json").json] == [
        ("data", False),
        ("frozen", True),
        ("other", False),
    ]


# --- ls --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["data:"], ["top.txt"]),
        (["data:/"], ["top.txt"]),
        (["-r", "data:"], ["2026/07/deep.tif", "2026/a.tif", "2026/b.txt", "top.txt"]),
        (["data:2026/"], ["2026/a.tif", "2026/b.txt"]),
        (["data:2026"], ["2026/a.tif", "2026/b.txt"]),
        (["data:2026/a"], ["2026/a.tif"]),
        (["data:2026/a.tif"], ["2026/a.tif"]),
        (["data:2026/*.tif"], ["2026/a.tif"]),
        (["data:*/a.*"], ["2026/a.tif"]),
        (["-r", "data:2*"], ["2026/07/deep.tif", "2026/a.tif", "2026/b.txt"]),
        (["data:top.txt", "data:2026/[ab].t*"], ["2026/a.tif", "2026/b.txt", "top.txt"]),
    ],
)
def test_ls_lists(run: Client, disk: Disk, arguments: list[str], expected: list[str]) -> None:
    write(disk.data, "top.txt", "2026/a.tif", "2026/b.txt", "2026/07/deep.tif")
    done = run("ls", *arguments)
    assert (sorted(done.out.splitlines()), done.code, done.err) == (expected, 0, "")


def test_ls_of_an_exact_name_hides_longer_names(run: Client, disk: Disk) -> None:
    write(disk.data, "a.tif", "a.tif.aux.xml")
    assert run("ls", "data:a.tif").out == "a.tif\n"


def test_ls_long_shows_both_sizes(run: Client, disk: Disk) -> None:
    (disk.data / "big").write_bytes(b"x" * 15_000)
    assert run("ls", "-l", "data:").out.split() == ["15000", "15K", "big"]


def test_ls_as_json_gives_size_and_name(run: Client, disk: Disk) -> None:
    write(disk.data, "2026/a.tif")
    assert run("ls", "--json", "-r", "data:").json == [{"file": "2026/a.tif", "size": 10}]


def test_ls_of_an_empty_workspace_is_empty(run: Client) -> None:
    assert run("ls", "data:") == Outcome(0, "", "")


def test_ls_of_a_directory_of_directories_is_not_missing(run: Client, disk: Disk) -> None:
    write(disk.data, "2026/07/a.tif")
    assert run("ls", "data:2026/") == Outcome(0, "", "")


@pytest.mark.parametrize("path", ["nope", "nope/", "2026/nope", "*.nope", "*/nope.*"])
def test_ls_of_nothing_is_missing(run: Client, disk: Disk, path: str) -> None:
    write(disk.data, "2026/a.tif")
    done = run("ls", f"data:{path}")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith(f"brokervol: ls: data:{path}: ")
    assert done.err.count("\n") == 1


def test_ls_prints_a_name_that_is_not_utf8_as_it_is(run: Client, disk: Disk) -> None:
    name = os.fsdecode(b"caf\xe9.tif")
    write(disk.data, name)
    assert run("ls", "data:").out == f"{name}\n"
    assert json.loads(run("ls", "--json", "data:").out)["file"] == name


def test_ls_into_a_closed_pipe_ends_quietly(run: Client, disk: Disk) -> None:
    for number in range(3000):
        (disk.data / f"a-file-with-a-name-long-enough-to-fill-a-pipe-soon-{number:05}").touch()
    with subprocess.Popen(
        [run.executable, "ls", "data:"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_full_output_is_one_sentence(run: Client, disk: Disk) -> None:
    write(disk.data, "a")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [run.executable, "ls", "data:"],
            stdout=full,
            stderr=subprocess.PIPE,
            env=clean_environment(),
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"brokervol: ls: no space left on device\n")


# --- cp into a workspace ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a.tif", "data:"], ["a.tif"]),
        (["a.tif", "data:b.tif"], ["b.tif"]),
        (["a.tif", "data:new/dir/"], ["new/dir/a.tif"]),
        (["a.tif", "out/x.tif", "data:in/"], ["in/a.tif", "in/x.tif"]),
        (["./a.tif", "out/../a.tif", "data:in/"], ["in/a.tif"]),
        (["-r", "out", "data:"], ["out/07/y.tif", "out/x.tif"]),
        (["-r", "out/", "data:"], ["out/07/y.tif", "out/x.tif"]),
        (["-r", "out", "data:run"], ["run/07/y.tif", "run/x.tif"]),
        (["-r", "out", "data:run/"], ["run/out/07/y.tif", "run/out/x.tif"]),
        (["-r", "out/.", "data:run/"], ["run/07/y.tif", "run/x.tif"]),
        (["-r", "out", "a.tif", "data:run/"], ["run/a.tif", "run/out/07/y.tif", "run/out/x.tif"]),
        (["--", "-dash", "data:"], ["-dash"]),
        (["./with:colon", "data:"], ["with:colon"]),
        (["link.tif", "data:"], ["link.tif"]),
    ],
)
def test_cp_uploads(run: Client, disk: Disk, arguments: list[str], expected: list[str]) -> None:
    write(disk.task, "a.tif", "out/x.tif", "out/07/y.tif", "-dash", "with:colon")
    (disk.task / "link.tif").symlink_to("a.tif")
    done = run("cp", *arguments)
    assert tree(disk.data) == expected
    if arguments[0] != "./a.tif":  # the same file twice, as in cp: said, and done once
        assert (done.code, done.out, done.err) == (0, "", "")
    assert all(not path.is_symlink() for path in disk.data.rglob("*"))


def test_cp_of_two_files_of_one_name_keeps_the_first(run: Client, disk: Disk) -> None:
    write(disk.task, "one/a.tif", "two/a.tif")
    done = run("cp", "one/a.tif", "two/a.tif", "data:")
    assert (done.code, (disk.data / "a.tif").read_text()) == (1, "one/a.tif")
    assert "another source has the same target: " in done.err


def test_cp_replaces_and_with_no_clobber_does_not(run: Client, disk: Disk) -> None:
    write(disk.data, "a.tif")
    (disk.task / "a.tif").write_text("new")
    assert run("cp", "-n", "a.tif", "data:") == Outcome(0, "", "")
    assert (disk.data / "a.tif").read_text() == "a.tif"
    assert run("cp", "a.tif", "data:") == Outcome(0, "", "")
    assert (disk.data / "a.tif").read_text() == "new"


def test_cp_as_json_tells_what_is_kept(run: Client, disk: Disk) -> None:
    write(disk.data, "a.tif")
    write(disk.task, "a.tif", "b.tif")
    done = run("cp", "-n", "--json", "a.tif", "b.tif", "data:")
    assert (done.code, done.err) == (0, "")
    assert [item["status"] for item in done.json] == ["kept", "done"]
    assert done.json[0] == {"file_path": "a.tif", "status": "kept"}


def test_what_fails_of_a_copy_is_named_by_its_source(run: Client, disk: Disk) -> None:
    write(disk.data, "d/b")
    write(disk.other, "there")
    for source in ("data:nope", "data:nope/nope"):
        done = run("cp", source, "other:y/")
        assert (done.code, done.err.split(": ")[2]) == (3, source)
    done = run("cp", "data:d", "other:y/")
    assert done.err == "brokervol: cp: data:d: it is a directory: use -r for all files below it\n"
    assert tree(disk.other) == ["there"]
    done = run("cp", "data:d/b", "other:there/b")
    assert done.err.startswith("brokervol: cp: other:there/b: "), "it is the target that is wrong"


def test_what_fails_of_a_download_names_the_local_path(run: Client, disk: Disk) -> None:
    write(disk.data, "a")
    assert "to local_path '/proc/self/x'" in run("cp", "data:a", "/proc/self/x").err


def test_what_was_found_before_a_listing_broke_off_is_shown(run: Client, tmp_path: Path) -> None:
    error = {"error": {"code": "permission-denied", "detail": "list 'priv': the caller may not do this here"}}

    def script(_: Request, write: Callable[[bytes], object]) -> None:
        write(CHUNKED + chunk(lines({"file": "b", "size": 1}, {"file": "a", "size": 1}, error)) + chunk(b""))

    with scripted_sidecar(str(tmp_path / "s"), script):
        for verb, expected in (("ls", "a\nb\n"), ("find", "data:a\ndata:b\n")):
            done = run(verb, "--socket", str(tmp_path / "s"), "data:")
            assert done == Outcome(
                4, expected, f"brokervol: {verb}: data:: list 'priv': the caller may not do this here\n"
            )


def test_cp_as_json_tells_each_result(run: Client, disk: Disk) -> None:
    write(disk.task, "a", "b")
    done = run("cp", "--json", "a", "b", "nope", "data:in/")
    assert [(item["file_path"], item["status"]) for item in done.json] == [("in/a", "done"), ("in/b", "done")]
    assert done.code == 3


def test_cp_goes_on_after_a_missing_source(run: Client, disk: Disk) -> None:
    write(disk.task, "a.tif")
    done = run("cp", "nope.tif", "a.tif", "data:")
    assert (done.code, tree(disk.data)) == (3, ["a.tif"])
    assert done.err == f"brokervol: cp: {disk.task}/nope.tif: no such file or directory\n"


def test_cp_of_a_directory_needs_recursive(run: Client, disk: Disk) -> None:
    write(disk.task, "out/x.tif")
    done = run("cp", "out", "data:")
    assert (done.code, tree(disk.data)) == (1, [])
    assert "use -r" in done.err


def test_cp_recursive_follows_links_and_ends_in_circles(run: Client, disk: Disk) -> None:
    write(disk.task, "out/x.tif", "elsewhere/y.tif")
    (disk.task / "out/there").symlink_to("../elsewhere")
    (disk.task / "out/circle").symlink_to(".")
    os.mkfifo(disk.task / "out/pipe")
    done = run("cp", "-r", "out", "data:")
    assert tree(disk.data) == ["out/there/y.tif", "out/x.tif"]
    assert done.code == 1
    assert [line.split(": ")[2:] for line in done.err.splitlines()] == [
        [f"{disk.task}/out/circle", "it is a link to a directory that holds it"],
        [f"{disk.task}/out/pipe", "it is neither a file nor a directory"],
    ]


def test_cp_of_thousands_goes_up_in_chunks(run: Client, disk: Disk) -> None:
    (disk.task / "out").mkdir()
    for number in range(1201):
        (disk.task / f"out/{number}").touch()
    assert run("cp", "-r", "out", "data:").code == 0
    assert len(tree(disk.data)) == 1201


def test_cp_of_a_local_name_that_is_not_utf8(run: Client, disk: Disk) -> None:
    name = os.fsdecode(b"caf\xe9.tif")
    write(disk.task, name)
    done = run("cp", os.fsencode(name), "data:plain.tif")
    assert (done.code, done.err, tree(disk.data)) == (0, "", ["plain.tif"])


# --- cp out of a workspace -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["data:2026/a.tif", "."], ["a.tif"]),
        (["data:2026/a.tif", "b.tif"], ["b.tif"]),
        (["data:2026/a.tif", "in"], ["in/a.tif"]),
        (["data:2026/a.tif", "data:top.txt", "in"], ["in/a.tif", "in/top.txt"]),
        (["data:2026/*", "in/"], ["in/a.tif", "in/b.txt"]),
        (["-r", "data:2026", "in"], ["in/2026/07/deep.tif", "in/2026/a.tif", "in/2026/b.txt"]),
        (["-r", "data:2026/", "new"], ["new/07/deep.tif", "new/a.tif", "new/b.txt"]),
        (["-r", "data:2026", "new/"], ["new/07/deep.tif", "new/a.tif", "new/b.txt"]),
        (["-r", "data:top.txt", "new"], ["new"]),
        (["-r", "data:2*", "in"], ["in/2026/07/deep.tif", "in/2026/a.tif", "in/2026/b.txt"]),
        (["-r", "data:", "new"], ["new/2026/07/deep.tif", "new/2026/a.tif", "new/2026/b.txt", "new/top.txt"]),
    ],
)
def test_cp_downloads_links(run: Client, disk: Disk, arguments: list[str], expected: list[str]) -> None:
    write(disk.data, "top.txt", "2026/a.tif", "2026/b.txt", "2026/07/deep.tif")
    (disk.task / "in").mkdir()
    assert run("cp", *arguments) == Outcome(0, "", "")
    assert tree(disk.task) == expected
    for path in expected:
        assert (disk.task / path).is_symlink()
        assert (disk.data / (disk.task / path).read_text()).samefile(disk.task / path)


def test_cp_no_clobber_leaves_a_local_file(run: Client, disk: Disk) -> None:
    write(disk.data, "a.tif", "b.tif")
    (disk.task / "a.tif").write_text("mine")
    assert run("cp", "-n", "data:*.tif", ".") == Outcome(0, "", "")
    assert not (disk.task / "a.tif").is_symlink()
    assert (disk.task / "b.tif").is_symlink()


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["data:a.tif", "nodir/a.tif"], "nodir"),
        (["data:a.tif", "nodir/"], "nodir/"),
        (["-r", "data:", "no/dir"], "no"),
        (["data:nope.tif", "."], "data:nope.tif"),
        (["data:*.nope", "."], "data:*.nope"),
        (["nope:a.tif", "."], "nope"),
    ],
)
def test_cp_says_what_is_missing(run: Client, disk: Disk, arguments: list[str], missing: str) -> None:
    write(disk.data, "a.tif")
    done = run("cp", *arguments)
    assert done.code == 3
    assert done.err.startswith(f"brokervol: cp: {missing}")
    assert tree(disk.task) == []


def test_a_local_file_where_a_directory_is_needed_is_told(run: Client, disk: Disk) -> None:
    write(disk.data, "2026/07/a.tif", "2026/b.tif")
    write(disk.task, "in/2026/07")
    done = run("cp", "-r", "data:2026", "in")
    assert (done.code, tree(disk.task)) == (1, ["in/2026/07", "in/2026/b.tif"])
    assert done.err == f"brokervol: cp: {disk.task}/in/2026/07: file exists\n"


# --- cp between workspaces -------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", ["data:a .", "x data:", "-r . data:"])
def test_cp_from_a_directory_that_was_removed_says_so(run: Client, disk: Disk, sides: str) -> None:
    write(disk.data, "a")
    line = f'mkdir gone && cd gone && rmdir ../gone && exec "$0" "$1" cp {sides}'
    done = subprocess.run(
        ["sh", "-c", line, sys.executable, str(run.executable)],
        cwd=disk.task,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr.startswith("brokervol: cp: ")
    assert done.stderr.endswith(": the current directory was removed\n")


def test_cp_never_puts_a_file_in_the_place_of_what_is_none(run: Client, disk: Disk) -> None:
    """As root it would be /dev/null, for instance, and no program of the container would find it any more."""
    write(disk.data, "a")
    pipe, link = disk.task / "pipe", disk.task / "link"
    os.mkfifo(pipe)
    link.symlink_to("pipe")
    for path in (pipe, link):
        done = run("cp", "data:a", str(path))
        assert done.code == 1
        assert done.err == f"brokervol: cp: {path}: it is no file; what brokervol cat prints can be sent there\n"
    (disk.task / "in").mkdir()
    os.mkfifo(disk.task / "in/a")
    assert "a named pipe is already at 'a'" in run("cp", "data:a", str(disk.task / "in")).err
    assert stat.S_ISFIFO(os.lstat(disk.task / "in/a").st_mode)
    assert stat.S_ISFIFO(os.lstat(pipe).st_mode)
    assert link.is_symlink()
    assert all(verbs._is_special(path) for path in ("/dev/null", "/dev/stdout", "/dev/./stderr"))
    assert not verbs._is_special("/dev/shm/new")


def test_cp_between_workspaces_copies(run: Client, disk: Disk) -> None:
    write(disk.data, "2026/a.tif", "2026/07/b.tif")
    assert run("cp", "-r", "data:2026", "other:old/") == Outcome(0, "", "")
    assert tree(disk.other) == ["old/2026/07/b.tif", "old/2026/a.tif"]
    assert not (disk.other / "old/2026/a.tif").is_symlink()


def test_cp_below_its_own_source_ends(run: Client, disk: Disk) -> None:
    write(disk.data, "a", "b")
    assert run("cp", "-r", "data:", "data:copy/").code == 0
    assert tree(disk.data) == ["a", "b", "copy/a", "copy/b"]


def test_cp_mixes_local_and_workspace_sources(run: Client, disk: Disk) -> None:
    write(disk.data, "a")
    write(disk.task, "b")
    assert run("cp", "data:a", "b", "other:in/").code == 0
    assert tree(disk.other) == ["in/a", "in/b"]


# --- mv, rm, stat ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["data:a.tif", "data:c.tif"], ["b.tif", "c.tif"]),
        (["data:a.tif", "data:done/"], ["b.tif", "done/a.tif"]),
        (["data:a.tif", "data:b.tif"], ["b.tif"]),
        (["-n", "data:a.tif", "data:b.tif"], ["a.tif", "b.tif"]),
        (["data:*.tif", "data:done/"], ["done/a.tif", "done/b.tif"]),
        (["data:a.tif", "data:b.tif", "data:done/"], ["done/a.tif", "done/b.tif"]),
    ],
)
def test_mv_renames(run: Client, disk: Disk, arguments: list[str], expected: list[str]) -> None:
    write(disk.data, "a.tif", "b.tif")
    assert run("mv", *arguments) == Outcome(0, "", "")
    assert tree(disk.data) == expected


def test_mv_of_a_missing_file_is_missing(run: Client) -> None:
    done = run("mv", "data:nope", "data:b")
    assert done.code == 3
    assert done.err.startswith("brokervol: mv: data:nope: ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["data:a.tif"], [".hidden.tif", "b.tif", "d/c.tif"]),
        (["data:a.tif", "data:gone"], [".hidden.tif", "b.tif", "d/c.tif"]),
        (["data:*.tif"], [".hidden.tif", "d/c.tif"]),
        (["data:.*"], ["a.tif", "b.tif", "d/c.tif"]),
        (["-r", "data:d"], [".hidden.tif", "a.tif", "b.tif"]),
        (["-r", "data:d/"], [".hidden.tif", "a.tif", "b.tif"]),
        (["-r", "data:"], []),
        (["-r", "data:gone"], [".hidden.tif", "a.tif", "b.tif", "d/c.tif"]),
    ],
)
def test_rm_deletes(run: Client, disk: Disk, arguments: list[str], expected: list[str]) -> None:
    write(disk.data, "a.tif", "b.tif", "d/c.tif", ".hidden.tif")
    assert run("rm", *arguments) == Outcome(0, "", "")
    assert tree(disk.data) == expected


@pytest.mark.parametrize("name", ["a[1].tif", "a?.tif", "*", "[1]/x[2]"])
def test_rm_of_a_name_with_pattern_characters_deletes_nothing_else(run: Client, disk: Disk, name: str) -> None:
    others = ["1/x2", "a1.tif", "ab.tif"]
    write(disk.data, name, *others)
    assert run("rm", f"data:{name}").code == 0
    assert tree(disk.data) == others


def test_rm_recursive_of_a_directory_with_pattern_characters_deletes_nothing_else(run: Client, disk: Disk) -> None:
    write(disk.data, "a[1]/x/y", "a1/x/y")
    assert run("rm", "-r", "data:a[1]").code == 0
    assert tree(disk.data) == ["a1/x/y"]
    assert run("rm", "-r", "data:a[1]").code == 0, "now it is a pattern"
    assert tree(disk.data) == []


def test_a_name_can_be_spelled_so_that_it_is_never_a_pattern(run: Client, disk: Disk) -> None:
    write(disk.data, "a1.tif", "a[1].tif", "*", "?/*")
    assert run("cat", "data:a[[]1].tif").code == 0
    assert run("stat", "data:a[[]1].tif").out.startswith("file:   data:a[1].tif\n")
    assert run("ls", "data:[?]/").out == "?/*\n"
    assert run("cp", "data:a[[]1].tif", str(disk.task / "one")).code == 0, "a target that is no directory"
    found = run("find", "data:", "--print0").out.split("\0")
    assert found == ["data:[*]", "data:[?]/[*]", "data:a1.tif", "data:a[[]1].tif", ""]
    assert run("rm", "data:a[[]1].tif").code == 0
    assert run("rm", "data:a[[]1].tif").code == 0, "it is gone, and no pattern either"
    assert run("rm", *found[:2]).code == 0
    assert tree(disk.data) == ["a1.tif"]


def test_stat_shows_size_and_record(run: Client, disk: Disk) -> None:
    write(disk.task, "a.tif")
    write(disk.data, "strange.tif")
    assert run("cp", "a.tif", "data:").code == 0
    shown = run("stat", "data:a.tif")
    assert "size:   5 (5)\n" in shown.out
    assert "record: file_path = a.tif\n" in shown.out
    [item] = run("stat", "--json", "data:a.tif").json
    assert (item["file"], item["size"], item["record"]["is_deleted"]) == ("a.tif", 5, False)
    assert "record: none" in run("stat", "data:strange.tif").out


def test_stat_of_a_deleted_file_says_so(run: Client, disk: Disk) -> None:
    write(disk.task, "gone.tif")
    run("cp", "gone.tif", "data:")
    run("rm", "data:gone.tif")
    done = run("stat", "data:gone.tif")
    assert done.code == 3
    assert "it was deleted at 20" in done.err


def test_stat_tells_what_the_storage_says(here: Here, disk: Disk) -> None:
    write(disk.data, "2026/a.tif")
    os.utime(disk.data / "2026/a.tif", (1, 1_700_000_000))
    [item] = here("stat", "--json", "data:2026/a.tif").json
    assert (item["last_modified"], item["media_type"]) == ("2023-11-14T22:13:20+00:00", "image/tiff")
    assert item["path"] == str(disk.data / "2026/a.tif")
    assert item["etag"]
    shown = here("stat", "data:2026/a.tif").out
    assert "time:   2023-11-14T22:13:20+00:00\ntype:   image/tiff\netag:   " in shown


def test_stat_of_a_file_that_may_not_be_opened_tells_what_the_listing_does(run: Client, tmp_path: Path) -> None:
    def script(request: Request, write: Callable[[bytes], object]) -> None:
        target = request.target.partition("?")[0]
        if "/content/" in target:
            write(answer({"code": "permission-denied", "detail": "no"}, "403 Forbidden"))
        elif target.endswith("/files"):
            write(answer(lines({"file": "a", "size": 7})))
        else:
            write(answer({"files": [], "paths": None}))

    with scripted_sidecar(str(tmp_path / "s"), script):
        [item] = run("stat", "--json", "--socket", str(tmp_path / "s"), "data:a").json
    assert (item["size"], item["last_modified"], item["etag"], item["path"]) == (7, None, None, None)


def test_stat_of_a_name_that_is_not_utf8_says_so(run: Client, disk: Disk) -> None:
    (disk.data / os.fsdecode(b"\xff")).write_bytes(b"12")
    done = run("stat", b"data:\xff")
    assert done.code == 1
    assert "is not valid UTF-8" in done.err


# --- cat, and standard input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["data:a"], "0123456789"),
        (["data:a", "data:d/b"], "0123456789bytes"),
        (["data:*"], "0123456789"),
        (["--range", "2-4", "data:a"], "234"),
        (["--range", "7-99", "data:a"], "789"),
        (["--range", "7-", "data:a"], "789"),
        (["--range", "-2", "data:a"], "89"),
        (["--range=-2", "data:a", "data:d/b"], "89es"),
        (["frozen:c"], "read-only"),
    ],
)
def test_cat_writes_bytes(here: Here, disk: Disk, arguments: list[str], shown: str) -> None:
    (disk.data / "d").mkdir()
    (disk.data / "a").write_text("0123456789")
    (disk.data / "d/b").write_text("bytes")
    (disk.frozen / "c").write_text("read-only")
    assert here("cat", *arguments) == Outcome(0, shown, "")


def test_cat_goes_on_after_what_is_missing(here: Here, disk: Disk) -> None:
    (disk.data / "a").write_text("a")
    done = here("cat", "data:nope", "data:a", "data:x*", "theirs:a")
    assert (done.code, done.out) == (3, "a")
    told = [line.partition(": cat: ")[2].split(": ")[0] for line in done.err.splitlines()]
    assert told == ["data:nope", "data:x*", "theirs:a"]


def test_cat_of_no_byte_says_how_many_there_are(here: Here, disk: Disk) -> None:
    (disk.data / "a").write_text("0123456789")
    done = here("cat", "--range", "10-", "data:a")
    assert done == Outcome(1, "", "brokervol: cat: data:a: Range: the file has 10 bytes\n")


@pytest.mark.parametrize(("part", "out"), [("0-9", "0123"), ("-2", "23"), ("0-", "0123")])
def test_cat_of_a_range_of_an_empty_file_is_nothing(here: Here, disk: Disk, part: str, out: str) -> None:
    (disk.data / "a").touch()
    (disk.data / "b").write_text("0123")
    assert here("cat", f"--range={part}", "data:a", "data:b") == Outcome(0, out, "")


def test_cat_into_a_closed_pipe_ends_quietly(run: Client, disk: Disk) -> None:
    (disk.data / "large").write_bytes(bytes(8 << 20))
    command = f"{run.executable} cat data:large | head -c 3 | wc -c; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=clean_environment(), check=True
    )
    assert (done.stdout.split(), done.stderr) == (["3", "141"], "")


def test_cat_that_is_cut_off_is_never_taken_for_whole(run: Client, tmp_path: Path) -> None:
    def script(request: Request, write: Callable[[bytes], object]) -> None:
        write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    with scripted_sidecar(str(tmp_path / "s"), script):
        done = run("cat", "--socket", str(tmp_path / "s"), "data:a")
    assert (done.code, done.out) == (5, "half")
    assert "broke off its answer" in done.err


def test_python_writes_bytes_as_they_are(served: tuple[Path, Path], disk: Disk) -> None:
    written = client.Client(str(served[0] / "broker.sock")).write("data", "a", b"content")
    assert (written.is_new, written.record["file_size"]) == (True, 7)
    assert (disk.data / "a").read_bytes() == b"content"


def test_standard_input_that_is_closed_is_no_empty_file(run: Client, disk: Disk) -> None:
    line = ["sh", "-c", 'exec "$0" cp - data:a <&-', str(run.executable)]
    done = subprocess.run(line, capture_output=True, text=True, env=clean_environment(), check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "brokervol: cp: -: standard input is closed\n"
    assert not (disk.data / "a").exists()


def test_standard_input_becomes_a_file(run: Client, disk: Disk) -> None:
    def copied(*arguments: str) -> Outcome:
        done = subprocess.run(
            [run.executable, "cp", *arguments],
            input=b"bytes",
            capture_output=True,
            env=clean_environment(),
            check=False,
        )
        return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())

    assert copied("-", "data:d/b.tif") == Outcome(0, "", "")
    assert (disk.data / "d/b.tif").read_bytes() == b"bytes"
    (disk.data / "a").write_bytes(b"old")
    assert copied("-n", "-", "data:a") == Outcome(0, "", "")
    assert (disk.data / "a").read_bytes() == b"old"
    [item] = copied("--json", "-", "data:a").json
    assert (item["status"], item["file"]["file_size"]) == ("done", 5)
    assert copied("-", "frozen:a").code == 4
    assert run("cp", "data:a", "-").code == 2


# --- find ------------------------------------------------------------------------------------------------


@pytest.fixture
def aged(disk: Disk) -> Disk:
    """Files of several sizes, of which one is old."""
    for name, size in (("a.tif", 10), ("2026/b.tif", 2048), ("2026/07/.c.tif", 0), ("2026/d[1].txt", 2000)):
        (disk.data / name).parent.mkdir(parents=True, exist_ok=True)
        (disk.data / name).write_bytes(bytes(size))
    os.utime(disk.data / "2026/b.tif", (0, 1_700_000_000))
    return disk


@pytest.mark.usefixtures("aged")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["data:"], ["2026/07/.c.tif", "2026/b.tif", "2026/d[1].txt", "a.tif"]),
        (["data:", "-name", "*.tif"], ["2026/07/.c.tif", "2026/b.tif", "a.tif"]),
        (["data:2026", "--name", "?.tif"], ["2026/b.tif"]),
        (["data:", "--path", "2026/*.t*"], ["2026/07/.c.tif", "2026/b.tif", "2026/d[1].txt"]),
        (["data:", "--larger", "10"], ["2026/b.tif", "2026/d[1].txt"]),
        (["data:", "--larger=2000", "--smaller", "3k"], ["2026/b.tif"]),
        (["data:", "--smaller", "1"], ["2026/07/.c.tif"]),
        (["data:", "--older", "52w"], ["2026/b.tif"]),
        (["data:", "--newer", "1d", "--name", "a*"], ["a.tif"]),
        (["data:", "--newer", "2023-11-14T23:13:19+01:00", "--older", "2023-11-14T22:13:21Z"], ["2026/b.tif"]),
        (["data:*/*", "--name", "*.txt"], ["2026/d[1].txt"]),
        (["data:", "--name", "none"], []),
    ],
)
def test_find_finds(here: Here, arguments: list[str], expected: list[str]) -> None:
    assert here("find", *arguments) == Outcome(0, "".join(f"data:{path}\n" for path in expected), "")


@pytest.mark.usefixtures("aged")
def test_find_for_programs(here: Here) -> None:
    found = here("find", "--json", "--older", "2024-01-01", "data:").json
    assert found == [
        {"workspace": "data", "file": "2026/b.tif", "size": 2048, "last_modified": "2023-11-14T22:13:20+00:00"}
    ]
    assert here("find", "--print0", "data:a", "data:2026/b").out == "data:a.tif\0data:2026/b.tif\0"


def test_what_find_finds_can_be_removed(run: Client, aged: Disk) -> None:
    command = f"{run.executable} find data: --name '*[[]1*' -print0 | xargs -0 {run.executable} rm"
    subprocess.run(["bash", "-c", command], env=clean_environment(), check=True)
    assert tree(aged.data) == ["2026/07/.c.tif", "2026/b.tif", "a.tif"]


def test_find_says_where_nothing_is(here: Here) -> None:
    done = here("find", "data:nowhere", "theirs:")
    assert (done.code, done.out, done.err.count("\n")) == (3, "", 2)
    assert here("find", "data:") == Outcome(0, "", "")


# --- all of them, by the oldest interpreter ---------------------------------------------------------------


def test_python_3_8_runs_every_verb(run: Client, disk: Disk) -> None:
    environment = {**clean_environment(), "PYENV_VERSION": "3.8"}  # for who has that Python by pyenv
    python = shutil.which("python3.8")
    if python is None or subprocess.run([python, "-V"], env=environment, check=False).returncode:
        pytest.skip(
            "PYTHON 3.8 IS NOT INSTALLED: that the client runs by it is not tested here, but for its syntax"
        )

    def ran(*arguments: str) -> str:
        return subprocess.run(
            [python, run.executable, *arguments],
            cwd=disk.task,
            env=environment,
            input="given",
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    write(disk.task, "in/a.tif")
    assert ran("ws").startswith("NAME")
    assert ran("cp", "-r", "in", "data:") == ""
    assert ran("cp", "-", "data:in/b") == ""
    assert ran("find", "data:", "--newer", "1h", "--older", "2999-01-01T00:00Z") == "data:in/a.tif\ndata:in/b\n"
    assert ran("cat", "data:in/*") == "in/a.tifgiven"
    assert '"size":5' in ran("stat", "--json", "data:in/b")
    assert ran("mv", "data:in/*", "data:out/") == ""
    assert ran("cp", "data:out/b", ".") == ""
    assert ran("rm", "-r", "data:") == ""
    assert ran("ls", "-l", "data:") == ""
    assert "__complete" in ran("completion", "bash")
    assert ran("__complete", "zsh", "ls", "da") == "data:\n"


# --- denied, unavailable, unexpected ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["rm", "frozen:a"], ["mv", "frozen:a", "frozen:b"], ["cp", "mine", "frozen:"]]
)
def test_a_read_only_workspace_is_denied(run: Client, disk: Disk, arguments: list[str]) -> None:
    write(disk.frozen, "a")
    write(disk.task, "mine")
    done = run(*arguments)
    assert (done.code, tree(disk.frozen)) == (4, ["a"])
    assert "read-only" in done.err
    assert done.err.count("\n") == 1


def test_no_sidecar_is_unavailable(run: Client, tmp_path: Path) -> None:
    done = run("ws", "--socket", str(tmp_path / "none.sock"))
    assert done == Outcome(
        5,
        "",
        f"brokervol: ws: no sidecar can be reached at {tmp_path}/none.sock: no such file or directory;"
        " mount a volume of type=sidecar in this container, or name its socket by --socket\n",
    )
    assert run("--socket", str(tmp_path / "none.sock"), "ws").code == 5
    assert run("ws", BROKERVOL_SOCKET=str(tmp_path / "none.sock")).code == 5


def batch_answers(*results: dict[str, object]) -> Callable[[Request, Callable[[bytes], object]], None]:
    def script(request: Request, write: Callable[[bytes], object]) -> None:
        write(answer(lines(*results), kind="application/x-ndjson"))

    return script


def test_an_unavailable_backend_ends_the_batch(run: Client, tmp_path: Path) -> None:
    error = {"code": "backend-unavailable", "detail": "the NFS server does not answer"}
    script = batch_answers(
        {"file_path": "a", "status": "done"}, {"file_path": "b", "status": "failed", "error": error}
    )
    with scripted_sidecar(str(tmp_path / "s"), script) as requests:
        done = run("rm", "--socket", str(tmp_path / "s"), *(f"data:{number}" for number in range(600)))
    assert done == Outcome(
        5, "", "brokervol: rm: data:b: the NFS server does not answer (1 of 600 files were deleted)\n"
    )
    assert len(requests) == 1


def test_a_name_from_a_bucket_cannot_lead_out_of_the_target(run: Client, tmp_path: Path) -> None:
    def script(request: Request, write: Callable[[bytes], object]) -> None:
        keys = ("in/../../evil", "in//etc/evil", "in/..", "in/good")
        write(answer(lines(*({"file": key, "size": 1} for key in keys)) if request.method == "GET" else b""))

    (tmp_path / "out").mkdir()
    with scripted_sidecar(str(tmp_path / "s"), script) as requests:
        done = run("cp", "-r", "--socket", str(tmp_path / "s"), "bucket:in", "out")
    asked = [item["local_path"] for item in requests[-1].body["files"]]
    assert (asked, done.code) == ([f"{tmp_path}/out/in/good"], 1)
    assert done.err.count("its name would lead out of the target") == 3


def test_control_characters_of_a_name_do_not_reach_the_terminal(run: Client, tmp_path: Path) -> None:
    error = {"code": "missing-file", "detail": "no file \x1b[2J\n\u202ehere"}
    with scripted_sidecar(
        str(tmp_path / "s"), batch_answers({"file_path": "b\r", "status": "failed", "error": error})
    ):
        done = run("rm", "--socket", str(tmp_path / "s"), "data:b")
    assert done.err == "brokervol: rm: data:b\\r: no file \\x1b[2J\\n\\u202ehere\n"


def test_an_unexpected_answer_is_a_sentence_and_a_traceback_only_for_debugging(
    run: Client, tmp_path: Path
) -> None:
    def script(request: Request, write: Callable[[bytes], object]) -> None:
        write(answer({"unknown": 1}))

    with scripted_sidecar(str(tmp_path / "s"), script):
        plain = run("ws", "--socket", str(tmp_path / "s"))
        debug = run("ws", "--socket", str(tmp_path / "s"), BROKERVOL_DEBUG="1")
    assert plain.code == 1
    assert plain.err.startswith("brokervol: ws: unexpected KeyError: ")
    assert plain.err.count("\n") == 1
    assert "Traceback" in debug.err


def test_interrupt_says_how_far_it_came(run: Client, tmp_path: Path) -> None:
    def script(request: Request, write: Callable[[bytes], object]) -> None:
        write(CHUNKED + chunk(lines({"file_path": "a", "status": "done"}, {"file_path": "b", "status": "done"})))
        stalled.read(1)

    reader, writer = os.pipe()
    command = [str(run.executable), "rm", "--json", "--socket", str(tmp_path / "s"), *(f"data:{n}" for n in "abc")]
    with (
        open(reader, "rb") as stalled,
        scripted_sidecar(str(tmp_path / "s"), script),
        open(writer, "wb"),
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment()
        ) as process,
    ):
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (
        130,
        (
            b"brokervol: rm: interrupted: 2 of 3 files were deleted, and those in work may yet be; "
            b"run the same command again to go on\n"
        ),
    )


# --- what a hostile user tried ---------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["cp", "rm"])
def test_a_directory_without_recursive_is_told_how(here: Here, disk: Disk, verb: str) -> None:
    write(disk.data, "d/a")
    done = here(verb, "data:d", *([str(disk.task / "x")] if verb == "cp" else []))
    assert done.err == f"brokervol: {verb}: data:d: it is a directory: use -r for all files below it\n"
    assert tree(disk.data) == ["d/a"]


def test_a_path_that_is_too_long_fails_alone(here: Here, disk: Disk) -> None:
    write(disk.data, "a", "b")
    done = here("rm", "data:a", "data:" + "q" * 4097, "data:b")
    assert (done.code, tree(disk.data)) == (1, [])
    told = "its path, or that at the target, has more than 4,096 characters"
    assert done.err == f"brokervol: rm: {'q' * 120}...{'q' * 60}: {told}\n"


def test_a_backslash_in_a_sentence_is_one(run: Client) -> None:
    assert "there is no file 'a\\b' in the workspace" in run("cat", "data:a\\b").err
    assert r"file_path 'n\xff' is not valid UTF-8" in run("cat", b"data:n\xff").err
    assert r"""there is no file 'q"\'s' in""" in run("cat", "data:q\"'s").err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--help", "brokervol: no space left on device\n"),
        ("--version", "brokervol: no space left on device\n"),
        ("cp --help", "brokervol: cp: no space left on device\n"),
        ("completion zsh", "brokervol: completion: no space left on device\n"),
        ("ws", "brokervol: ws: no space left on device\n"),
        ("__complete zsh l", ""),
    ],
)
def test_output_that_cannot_be_written_is_one_sentence(run: Client, arguments: str, told: str) -> None:
    def ended(output: int) -> tuple[int, str]:
        line = [str(run.executable), *arguments.split()]
        environment = clean_environment()
        done = subprocess.run(line, stdout=output, stderr=subprocess.PIPE, text=True, env=environment, check=False)
        os.close(output)
        return done.returncode, done.stderr

    assert ended(os.open("/dev/full", os.O_WRONLY)) == (1 if told else 0, told)
    reader, writer = os.pipe()
    os.close(reader)
    assert ended(writer) == (141 if told else 0, "")


@pytest.mark.parametrize("verb", ["upload", "download"])
def test_a_sidecar_that_is_killed_in_a_batch_is_told_and_the_same_command_ends_it(
    tmp_path: Path, verb: str
) -> None:
    count = 3000
    for name in ("data", "in", "task"):
        (tmp_path / name).mkdir()
    source, target = ("in", "data") if verb == "upload" else ("data", "in")
    write(tmp_path / source, *(f"{number:04}" for number in range(count)))
    places = [f"{tmp_path}/in/.", "data:"] if verb == "upload" else ["data:", f"{tmp_path}/in"]
    line = ["cp", "-q", "-r", *places]
    workspaces = {"data": {"version": "1.0", "broker": {"type": "host", "host_path": str(tmp_path / "data")}}}
    with killable_sidecar(tmp_path, workspaces) as (served, sidecar):
        environment = clean_environment()
        command = [str(served / "brokervol"), *line]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
            wait_until(lambda: len(os.listdir(tmp_path / target)) > 100, "some files are there")
            sidecar.kill()
            _, err = process.communicate(timeout=30)
    assert process.returncode == 5
    assert re.fullmatch(
        r"brokervol: cp: the sidecar at \S+ broke off its answer: .*"
        r" \((no file was copied|[\d,]+ of 3,000 files were copied)\)\n",
        err,
    )
    with killable_sidecar(tmp_path, workspaces):
        done = Client(served / "brokervol", tmp_path / "task")(*line)
    assert (done.code, done.out, done.err) == (0, "", "")
    assert len(tree(tmp_path / target)) == count

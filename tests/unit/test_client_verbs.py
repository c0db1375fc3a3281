"""The verbs of a task: the zipapp as a process, against a real sidecar, observed on the disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from unit.scripted_sidecar import CHUNKED, Request, answer, chunk, lines, scripted_sidecar
from unit.sidecar_process import Client, Outcome, clean_environment, sidecar_process


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
    assert "a.tif was written just before" in done.err


def test_cp_replaces_and_with_no_clobber_does_not(run: Client, disk: Disk) -> None:
    write(disk.data, "a.tif")
    (disk.task / "a.tif").write_text("new")
    assert run("cp", "-n", "a.tif", "data:") == Outcome(0, "", "")
    assert (disk.data / "a.tif").read_text() == "a.tif"
    assert run("cp", "a.tif", "data:") == Outcome(0, "", "")
    assert (disk.data / "a.tif").read_text() == "new"


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


def test_rm_takes_a_name_with_pattern_characters_literally_too(run: Client, disk: Disk) -> None:
    write(disk.data, "a[1].tif")
    assert run("rm", "data:a[1].tif").code == 0
    assert tree(disk.data) == []


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
        5, "", f"brokervol: ws: no sidecar can be reached at {tmp_path}/none.sock: no such file or directory\n"
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
    assert done == Outcome(5, "", "brokervol: rm: data:b: the NFS server does not answer (1 of 600 done)\n")
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
    error = {"code": "missing-file", "detail": "no file \x1b[2J\nhere"}
    with scripted_sidecar(
        str(tmp_path / "s"), batch_answers({"file_path": "b\r", "status": "failed", "error": error})
    ):
        done = run("rm", "--socket", str(tmp_path / "s"), "data:b")
    assert done.err == "brokervol: rm: data:b\\x0d: no file \\x1b[2J\\x0ahere\n"


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
        b"brokervol: rm: interrupted: 2 of 3 done; a file in work may yet be finished\n",
    )


def test_progress_is_shown_on_a_terminal_only(run: Client, disk: Disk) -> None:
    write(disk.task, "a", "b")
    controller, terminal = os.openpty()
    with open(controller, "rb", buffering=0) as shown:
        done = subprocess.run(
            [run.executable, "cp", "a", "b", "nope", "data:"],
            cwd=disk.task,
            stdout=subprocess.PIPE,
            stderr=terminal,
            env=clean_environment(),
            check=False,
        )
        os.close(terminal)
        text = shown.read(65536).decode()
    assert (done.returncode, done.stdout) == (3, b"")
    assert "2/2 files" in text
    assert text.endswith("\r\x1b[K")

"""`make demo`: brokervol at work, from nothing to nothing, as a transcript.

Every line behind `$` is a command that is run as it stands, against a private engine; the expectation said
before it is checked, and the demo fails if it does not hold.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import build
from lab import images
from lab.directories import temporary_directory
from lab.engine import Engine, LabError, traces
from lab.stage import stage
from storage.mountinfo import read_mounts

REPOSITORY = Path(__file__).parents[1]
IS_TERMINAL = sys.stdout.isatty()
CLIENT = "/run/brokervol/brokervol"
CURL = "curl -sS --unix-socket /run/brokervol/broker.sock"


def bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if IS_TERMINAL else text


def say(text: str) -> None:
    print(f"\n{bold(f'# {text}')}", flush=True)


class DemoFailed(Exception):
    """Something did not happen as said."""


class Shell:
    """Runs commands against the private engine and shows them."""

    def __init__(self, engine: Engine) -> None:
        self._environment = {**os.environ, "DOCKER_HOST": engine.url}

    def __call__(self, command: str, *, expects: str = "", code: int = 0) -> str:
        """Run a command line, show it with its output, and check its exit code and that `expects` is in it."""
        print(bold(f"$ {command}"), flush=True)
        arguments = shlex.split(command)
        done = subprocess.run(
            arguments,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.stdout.strip():
            print(done.stdout.rstrip(), flush=True)
        if done.returncode != code:
            raise DemoFailed(f"exit code {done.returncode}, expected {code}: {command}")
        if expects not in done.stdout:
            raise DemoFailed(f"the output does not hold {expects!r}: {command}")
        return done.stdout


def play(shell: Shell, data: Path) -> None:
    create_volumes(shell, data)
    start_tasks(shell)
    look(shell)
    move_files(shell, data)
    speak_http(shell, data)
    be_refused(shell, data)
    say("The tasks and the volumes go, the files stay.")
    shell("docker rm --force task reader stranger")
    shell("docker volume rm data broker")
    shell(f"ls {data}", expects="decisions.md")


def create_volumes(shell: Shell, data: Path) -> None:
    say("The plugin is enabled in an engine of the demo's own. A volume over a directory of real files:")
    shell(f"ls -l {data}")
    shell(f"docker volume create -d brokervol -o type=host -o host_path={data} data")
    say("And a volume with the sidecar's socket and the client:")
    shell("docker volume create -d brokervol -o type=sidecar broker")
    shell("docker volume ls", expects="brokervol")


def start_tasks(shell: Shell) -> None:
    say("Three task containers: one may write the data, one only read it, one was not given it.")
    run = "docker run --detach --init --network none -v broker:/run/brokervol"
    shell(f"{run} -v data:/data --name task {images.TASK} sleep 1000")
    shell(f"{run} -v data:/data:ro --name reader {images.TASK} sleep 1000")
    shell(f"{run} --name stranger {images.TASK} sleep 1000")


def look(shell: Shell) -> None:
    say("A task sees the files, and the sidecar sees what the task has mounted:")
    shell("docker exec task ls /data", expects="decisions.md")
    shell(f"docker exec task {CLIENT} ws", expects="rw")
    shell(f"docker exec task {CLIENT} ls -l data:", expects="decisions.md")


def move_files(shell: Shell, data: Path) -> None:
    say("Download: a symbolic link into the volume, nothing is copied.")
    shell(f"docker exec task {CLIENT} cp data:decisions.md /tmp/decisions.md")
    shell("docker exec task ls -l /tmp/decisions.md", expects="-> /data/decisions.md")
    shell("docker exec task head -1 /tmp/decisions.md", expects="Decisions")
    say("Upload as user 1000 into a directory that it may write; the file is its own.")
    shell(f"install -d -o 1000 -g 1000 {data}/results")
    shell(f"docker exec -u 1000 task {CLIENT} cp /etc/os-release data:results/report.txt")
    shell("docker exec task ls -ln /data/results", expects="1000")
    say("Move and delete; the catalog keeps the record.")
    shell(f"docker exec -u 1000 task {CLIENT} mv data:results/report.txt data:results/kept/report.txt")
    shell(f"ls {data}/results/kept", expects="report.txt")
    shell(f"docker exec -u 1000 task {CLIENT} stat data:results/kept/report.txt", expects="report.txt")
    shell(f"docker exec -u 1000 task {CLIENT} rm data:results/kept/report.txt")
    if list((data / "results" / "kept").iterdir()):
        raise DemoFailed("the deleted file is still there")


def speak_http(shell: Shell, data: Path) -> None:
    say("The same by plain HTTP, for any language:")

    def call(path: str, body: str = "", expects: str = "") -> None:
        given = f" -d '{body}'" if body else ""
        shell(f"docker exec task {CURL}{given} http://b/v1/workspaces{path}", expects=expects)

    call("", expects='"volume_path": "/data"')
    call("/data/files?limit=2", expects="next_cursor")
    call("/data/upload", '{"files": [{"local_path": "/etc/hostname", "file_path": "by-http/a"}]}', '"done": 1')
    call("/data/move", '{"files": [{"file_path": "by-http/a", "new_path": "by-http/b"}]}', '"done": 1')
    call("/data/download", '{"files": [{"file_path": "by-http/b", "local_path": "/tmp/b"}]}', '"done": 1')
    shell("docker exec task ls -l /tmp/b", expects="-> /data/by-http/b")
    call("/data/delete", '{"files": [{"file_path": "by-http/b"}]}', '"is_deleted": true')
    if list((data / "by-http").iterdir()):
        raise DemoFailed("the deleted file is still there")


def be_refused(shell: Shell, data: Path) -> None:
    say("Mounted :ro, a delete is refused, by the client's exit code 4 (denied) and by HTTP 403.")
    shell(f"docker exec reader {CLIENT} ws", expects="ro")
    shell(f"docker exec reader {CLIENT} rm data:decisions.md", code=4, expects="read-only")
    delete = '{"files": [{"file_path": "decisions.md"}]}'
    shell(f"docker exec reader {CURL} -d '{delete}' http://b/v1/workspaces/data/delete", expects='"status": 403')
    shell(f"ls {data}/decisions.md", expects="decisions.md")
    say("User 1000 cannot write where it may not.")
    shell(f"docker exec -u 1000 task {CLIENT} cp /etc/hostname data:mine", code=4, expects="may not")
    say("A container without the volume sees no workspace: for it there is none (exit code 3: missing).")
    shell(f"docker exec stranger {CURL} http://b/v1/workspaces", expects='{"workspaces": []}')
    shell(f"docker exec stranger {CLIENT} ls data:", code=3, expects="no workspace")
    say("No path leads out of the workspace, and nobody can replace the socket.")
    shell(
        f"docker exec task {CLIENT} cp data:../../etc/shadow /tmp/x", code=1, expects="relative to the workspace"
    )
    shell("docker exec task rm /run/brokervol/broker.sock", code=1, expects="Read-only file system")


def check_nothing_left(places: dict[Path, str]) -> None:
    """See that no process, mount, cgroup or file is left of directories and of the engines' cgroups in them.

    Network namespaces live by their processes and by mounts, so those two tell of them as well.
    """
    left = [trace for directory, cgroup in places.items() for trace in traces(directory, cgroup)]
    left += [
        f"mount {mount.mountpoint}"
        for mount in read_mounts()
        if "brokervol-lab-" in f"{mount.root}{mount.mountpoint}"
    ]
    say("What is left on this machine of the engine, its containers and the directory:")
    print("\n".join(left) or "nothing: no mount, no process, no network namespace, no cgroup, no file")
    if left:
        raise DemoFailed("the demo left something behind")


def show() -> None:
    """Play on a stage, and see that all of it is gone afterwards, also when something went wrong."""
    places: dict[Path, str] = {}
    try:
        with temporary_directory() as directory:
            places[directory] = "no cgroup"
            data = directory / "imagery"
            shutil.copytree(REPOSITORY / "docs", data)
            data.chmod(0o755)
            print(
                "Starting a private Docker engine and building the plugin (a minute the first time):", flush=True
            )
            with stage() as engine:
                places[engine.directory] = engine.cgroup
                play(Shell(engine), data)
    finally:
        check_nothing_left(places)


def main() -> int:
    start = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    try:
        show()
    except (DemoFailed, LabError, build.BuildFailed) as error:
        print(f"\ndemo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo interrupted; everything was removed", file=sys.stderr)
        return 130
    print(f"\n{bold('All of it happened as said')}, in {time.monotonic() - start:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

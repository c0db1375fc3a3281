"""A process that attacks: within a task, as its user, or from the host; `python -m soak.attacker JSON`.

It makes one move after another until its standard input ends, then tells how many of each kind succeeded. A move
that fails is no matter: requests and other attackers move the same files.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import json
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from lab.hostile import exchange
from lab.intruder import MS_BIND, MS_RDONLY, MS_REMOUNT, mount, unmount
from soak.places import LOCAL, WORKSPACE

Move = Callable[[Random], None]

_PAUSE_S = 0.0002
_libc = ctypes.CDLL(None, use_errno=True)


class Attacker:
    """Moves on the files of a task, by the paths that the task has for them."""

    def __init__(self, link_targets: list[str]) -> None:
        self._link_targets = link_targets

    def user_moves(self) -> dict[str, Move]:
        return {"swap directory and link": self._swap, "replace file": self._replace, "other link": self._relink}

    def root_moves(self) -> dict[str, Move]:
        return {"mount": self._mount, "mount over workspace": _cover_workspace, "device": self._device}

    def _swap(self, rng: Random) -> None:
        """A directory for the link beside it."""
        place = rng.choice((f"{WORKSPACE}/race", f"{LOCAL}/race", f"{WORKSPACE}/deep/a"))
        exchange(Path(place), Path(f"{place}.link"))

    def _relink(self, rng: Random) -> None:
        """Another target for whichever of the pair is the link now, and files where requests took them away."""
        for place in (f"{WORKSPACE}/race", f"{LOCAL}/race", f"{WORKSPACE}/deep/a"):
            link = place if os.path.islink(place) else f"{place}.link"
            directory = f"{place}.link" if link == place else place
            os.symlink(rng.choice(self._link_targets), f"{link}.new")
            os.rename(f"{link}.new", link)
            for name in ("f", "in", "g"):
                _write(f"{directory}/{name}")
            if place.endswith("/a"):
                _write(f"{directory}/b/f")
        for name in ("tree/x/y/f", "tree/x/f", "still/f0", "still/f1"):
            _write(f"{WORKSPACE}/{name}")

    def _replace(self, rng: Random) -> None:
        """A file for a link to elsewhere, a FIFO, a directory, another file."""
        place = rng.choice((f"{WORKSPACE}/kind", f"{LOCAL}/kind", f"{LOCAL}/kind-out"))
        other = f"{place}.other"
        with contextlib.suppress(OSError):
            os.rmdir(other) if os.path.isdir(other) and not os.path.islink(other) else os.unlink(other)
        made = rng.randrange(4)
        if made == 0:
            os.symlink(f"{rng.choice(self._link_targets)}/f", other)
        elif made == 1:
            os.mkfifo(other)
        elif made == 2:
            os.mkdir(other)
        else:
            _write(other)
        exchange(Path(place), Path(other))

    def _device(self, rng: Random) -> None:
        """A device under the name of a file: /dev/zero, which has no end, or the console's."""
        place = rng.choice((f"{LOCAL}/kind", f"{LOCAL}/kind-out"))
        with contextlib.suppress(OSError):
            os.unlink(f"{place}.device")
        os.mknod(f"{place}.device", stat.S_IFCHR | 0o666, os.makedev(*rng.choice(((1, 5), (5, 1), (1, 8)))))
        os.rename(f"{place}.device", place)

    def _mount(self, rng: Random) -> None:
        """Something mounted on a name, for a moment."""
        place = rng.choice((f"{WORKSPACE}/cover", f"{LOCAL}/cover"))
        source, kind, flags = rng.choice(
            (
                ("tmpfs", "tmpfs", 0),
                ("proc", "proc", 0),
                (f"{LOCAL}/still", "", MS_BIND),
                (f"{WORKSPACE}/still", "", MS_BIND),
                (f"{WORKSPACE}/race", "", MS_BIND),
                ("/", "", MS_BIND),
            )
        )
        _must(mount(source, place, flags, kind))
        if kind == "tmpfs":
            _write(f"{place}/f")
            _write(f"{place}/in")
        time.sleep(rng.random() * 0.005)
        _must(unmount(place))


def _cover_workspace(rng: Random) -> None:
    """The workspace's own mount: covered, or made read-only, for a moment."""
    if rng.random() < 0.5:
        _must(mount("tmpfs", WORKSPACE, 0, "tmpfs"))
        time.sleep(rng.random() * 0.002)
        _must(unmount(WORKSPACE))
    else:
        _must(mount("", WORKSPACE, MS_REMOUNT | MS_BIND | MS_RDONLY))
        time.sleep(rng.random() * 0.002)
        _must(mount("", WORKSPACE, MS_REMOUNT | MS_BIND))


def host_moves(workspace: str) -> dict[str, Move]:
    """What the host does with the workspace's directory: a tree leaves it, and comes back."""
    inside, outside = Path(workspace, "tree"), Path(f"{workspace}-tree")

    def move(rng: Random) -> None:
        if outside.exists():  # somebody made another while it was away
            exchange(inside, outside)
            return
        inside.rename(outside)
        time.sleep(rng.random() * 0.001)
        outside.rename(inside)

    return {"tree out and in": move}


def _write(path: str) -> None:
    """A small file where there is none."""
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o666))


def _must(errno: int) -> None:
    if errno:
        raise OSError(errno, os.strerror(errno))


def _enter(pid: int, identity: dict[str, Any]) -> None:
    """Be in the mount namespace and root of a process, as this user."""
    with open(f"/proc/{pid}/ns/mnt", "rb") as namespace:
        if _libc.setns(namespace.fileno(), 0) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    os.chdir("/")
    os.umask(0)
    os.setgroups(identity["groups"])
    os.setresgid(*[identity["gid"]] * 3)
    os.setresuid(*[identity["uid"]] * 3)


def _end_with_input(ending: threading.Event) -> None:
    sys.stdin.buffer.read()
    ending.set()


def main(config: dict[str, Any]) -> None:
    """Attack as told: `pid` and `identity` of a task, or neither, and then `workspace` of the host."""
    attacker = Attacker(config["link_targets"])
    moves = host_moves(config["workspace"])
    if config["pid"]:
        _enter(config["pid"], config["identity"])
        moves = attacker.user_moves() if config["identity"]["uid"] else attacker.root_moves()
    counts: collections.Counter[str] = collections.Counter(dict.fromkeys(moves, 0))
    ending = threading.Event()
    threading.Thread(target=_end_with_input, args=(ending,), daemon=True).start()
    rng = Random(config["seed"])  # noqa: S311
    print("ready", flush=True)
    while not ending.is_set():
        name = rng.choice(list(moves))
        with contextlib.suppress(OSError):
            moves[name](rng)
            counts[name] += 1
        time.sleep(_PAUSE_S)
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

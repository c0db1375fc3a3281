"""Completion of command lines: a script for each shell, and the candidates that it asks for. Python 3.8.

The scripts know nothing: they call `brokervol __complete SHELL ...`, which prints a candidate a line and is silent
about whatever goes wrong.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from brokervol.client import BrokerError, Client
from brokervol.console import UsageError
from brokervol.places import parse_place

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from brokervol.places import Place
    from brokervol.verbs import Task

COMPLETE = "__complete"
_ANSWER_S = 1.0
_MOST_LISTED = 5000
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_SPECIAL_TO_BASH = re.compile(r"""([\s\\"'`$&|;<>()\[\]{}*?!#~])""")
# In an open quote bash puts a candidate as it stands. What these would end, or have it run, is not offered there.
# Nor is what is at home: there a tilde is one.
_UNSAFE_IN_QUOTE = {"": re.compile("(?!)"), "'": re.compile("'|^~/"), '"': re.compile(r'["$`\\!]|^~/')}
_COMMON_OPTIONS = ("--socket", "--help")

# In bash a word ends at a colon, so that only what follows is replaced; quotes and spaces are ours to add.
SCRIPTS = {
    "bash": """\
_brokervol() {
    mapfile -t COMPREPLY < <("$1" __complete bash "$COMP_WORDBREAKS" "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
}
complete -o nospace -F _brokervol brokervol
""",
    "zsh": """\
#compdef brokervol
_brokervol() {
    local -a found
    found=("${(@f)$("${(Q)words[1]}" __complete zsh "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
    if [[ $PREFIX == '~/'* ]]; then
        [[ -z $QIPREFIX ]] || return 1
        compset -P '\\~/'
        found=("${(@)found#\\~/}")
    fi
    compadd -S '' -- ${(M)found:#*[/:]}
    compadd -- ${found:#*[/:]}
}
if [[ $funcstack[1] == _brokervol ]]; then _brokervol "$@"; else compdef _brokervol brokervol; fi
""",
    "fish": """\
function __brokervol_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct | string trim --left --chars "'\\"")
    $words[1] __complete fish $words[2..-1] "$current" 2>/dev/null
end
complete -c brokervol -f -a '(__brokervol_complete)'
""",
}


def run_completion(task: Task) -> None:
    script = SCRIPTS.get(task.paths[0])
    if script is None:
        raise UsageError(f"{task.paths[0]}: accepted are {', '.join(SCRIPTS)}")
    task.print(script.rstrip("\n"))


def print_candidates(arguments: Sequence[str], verbs: Mapping[str, Sequence[str]], socket_path: str) -> int:
    """Print what the last word of a command line can become.

    Args:
        arguments: the shell; then, of bash, its COMP_WORDBREAKS and the line up to the cursor, of others the words
            after the command, up to the cursor.
        verbs: the options of each command.
        socket_path: the sidecar's, unless the line names another.
    """
    with contextlib.suppress(Exception):  # a shell that waits for its user wants no complaints
        shell, *rest = arguments
        line = _split(rest[1]) if shell == "bash" else Line(rest, "")
        found = [item for item in candidates(line.words, verbs, socket_path) if not _CONTROL.search(item)]
        if shell == "bash":
            unsafe = _UNSAFE_IN_QUOTE[line.quote]
            found = [_for_bash(item, line, rest[0]) for item in found if not unsafe.search(item)]
        sys.stdout.buffer.write(b"".join(os.fsencode(item) + b"\n" for item in found))
        sys.stdout.flush()
    return 0


class Line(NamedTuple):
    """The words after the command, the last one up to the cursor, and the quote that it is in, if any."""

    words: list[str]
    quote: str


def _split(text: str) -> Line:
    """A command line as the shell splits it, though its last word may not have ended."""
    words, quote = [""], ""
    is_in_word = False
    characters = iter(text)
    for character in characters:
        if quote != "'" and character == "\\":
            words[-1] += next(characters, "")
        elif character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote = character
        elif not quote and character.isspace():
            words += [""] if is_in_word else []
            is_in_word = False
            continue
        else:
            words[-1] += character
        is_in_word = True
    return Line(words[1:], quote)


def _for_bash(candidate: str, line: Line, breaks: str) -> str:
    """What bash puts in the place of what it takes for the word."""
    if line.quote:
        return candidate
    kept = max((line.words[-1].rfind(mark) for mark in ":=" if mark in breaks), default=-1) + 1
    end = "" if candidate.endswith(("/", ":")) else " "
    home = "~/" if not kept and candidate.startswith("~/") else ""  # a tilde that the shell is to replace
    return home + _SPECIAL_TO_BASH.sub(r"\\\1", candidate[kept + len(home) :]) + end


def candidates(words: Sequence[str], verbs: Mapping[str, Sequence[str]], socket_path: str) -> list[str]:
    """What the last of the words (after the command) can become, sorted."""
    *before, current = words
    sockets, others = _without_sockets(before)
    found: Iterable[str] = ()
    if before and before[-1] == "--socket":
        found = _local(current)
    elif not others:
        found = [*verbs, *_COMMON_OPTIONS, "--version"]
    elif current.startswith("-"):
        found = [*verbs.get(others[0], ()), *_COMMON_OPTIONS]
    elif others[0] == "completion":
        found = SCRIPTS
    elif others[0] in ("ls", "find", "stat", "cat", "cp", "mv", "rm"):
        client = Client((sockets or [socket_path])[-1], timeout_s=_ANSWER_S, patience_s=0)
        found = _places(client, current, has_local=others[0] == "cp")
    return sorted({item for item in found if item.startswith(current)})


def _places(client: Client, current: str, *, has_local: bool) -> Iterator[str]:
    place = parse_place(current)
    if place.workspace:
        yield from _below(client, place)
        return
    if has_local:
        yield from _local(current)
    with contextlib.suppress(BrokerError):  # without a sidecar there still are local files
        yield from [f"{workspace['name']}:" for workspace in client.workspaces()]


def _without_sockets(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The sockets that are named, and the other words."""
    sockets, others = [], []
    remaining = iter(words)
    for word in remaining:
        if word == "--socket":
            sockets.append(next(remaining, ""))
        elif word.startswith("--socket="):
            sockets.append(word.partition("=")[2])
        else:
            others.append(word)
    return sockets, others


def _local(current: str) -> Iterator[str]:
    directory, slash, name = current.rpartition("/")
    is_at_home = current.startswith("~/")
    seen = os.path.expanduser(directory + slash) if is_at_home else directory + slash
    return _scanned(seen or ".", directory + slash, name)


def _scanned(directory: str, shown: str, name: str) -> Iterator[str]:
    """What is in a directory; names with a leading dot only for who asks for one."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if not entry.name.startswith(".") or name.startswith("."):
                yield f"{shown}{entry.name}/" if entry.is_dir() else f"{shown}{entry.name}"


def _below(client: Client, place: Place) -> Iterator[str]:
    """The files and directories of a workspace that are next to a path that has been begun."""
    directory, slash, name = place.path.rpartition("/")
    shown = f"{place.workspace}:{directory}{slash}"
    workspace = next((item for item in client.workspaces() if item["name"] == place.workspace), None)
    if workspace is None:
        return
    if workspace["volume"] and workspace["volume_path"]:
        yield from _scanned(f"{workspace['volume_path']}/{directory}", shown, name)
        return
    deadline = time.monotonic() + _ANSWER_S
    files = client.files(place.workspace, prefix=place.path, recursive=True)
    for file, _ in itertools.islice(files, _MOST_LISTED):
        first, slash, _ = file[len(directory) + bool(directory) :].partition("/")
        yield f"{shown}{first}{slash}"
        if time.monotonic() > deadline:
            return

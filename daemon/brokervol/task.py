"""The command line of a task. Python 3.8, standard library.

With the modules that it imports it becomes the executable beside the socket in the sidecar volume (`bundle.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from brokervol import __version__
from brokervol.client import BrokerError, Client
from brokervol.console import (
    EXIT_BY_CODE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OUTPUT_CLOSED,
    EXIT_USAGE,
    Failure,
    OutputClosed,
    UsageError,
    complain,
)
from brokervol.verbs import Task, run_cp, run_ls, run_mv, run_rm, run_stat, run_ws

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEFAULT_SOCKET = "/run/brokervol/broker.sock"


class Verb(NamedTuple):
    """A verb: its one line of help, the shape of its arguments, and what runs it."""

    summary: str
    usage: str
    options: str
    least: int
    most: float
    run: Callable[[Task], None]
    epilog: str


MANY = float("inf")

VERBS = {
    "ws": Verb(
        "show the workspaces that this task may use",
        "brokervol ws [--json]",
        "",
        0,
        0,
        run_ws,
        """\
ACCESS is ro or rw, as the volume was mounted. PATH is where the files appear in this container.

example:
  brokervol ws
""",
    ),
    "ls": Verb(
        "list files",
        "brokervol ls [-l] [-r] [--json] NAME:[PATH] ...",
        "lr",
        1,
        MANY,
        run_ls,
        """\
PATH is a directory, a file, a pattern in quotes, or the beginning of a path. Files only are listed, by their
path in the workspace.

examples:
  brokervol ls imagery:                  files at the top of the workspace
  brokervol ls -l imagery:2026/          with their sizes
  brokervol ls -r imagery:               all files
  brokervol ls -r 'imagery:2026/*/*.tif'
  brokervol ls -r --json imagery: | jq -r .file
""",
    ),
    "cp": Verb(
        "copy files into, out of and between workspaces",
        "brokervol cp [-r] [-n] [--json] SOURCE... TARGET",
        "rn",
        2,
        MANY,
        run_cp,
        """\
A side is NAME:path in a workspace, or a local path (write ./a:b for a local name with a colon). Several sources,
and patterns, need a directory as their target: NAME:, NAME:dir/ or an existing local directory. In a workspace
missing directories are made; local ones must exist, except below what -r copies.

A file that comes out of a workspace with a mounted volume (types host and nfs) is not copied: a symbolic link to
it is put at the local path. Use `cp -L` on the link for a copy of your own.

examples:
  brokervol cp out/*.tif products:2026/       local files into a workspace
  brokervol cp -r out products:run-17/        a directory, as run-17/out/...
  brokervol cp 'imagery:2026/*.tif' .         quote patterns, for the shell does not know workspaces
  brokervol cp imagery:a.tif archive:old/     from one workspace to another
  brokervol cp -n -r imagery:2026 in          leave what is already there
""",
    ),
    "mv": Verb(
        "rename files within a workspace",
        "brokervol mv [-n] [--json] NAME:SOURCE... NAME:TARGET",
        "n",
        2,
        MANY,
        run_mv,
        """\
A target with a closing slash is a directory, made where it is missing: the file keeps its name. Several sources,
and patterns, need one.

examples:
  brokervol mv products:a.tif products:b.tif
  brokervol mv products:a.tif products:done/
  brokervol mv 'products:*.tif' products:done/
""",
    ),
    "rm": Verb(
        "delete files",
        "brokervol rm [-r] [--json] NAME:PATH ...",
        "r",
        1,
        MANY,
        run_rm,
        """\
A file that is gone already is not an error; a pattern that matches nothing is. Directories stay.

examples:
  brokervol rm products:a.tif
  brokervol rm 'products:tmp-*'
  brokervol rm -r products:2025/         all files below 2025/
""",
    ),
    "stat": Verb(
        "show a file's size, and its record in the catalog",
        "brokervol stat [--json] NAME:PATH ...",
        "",
        1,
        MANY,
        run_stat,
        """\
example:
  brokervol stat products:2026/a.tif
""",
    ),
}

EXIT_CODES = """\
exit codes: 0 done, 1 failed, 2 wrong usage, 3 missing (file or workspace), 4 denied, 5 sidecar or storage
unavailable, 130 interrupted
"""

_OPTIONS = {
    "l": (("-l", "--long"), "show the size in bytes and in short"),
    "r": (("-r", "--recursive"), "everything below, not one level"),
    "n": (("-n", "--no-clobber"), "leave a file that exists at the target as it is"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _parse(verb_name: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Options may stand before and after the paths; after `--` everything is a path."""
    verb = VERBS[verb_name]
    parser = _Parser(
        prog=f"brokervol {verb_name}",
        usage=verb.usage,
        description=f"{verb.summary[0].upper()}{verb.summary[1:]}.",
        epilog=f"{verb.epilog}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_common(parser)
    for letter in verb.options:
        names, text = _OPTIONS[letter]
        parser.add_argument(*names, action="store_true", help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("paths", nargs="*", help=argparse.SUPPRESS)
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    options = parser.parse_intermixed_args(list(arguments[:end]))
    options.paths = [*options.paths, *arguments[end + 1 :]]
    if not verb.least <= len(options.paths) <= verb.most:
        raise UsageError(f"write {verb.usage}")
    return options


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--socket",
        metavar="PATH",
        default=argparse.SUPPRESS,
        help="the sidecar's socket (else $BROKERVOL_SOCKET, else broker.sock beside this program, "
        f"else {DEFAULT_SOCKET})",
    )


def default_socket() -> str:
    beside = os.path.join(os.path.dirname(os.path.realpath(sys.argv[0])), "broker.sock")
    fallback = beside if os.path.exists(beside) else DEFAULT_SOCKET
    return os.environ.get("BROKERVOL_SOCKET") or fallback


def main(argv: Sequence[str] | None = None, more_help: str = "") -> int:
    """Run the command line and return its exit code; `more_help` is shown among the verbs."""
    _open_closed_streams()
    verb = ""
    try:
        parser = _main_parser(more_help)
        top = parser.parse_args(sys.argv[1:] if argv is None else argv)
        if top.command[0] not in VERBS:
            raise UsageError(f"there is no command {top.command[0]}; brokervol --help shows what there is")
        verb = top.command[0]
        options = _parse(verb, top.command[1:])
        socket_path = getattr(options, "socket", None) or getattr(top, "socket", None) or default_socket()
        task = Task(verb, Client(socket_path), options)
        return _guarded(task, VERBS[verb].run)
    except UsageError as error:
        complain(verb, "", f"{error}")
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _main_parser(more_help: str) -> argparse.ArgumentParser:
    verbs = "".join(f"  {name:<10}{verb.summary}\n" for name, verb in VERBS.items())
    parser = _Parser(
        prog="brokervol",
        usage="brokervol [--socket PATH] COMMAND ...",
        description=f"commands (each has --help with examples):\n{verbs}{more_help}",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_common(parser)
    parser.add_argument("--version", action="version", version=f"brokervol {__version__}")
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.PARSER, help=argparse.SUPPRESS)
    return parser


def _guarded(task: Task, run: Callable[[Task], None]) -> int:
    """Every end of a verb becomes an exit code and, unless it is success, one sentence."""
    try:
        run(task)
        task.flush()
        return task.exit_code
    except UsageError:
        raise
    except (Failure, BrokerError) as error:
        so_far = f" ({task.progress_so_far()})" if task.done else ""
        subject = "" if error.code == "unreachable" else getattr(error, "subject", "")
        complain(task.verb, subject, f"{error}{so_far}")
        return EXIT_BY_CODE.get(error.code, EXIT_FAILED)
    except KeyboardInterrupt:
        complain(task.verb, "", f"interrupted: {task.progress_so_far()}; a file in work may yet be finished")
        return EXIT_INTERRUPTED
    except OutputClosed:
        abandon_output()
        return EXIT_OUTPUT_CLOSED
    except Exception as error:  # the edge of the program: no user sees a traceback
        abandon_output()
        return _unexpected(task, error)


def _unexpected(task: Task, error: Exception) -> int:
    if os.environ.get("BROKERVOL_DEBUG") == "1":
        traceback.print_exc()
    if isinstance(error, OSError):
        complain(task.verb, str(error.filename or ""), (error.strerror or str(error)).lower())
    else:
        kind = type(error).__name__
        complain(task.verb, "", f"unexpected {kind}: {error}; please report it (BROKERVOL_DEBUG=1 shows where)")
    return EXIT_FAILED


def _open_closed_streams() -> None:
    """Give what was started with its output closed (`>&-`) somewhere to write."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for as long as we live


def abandon_output() -> None:
    """Point standard output nowhere, so that the interpreter's last flush cannot fail."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)

"""The command line of a task. Python 3.8, standard library.

With the modules that it imports it becomes the executable beside the socket in the sidecar volume (`bundle.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
import textwrap
import traceback
from typing import TYPE_CHECKING, NoReturn

from brokervol import __version__
from brokervol.client import BrokerError, Client
from brokervol.commands import OPTIONS, VERBS
from brokervol.completion import COMPLETE, print_candidates
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
from brokervol.verbs import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEFAULT_SOCKET = "/run/brokervol/broker.sock"


EXIT_CODES = """\
exit codes: 0 done, 1 failed, 2 wrong usage, 3 missing (file or workspace), 4 denied, 5 sidecar or storage
unavailable, 130 interrupted
"""


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps prose to the terminal; indented lines, which are examples and tables, stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled: list[str] = []
        for is_raw, group in itertools.groupby(text.splitlines(), key=lambda line: line[:1] in ("", " ")):
            lines = list(group)
            filled += lines if is_raw else textwrap.wrap(" ".join(lines), width, break_on_hyphens=False)
        return "".join(f"{indent}{line}\n" for line in filled)


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
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    _add_common(parser)
    parser.set_defaults(json=False, quiet=False)  # what every verb is asked for, with the option or without
    for name in verb.options:
        names, how, text = OPTIONS[name]
        parser.add_argument(*names, dest=name, help=text, **how)
    parser.add_argument("paths", nargs="*", help=argparse.SUPPRESS)
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    options = parser.parse_intermixed_args(list(arguments[:end]))
    options.paths = [*options.paths, *arguments[end + 1 :]]
    if not verb.least <= len(options.paths) <= verb.most:
        raise UsageError(f"write {verb.usage}")
    if "" in options.paths:  # of a variable that is not set, most likely
        raise UsageError("an argument is empty: write NAME:path, or a local path (. is the current directory)")
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


def main(argv: Sequence[str] | None = None, more_help: str = "", more_commands: Sequence[str] = ()) -> int:
    """Run the command line and return its exit code.

    Args:
        more_help: shown among the verbs.
        more_commands: what else can stand in their place, and is run by whoever calls this.
    """
    open_closed_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = ""
    try:
        if arguments[:1] == [COMPLETE]:
            code = print_candidates(arguments[1:], _spellings(more_commands), default_socket())
            _flush_failure()
            return code
        if not arguments:
            raise UsageError("write brokervol COMMAND ...; brokervol --help shows what there is")
        top = _main_parser(more_help).parse_args(arguments)
        if top.command[0] in more_commands:
            name = top.command[0]
            raise UsageError(f"options of {name} stand behind it: brokervol {name} --help shows them")
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
    except SystemExit:  # of --help and --version, which have printed
        failure = _flush_failure()
        if failure is None:
            raise
        return EXIT_OUTPUT_CLOSED if isinstance(failure, BrokenPipeError) else told_of(verb, failure)


def _flush_failure() -> OSError | None:
    """What keeps standard output from being written, if anything does; it leads nowhere then."""
    try:
        sys.stdout.flush()
    except OSError as error:
        abandon_output()
        return error
    return None


def _spellings(more_commands: Sequence[str]) -> dict[str, list[str]]:
    """The options of each command, as they are spelled."""
    of_verbs = {
        name: [spelling for option in verb.options for spelling in OPTIONS[option][0]]
        for name, verb in VERBS.items()
    }
    return {**of_verbs, **{name: [] for name in more_commands}}


def _main_parser(more_help: str) -> argparse.ArgumentParser:
    verbs = "".join(f"  {name:<12}{verb.summary}\n" for name, verb in VERBS.items())
    parser = _Parser(
        prog="brokervol",
        usage="brokervol [--socket PATH] COMMAND ...",
        description=f"commands (each has --help with examples):\n{verbs}{more_help}",
        epilog=EXIT_CODES,
        formatter_class=_HelpFormatter,
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
        complain(task.verb, "", task.interrupted())
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
        return told_of(task.verb, error)
    kind = type(error).__name__
    complain(task.verb, "", f"unexpected {kind}: {error}; please report it (BROKERVOL_DEBUG=1 shows where)")
    return EXIT_FAILED


def told_of(verb: str, error: OSError) -> int:
    """Say what the system refuses; the exit code."""
    complain(verb, str(error.filename or ""), (error.strerror or str(error)).lower())
    return EXIT_FAILED


def open_closed_streams() -> None:
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

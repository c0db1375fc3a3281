"""`brokervol volumes export` and `import`: the definitions of a host's volumes as a file, driver or not.

Both work on the driver's state itself, in transactions, and not through its socket: so all volumes come or none,
with the dates they had, and a host can be given its volumes before a driver runs there. A driver that runs notices
within a second. Nothing of the state is written for an export, so that it works where nothing can be written.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import sqlite3
import stat
import sys
from collections.abc import Mapping, Sequence

from brokervol.console import EXIT_INTERRUPTED, EXIT_OUTPUT_CLOSED, complain, visible
from brokervol.doctor import site
from brokervol.settings import Settings
from brokervol.task import abandon_output
from storage.definitions import (
    AlreadyDefined,
    Definition,
    DefinitionStore,
    backup_path,
    definitions_path,
    read_backup,
    read_definitions,
)
from storage.state_files import NewerState, write_privately
from storage.volume_records import from_json, to_json
from volumedriver import options as volume_options
from volumedriver.errors import InvalidVolume, quoted
from volumedriver.volume import check_name

_EXIT_FAILED, _EXIT_CONFLICT = 1, 6
_ATTEMPTS = 5
_MOST_SHOWN = 20
_LARGEST_BYTES = 64 << 20  # of a file to import; two hundred thousand volumes have as many


class Failed(Exception):
    """It was not done, none of it. The message says why."""

    exit_code = _EXIT_FAILED


class Conflict(Failed):
    """The host has volumes of these names with other options."""

    exit_code = _EXIT_CONFLICT


def export_volumes(root: str, target: str) -> int:
    """Write the volumes below `root` to the file `target`, `-` for standard output; returns how many."""
    path = definitions_path(root)
    if not _is_there(path) and not _is_there(backup_path(path)):
        raise Failed(f"{root} holds no volumes: --root must be the driver's")
    if os.path.realpath(os.path.dirname(target) or ".") == os.path.realpath(os.path.dirname(path)):
        raise Failed(f"{target} would be among the driver's own files; name another directory")
    definitions = _defined(path)
    _write(target, to_json(definitions))
    return len(definitions)


def _is_there(path: str) -> bool:
    """Raises PermissionError where only root can tell."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _defined(path: str) -> list[Definition]:
    """What is defined in the file, or else in its backup."""
    try:
        return read_definitions(path)
    except NewerState:
        raise
    except (OSError, sqlite3.Error) as error:
        problem = f"the definitions in {path} are not usable: {error}"
        try:
            definitions = read_backup(path)
        except (OSError, ValueError) as also:
            raise Failed(f"{problem}; and their backup {backup_path(path)} is not: {also}") from error
        complain("volumes export", "", f"{problem}; what is exported is their backup")
        return definitions


def _write(target: str, text: str) -> None:
    """Replace a regular file at once; into what is none, such as a pipe or a device, the text goes as it is."""
    if target == "-":
        _say(text)
        return
    try:
        is_file = stat.S_ISREG(os.lstat(target).st_mode)
    except FileNotFoundError:
        is_file = True
    if is_file:
        unfinished = os.path.join(os.path.dirname(target), f".brokervol-{secrets.token_hex(8)}")
        try:
            write_privately(target, text.encode("ascii"), unfinished)
        except OSError as error:  # whose name is the unfinished file's
            raise Failed(f"{target}: {error.strerror}") from error
    else:
        with open(os.open(target, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC), "w", encoding="ascii") as file:
            file.write(text)


def _say(text: str) -> None:
    """Write to standard output, now.

    Raises:
        Failed: it is closed, or full.
        BrokenPipeError: nobody reads it.
    """
    if sys.stdout is None:
        raise Failed("standard output is closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        abandon_output()
        if isinstance(error, BrokenPipeError):
            raise
        raise Failed(f"standard output: {error.strerror}") from error


def import_volumes(root: str, source: str) -> tuple[list[str], list[str]]:
    """Define the volumes of a file, `-` for standard input: all of them, or none.

    Returns:
        The names of those that were added, and of those that were there already with the same options.
    """
    wanted = _checked(from_json(_read(source)))
    if not os.path.isdir(root):
        raise Failed(f"{root} is no directory: --root must be the driver's; make it first where none has run yet")
    state = os.path.dirname(definitions_path(root))
    os.makedirs(state, 0o700, exist_ok=True)
    with DefinitionStore(definitions_path(root), may_begin=True) as store:
        for _ in range(_ATTEMPTS):
            existing = {definition.name: definition.options for definition in store.load()}
            _refuse_conflicts(wanted, existing)
            added = [definition for definition in wanted if definition.name not in existing]
            try:
                store.add(added)
            except AlreadyDefined:  # meanwhile, by the driver
                continue
            names = [definition.name for definition in added]
            return names, sorted({definition.name for definition in wanted} - {*names})
    raise Failed("the driver keeps defining volumes of the same names; try again")


def _read(source: str) -> bytes:
    if source == "-" and sys.stdin is None:
        raise Failed("standard input is closed")
    with contextlib.nullcontext(sys.stdin.buffer) if source == "-" else open(source, "rb") as file:
        content = file.read(_LARGEST_BYTES + 1)
    if len(content) > _LARGEST_BYTES:
        raise Failed(f"{source} is no export of volumes: it has more than {_LARGEST_BYTES} bytes")
    return content


def _checked(definitions: Sequence[Definition]) -> list[Definition]:
    """The definitions with every option that is in force, as the driver would have them."""
    checked, problems = [], []
    for definition in definitions:
        try:
            check_name(definition.name)
            _check_text(definition.options)
            options = volume_options.parse(definition.options).effective
        except InvalidVolume as error:
            problems.append(f"volume {definition.name!r:.80}: {error}")
        else:
            checked.append(Definition(definition.name, options, definition.created))
    if problems:
        raise Failed(_several(problems))
    return checked


def _check_text(options: Mapping[str, str]) -> None:
    """As the driver's socket does: JSON can spell characters that are none."""
    for key, value in options.items():
        try:
            f"{key}{value}".encode()
        except UnicodeEncodeError:
            raise InvalidVolume(f"option {quoted(key)} is not accepted: it holds half a character") from None


def _refuse_conflicts(wanted: Sequence[Definition], existing: Mapping[str, Mapping[str, str]]) -> None:
    conflicts = []
    for definition in wanted:
        before = existing.get(definition.name, definition.options)
        if keys := volume_options.differences(before, definition.options):
            conflicts.append(
                f"volume {definition.name} exists with other options: it differs in {', '.join(keys)}"
            )
    if conflicts:
        raise Conflict(_several(conflicts))


def _several(sentences: Sequence[str]) -> str:
    more = len(sentences) - _MOST_SHOWN
    return "; ".join([*sentences[:_MOST_SHOWN], *([f"and {more} more"] if more > 0 else [])])


def _parser() -> argparse.ArgumentParser:
    of_both = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    of_both.add_argument(
        "--root",
        metavar="DIR",
        help="the driver's directory of mountpoints and state [BROKERVOL_ROOT] (else that of the plugin, or of the"
        " driver that runs)",
    )
    parser = argparse.ArgumentParser(
        prog="brokervol volumes",
        description="Save the definitions of this host's volumes, or bring them back.",
        parents=[of_both],
    )
    actions = parser.add_subparsers(dest="action", required=True)
    exporting = actions.add_parser("export", help="write all definitions to a file", parents=[of_both])
    exporting.add_argument(
        "file", nargs="?", default="-", metavar="FILE", help="- for standard output (the default)"
    )
    importing = actions.add_parser(
        "import", help="define the volumes of such a file, all or none", parents=[of_both]
    )
    importing.add_argument("file", metavar="FILE", help="- for standard input")
    return parser


def _root(given: str | None, environment: Mapping[str, str]) -> str:
    """The driver's directory: the one that is named, or found; or the usual one, where no driver has run yet."""
    usual = Settings.root
    found = given or environment.get(usual.variable) or site.find_root(environment)
    if found is None and os.path.isdir(usual.default):
        found = usual.default
    if found is None:
        raise Failed(site.without_root(f"name it by --root, or make {usual.default}"))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 for a failure, 2 for wrong usage, 6 for volumes that exist with other options, 130
    for Ctrl-C, 141 where nobody reads what is exported.
    """
    options = _parser().parse_args(argv)
    try:
        options.root = _root(getattr(options, "root", None), os.environ)
        told = _done(options)
    except BrokenPipeError:
        return EXIT_OUTPUT_CLOSED
    except KeyboardInterrupt:
        complain(f"volumes {options.action}", "", "interrupted")
        return EXIT_INTERRUPTED
    except (Failed, OSError, ValueError, sqlite3.Error) as error:
        complain(f"volumes {options.action}", "", _sentence(error, options))
        return getattr(error, "exit_code", _EXIT_FAILED)
    with contextlib.suppress(Failed, BrokenPipeError):  # it is done, whether anybody reads so or not
        if told:  # of a name that is no text, too
            _say(visible(told).encode(errors="backslashreplace").decode() + "\n")
    return 0


def _done(options: argparse.Namespace) -> str:
    """Do what is asked for; returns what to say then."""
    if options.action == "export":
        count = export_volumes(options.root, options.file)
        return "" if options.file == "-" else f"{_volumes(count)} of {options.root} exported to {options.file}"
    added, present = import_volumes(options.root, options.file)
    names = f": {', '.join(added)}" if added else ""
    return f"{_volumes(len(added))} imported into {options.root}{names}; {len(present)} were there already"


def _volumes(count: int) -> str:
    return f"{count} volume" if count == 1 else f"{count} volumes"


def _sentence(error: Exception, options: argparse.Namespace) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or options.file or 'FILE'}: {error.strerror}"
    if isinstance(error, sqlite3.Error):
        return f"the definitions in {options.root} are not usable: {error}"
    source = "standard input" if options.file == "-" else options.file
    return str(error) if isinstance(error, Failed) else f"{source} is no export of volumes: {error}"

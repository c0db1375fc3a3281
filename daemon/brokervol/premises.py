"""What settings name on this machine, looked at before a process begins, so that a mistake there is told at once.

Only what an operator has to mend is told: that a database or a disk does not answer now is no wrong setting.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import Any

from brokervol.kinds import AUDIT_OFF, AUDIT_TO_LOG
from brokervol.settings import DAEMON, DRIVER, SIDECAR, Setting, Settings, refuse

_LONGEST_SOCKET, _LONGEST_DIRECTORY = 107, 98  # bytes: sun_path, and a name of the server's own in the directory
_LARGEST_BUNDLE_BYTES = 16 << 20
_CERTIFICATE = re.compile(rb"-----BEGIN (X509 |TRUSTED )?CERTIFICATE-----")
# What the processes keep in ROOT/.state, by name, or how the names begin.
_OF_STATE = ("lock", "reserve", "operators.sock", "journal-owner")
_BEGINNINGS_OF_STATE = ("catalog.", "definitions.", "mounts.", "log.jsonl", "journal-owner.")

_OF_PATHS = (errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES)
_LONGEST_SHOWN = 100

_Problems = Iterator[tuple[Setting[Any], str]]


def check(process: str, options: Settings) -> None:
    """End the process as `settings.read` does, if what it is given is not there, or not what it has to be."""
    found = [*_root(options)] or [problem for look in _LOOKS[process] for problem in look(options)]
    if found:
        texts = {setting.name: options.texts.get(setting.name) or setting.default for setting, _ in found}
        refuse(process, *(setting.refusal(texts[setting.name], why) for setting, why in found))


def _root(options: Settings) -> _Problems:
    root = os.path.realpath(options.root)  # which is what is made, also behind a link
    why = "no directory of this host could be a volume then, as none is outside of it" if root == "/" else ""
    yield from _told(Settings.root, why or _place(root))


def _hostfs(options: Settings) -> _Problems:
    why = "" if os.path.isdir(options.hostfs) else "there is no such directory"
    yield from _told(Settings.hostfs, why)


def _driver_socket(options: Settings) -> _Problems:
    yield from _told(Settings.socket, _socket(options.socket))


def _listen(options: Settings) -> _Problems:
    if options.listen:
        is_other = os.path.realpath(options.listen) == os.path.realpath(options.socket)
        why = "that is the socket that the engine calls" if is_other else ""
        yield from _told(Settings.listen, why or _socket(options.listen))
    else:
        why = _socket(os.path.join(os.path.realpath(options.root), "sidecar/broker.sock"))
        yield from _told(Settings.root, why and f"of its sidecar/broker.sock, {why}")


def _workspaces(options: Settings) -> _Problems:
    if options.view == "caller":
        return
    why = _file(options.workspaces, options) if options.workspaces else "the view of its own needs that file"
    yield from _told(Settings.workspaces, why)


def _database(options: Settings) -> _Problems:
    scheme, _, rest = options.database_url.partition("://")
    path = rest.partition("?")[0][1:]
    if not scheme.startswith("sqlite"):
        return
    found = os.path.abspath(path)
    is_other = os.path.exists(found) and not os.path.isfile(found)
    why = "it is there, and no file" if is_other else _parent(found, options)
    if not why and _is_of_state(found, options) and not os.path.basename(found).startswith("catalog."):
        why = f"{_shown(found)} is a file that brokervol keeps there itself"
    if why and not path.startswith("/"):
        why = f"{why} (an absolute path has four slashes, as in sqlite:////srv/catalog.sqlite)"
    yield from _told(Settings.database_url, why)


def _audit_log(options: Settings) -> _Problems:
    if options.audit_log in (AUDIT_TO_LOG, AUDIT_OFF):
        return
    state = _state(options)
    found = os.path.join(state, options.audit_log)
    why = _appendable(found)
    if _is_of_state(found, options):
        why = f"{_shown(found)} is a file that brokervol keeps there itself"
    elif os.path.dirname(found) != state:  # which is made at start
        why = _parent(found, options) or why
    yield from _told(Settings.audit_log, why)


def _certificates(options: Settings) -> _Problems:
    if not (path := options.aws_ca_bundle):
        return
    why = _file(path, options) or _bundle(path)
    yield from _told(Settings.aws_ca_bundle, why)


def _bundle(path: str) -> str:
    """Why a file that is there holds no certificates."""
    try:
        if os.path.isfile(path):  # a pipe would be waited for
            with open(path, "rb") as file:
                if _CERTIFICATE.search(file.read(_LARGEST_BUNDLE_BYTES)):
                    return ""
    except OSError as error:
        return _lasting(error)
    return "it holds no certificate, which would be in PEM"


def _profiles(options: Settings) -> _Problems:
    """That there is none is no mistake: only S3 needs it, and it may come later."""
    for setting, path in (
        (Settings.credentials, options.credentials),
        (Settings.aws_shared_credentials_file, options.aws_shared_credentials_file),
    ):
        yield from _told(setting, "it is a directory" if path and os.path.isdir(path) else "")


_Look = Callable[[Settings], _Problems]
_OF_DRIVER: tuple[_Look, ...] = (_hostfs, _driver_socket)
_OF_SIDECAR: tuple[_Look, ...] = (_listen, _workspaces, _database, _audit_log, _certificates, _profiles)
_LOOKS = {DRIVER: _OF_DRIVER, SIDECAR: _OF_SIDECAR, DAEMON: (*_OF_DRIVER, *_OF_SIDECAR)}


def _told(setting: Setting[Any], why: str) -> _Problems:
    if why:
        yield setting, why


def _place(path: str) -> str:
    """Why a directory is none and cannot be made; empty if it can. Nothing is made."""
    while True:
        try:
            is_directory = stat.S_ISDIR(os.stat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            if os.path.islink(path):
                return f"{_shown(path)} is a link to nothing"
            path = os.path.dirname(path)
        except OSError as error:
            return _lasting(error)
        else:
            return "" if is_directory else f"{_shown(path)} is no directory"


def _lasting(error: OSError) -> str:
    """What is wrong with a path itself; what a disk or a network says today passes."""
    return (error.strerror or "").lower() if error.errno in _OF_PATHS else ""


def _shown(path: str) -> str:
    return f"{path:.{_LONGEST_SHOWN}}"


def _socket(path: str) -> str:
    directory = os.path.dirname(path)
    if len(os.fsencode(path)) > _LONGEST_SOCKET or len(os.fsencode(directory)) > _LONGEST_DIRECTORY:
        return (
            f"Linux takes {_LONGEST_SOCKET} bytes of a socket's path, {_LONGEST_DIRECTORY} of them its directory's"
        )
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return _place(directory)
    return "" if is_socket else "there is something that is no socket"


def _file(path: str, options: Settings) -> str:
    """Why a file is none that could be read."""
    try:
        is_directory = stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return f"there is no such file{_hint(path, options)}"
    except OSError as error:
        return _lasting(error)
    return "it is a directory" if is_directory else ""


def _parent(path: str, options: Settings) -> str:
    directory = os.path.dirname(path)
    if not (os.path.isdir(directory) or directory == _state(options)):
        return f"there is no directory {_shown(directory)}{_hint(path, options)}"
    return ""


def _appendable(path: str) -> str:
    """Why no lines may be written to what is at a path."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return _lasting(error)
    return "" if stat.S_ISREG(mode) or stat.S_ISCHR(mode) else f"it is {_name(mode)}"


def _name(mode: int) -> str:
    names = {stat.S_IFDIR: "a directory", stat.S_IFLNK: "a link", stat.S_IFBLK: "a disk", stat.S_IFIFO: "a pipe"}
    return names.get(stat.S_IFMT(mode), "a socket")


def _state(options: Settings) -> str:
    return os.path.join(os.path.realpath(options.root), ".state")


def _is_of_state(path: str, options: Settings) -> bool:
    directory, name = os.path.split(path)
    return os.path.realpath(directory) == _state(options) and (
        name in _OF_STATE or name.startswith(_BEGINNINGS_OF_STATE)
    )


def _hint(path: str, options: Settings) -> str:
    is_elsewhere = options.hostfs != "/" and not path.startswith(f"{options.hostfs}/")
    return f"; the host's files are below {options.hostfs}" if is_elsewhere else ""

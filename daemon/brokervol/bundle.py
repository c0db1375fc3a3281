"""The client as one executable file: a zipapp of the modules that need nothing but Python 3.8."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import zipfile
from importlib import resources

CLIENT_NAME = "brokervol"
CLIENT_MODULES = (
    *("__init__.py", "client.py", "commands.py", "completion.py", "console.py", "exchange.py", "looking.py"),
    *("places.py", "progress.py", "selection.py", "task.py", "verbs.py"),
)

_MODE = 0o755
_SHEBANG = b"#!/usr/bin/env python3\n"
_MAIN = b"""\
import sys

if sys.version_info < (3, 8):
    sys.exit("brokervol: Python 3.8 or later is needed, and this is " + sys.version.split()[0])
try:
    from brokervol.task import main

    sys.exit(main())
except KeyboardInterrupt:
    sys.exit(130)
"""


def client_bytes() -> bytes:
    """The zipapp; the same bytes for the same sources, as nothing in it depends on when or where it is made."""
    package = resources.files("brokervol")
    sources = {f"brokervol/{name}": package.joinpath(name).read_bytes() for name in CLIENT_MODULES}
    archive = io.BytesIO()
    archive.write(_SHEBANG)
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_STORED) as zipped:
        for name, source in {"__main__.py": _MAIN, **sources}.items():
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            zipped.writestr(entry, source)
    return archive.getvalue()


def write_client(directory: str) -> str:
    """Put the client into `directory`, whole at any moment; a file that is right already is left alone.

    One process at a time may do so for a directory: the temporary file has a fixed name, so that one left by
    a crash is written over.

    Returns:
        The path of the executable.
    """
    path = os.path.join(directory, CLIENT_NAME)
    content = client_bytes()
    if not _is_written(path, content):
        temporary = os.path.join(directory, f".{CLIENT_NAME}.new")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, _MODE)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.rename(temporary, path)
    return path


def _is_written(path: str, content: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read() == content and stat.S_IMODE(os.fstat(file.fileno()).st_mode) == _MODE
    except FileNotFoundError:
        return False

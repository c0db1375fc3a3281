"""A PostgreSQL server of the tests' own, from Debian's package: on a Unix socket, gone when the test run is."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import make_url

from lab.directories import temporary_directory
from lab.processes import wait_until

URL_VARIABLE = "BROKERVOL_TEST_POSTGRES_URL"
SYSTEM_USER = "postgres"  # whom the server runs as where we are root: it refuses to be

_VERSIONS = Path("/usr/lib/postgresql")
_ROLE = "brokervol"
_STOP_TIMEOUT_S = 30
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "timezone": "Asia/Kolkata",  # nothing of ours may depend on the server's
}
# The server ends when standard input does, however the test run ended.
_KEEP = '"$@" & read -r _; kill -INT $!; wait $!'


def absence() -> str:
    """Why tests on PostgreSQL cannot run here, in a few words; empty where they can."""
    if os.environ.get(URL_VARIABLE) or programs():
        return ""
    return f"needs PostgreSQL: `make lab` installs it on Debian, or {URL_VARIABLE} names a server"


def programs() -> Path | None:
    """The directory of the newest version's programs."""
    found = [path for path in _VERSIONS.glob("*/bin") if (path / "initdb").exists()]
    return max(found, key=lambda path: float(path.parent.name), default=None)


class Server:
    """A server where the role of `url` may create databases."""

    def __init__(self, url: str) -> None:
        self.url = url

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new empty database, dropped at the end."""
        name = f"brokervol_test_{secrets.token_hex(8)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
        try:
            yield self.url_of(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def url_of(self, database: str) -> str:
        return make_url(self.url).set(database=database).render_as_string(hide_password=False)

    def execute(self, statement: str) -> None:
        """Run one statement outside of a transaction."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement.encode())


class OwnServer(Server):
    """A server on files below `directory`, which others can neither read nor connect to."""

    def __init__(self, directory: Path) -> None:
        found = programs()
        assert found is not None, absence()
        self._programs, self._home = found, directory / "postgresql"
        self._home.mkdir(mode=0o700)
        self._as: dict[str, Any] = {"cwd": self._home, "env": {"PATH": os.defpath, "LC_ALL": "C"}}
        password = secrets.token_hex(16)
        (self._home / "password").write_text(password)
        if os.geteuid() == 0:
            for path in (self._home, self._home / "password"):
                shutil.chown(path, SYSTEM_USER, SYSTEM_USER)
            self._as |= {"user": SYSTEM_USER, "group": SYSTEM_USER, "extra_groups": []}
        super().__init__(f"postgresql://{_ROLE}:{password}@/postgres?host={self._home}")
        self._initialise()
        self.start()

    def _initialise(self) -> None:
        identity = [f"--username={_ROLE}", "--auth=scram-sha-256", "--pwfile=password"]
        quick = ["--no-sync", "--no-instructions", "--wal-segsize=1"]
        subprocess.run(
            [f"{self._programs}/initdb", "--pgdata=data", "--encoding=UTF8", "--no-locale", *identity, *quick],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            **self._as,
        )

    def start(self) -> None:
        """Start, and wait until it can be used."""
        settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
        server = [f"{self._programs}/postgres", "-D", "data", "-k", f"{self._home}", *settings]
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", _KEEP, "sh", *server],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in a terminal is for the tests, which then stop it
                **self._as,
            )
        try:
            wait_until(self._is_ready, f"PostgreSQL in {self._home}")
        except AssertionError as error:
            self.stop()
            raise AssertionError(f"{error}:\n{(self._home / 'log').read_text()}") from None
        except BaseException:
            self.stop()
            raise

    def _is_ready(self) -> bool:
        try:
            psycopg.connect(self.url).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """End it as an administrator does who does not wait for its clients."""
        self._process.communicate(timeout=_STOP_TIMEOUT_S)


@contextlib.contextmanager
def own_server(directory: Path | None = None) -> Iterator[OwnServer]:
    """A private server, in a temporary directory unless told where."""
    with contextlib.ExitStack() as stack:
        server = OwnServer(directory or stack.enter_context(temporary_directory()))
        stack.callback(server.stop)
        yield server


@contextlib.contextmanager
def any_server() -> Iterator[Server]:
    """The server that the environment names, else a private one."""
    if url := os.environ.get(URL_VARIABLE):
        yield Server(url)
    else:
        with own_server() as server:
            yield server

"""The sidecar process: options, wiring, and the privileges that it gives up."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sqlite3
import sys
from collections.abc import Sequence

import structlog
from sqlalchemy.exc import SQLAlchemyError

from brokervol.bundle import write_client
from brokervol.server import UnixServer
from sidecar.api import MAX_BODY_BYTES, create_app, refusal
from sidecar.workspaces import CallerWorkspaces, Workspaces, read_workspaces
from storage import catalog, linux
from storage.configuration.exceptions import InvalidWorkspaceConfiguration
from storage.definitions import DefinitionStore, definitions_path

log = structlog.get_logger()

_VIEWS = ("caller", "self")
_LEVELS = ("debug", "info", "warning", "error")
_THREADS = 32
_TIMEOUT_S = 60


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sidecar until SIGTERM. Returns the exit code: 0, or 1 with a sentence on stderr."""
    options = _options(argv)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, options.log_level.upper())),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
    )
    linux.die_with_supervisor(os.environ.get("BROKERVOL_SUPERVISED"))
    try:
        _serve(options)
    except (InvalidWorkspaceConfiguration, OSError, SQLAlchemyError, sqlite3.Error) as error:
        print(f"brokervol sidecar: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    return 0


def _serve(options: argparse.Namespace) -> None:
    os.umask(0o022)
    _tell_sdk(options.credentials)
    state = os.path.dirname(definitions_path(options.root))
    os.makedirs(state, mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as stack:
        workspaces = _workspaces(options, stack)
        files = catalog.configure(options.database_url or f"sqlite:///{state}/catalog.sqlite")
        stack.callback(files.close)
        _give_up_privileges()
        server = UnixServer(
            options.listen,
            create_app(workspaces, files),
            mode=0o666,  # whoever reaches the socket may connect: the caller's mounts are the policy
            threads=_THREADS,
            timeout_s=_TIMEOUT_S,
            max_body_bytes=MAX_BODY_BYTES,
            refusal=refusal,
            accepted=workspaces.accepted,
        )
        _fill_directory(options)
        server.prepare()
        log.info("sidecar listens", socket=options.listen, view=options.view)
        server.run()


def _tell_sdk(credentials: str) -> None:
    """Tell the SDK of S3, which reads the environment, where its profiles are."""
    for name in [name for name, value in os.environ.items() if name.startswith("AWS_") and not value]:
        del os.environ[name]  # `docker plugin set` can empty a variable, not unset it
    os.environ["AWS_SHARED_CREDENTIALS_FILE"] = credentials


def _fill_directory(options: argparse.Namespace) -> None:
    """Make the socket's directory, and put the client beside the socket if that is the sidecar's volume."""
    directory = os.path.dirname(os.path.abspath(options.listen))
    os.makedirs(directory, mode=0o755, exist_ok=True)
    if os.path.realpath(directory) == _volume_directory(options.root):  # elsewhere it is not ours to fill
        write_client(directory)


def _workspaces(options: argparse.Namespace, stack: contextlib.ExitStack) -> Workspaces:
    if options.view == "caller":
        definitions = stack.enter_context(DefinitionStore(definitions_path(options.root)))
        return CallerWorkspaces(options.root, definitions)
    if not options.workspaces:
        raise InvalidWorkspaceConfiguration("workspaces", "--view self needs --workspaces FILE")
    return read_workspaces(options.workspaces)


def _give_up_privileges() -> None:
    """This process parses what strangers send: it never mounts, and nothing it starts gains a privilege."""
    linux.drop_capability(linux.CAP_SYS_ADMIN)
    linux.set_no_new_privileges()


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    environment = os.environ
    parser = argparse.ArgumentParser(
        prog="brokervol sidecar",
        description="Serve the broker operations to task containers over a Unix socket, acting as each caller.",
        epilog="Every option has an environment variable, named in brackets.",
    )
    root = environment.get("BROKERVOL_ROOT", "/var/lib/brokervol")
    parser.add_argument(
        "--root", default=root, help="directory of state and volumes [BROKERVOL_ROOT] (%(default)s)"
    )
    parser.add_argument(
        "--listen",
        default=environment.get("BROKERVOL_LISTEN"),
        help="path of the socket [BROKERVOL_LISTEN] (ROOT/sidecar/broker.sock)",
    )
    parser.add_argument(
        "--view",
        choices=_VIEWS,
        default=environment.get("BROKERVOL_VIEW", "caller"),
        help="whose paths and identity count: the caller's, or this process's [BROKERVOL_VIEW] (caller)",
    )
    parser.add_argument(
        "--workspaces",
        default=environment.get("BROKERVOL_WORKSPACES"),
        help="for --view self: JSON file of name to workspace configuration [BROKERVOL_WORKSPACES]",
    )
    parser.add_argument(
        "--credentials",
        default=environment.get("BROKERVOL_CREDENTIALS")
        or environment.get("AWS_SHARED_CREDENTIALS_FILE")
        or os.path.join(environment.get("BROKERVOL_HOSTFS") or "/", "etc/brokervol/credentials"),
        help="profiles for S3, as in AWS's shared credentials file [BROKERVOL_CREDENTIALS] (%(default)s)",
    )
    parser.add_argument(
        "--database-url",
        default=environment.get("DATABASE_URL"),
        help="SQLAlchemy URL of the catalog [DATABASE_URL] (SQLite below ROOT)",
    )
    parser.add_argument(
        "--log-level",
        choices=_LEVELS,
        default=environment.get("LOG_LEVEL", "info").lower(),
        help="least severity to log [LOG_LEVEL] (%(default)s)",
    )
    options = parser.parse_args(argv)
    for name, accepted in (("view", _VIEWS), ("log_level", _LEVELS)):  # argparse trusts the environment's values
        if getattr(options, name) not in accepted:
            parser.error(f"{name} is {getattr(options, name)!r}; accepted are: {', '.join(accepted)}")
    options.root = os.path.realpath(options.root)  # as mountinfo shows it
    options.listen = options.listen or os.path.join(_volume_directory(options.root), "broker.sock")
    return options


def _volume_directory(root: str) -> str:
    """The directory that volumes of type sidecar show."""
    return os.path.join(root, "sidecar")


if __name__ == "__main__":
    sys.exit(main())

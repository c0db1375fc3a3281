"""The sidecar process: options, wiring, and the privileges that it gives up."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sqlite3
import sys
from collections.abc import Sequence

import structlog
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from brokervol import premises, settings
from brokervol.bundle import write_client
from brokervol.kinds import AUDIT_OFF, AUDIT_TO_LOG
from brokervol.server import UnixServer
from brokervol.settings import Settings
from sidecar import operators
from sidecar.api import create_app
from sidecar.audit import AuditLog
from sidecar.errors import refusal
from sidecar.limits import limits_of, owner_of
from sidecar.metrics import Metrics
from sidecar.routes import ROUTES
from sidecar.workspaces import CallerWorkspaces, Workspaces, read_workspaces
from storage import catalog, journal, linux
from storage.configuration.exceptions import InvalidWorkspaceConfiguration
from storage.definitions import DefinitionStore, definitions_path

log = structlog.get_logger()

OPERATORS_SOCKET = "operators.sock"
"""In the state directory, which is for root only: what `operators` tells."""

# What each view needs to have. Over files, so as to lend a caller that is root what it has itself, and to give a
# finished file of the caller's its mode; to see a caller's root and mounts, and to take its user and groups.
_OVER_FILES = linux.mask(linux.CAP_DAC_OVERRIDE, linux.CAP_DAC_READ_SEARCH, linux.CAP_FOWNER)
_TO_ACT = linux.mask(linux.CAP_SYS_PTRACE, linux.CAP_SETUID, linux.CAP_SETGID)
CAPABILITIES = {
    "caller": _OVER_FILES | _TO_ACT,
    "self": _OVER_FILES,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sidecar until SIGTERM. Returns the exit code: 0, or 1 with a sentence on stderr.

    Raises:
        SystemExit: with `settings.EXIT_REFUSED`, where a setting is not accepted.
    """
    options = _options(argv)
    premises.check(settings.SIDECAR, options)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, options.log_level.upper())),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
    )
    for name, meant in settings.mistaken(settings.SIDECAR, os.environ).items():
        log.warning("a variable is no setting", variable=name, meant=meant)
    linux.die_with_supervisor(os.environ.get("BROKERVOL_SUPERVISED"))
    try:
        _serve(options)
    except (OSError, SQLAlchemyError, sqlite3.Error) as error:
        print(f"brokervol sidecar: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    return 0


def _serve(options: Settings) -> None:
    os.umask(0o022)
    _tell_sdk(options)
    root = os.path.realpath(options.root)  # as mountinfo shows it
    listen = options.listen or os.path.join(_volume_directory(root), "broker.sock")
    limits, metrics = limits_of(options), Metrics(route.operation for route in ROUTES)
    state = os.path.dirname(definitions_path(root))
    os.makedirs(state, mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as stack:
        journal.use_owner(_journal_owner(state))
        workspaces = _workspaces(options, root, stack)
        files = _catalog(options, state)
        stack.callback(files.close)
        audit = AuditLog(_audit_target(options.audit_log, state))
        stack.callback(audit.close)
        _give_up_privileges(options.view)
        server = UnixServer(
            listen,
            create_app(workspaces, files, audit, limits, metrics),
            mode=0o666,  # whoever reaches the socket may connect: the caller's mounts are the policy
            limits=limits.of_server(),
            refusal=refusal,
            accepted=workspaces.accepted,
            caller=owner_of,
        )
        _fill_directory(listen, root)
        server.prepare()
        log.info("sidecar listens", socket=listen, view=options.view)
        operators.serve(
            operators.Operators(options.socket, metrics, server.load),
            os.path.join(state, OPERATORS_SOCKET),
            options.status_listen,
        )
        server.run()


def _journal_owner(state: str) -> str:
    """A name that stays the same for all sidecars that follow one another on this state directory."""
    path = os.path.join(state, "journal-owner")
    if not os.path.exists(path):
        with open(f"{path}.new", "w", encoding="ascii") as file:
            file.write(secrets.token_hex(16))
        os.replace(file.name, path)
    with open(path, encoding="ascii") as file:
        return f"sidecar {file.read()}"


def _audit_target(given: str, state: str) -> str:
    """Where the audit log goes: a file's path, which is below the state directory if it is not absolute."""
    return given if given in (AUDIT_TO_LOG, AUDIT_OFF) else os.path.join(state, given)


def _tell_sdk(options: Settings) -> None:
    """Tell the SDK of S3, which reads the environment, where its profiles are, and the broker which to take."""
    for name in [name for name, value in os.environ.items() if name.startswith("AWS_") and not value]:
        del os.environ[name]  # `docker plugin set` can empty a variable, not unset it
    os.environ["AWS_SHARED_CREDENTIALS_FILE"] = _credentials(options)
    os.environ[Settings.s3_bulk.variable] = options.s3_bulk


def _fill_directory(listen: str, root: str) -> None:
    """Make the socket's directory, and put the client beside the socket if that is the sidecar's volume."""
    directory = os.path.dirname(os.path.abspath(listen))
    os.makedirs(directory, mode=0o755, exist_ok=True)
    if os.path.realpath(directory) == _volume_directory(root):  # elsewhere it is not ours to fill
        write_client(directory)


def _workspaces(options: Settings, root: str, stack: contextlib.ExitStack) -> Workspaces:
    if options.view == "caller":
        definitions = stack.enter_context(DefinitionStore(definitions_path(root)))
        return CallerWorkspaces(root, definitions)
    try:
        return read_workspaces(options.workspaces)
    except InvalidWorkspaceConfiguration as error:
        settings.refuse(settings.SIDECAR, Settings.workspaces.refusal(options.workspaces, str(error)))


def _catalog(options: Settings, state: str) -> catalog.Catalog:
    try:
        return catalog.configure(options.database_url or f"sqlite:///{state}/catalog.sqlite")
    except ArgumentError as error:  # the URL's fault, not that of the database
        settings.refuse(settings.SIDECAR, Settings.database_url.refusal(options.database_url, str(error)))


def _give_up_privileges(view: str) -> None:
    """This process parses what strangers send, and may hold keys: it keeps only what its work needs."""
    linux.keep_capabilities(CAPABILITIES[view])
    _, permitted, _ = linux.capabilities()
    if view == "caller" and _TO_ACT & ~permitted:
        raise PermissionError("the view of callers needs CAP_SYS_PTRACE, CAP_SETUID and CAP_SETGID: run as root")
    linux.set_no_new_privileges()
    linux.forbid_dumps()


def _options(argv: Sequence[str] | None) -> Settings:
    description = "Serve the broker operations to task containers over a Unix socket, acting as each caller."
    return settings.read(settings.SIDECAR, description, argv, os.environ)


def _credentials(options: Settings) -> str:
    """The file of profiles."""
    beside = os.path.join(options.hostfs, "etc/brokervol/credentials")
    return options.credentials or options.aws_shared_credentials_file or beside


def _volume_directory(root: str) -> str:
    """The directory that volumes of type sidecar show."""
    return os.path.join(root, "sidecar")


if __name__ == "__main__":
    sys.exit(main())

"""Every setting of the driver, the sidecar and the daemon that runs both, declared once.

From here come the options and `--help`, the checks at start, the plugin's `config.json` and the table in
docs/operations.md (`tests/lab/declared.py` writes these two). Standard library, and little of it: the supervisor
reads settings, too. Nothing here looks at the process's environment; that is for whoever asks.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, NoReturn, TypeVar, overload

from brokervol import kinds
from brokervol.kinds import PATH, Kind, choice, listed, whole

T = TypeVar("T")

EXIT_REFUSED = 2
"""What a process ends with whose settings are not accepted. To start it again does not help."""

DRIVER, SIDECAR, DAEMON = "driver", "sidecar", "daemon"

_LONGEST_SHOWN = 60
_ALIKE = 0.85  # LOG_LEVLE is LOG_LEVEL, and BROKERVOL_DEBUG nothing of ours
_A_DAY_S = 86_400


class Setting(Generic[T]):
    """One setting; of an object of `Settings` it is the value.

    Attributes:
        name: of the attribute; with hyphens that of the option.
        variable: of the environment.
        default: the text that counts where none is given.
        otherwise: what is done where the default is no text, in words.
        meaning: what it is for, in a clause.
        readers: the processes that read it; the daemon reads all and hands them on.
        is_of_sdk: whether it is for the SDK of S3, which reads the environment itself: it is no option, and where
            it is not given the SDK decides.
        is_secret: whether the text may hold a password, and is not repeated.
        in_plugin: its text in the managed plugin: None where that is the default.
        is_of_plugin, is_settable: whether `docker plugin inspect` shows it, and `docker plugin set` changes it.
    """

    name: str

    def __init__(
        self,
        kind: Kind[T],
        default: str,
        meaning: str,
        *readers: str,
        variable: str = "",
        otherwise: str = "",
        is_of_sdk: bool = False,
        is_secret: bool = False,
        in_plugin: str | None = None,
        is_of_plugin: bool = True,
        is_settable: bool = True,
    ) -> None:
        self.kind, self.default, self.meaning, self.readers = kind, default, meaning, readers
        self.variable, self.otherwise = variable, otherwise
        self.is_of_sdk, self.is_secret = is_of_sdk, is_secret
        self.in_plugin, self.is_of_plugin, self.is_settable = in_plugin, is_of_plugin, is_settable

    def __set_name__(self, owner: type[Settings], name: str) -> None:
        self.name = name
        self.variable = self.variable or f"BROKERVOL_{name.upper()}"

    @overload
    def __get__(self, instance: None, owner: type[Settings]) -> Setting[T]: ...
    @overload
    def __get__(self, instance: Settings, owner: type[Settings]) -> T: ...
    def __get__(self, instance: Settings | None, owner: type[Settings]) -> Setting[T] | T:
        return self if instance is None else self.value(instance.texts.get(self.name, ""))

    @property
    def option(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    def value(self, text: str) -> T:
        """What a text says; an empty one, which is all that `docker plugin set` can take away, says the default.

        Raises:
            ValueError: it is not accepted; the sentence names the variable, the text, and what is.
        """
        try:
            return self.kind.parse(text or self.default)
        except ValueError:
            raise ValueError(self.refusal(text, f"accepted is {self.kind.accepted}")) from None

    def refusal(self, text: str, why: str) -> str:
        """The sentence that refuses a text. An URL with an @ in it may hold a password."""
        named = self.variable if self.is_of_sdk else f"{self.variable} ({self.option})"
        is_url = self.kind in (kinds.SERVICE, kinds.PROXY) or "://" in text
        is_hidden = self.is_secret or (is_url and "@" in text)
        shown = "something that is not repeated here" if is_hidden else _shortened(repr(text))
        return f"{named} is {shown}; {why}"

    def is_read_by(self, process: str) -> bool:
        return process == DAEMON or process in self.readers


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text:.{_LONGEST_SHOWN}}..."


_BOTH = (DRIVER, SIDECAR)


class Settings:
    """What one process was given, by name. A value that it was not given is the default."""

    root = Setting(
        PATH,
        "/var/lib/brokervol",
        "where volumes are mounted (volumes/) and state is kept (.state/)",
        *_BOTH,
        in_plugin="/data/published",
        is_settable=False,
    )
    hostfs = Setting(
        PATH,
        "/",
        "where the host's root directory is seen",
        *_BOTH,
        in_plugin="/hostfs",
        is_settable=False,
    )
    socket = Setting(
        PATH,
        "/run/docker/plugins/brokervol.sock",
        "the socket that the engine calls; the sidecar asks there what its status page shows",
        *_BOTH,
        is_settable=False,
    )
    log_level = Setting(
        choice("debug", "info", "warning", "error"),
        "info",
        "the least severity that is logged",
        *_BOTH,
        DAEMON,
        variable="LOG_LEVEL",
    )
    log_format = Setting(
        choice("json", "console"),
        "json",
        "how the daemon shows its log and the processes': an object a line, or words; what it keeps is JSON",
        DAEMON,
        variable="LOG_FORMAT",
    )
    status_listen = Setting(
        kinds.LOOPBACK,
        "",
        "where /metrics, /status and a page of the status are served to everybody on this host",
        SIDECAR,
        variable="STATUS_LISTEN",
        otherwise="nowhere",
    )

    allowed_host_paths = Setting(
        listed("absolute directories, separated by colons or commas"),
        "",
        "the host directories that host_path must lie in",
        DRIVER,
        variable="ALLOWED_HOST_PATHS",
        otherwise="all but the system's",
    )
    allowed_nfs_servers = Setting(
        listed("names, addresses and networks, each with or without :/directory, separated by commas or spaces"),
        "",
        "the NFS servers to mount from",
        DRIVER,
        variable="ALLOWED_NFS_SERVERS",
        otherwise="all",
    )
    nfs_mount_timeout_s = Setting(
        whole(1, 24),
        "20",
        "seconds that mounting an NFS volume may take",
        DRIVER,
        variable="NFS_MOUNT_TIMEOUT_S",
    )
    nfs_probe_s = Setting(
        whole(1, 3600),
        "30",
        "seconds between probes of an NFS server that is in use and answers",
        DRIVER,
        variable="NFS_PROBE_S",
    )
    nfs_boot_s = Setting(
        whole(0, 3600),
        "300",
        "for so many seconds after the host's boot an NFS mount waits for a server that is not there yet",
        DRIVER,
        variable="NFS_BOOT_S",
    )
    reconcile_s = Setting(
        whole(0, _A_DAY_S),
        "60",
        "seconds between two looks at what is mounted and used; 0: only at start",
        DRIVER,
    )
    reference_grace_s = Setting(
        whole(1, _A_DAY_S),
        "120",
        "seconds that a mount is kept which a killed engine asked for and nobody uses",
        DRIVER,
    )

    listen = Setting(
        PATH,
        "",
        "the socket that tasks call",
        SIDECAR,
        otherwise="ROOT/sidecar/broker.sock",
        is_of_plugin=False,
    )
    view = Setting(
        choice("caller", "self"),
        "caller",
        "whose paths and identity count: the caller's, or the sidecar's own",
        SIDECAR,
        is_of_plugin=False,
    )
    workspaces = Setting(
        PATH,
        "",
        "for the view of its own: JSON of workspace name to configuration",
        SIDECAR,
        otherwise="none",
        is_of_plugin=False,
    )
    database_url = Setting(
        kinds.DATABASE,
        "",
        "the database of the catalog of files",
        SIDECAR,
        variable="DATABASE_URL",
        otherwise="SQLite below ROOT",
        is_secret=True,
    )
    audit_log = Setting(
        kinds.AUDIT,
        "audit.jsonl",
        "where it is written who did what",
        SIDECAR,
    )
    credentials = Setting(
        PATH,
        "",
        "profiles with the keys for S3, as in AWS's shared credentials file",
        SIDECAR,
        otherwise="AWS_SHARED_CREDENTIALS_FILE, or HOSTFS/etc/brokervol/credentials",
        in_plugin="/hostfs/etc/brokervol/credentials",
    )
    s3_bulk = Setting(
        choice("obstore", "boto3"),
        "obstore",
        "the library that carries S3 objects by the thousand",
        SIDECAR,
    )

    max_requests = Setting(whole(1, 4096), "128", "requests worked on at once", SIDECAR)
    max_requests_per_caller = Setting(
        whole(1, 4096), "24", "of them of one caller: a container, or a user outside of any", SIDECAR
    )
    max_requests_per_workspace = Setting(
        whole(1, 4096), "32", "of them in one workspace; of one caller half of these", SIDECAR
    )
    max_waiting = Setting(whole(0, 10_000), "64", "requests of one caller that wait for their turn", SIDECAR)
    max_connections_per_caller = Setting(
        whole(1, 65_536), "256", "connections of one caller, idle ones too", SIDECAR
    )
    max_body_bytes = Setting(whole(1024, 1024**3), "4194304", "bytes of a body of JSON", SIDECAR)
    header_timeout_s = Setting(whole(1, 3600), "10", "seconds for the head of a request to come", SIDECAR)
    client_timeout_s = Setting(
        whole(1, _A_DAY_S), "30", "seconds without a byte of a body sent, or of an answer read", SIDECAR
    )
    client_bytes_per_s = Setting(
        whole(0, 1024**3), "64", "what a client must send or read a second, after these seconds", SIDECAR
    )
    idle_timeout_s = Setting(
        whole(1, _A_DAY_S), "60", "seconds that a connection may be silent between requests", SIDECAR
    )
    drain_timeout_s = Setting(
        whole(0, 3600), "7", "seconds for requests in flight to end, when the sidecar is told to", SIDECAR
    )

    aws_shared_credentials_file = Setting(
        PATH,
        "",
        "as `BROKERVOL_CREDENTIALS`, where that is not given",
        SIDECAR,
        variable="AWS_SHARED_CREDENTIALS_FILE",
        otherwise="see there",
        is_of_sdk=True,
        is_of_plugin=False,
    )
    aws_endpoint_url_s3 = Setting(
        kinds.SERVICE,
        "",
        "the S3 service of volumes without endpoint_url",
        SIDECAR,
        variable="AWS_ENDPOINT_URL_S3",
        otherwise="AWS",
        is_of_sdk=True,
    )
    aws_default_region = Setting(
        kinds.REGION,
        "",
        "the region of volumes without region_name, where their profile has none",
        SIDECAR,
        variable="AWS_DEFAULT_REGION",
        otherwise="none",
        is_of_sdk=True,
    )
    aws_ca_bundle = Setting(
        PATH,
        "",
        "certificates to trust, of an S3 service with its own authority; in the plugin below /hostfs",
        SIDECAR,
        variable="AWS_CA_BUNDLE",
        otherwise="those of certifi",
        is_of_sdk=True,
    )
    aws_max_attempts = Setting(
        whole(1, 100),
        "3",
        "how often a request to S3 is sent at most",
        SIDECAR,
        variable="AWS_MAX_ATTEMPTS",
        is_of_sdk=True,
    )
    aws_request_checksum_calculation = Setting(
        choice("when_supported", "when_required"),
        "when_supported",
        "when_required for S3 services that do not know the newer checksums",
        SIDECAR,
        variable="AWS_REQUEST_CHECKSUM_CALCULATION",
        is_of_sdk=True,
    )
    https_proxy = Setting(
        kinds.PROXY,
        "",
        "the proxy on the way to S3",
        SIDECAR,
        variable="HTTPS_PROXY",
        otherwise="none",
        is_of_sdk=True,
    )

    def __init__(self, texts: Mapping[str, str]) -> None:
        """Take texts that are accepted, by the names of settings; see `read`."""
        self.texts = texts

    def environment(self) -> dict[str, str]:
        """The same as variables, for another process."""
        return {setting.variable: self.texts[setting.name] for setting in ALL if setting.name in self.texts}


ALL: tuple[Setting[Any], ...] = tuple(found for found in vars(Settings).values() if isinstance(found, Setting))


def read(process: str, description: str, argv: Sequence[str] | None, environment: Mapping[str, str]) -> Settings:
    """What a process is given by its options, or else by variables.

    Raises:
        SystemExit: it has nothing to do but to end, with EXIT_REFUSED after a sentence on standard error for each
            text that is not accepted; or with 0 after `--help`.
    """
    parser = _parser(process, description)
    given = vars(parser.parse_args(argv))
    texts, refusals = {}, []
    for setting in ALL:
        if not setting.is_read_by(process):
            continue
        text = given.get(setting.name) or environment.get(setting.variable) or ""
        try:
            setting.value(text)
        except ValueError as error:
            refusals.append(str(error))
        if text:
            texts[setting.name] = text
    if refusals:
        refuse(process, *refusals)
    return Settings(texts)


def mistaken(process: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that are no settings, with the setting of the process that was most likely meant."""
    known = {setting.variable for setting in ALL}
    ours = [setting.variable for setting in ALL if setting.is_read_by(process) and not setting.is_of_sdk]
    alike = {f"BROKERVOL_{variable}": variable for variable in ours} | {variable: variable for variable in ours}
    found = {name: difflib.get_close_matches(name, alike, 1, _ALIKE) for name in {*environment} - known}
    return {name: alike[names[0]] for name, names in sorted(found.items()) if names}


def refuse(process: str, *sentences: str) -> NoReturn:
    """End the process, as its settings are not accepted."""
    for sentence in sentences:
        print(f"brokervol {process}: {' '.join(sentence.splitlines())}", file=sys.stderr)
    raise SystemExit(EXIT_REFUSED)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Without the usage, of some forty options, before it."""
        refuse(self.prog.removeprefix("brokervol "), f"{message}; --help lists what is accepted")


def _parser(process: str, description: str) -> argparse.ArgumentParser:
    found = [setting for setting in ALL if setting.is_read_by(process)]
    others = ", ".join(setting.variable for setting in found if setting.is_of_sdk)
    parser = _Parser(
        prog=f"brokervol {process}",
        description=description,
        epilog="Each option may be given by the variable in brackets instead."
        + (f" Variables without an option: {others}." if others else ""),
        allow_abbrev=False,
    )
    for setting in found:
        if not setting.is_of_sdk:
            parser.add_argument(setting.option, metavar="TEXT", help=_help(setting).replace("%", "%%"))
    return parser


def _help(setting: Setting[Any]) -> str:
    left_out = setting.otherwise or setting.default
    return f"{setting.meaning} [{setting.variable}]; accepted: {setting.kind.accepted} (default: {left_out})"


def plugin_environment() -> Iterator[dict[str, Any]]:
    """The settings as config.json of the managed plugin lists them."""
    for setting in ALL:
        if not setting.is_of_plugin:
            continue
        left_out = f"; left out: {setting.otherwise}" if setting.otherwise else ""
        entry: dict[str, Any] = {
            "name": setting.variable,
            "description": f"{setting.meaning}; {setting.kind.accepted}{left_out}",
            "settable": ["value"] if setting.is_settable else [],
        }
        if not setting.is_of_sdk:
            entry["value"] = setting.default if setting.in_plugin is None else setting.in_plugin
        yield entry
    yield {
        "name": "PYTHONUNBUFFERED",
        "description": "log lines reach the engine's log when they are written",
        "settable": [],
        "value": "1",
    }

"""`brokervol status`: what the driver of this host knows, and which containers hold its volumes."""

from __future__ import annotations

import argparse
import contextlib
import glob
import http.client
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from brokervol import containers, tables
from brokervol.console import complain
from brokervol.containers import Holder
from brokervol.tables import Page, Table
from brokervol.tool import guarded

_EXIT_UNREACHABLE, _EXIT_USAGE, _EXIT_UNHEALTHY = 1, 2, 3

PLUGINS = "/run/docker/plugins"
"""Where engines have the sockets of plugins: of a managed one in a directory of its own."""

_PATH = "/brokervol/status"
_TIMEOUT_S = 5
_LONGEST_ANSWER = 256 << 20  # of a million volumes
_NEEDED = frozenset(("version", "pid", "root", "uptime_s", "volumes", "nfs_servers", "problems"))
_WATCH_S, _SHORTEST_WATCH_S, _LONGEST_WATCH_S = 2.0, 0.1, 86400.0
_SHOWN_ID_LENGTH = 12

_EPILOG = """\
exit codes: 0 all is well, 1 no driver answers, 2 wrong usage, 3 a volume or an NFS server does not work

examples:
  brokervol status
  brokervol status --watch
  brokervol status --json | jq -r '.volumes[] | select(.is_mounted) | .name'
"""

Document = dict[str, Any]


class Unreachable(Exception):
    """No driver answers. The message is a sentence that says what to do."""

    exit_code = _EXIT_UNREACHABLE


class Several(Unreachable):
    """More than one answers."""

    exit_code = _EXIT_USAGE


class SocketConnection(http.client.HTTPConnection):
    """HTTP to who listens on a Unix socket, at a path of any length."""

    def __init__(self, socket_path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._socket_path = socket_path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT_S)
        directory = os.open(os.path.dirname(self._socket_path) or ".", os.O_PATH | os.O_DIRECTORY)
        try:  # the kernel takes no more than 107 bytes
            self.sock.connect(f"/proc/self/fd/{directory}/{os.path.basename(self._socket_path)}")
        finally:
            os.close(directory)


def find_driver(socket_path: str | None, plugins: str = PLUGINS) -> Document:
    """What the driver at `socket_path` says, or else the only one that answers below `plugins`; with its `socket`.

    Raises:
        Unreachable: there is none.
        Several: there are several.
    """
    if socket_path is not None:
        return _asked(socket_path)
    answers, failures = [], []
    for path in sorted(glob.glob(f"{plugins}/brokervol.sock") + glob.glob(f"{plugins}/*/brokervol.sock")):
        try:
            answers.append(_asked(path))
        except Unreachable as failure:
            failures.append(failure)
    if len(answers) > 1:
        paths = ", ".join(answer["socket"] for answer in answers)
        raise Several(f"several drivers answer: name one of {paths} by --socket")
    if answers:
        return answers[0]
    if failures:
        raise failures[0]
    raise Unreachable(
        f"no driver has its socket in {plugins}: "
        + ("run this as root" if os.geteuid() else "enable the plugin (`docker plugin enable brokervol`)")
        + ", or name the socket by --socket"
    )


def _asked(socket_path: str) -> Document:
    """Raises Unreachable."""
    connection = SocketConnection(socket_path)
    try:
        connection.request("GET", _PATH)
        response = connection.getresponse()
        body = response.read(_LONGEST_ANSWER + 1)
        if response.status != http.client.OK:
            raise Unreachable(
                f"what listens at {socket_path} answers {response.status}: it is no driver of this version, or it"
                " is starting; try again, or name another socket by --socket"
            )
        told = json.loads(body)
        if not isinstance(told, dict) or _NEEDED - told.keys():
            raise ValueError("it does not tell what a driver of this version does")
        return {"socket": socket_path, **told}
    except PermissionError as error:
        raise Unreachable(f"{socket_path} may not be used: run this as root") from error
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        fact = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unreachable(
            f"no driver answers at {socket_path} ({fact.lower()}): enable the plugin"
            " (`docker plugin enable brokervol`), or look into the engine's log (`journalctl -u docker`)"
        ) from error
    finally:
        connection.close()


def look(socket_path: str | None) -> Document:
    """The driver's own status, and `holders` of each volume; see docs/operations.md for all fields.

    Raises:
        Unreachable: no driver answers.
    """
    document = find_driver(socket_path)
    document["sidecar"] = _sidecar(document)
    volumes = document["volumes"]
    holders = containers.of_engine(volume["name"] for volume in volumes)
    document["holders_from"] = "engine"
    if holders is None:
        document["holders_from"] = "processes"
        holders = containers.of_kernel(volumes)
    for volume in volumes:
        running_first = sorted(holders.get(volume["name"], []), key=_rank)
        volume["holders"] = [holder._asdict() for holder in running_first]
        for key in ("shown", "host_path"):  # what only `of_kernel` needs
            del volume[key]
    return document


def _sidecar(document: Document) -> Document | None:
    """What the sidecar beside the driver says of itself; None if none answers.

    Its socket for operators is in the driver's directory, which is that of another mount namespace in a plugin.
    """
    connection = SocketConnection(f"/proc/{document['pid']}/root{document['root']}/.state/operators.sock")
    try:
        connection.request("GET", "/status")
        told: Document = json.loads(connection.getresponse().read())["sidecar"]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, RecursionError):
        return None
    finally:
        connection.close()
    return told


def _rank(holder: Holder) -> tuple[bool, str, int]:
    return holder.state != "running", holder.container or "", holder.pid or 0


def exit_code(document: Document) -> int:
    """0, or 3 where something does not work."""
    return _EXIT_UNHEALTHY if document["problems"] else 0


def page(document: Document, now: datetime) -> Page:
    """What people are shown."""
    volumes, servers = document["volumes"], document["nfs_servers"]
    mounted = sum(volume["is_mounted"] for volume in volumes)
    driver = f"brokervol {document['version']} at {document['socket']}, up {_duration(document['uptime_s'])}"
    parts: list[str | Table] = [f"{driver}: {len(volumes)} volumes, {mounted} mounted", _load(document["sidecar"])]
    if volumes:
        parts += ["", _volumes(volumes)]
    if servers:
        parts += ["", _servers(servers, now)]
    notes = [
        f"{problem['subject']} is {problem['health']}: {problem['reason']}"
        for problem in document["problems"]
        if problem["health"] != "unreachable"  # servers are in the table with their reason
    ]
    if mounted and document["holders_from"] == "processes":
        notes.append("No Docker engine was asked, so running processes are shown, and containers by their IDs.")
    return [*parts, "", *notes] if notes else parts


def _load(sidecar: Mapping[str, Any] | None) -> str:
    if sidecar is None:
        return "no sidecar answers beside it"
    refused = sum(sidecar["refused"].values())
    return (
        f"sidecar, up {_duration(sidecar['uptime_s'])}: {sidecar['connections']} connections,"
        f" {sidecar['running']} requests running, {sidecar['waiting']} waiting, {refused} refused so far"
    )


def _volumes(volumes: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (
            volume["name"],
            volume["type"],
            volume["source"] or "-",
            str(sum(reference["count"] for reference in volume["references"])),
            ", ".join(_shown(Holder(**holder)) for holder in volume["holders"]) or "-",
            volume["health"] or "-",
        )
        for volume in volumes
    ]
    head = ("NAME", "TYPE", "SOURCE", "MOUNTS", "HELD BY", "HEALTH")
    return Table(head, rows, numbers=frozenset({"MOUNTS"}), states=frozenset({"HEALTH"}))


def _shown(holder: Holder) -> str:
    if holder.container is not None:
        return holder.container if holder.state == "running" else f"{holder.container} ({holder.state})"
    process = f"pid {holder.pid}"
    return process if holder.id is None else f"{holder.id[:_SHOWN_ID_LENGTH]} ({process})"


def _servers(servers: Sequence[Mapping[str, Any]], now: datetime) -> Table:
    rows = [
        (
            server["server"],
            server["state"],
            _duration((now - datetime.fromisoformat(server["since"])).total_seconds()),
            "-" if server["round_trip_ms"] is None else f"{server['round_trip_ms']:.1f} ms",
            "-" if server["retransmits"] is None else str(server["retransmits"]),
            "refused" if server["is_open"] else "tried",
            server["reason"] or "-",
        )
        for server in servers
    ]
    head = ("NFS SERVER", "STATE", "FOR", "ROUND TRIP", "RESENT", "MOUNTS ARE", "REASON")
    numbers, states = {"FOR", "ROUND TRIP", "RESENT"}, {"STATE", "MOUNTS ARE"}
    return Table(head, rows, numbers=frozenset(numbers), states=frozenset(states))


def _duration(seconds: float) -> str:
    """45 s, 12 min, 3 h 12 min, 4 d 2 h."""
    minutes, rest = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{rest} s"


class _Command:
    """One run, which may look many times. `exit_code` is that of the last look."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.exit_code = 0

    def run(self) -> None:
        """Raises Unreachable; but once it watches, a driver that does not answer is shown as such."""
        interval_s: float | None = self._options.watch
        if interval_s is None:
            document = self._looked()
            self._print_json(document) if self._options.json else tables.show(page(document, datetime.now(UTC)))
        elif self._options.json:
            while True:
                self._print_json(self._looked())
                time.sleep(interval_s)
        else:
            tables.watch(self._page, interval_s)

    def _looked(self) -> Document:
        document = look(self._options.socket)
        self.exit_code = exit_code(document)
        return document

    def _page(self) -> Page:
        try:
            return page(self._looked(), datetime.now(UTC))
        except Unreachable as failure:
            self.exit_code = failure.exit_code
            return [str(failure)]

    @staticmethod
    def _print_json(document: Document) -> None:
        print(json.dumps(document, separators=(",", ":")), flush=True)


def _interval(text: str) -> float:
    with contextlib.suppress(ValueError):
        if text.isascii() and _SHORTEST_WATCH_S <= (seconds := float(text)) <= _LONGEST_WATCH_S:
            return seconds
    raise argparse.ArgumentTypeError(
        f"{text!r} is not accepted: seconds, {_SHORTEST_WATCH_S} to {_LONGEST_WATCH_S:g}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brokervol status",
        description="Show the volumes of this host, who holds them, and the health of NFS servers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--socket", metavar="PATH", help=f"the driver's socket (else the only one that answers in {PLUGINS})"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, in one line")
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        const=_WATCH_S,
        type=_interval,
        help=f"look again and again, every {_WATCH_S:g} s unless given, until Ctrl-C",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 if no driver answers, 2 for wrong usage, 3 if something does not work."""
    return guarded("status", lambda: _run(_parser().parse_args(argv)))


def _run(options: argparse.Namespace) -> int:
    command = _Command(options)
    try:
        command.run()
    except Unreachable as failure:
        complain("status", "", str(failure))
        return failure.exit_code
    except KeyboardInterrupt:
        if options.watch is None:  # else the way to end it
            raise
    return command.exit_code

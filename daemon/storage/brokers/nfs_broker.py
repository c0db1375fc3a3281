"""Defines an NFS broker that utilizes a network file system as its backend storage"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any

from storage.brokers._filesystem import FilesystemBroker
from storage.brokers.broker import BrokerVolume
from storage.brokers.exceptions import InvalidBrokerConfiguration
from storage.configuration.warnings import ValidationWarning

_KEYS = frozenset(("type", "nfs_path"))
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
_ACCEPTED = "accepted is 'server:/export' or 'server:/export/sub/dir', an IPv6 address as '[addr]:/export'"


class NfsBroker(FilesystemBroker):
    """Broker whose workspace is an NFS export, mounted into the task container by the volume driver.

    Configuration: `{"type": "nfs", "nfs_path": "server:/export/sub"}`. Files are worked on as by the host broker:
    a download is a symbolic link into the mounted volume.
    """

    def __init__(self) -> None:
        super().__init__("nfs")

    def load_configuration(self, config: Mapping[str, Any]) -> None:
        self.validate_configuration(config)
        self._volume = BrokerVolume("nfs", config["nfs_path"])

    def validate_configuration(self, config: Mapping[str, Any]) -> list[ValidationWarning]:
        if config.get("type", self.broker_type) != self.broker_type:
            raise InvalidBrokerConfiguration("type", f"type is {config['type']!r}; this broker's is 'nfs'")
        parse_nfs_path(config.get("nfs_path"))
        return [
            ValidationWarning("unknown_key", f"{key!r} is not a key of an nfs broker and is ignored")
            for key in sorted(set(config) - _KEYS)
        ]


def parse_nfs_path(value: object) -> tuple[str, str]:
    """Split `server:/export` into server (an IPv6 address without its brackets) and absolute path.

    Raises:
        InvalidBrokerConfiguration: naming what is wrong and what is accepted.
    """
    if not isinstance(value, str) or not value:
        raise InvalidBrokerConfiguration("nfs_path", f"nfs_path is missing or not text; {_ACCEPTED}")
    match = re.fullmatch(r"(?:\[(?P<v6>[^\]]*)\]|(?P<name>[^:/\[\]]*)):(?P<path>/.*)", value, re.DOTALL)
    server = (match["v6"] or match["name"]) if match else ""
    if match is None or not _is_server(server, is_bracketed=match["v6"] is not None):
        raise InvalidBrokerConfiguration("nfs_path", f"nfs_path is {value!r}; {_ACCEPTED}")
    parts = match["path"].rstrip("/").split("/")[1:]
    if "\0" in value or any(part in ("", ".", "..") for part in parts):
        raise InvalidBrokerConfiguration(
            "nfs_path", f"nfs_path is {value!r}; its path cannot have empty, '.' or '..' components"
        )
    return server, match["path"]


def _is_server(server: str, *, is_bracketed: bool) -> bool:
    if not is_bracketed:
        return _HOST_NAME.fullmatch(server) is not None and len(server) <= 253
    try:
        ipaddress.IPv6Address(server.partition("%")[0])
    except ValueError:
        return False
    return True

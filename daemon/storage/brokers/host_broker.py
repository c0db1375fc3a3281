"""Defines a broker that mounts a local host directory into the task container as its backend storage"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storage.brokers._checks import check_absolute_directory
from storage.brokers._filesystem import FilesystemBroker
from storage.brokers.broker import BrokerVolume
from storage.brokers.exceptions import InvalidBrokerConfiguration
from storage.configuration.warnings import ValidationWarning

_KEYS = frozenset(("type", "host_path"))


class HostBroker(FilesystemBroker):
    """Broker that utilizes a local host path mounted into the task container.

    Configuration: `{"type": "host", "host_path": "/absolute/directory"}`. A download is a symbolic link into
    the mounted volume: nothing is copied.
    """

    def __init__(self) -> None:
        super().__init__("host")

    def load_configuration(self, config: Mapping[str, Any]) -> None:
        self.validate_configuration(config)
        self._volume = BrokerVolume(None, config["host_path"])

    def validate_configuration(self, config: Mapping[str, Any]) -> list[ValidationWarning]:
        if config.get("type", self.broker_type) != self.broker_type:
            raise InvalidBrokerConfiguration("type", f"type is {config['type']!r}; this broker's is 'host'")
        check_absolute_directory("host_path", config.get("host_path"))
        return [
            ValidationWarning("unknown_key", f"{key!r} is not a key of a host broker and is ignored")
            for key in sorted(set(config) - _KEYS)
        ]

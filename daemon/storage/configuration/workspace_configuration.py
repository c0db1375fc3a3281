"""A workspace's configuration: `{"version": "1.0", "broker": {...}}`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from storage.brokers.broker import Broker
from storage.brokers.factory import get_broker
from storage.configuration.exceptions import InvalidWorkspaceConfiguration
from storage.configuration.warnings import ValidationWarning

__all__ = ["ValidationWarning", "WorkspaceConfiguration"]

VERSION = "1.0"


@dataclass(frozen=True, slots=True)
class WorkspaceConfiguration:
    """Which broker a workspace uses and how, checked for its outer form.

    Args:
        configuration: the whole object, version and broker.

    Raises:
        InvalidWorkspaceConfiguration: the outer form is wrong. The broker part is checked by its broker.
    """

    configuration: Mapping[str, Any] = field(repr=False)  # perhaps with credentials

    def __post_init__(self) -> None:
        version = self.configuration.get("version", VERSION)
        if version != VERSION:
            raise InvalidWorkspaceConfiguration("version", f"version is {version!r}; accepted is {VERSION!r}")
        if not isinstance(self.configuration.get("broker"), Mapping):
            raise InvalidWorkspaceConfiguration("broker", "broker must be an object with at least 'type'")

    @property
    def broker(self) -> dict[str, Any]:
        """The broker part."""
        return dict(self.configuration["broker"])

    def get_broker(self) -> Broker:
        """The broker, loaded with its configuration.

        Raises:
            InvalidBrokerConfiguration: the broker's type is unknown or its configuration is wrong.
        """
        return load_broker(self.broker)

    def validate(self) -> list[ValidationWarning]:
        """What is doubtful about the broker's configuration; raises for what is wrong, as `get_broker`."""
        return validate_broker(self.broker)


def load_broker(config: Mapping[str, Any]) -> Broker:
    """A broker loaded from its part of the configuration; raises `InvalidBrokerConfiguration`."""
    broker = get_broker(config.get("type"))
    broker.load_configuration(config)
    return broker


def validate_broker(config: Mapping[str, Any]) -> list[ValidationWarning]:
    """The warnings about a broker's part of the configuration; raises `InvalidBrokerConfiguration`."""
    return get_broker(config.get("type")).validate_configuration(config)


def check_broker(config: Mapping[str, Any]) -> list[ValidationWarning]:
    """As `validate_broker`, without asking any backend: for configurations that strangers send."""
    return get_broker(config.get("type")).check_configuration(config)

"""Defines the exceptions related to workspace brokers"""

from __future__ import annotations

from storage.configuration.exceptions import InvalidWorkspaceConfiguration


class InvalidBrokerConfiguration(InvalidWorkspaceConfiguration):
    """A broker configuration cannot be used; `name` and `description` as in the base class."""

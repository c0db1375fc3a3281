"""Checks that configurations of several types share; light, since the volume driver imports them too."""

from __future__ import annotations

from storage.brokers.exceptions import InvalidBrokerConfiguration


def check_absolute_directory(key: str, value: object) -> None:
    """Refuse a configured directory that is missing, relative or not in its canonical spelling.

    Raises:
        InvalidBrokerConfiguration: naming the key and what is accepted.
    """
    accepted = "accepted is an absolute directory such as '/srv/data', without empty, '.' or '..' components"
    if not isinstance(value, str) or not value:
        raise InvalidBrokerConfiguration(key, f"{key} is missing or not text; {accepted}")
    parts = value.rstrip("/").split("/")
    if parts[0] != "" or "\0" in value or any(part in ("", ".", "..") for part in parts[1:]):
        raise InvalidBrokerConfiguration(key, f"{key} is {value!r}; {accepted}")

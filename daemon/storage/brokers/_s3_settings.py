"""The configuration of an S3 broker, checked. Imports no SDK: the volume driver checks options with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from storage.brokers._checks import check_absolute_directory
from storage.brokers.exceptions import InvalidBrokerConfiguration
from storage.configuration.warnings import ValidationWarning
from storage.exceptions import InvalidPath
from storage.files import check_file_path

LONGEST_KEY_BYTES = 1024

ENCRYPTIONS = ("AES256", "aws:kms", "aws:kms:dsse")

_KEYS = frozenset(
    (
        *("type", "bucket_name", "region_name", "endpoint_url", "prefix", "credentials"),
        *("storage_class", "server_side_encryption", "host_path"),
    )
)
_SECRET_KEYS = ("access_key_id", "secret_access_key")
_BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_REGION_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_STORAGE_CLASS = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


@dataclass(frozen=True, slots=True)
class AccessKey:
    """An access key given in the configuration itself."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Which bucket, where, and with whose credentials: what a connection depends on.

    Attributes:
        region_name, endpoint_url: None for what the SDK finds in its environment and profiles.
        credentials: a profile's name, a key, or None for the SDK's own chain.
    """

    bucket_name: str
    region_name: str | None
    endpoint_url: str | None
    credentials: str | AccessKey | None


@dataclass(frozen=True, slots=True)
class Settings:
    """A checked configuration.

    Attributes:
        prefix: what every key begins with: empty, or ending in `/`.
        storage_class, server_side_encryption: of new objects; None for the bucket's defaults.
        host_path: where the bucket is mounted on the host, None if it is not.
    """

    endpoint: Endpoint
    prefix: str
    storage_class: str | None
    server_side_encryption: str | None
    host_path: str | None


def parse(config: Mapping[str, Any]) -> Settings:
    """Check a broker configuration of type s3. No sentence repeats a value that might be a secret.

    Raises:
        InvalidBrokerConfiguration: naming the key and what is accepted.
    """
    if config.get("type", "s3") != "s3":
        raise InvalidBrokerConfiguration("type", f"type is {config['type']!r}; this broker's is 's3'")
    accepted = "a bucket's name of 3 to 63 letters, digits and '.-_'"
    bucket_name = _text(config, "bucket_name", _BUCKET_NAME, accepted)
    if bucket_name is None:
        raise InvalidBrokerConfiguration("bucket_name", f"bucket_name is missing; accepted is {accepted}")
    host_path = config.get("host_path")
    if host_path is not None:
        check_absolute_directory("host_path", host_path)
    encryption = config.get("server_side_encryption")
    if encryption is not None and encryption not in ENCRYPTIONS:
        raise _refused("server_side_encryption", encryption, f"one of {', '.join(ENCRYPTIONS)}")
    endpoint = Endpoint(
        bucket_name,
        _text(config, "region_name", _REGION_NAME, "a region's name such as 'eu-central-1'"),
        _endpoint_url(config.get("endpoint_url")),
        _credentials(config.get("credentials")),
    )
    storage_class = _text(config, "storage_class", _STORAGE_CLASS, "a storage class such as 'STANDARD_IA'")
    return Settings(endpoint, _prefix(config.get("prefix")), storage_class, encryption, host_path)


def unknown_keys(config: Mapping[str, Any]) -> list[ValidationWarning]:
    """A warning for each key that is ignored."""
    return [
        ValidationWarning("unknown_key", f"{key!r} is not a key of an s3 broker and is ignored")
        for key in sorted(set(config) - _KEYS)
    ]


def _text(config: Mapping[str, Any], key: str, form: re.Pattern[str], accepted: str) -> str | None:
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or form.fullmatch(value) is None:
        raise _refused(key, value, accepted)
    return value


def _endpoint_url(value: object) -> str | None:
    if value is None:
        return None
    # The value is not repeated: it might hold a password or a signature.
    refused = InvalidBrokerConfiguration(
        "endpoint_url",
        "endpoint_url is not accepted: it is 'https://host' or 'http://host:port', without user, path or query",
    )
    if not isinstance(value, str) or "@" in value or not value.isprintable():
        raise refused
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise refused from None
    is_plain = parts.path in ("", "/") and not parts.query and not parts.fragment
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain:
        raise refused
    return f"{parts.scheme}://{parts.netloc}"


def _prefix(value: object) -> str:
    if value is None or value == "":
        return ""
    accepted = "a path in the bucket such as 'projects/a', without empty, '.' or '..' components"
    if not isinstance(value, str):
        raise _refused("prefix", value, accepted)
    path = value.removesuffix("/")
    try:
        check_file_path(path, "prefix")
    except InvalidPath as error:
        raise InvalidBrokerConfiguration("prefix", f"{error}; accepted is {accepted}") from error
    if len(path.encode()) > LONGEST_KEY_BYTES // 2:
        raise InvalidBrokerConfiguration("prefix", f"prefix has more than {LONGEST_KEY_BYTES // 2} bytes")
    return f"{path}/"


def _credentials(value: object) -> str | AccessKey | None:
    accepted = (
        "accepted is the name of a profile, or an object of access_key_id, secret_access_key and, if need be, "
        "session_token; left out, the SDK's own chain finds them"
    )
    if value is None:
        return None
    if isinstance(value, str) and value and value.isprintable():
        return value
    if not isinstance(value, Mapping):
        raise InvalidBrokerConfiguration("credentials", f"credentials is not usable; {accepted}")
    allowed = {*_SECRET_KEYS, "session_token"}
    if wrong := sorted(str(key) for key in set(value) - allowed):
        raise InvalidBrokerConfiguration(
            "credentials", f"credentials has the unknown key {wrong[0]!r}; {accepted}"
        )
    token = value.get("session_token")
    for key in _SECRET_KEYS if token is None else (*_SECRET_KEYS, "session_token"):
        found = value.get(key)
        if not isinstance(found, str) or not found or not found.isascii() or not found.isprintable():
            raise InvalidBrokerConfiguration("credentials", f"credentials.{key} is missing or no text; {accepted}")
    return AccessKey(value["access_key_id"], value["secret_access_key"], token)


def _refused(key: str, value: object, accepted: str) -> InvalidBrokerConfiguration:
    return InvalidBrokerConfiguration(key, f"{key} is {value!r}; accepted is {accepted}")

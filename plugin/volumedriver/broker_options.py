"""Options that configure a broker: of buckets, and of the types that other packages bring.

They are checked by the broker's own code, which is imported when the first of them is read: it brings a database
library along, and the driver has to start fast.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import structlog

from storage.configuration.exceptions import InvalidWorkspaceConfiguration
from volumedriver.errors import shown

log = structlog.get_logger()

S3_KEYS = (
    *("bucket_name", "region_name", "endpoint_url", "prefix", "storage_class", "server_side_encryption"),
    "credentials",
)

_BUILT_IN = frozenset(("host", "nfs", "s3"))
_SECRETS = frozenset(("access_key_id", "secret_access_key", "session_token"))
_PROFILES = "/etc/brokervol/credentials on the host"
_PROFILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .@+-]{0,63}")
_KEY = re.compile(r"(?:AKIA|ASIA)[A-Z0-9]{12,}|[A-Za-z0-9+]{40,}")  # an access key's id, a secret access key
_LONGEST_VALUE = 1024
_LONGEST_SENTENCE = 400


class Checked(NamedTuple):
    """A broker's configuration as it is in force, and what is wrong with what was given.

    Attributes:
        host_path: the host's directory in which the workspace's files are; None if they are in none.
    """

    configuration: dict[str, str]
    problems: list[str]
    host_path: str | None = None


def is_secret(key: str) -> bool:
    """Whether an option of this name would hold a secret of S3."""
    return key.lower().removeprefix("aws_") in _SECRETS


def secrets_refused(keys: list[str]) -> str:
    """Why secrets are no options, and what to do instead."""
    return (
        f"secrets are not accepted as options ({', '.join(sorted(keys))}), since docker volume inspect would show"
        f" them: put them into a profile of {_PROFILES} and give its name as credentials"
    )


def check_s3(given: Mapping[str, str]) -> Checked:
    """The options of a bucket, each checked by itself so that all that is wrong is told. Repeats no secret."""
    from storage.brokers._s3_settings import parse  # noqa: PLC0415

    problems = []
    for key in S3_KEYS:
        value = given.get(key)
        if key == "credentials" and value is not None and not _is_profile(value):
            problems.append(
                f"option credentials is not accepted: it is the name of a profile in {_PROFILES},"
                " never the keys themselves, which docker volume inspect would show"
            )
        elif value is not None and len(value) > _LONGEST_VALUE:
            problems.append(f"option {key} has more than {_LONGEST_VALUE} characters")
        else:
            one = {} if value is None else {key: value}
            try:
                parse({"bucket_name": "any", **one} if key != "bucket_name" else one)
            except InvalidWorkspaceConfiguration as error:
                problems.append(f"option {error.description.replace('; accepted', ': accepted')}")
    if problems:
        return Checked({}, problems)
    settings = parse(given)
    plain = {"prefix": settings.prefix.rstrip("/"), "endpoint_url": settings.endpoint.endpoint_url or ""}
    return Checked({key: value for key, value in {**given, **plain}.items() if value}, [])


def _is_profile(name: str) -> bool:
    return _PROFILE.fullmatch(name) is not None and _KEY.fullmatch(name) is None


def third_party_types() -> list[str]:
    """The types of volumes that installed packages bring."""
    from storage.brokers.factory import get_broker_types  # noqa: PLC0415

    return sorted({*get_broker_types()} - _BUILT_IN)


def check_third_party(kind: str, configuration: dict[str, str]) -> Checked:
    """The options of a volume whose broker is of another package. What that raises is told, whatever it is."""
    from storage.brokers.factory import get_broker  # noqa: PLC0415

    try:
        broker = get_broker(kind)
        warnings = broker.check_configuration(configuration)
        # A key that nobody reads is a typing error more often than not, and options cannot be changed later.
        unknown = [warning for warning in warnings if warning.name == "unknown_key"]
        if unknown:
            refused = [warning.description.removesuffix(" and is ignored") for warning in unknown]
            return Checked(configuration, [_cut(f"an option is not accepted: {fact}") for fact in refused])
        broker.load_configuration(configuration)
        volume = broker.volume
    except InvalidWorkspaceConfiguration as error:
        return Checked(configuration, [_cut(f"the {kind} broker refuses the options: {error.description}")])
    except Exception as error:
        log.exception("broker failed", type=kind)
        return Checked(configuration, [_cut(f"the {kind} broker failed: {type(error).__name__}: {error}")])
    for warning in warnings:
        log.warning("doubtful option", type=kind, warning=warning.name, description=warning.description)
    if volume is not None and not volume.host:
        fact = f"volumes of type {kind} need one of driver {volume.driver!r}, which this version does not mount"
        return Checked(configuration, [_cut(fact)])
    return Checked(configuration, [], str(volume.remote_path) if volume else None)


def _cut(sentence: str) -> str:
    return shown(sentence[:_LONGEST_SENTENCE])

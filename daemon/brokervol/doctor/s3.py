"""Checks of the buckets that volumes are of: their credentials, the bucket itself, the service's clock."""

from __future__ import annotations

import configparser
import os
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from brokervol.doctor.findings import Finding, fault, ok, skipped, unseen, warning
from brokervol.doctor.site import Site
from storage.brokers._s3_settings import Endpoint, parse
from storage.exceptions import (
    BackendUnavailable,
    ExpiredCredentials,
    InvalidCredentials,
    MissingBucket,
    PermissionDenied,
    StorageError,
    TimedOut,
)
from volumedriver.options import BrokerOptions, restore

_CREDENTIALS = "/etc/brokervol/credentials"
_CREDENTIALS_VARIABLES = ("BROKERVOL_CREDENTIALS", "AWS_SHARED_CREDENTIALS_FILE")
_FOR_SDK = (
    *("AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE", "AWS_REQUEST_CHECKSUM_CALCULATION"),
    "HTTPS_PROXY",
)
_CLOCK_TIMEOUT_S = 5
_WRONG_CLOCK_S, _DOUBTFUL_CLOCK_S = 900, 120  # S3 refuses signatures that are 15 minutes old
_OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Bucket(NamedTuple):
    """A bucket as volumes name it: asked once for all that do so alike."""

    endpoint: Endpoint
    volume: str

    @property
    def text(self) -> str:
        """`archive at http://127.0.0.1:8333`."""
        at = f" at {self.endpoint.endpoint_url}" if self.endpoint.endpoint_url else ""
        return f"{self.endpoint.bucket_name}{at}"


def buckets(site: Site) -> list[Bucket]:
    """The buckets of this host's volumes."""
    found: dict[Endpoint, Bucket] = {}
    for definition in () if isinstance(site.definitions, Exception) else site.definitions:
        options = restore(definition.options)
        if isinstance(options, BrokerOptions) and options.configuration["type"] == "s3":
            endpoint = parse(options.configuration).endpoint
            found.setdefault(endpoint, Bucket(endpoint, definition.name))
    return sorted(found.values(), key=lambda bucket: bucket.volume)


def profiles(site: Site) -> list[str]:
    """The profiles of credentials that volumes name; empty for those that name none."""
    named = {bucket.endpoint.credentials for bucket in buckets(site)}
    return sorted(name for name in named if isinstance(name, str))


def services(site: Site) -> list[str]:
    """The URLs of the services that volumes name."""
    default = site.settings.get("AWS_ENDPOINT_URL_S3", "")
    return sorted({bucket.endpoint.endpoint_url or default for bucket in buckets(site)} - {""})


def credentials_file(settings: Mapping[str, str]) -> str:
    """The file with the profiles, as this host sees it."""
    return next((text for name in _CREDENTIALS_VARIABLES if (text := settings.get(name))), _CREDENTIALS)


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """What the SDK is to find in its environment: the sidecar's, but for its patience."""
    given = {name: text for name in _FOR_SDK if (text := settings.get(name))}
    return {**given, "AWS_SHARED_CREDENTIALS_FILE": credentials_file(settings), "AWS_MAX_ATTEMPTS": "1"}


def check_credentials(site: Site, profile: str) -> Iterator[Finding]:
    """Whether there are such credentials, and for nobody else to read."""
    path = credentials_file(site.settings)
    try:
        with open(path, encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            parser = configparser.RawConfigParser()
            parser.read_file(file)
    except PermissionError:
        yield unseen(f"{path} is closed to this user", subject=profile)
        return
    except (OSError, ValueError, configparser.Error) as error:
        fact = error.strerror if isinstance(error, OSError) else "it is no file of profiles"
        yield fault(f"the credentials file {path} cannot be read: {fact}", _profile_cure(path, profile), profile)
        return
    keys = ("aws_access_key_id", "aws_secret_access_key")
    if not parser.has_section(profile):
        known = ", ".join(parser.sections()) or "none"
        yield fault(f"{path} has no profile {profile}, but {known}", _profile_cure(path, profile), profile)
    elif parser.has_option(profile, keys[0]) != parser.has_option(profile, keys[1]):
        yield fault(f"profile {profile} in {path} has half a key", _profile_cure(path, profile), profile)
    elif mode & _OF_OTHERS:
        yield warning(f"{path} can be read by others than its owner", f"`chmod 600 {path}`", profile)
    else:
        yield ok(f"profile {profile} is in {path}", profile)


def _profile_cure(path: str, profile: str) -> str:
    return f"write the lines [{profile}], aws_access_key_id = ..., aws_secret_access_key = ... into {path}"


def check_bucket(site: Site, bucket: Bucket) -> Iterator[Finding]:
    """Whether the bucket answers to these credentials: one signed request, which changes nothing."""
    from storage.brokers._s3_boto import BotoObjects  # noqa: PLC0415  # the SDK is large, and not every host's

    configuration = restore(_options(site, bucket.volume)).effective
    try:
        BotoObjects(parse({key: text for key, text in configuration.items() if key != "read_only"})).check_bucket()
    except StorageError as error:
        kinds = (one for one in _CURES if isinstance(error, one))
        cure = _CURES[next(kinds, StorageError)]
        where = (
            bucket.endpoint.endpoint_url or site.settings.get("AWS_ENDPOINT_URL_S3") or "https://s3.amazonaws.com"
        )
        names = {"bucket": bucket.endpoint.bucket_name, "volume": bucket.volume, "url": where}
        names["profile"] = str(bucket.endpoint.credentials or "default")
        names["file"] = credentials_file(site.settings)
        yield fault(f"volume {bucket.volume}: {error}", cure.format(**names), bucket.text)
    else:
        yield ok(f"bucket {bucket.text} answers to its credentials", bucket.text)


def _options(site: Site, volume: str) -> dict[str, str]:
    definitions = () if isinstance(site.definitions, Exception) else site.definitions
    return next(definition.options for definition in definitions if definition.name == volume)


# The first kind that fits.
_CURES: dict[type[StorageError], str] = {
    ExpiredCredentials: "renew the credentials of profile [{profile}] in {file}",
    InvalidCredentials: "correct the key of profile [{profile}] in {file}; and this host's clock, if that is it"
    " (`timedatectl`)",
    PermissionDenied: "allow s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject on {bucket} to profile"
    " [{profile}], or name another profile",
    MissingBucket: "make it (`aws --endpoint-url {url} s3 mb s3://{bucket}`), or define the volume with the bucket"
    " that is meant",
    TimedOut: "`curl -v {url}` shows how far it is to be reached: correct endpoint_url, or the network",
    BackendUnavailable: "`curl -v {url}`: see that the service runs there; else correct endpoint_url, region_name"
    " or HTTPS_PROXY",
    StorageError: "`docker volume inspect {volume}` shows what it was defined with",
}


def check_clock(site: Site, url: str) -> Iterator[Finding]:
    """How far this host's clock is from the service's, as it answers to anybody."""
    del site
    try:
        told = _date(url)
    except (OSError, ValueError) as error:
        yield skipped(f"{url} does not tell its time: {getattr(error, 'reason', None) or error}", url)
        return
    if told is None:
        yield skipped(f"{url} does not tell its time", url)
        return
    apart_s = abs(time.time() - told)
    if apart_s > _WRONG_CLOCK_S:
        yield fault(
            f"this host's clock and that of {url} are {apart_s:.0f} s apart: it refuses signatures", _CLOCK, url
        )
    elif apart_s > _DOUBTFUL_CLOCK_S:
        yield warning(f"this host's clock and that of {url} are {apart_s:.0f} s apart", _CLOCK, url)
    else:
        yield ok(f"this host's clock is that of {url}, to {max(apart_s, 1):.0f} s", url)


_CLOCK = "`timedatectl` shows this host's clock, `timedatectl set-ntp true` has it set"


def _date(url: str) -> float | None:
    """Seconds since the epoch; None where the answer has none."""
    try:
        with urllib.request.urlopen(url, timeout=_CLOCK_TIMEOUT_S) as answer:  # noqa: S310  # http or https, by `parse`
            date = answer.headers["Date"]
    except urllib.error.HTTPError as error:  # as good as any
        with error:
            date = error.headers["Date"]
    return parsedate_to_datetime(date).timestamp() if date else None


def check_none(site: Site) -> Finding | None:
    """What to say where there is no bucket to ask for; None where there is one."""
    if isinstance(site.definitions, Exception):
        return site.without_definitions()
    return None if buckets(site) else skipped("no volume of type s3 is defined")

"""What a service answers to ListObjectsV2: read here, since the SDK's general parser takes ten times as long."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from storage.brokers._s3_objects import Found
from storage.exceptions import BackendUnavailable

# As services write it: the key first, and nothing but plain elements before the size.
_PLAIN = re.compile(r"<Contents><Key>([^<&]*)</Key>(?:<(?!Size>)(\w+)>[^<]*</\2>)*<Size>([0-9]{1,19})</Size>")
_SIZE = re.compile("[0-9]{1,19}")
_TOKEN = re.compile(rb"<NextContinuationToken>([^<&]+)</NextContinuationToken>")
_START, _END = re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?<ListBucketResult[ >]"), b"</ListBucketResult>"


def token_of(body: bytes) -> str | None:
    """What to ask for the next page with; None at the last.

    Raises:
        BackendUnavailable: it is no listing, or tells of more and not how to ask for it.
    """
    if _is_plain(body):
        if b"<IsTruncated>false</IsTruncated>" in body:
            return None
        if b"<IsTruncated>true</IsTruncated>" in body and (found := _TOKEN.search(body)):
            return found[1].decode("utf-8", "replace")
    root = _parsed(body)
    is_truncated, token = _text(root, "IsTruncated"), _text(root, "NextContinuationToken")
    if is_truncated == "true" and not token:
        raise BackendUnavailable("the S3 service lists a part of the objects, and does not say how to go on")
    return None if is_truncated == "false" else token


def keys_of(body: bytes) -> Iterable[tuple[str, int]]:
    """Key and size in bytes of each object.

    Raises:
        BackendUnavailable: it is no listing.
    """
    if _is_plain(body):
        text = body.decode("utf-8", "replace")
        found = _PLAIN.findall(text)
        if len(found) == text.count("<Contents") and "\ufffd" not in text:
            decode = _decoder(is_encoded="<EncodingType>url</EncodingType>" in text)
            return [(decode(key) if "%" in key or "+" in key else key, int(size)) for key, _, size in found]
    return [(key, found.size) for key, found in objects_of(body)]


def objects_of(body: bytes) -> Iterator[tuple[str, Found]]:
    """Key, size, entity tag and storage class of each object.

    Raises:
        BackendUnavailable: it is no listing.
    """
    root = _parsed(body)
    space = root.tag.removesuffix("ListBucketResult")
    decode = _decoder(is_encoded=_text(root, "EncodingType") == "url")
    for one in root.findall(f"{space}Contents"):
        size = one.findtext(f"{space}Size", "")
        if not _SIZE.fullmatch(size):
            raise _no_listing()
        tag = one.findtext(f"{space}ETag", "").strip('"')
        yield decode(one.findtext(f"{space}Key", "")), Found(int(size), tag, one.findtext(f"{space}StorageClass"))


def _is_plain(body: bytes) -> bool:
    return _START.match(body) is not None and body.rstrip().endswith(_END) and b"<!" not in body


def _decoder(*, is_encoded: bool) -> Callable[[str], str]:
    return unquote_plus if is_encoded else str  # some services do not know the encoding, and tell keys as they are


def _text(root: ElementTree.Element, name: str) -> str | None:
    return root.findtext(root.tag.removesuffix("ListBucketResult") + name)


def _parsed(body: bytes) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(body)  # noqa: S314  # of the configured service
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two of encodings
        raise _no_listing() from error
    if not root.tag.endswith("ListBucketResult"):
        raise _no_listing()
    return root


def _no_listing() -> BackendUnavailable:
    return BackendUnavailable("what answers at this address is no S3 service, or a broken one")

"""Listings as services write them: read fast where they are plain, as XML where not, with one outcome."""

from __future__ import annotations

import re

import pytest

from storage.brokers import _s3_listing
from storage.brokers._s3_listing import keys_of, objects_of, token_of
from storage.exceptions import BackendUnavailable

PAGE = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix/>{token}'
    "<KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys><EncodingType>url</EncodingType><IsTruncated>{truncated}</IsTruncated>"
    "<Contents><Key>a/b%20c%2B%C3%A9</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;0123&quot;</ETag><ChecksumAlgorithm>CRC32</ChecksumAlgorithm><Size>12</Size>"
    "<StorageClass>STANDARD_IA</StorageClass></Contents>"
    "<Contents><Key>plain</Key><ETag>&quot;4567&quot;</ETag><Size>0</Size><Owner><ID>x</ID></Owner>"
    "<StorageClass>STANDARD</StorageClass></Contents></ListBucketResult>"
)
GOES_ON = "<NextContinuationToken>1+/=</NextContinuationToken>"
LISTED = [("a/b c+é", 12), ("plain", 0)]

# What plain text is not: other orders, entities, comments, a prefix for the name space.
OTHERS = {
    "size first": PAGE.replace("<Key>plain</Key><ETag>&quot;4567&quot;</ETag><Size>0</Size>", "<Size>0</Size>"
        "<ETag>&quot;4567&quot;</ETag><Key>plain</Key>"),
    "entity": PAGE.replace("<Key>plain</Key>", "<Key>&#112;lain</Key>"),
    "white space": PAGE.replace("<Key>", "\n  <Key>"),
    "comment": PAGE.replace("<Contents>", "<Contents><!-- <Key>x</Key> -->"),
    "name space": re.sub("<(/?)([A-Z])", r"<\1s3:\2", PAGE).replace("xmlns", "xmlns:s3"),
    "before the size": PAGE.replace("<Size>0", "<Owner><ID>x</ID></Owner><Size>0"),
}  # fmt: skip


def body(text: str, token: str = "") -> bytes:
    return text.replace("{token}", token).replace("{truncated}", "true" if token else "false").encode()


@pytest.mark.parametrize("form", OTHERS)
def test_a_listing_reads_the_same_however_it_is_written(form: str) -> None:
    assert list(keys_of(body(OTHERS[form]))) == LISTED
    assert [(key, found.size) for key, found in objects_of(body(OTHERS[form]))] == LISTED


def test_what_is_plain_is_not_parsed_as_xml(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(objects_of(body(PAGE)))
    monkeypatch.setattr(_s3_listing, "ElementTree", None)
    assert list(keys_of(body(PAGE))) == [(key, found.size) for key, found in expected] == LISTED
    assert token_of(body(PAGE)) is None
    assert token_of(body(PAGE, GOES_ON)) == "1+/="


def test_objects_have_tag_and_storage_class() -> None:
    first, second = (found for _, found in objects_of(body(PAGE)))
    assert (first.etag, first.storage_class) == ("0123", "STANDARD_IA")
    assert (second.etag, second.storage_class) == ("4567", "STANDARD")


def test_a_token_with_entities_is_read() -> None:
    goes_on = GOES_ON.replace("1+/=", "a&amp;b")
    assert token_of(body(PAGE, goes_on)) == "a&b"


@pytest.mark.parametrize(
    "token", ["<NextContinuationToken/>", "<NextContinuationToken></NextContinuationToken>", " "]
)
def test_a_part_is_never_told_as_the_whole(token: str) -> None:
    with pytest.raises(BackendUnavailable, match="lists a part of the objects, and does not say how to go on"):
        token_of(body(PAGE, token))


def test_a_token_of_a_whole_listing_is_not_followed() -> None:
    assert token_of(body(PAGE, GOES_ON).replace(b"true", b"false")) is None


@pytest.mark.parametrize("size", ["-5", "", "1.5", "\u0663", "9" * 5000])
def test_a_size_that_is_none_is_no_listing(size: str) -> None:
    with pytest.raises(BackendUnavailable, match="no S3 service"):
        keys_of(body(PAGE.replace("<Size>12<", f"<Size>{size}<")))


def test_an_encoding_that_nobody_knows_is_no_listing() -> None:
    with pytest.raises(BackendUnavailable, match="no S3 service"):
        list(objects_of(body(PAGE.replace("UTF-8", "nonsense"))))


NO_LISTINGS = [b"", b"<html></html>", body(PAGE)[:-5], body(PAGE)[:200], b"<ListBucketResult>", b"\xff"]


@pytest.mark.parametrize("wrong", [*NO_LISTINGS, b"<a><ListBucketResult/></a>"])
def test_what_is_no_listing_is_refused(wrong: bytes) -> None:
    for read in (keys_of, token_of, lambda text: list(objects_of(text))):
        with pytest.raises(BackendUnavailable, match="no S3 service"):
            read(wrong)

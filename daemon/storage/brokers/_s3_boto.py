"""Objects in an S3 bucket by boto3, whose one home this is: every ability, every error, botocore's retries."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore import exceptions as sdk
from botocore.config import Config
from botocore.loaders import create_loader
from botocore.session import Session as CoreSession
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError
from s3transfer.utils import S3_RETRYABLE_DOWNLOAD_ERRORS

from storage.brokers._parallel import one_ahead
from storage.brokers._s3_content import Stream
from storage.brokers._s3_listing import keys_of, objects_of, token_of
from storage.brokers._s3_objects import Found, Objects, Source, Stored
from storage.brokers._s3_settings import AccessKey, Endpoint, Settings
from storage.brokers.broker import Readable
from storage.exceptions import (
    AlreadyExists,
    BackendUnavailable,
    ExpiredCredentials,
    FileChanged,
    InvalidCredentials,
    InvalidPath,
    MissingBucket,
    MissingFile,
    NoSpace,
    PermissionDenied,
    StorageError,
    TimedOut,
    TooLarge,
    TooManyRequests,
    Unsupported,
)
from storage.os_errors import translate
from storage.transfer import CUT_SHORT

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# At DEBUG these log the headers of requests, session tokens among them.
for _name in ("boto3", "botocore", "s3transfer", "urllib3"):
    logging.getLogger(_name).setLevel(logging.INFO)

# The description of S3's API, which each session would otherwise read for itself: 12 MB and 80 ms.
_LOADER = create_loader()

CONNECTIONS = 32
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 30

# Files up to this size are stored from memory, in one request.
SMALL_BYTES = 4 * 1024 * 1024

# Larger ones are stored and fetched in parts of this size, some at a time. For each of an upload's that it holds,
# s3transfer needs about twice its size.
PART_BYTES = 8 * 1024 * 1024
_PARTS_AT_ONCE = 4
_PARTS_IN_MEMORY = 3
_MOST_PARTS = 10_000
_LARGE_AT_ONCE = 2

# S3 copies up to this size in one request.
LARGEST_COPY_BYTES = 5 * 1024**3

_KEYS_A_DELETE = 1000
_BODY_ATTEMPTS = 3

# XML cannot hold these characters, and with them a key cannot be named in a DeleteObjects.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, eq=False)
class Connection:
    """boto3's clients for one endpoint. `creating` is one whose writes fail where an object already is."""

    session: boto3.Session
    client: S3Client
    creating: S3Client


class BotoObjects(Objects):
    """Every ability by boto3. Nothing is retried here: botocore does that, in its mode `standard`."""

    def __init__(self, settings: Settings) -> None:
        self._endpoint = settings.endpoint
        self._bucket = settings.endpoint.bucket_name
        # Each holds some parts in memory.
        self._large = threading.BoundedSemaphore(_LARGE_AT_ONCE)
        self._storing = _given(
            StorageClass=settings.storage_class, ServerSideEncryption=settings.server_side_encryption
        )

    def check_bucket(self) -> None:
        with self._asking() as connection:
            try:
                connection.client.head_bucket(Bucket=self._bucket)
            except sdk.ClientError:
                self._explain(connection)

    def pages(
        self, prefix: str, *, recursive: bool, after: str = "", page_size: int = 1000
    ) -> Generator[list[tuple[str, int]], None, None]:
        query = _given(
            Prefix=prefix,
            Delimiter=None if recursive else "/",
            StartAfter=after or None,
            MaxKeys=min(page_size, 1000),
        )
        with contextlib.closing(one_ahead(self._bodies(query))) as bodies:
            for body in bodies:
                yield list(keys_of(body))

    def _bodies(self, query: dict[str, Any]) -> Generator[bytes, None, None]:
        """The answers to a ListObjectsV2, unread but for what the next is asked for with."""
        while True:
            with self._asking() as connection:
                page: Mapping[str, Any] = connection.client.list_objects_v2(
                    Bucket=self._bucket, EncodingType="url", **query
                )
            body = page.get("Listing", b"")  # there is none of an odd status, which is no listing either
            yield body
            token = token_of(body)
            if not token:
                return
            if token == query.get("ContinuationToken"):
                raise BackendUnavailable("the S3 service lists one page of objects again and again")
            query["ContinuationToken"] = token

    def listed(self, keys: Sequence[str]) -> dict[str, Found]:
        wanted, found = set(keys), dict[str, Found]()
        first, last = min(keys), max(keys)
        query = _given(Prefix=os.path.commonprefix([first, last]))  # noqa: RUF071  # by characters: any is a prefix
        if self.is_ordered():
            query["StartAfter"] = first[:-1]
        with contextlib.closing(self._bodies(query)) as bodies:
            # What else begins so may be many more, and then a page holds few of those that are looked for.
            for body in islice(bodies, len(keys) // 1000 + 2):
                found |= {key: one for key, one in objects_of(body) if key in wanted}
                if len(found) == len(wanted):
                    break
        return found

    def is_ordered(self) -> bool:
        # SeaweedFS lists directory by directory, and begins in the middle only right where no name begins another;
        # S3's directory buckets list in no order.
        with self._asking() as connection:
            return (
                not self._bucket.endswith("--x-s3") and "seaweed" not in _server(connection, self._bucket).lower()
            )

    def head(self, key: str, *, with_all: bool = False) -> Found:
        del with_all
        with self._asking() as connection:
            try:
                found = connection.client.head_object(Bucket=self._bucket, Key=key)
            except sdk.ClientError as error:
                is_missing = _status(error) == 404
                try:
                    self._explain(connection)
                except sdk.ClientError as reason:
                    if not is_missing or _status(reason) != 403:  # who may not list still gets a 404
                        raise
                if is_missing:
                    raise MissingFile("there is no such object in the bucket") from error
                raise
        return _found(found)

    def look(self, key: str, listed: Found | None) -> Found:
        del listed
        return self.head(key, with_all=True)

    def _explain(self, connection: Connection) -> None:
        """Raise what is behind a failed HEAD, whose answer cannot say: a missing bucket, wrong credentials."""
        connection.client.list_objects_v2(Bucket=self._bucket, MaxKeys=1)

    def put(self, key: str, source: Source, *, overwrite: bool) -> None:
        options = {**self._storing, **_given(ContentType=source.media_type or None), **_stamped(source.stamp)}
        with self._asking() as connection:
            client = connection.client if overwrite else connection.creating
            with self._large if source.size > SMALL_BYTES else contextlib.nullcontext():
                if source.size <= PART_BYTES:
                    client.put_object(Bucket=self._bucket, Key=key, Body=read_all(source), **options)
                else:
                    file: Any = _File(source)
                    client.upload_fileobj(file, self._bucket, key, options, Config=_transfer(source.size))

    def get(self, key: str, fd: int) -> int:
        os.ftruncate(fd, 0)
        with self._asking() as connection, open(os.dup(fd), "wb") as file:
            try:
                connection.client.download_fileobj(self._bucket, key, file, Config=_transfer(0))
            except sdk.ClientError as error:
                if _status(error) == 412:
                    raise BackendUnavailable("the object was replaced while it was read") from error
                self.head(key)
                raise
            return file.seek(0, os.SEEK_END)

    def read(self, key: str, etag: str, start: int, end: int) -> bytes | memoryview:
        wanted: Any = {"Range": f"bytes={start}-{end - 1}", "IfMatch": f'"{etag}"'}
        with self._asking() as connection:
            try:
                content = _read_body(partial(connection.client.get_object, Bucket=self._bucket, Key=key, **wanted))
            except sdk.ClientError as error:
                if _status(error) in (404, 412, 416):
                    raise BackendUnavailable("the object was replaced while it was read") from error
                raise
        if len(content) != end - start:
            raise BackendUnavailable(f"the service sent {len(content)} bytes instead of {end - start}")
        return content

    def put_stream(
        self,
        key: str,
        source: Readable,
        media_type: str,
        *,
        overwrite: bool,
        expected: str | None,
        stamp: str = "",
    ) -> Stored:
        stream = Stream(self._asking, {"Bucket": self._bucket, "Key": key}, source)
        options = {**self._storing, **_given(ContentType=media_type or None), **_stamped(stamp)}
        condition = _given(
            IfNoneMatch=None if overwrite else "*", IfMatch=None if expected is None else f'"{expected}"'
        )
        try:
            return stream.store(options, condition, before_end=partial(self._refuse_other_version, key, expected))
        except (AlreadyExists, MissingFile) as error:
            if expected is None:
                raise
            raise FileChanged("what is there is another version now, or gone") from error

    def _refuse_other_version(self, key: str, expected: str | None) -> None:
        """For services that know no conditional writes."""
        if expected is not None and self.head(key).etag != expected:
            raise FileChanged("what is there is another version now")

    def copy(self, key: str, found: Found, new_key: str, *, overwrite: bool, stamp: str = "") -> None:
        with self._asking() as connection:
            client = connection.client if overwrite else connection.creating
            storing = _given(StorageClass=found.storage_class) | self._storing
            if not (found.stamp or found.digest):
                storing |= self._retold(connection, key, stamp)
            if not overwrite:  # not every S3 service knows conditional copies
                self._refuse_present(new_key)
            origin: Any = {"Bucket": self._bucket, "Key": key}
            if found.size <= LARGEST_COPY_BYTES:
                client.copy_object(
                    Bucket=self._bucket,
                    Key=new_key,
                    CopySource=origin,
                    **_given(CopySourceIfMatch=found.etag or None),
                    **storing,
                )
            else:
                self._copy_in_parts(client, origin, new_key, storing)

    def _copy_in_parts(self, client: S3Client, origin: Any, new_key: str, storing: Mapping[str, Any]) -> None:
        """As s3transfer does it; what it does not take along of the object's properties is given to it."""
        kept = _kept(client.head_object(**origin))
        transfer = TransferConfig(multipart_threshold=LARGEST_COPY_BYTES, multipart_chunksize=_COPY_PART_BYTES)
        told = {name: value for name, value in storing.items() if name != "MetadataDirective"}
        client.copy(origin, self._bucket, new_key, {**kept, **told}, Config=transfer)

    def _retold(self, connection: Connection, key: str, stamp: str) -> dict[str, Any]:
        """All properties of the object at `key`, for a copy that has this stamp beside them."""
        kept = _kept(connection.client.head_object(Bucket=self._bucket, Key=key))
        return {**kept, "Metadata": {**kept.get("Metadata", {}), STAMP: stamp}, "MetadataDirective": "REPLACE"}

    def _refuse_present(self, key: str) -> None:
        with contextlib.suppress(MissingFile):
            self.head(key)
            raise AlreadyExists("an object of this name is already there")

    def abort_uploads(self, key: str, since: datetime, *, idle_s: float) -> None:
        place: Any = {"Bucket": self._bucket, "Key": key}
        with self._asking() as connection:
            client = connection.client
            pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=key)
            for page in pages:
                behind = datetime.now(UTC) - _service_time(page)  # of the service's clock
                for begun in page.get("Uploads", ()):
                    if begun["Key"] != key or begun["Initiated"] + behind < since - _CLOCK_STEP:
                        continue
                    upload = {**place, "UploadId": begun["UploadId"]}
                    if idle_s:
                        self._refuse_active(client, upload, _service_time(page) - timedelta(seconds=idle_s), begun)
                    client.abort_multipart_upload(**upload)

    def _refuse_active(self, client: S3Client, upload: Any, since: datetime, begun: Any) -> None:
        pages = client.get_paginator("list_parts").paginate(**upload)
        times = [part["LastModified"] for page in pages for part in page.get("Parts", ())]
        if max(times, default=begun["Initiated"]) > since:
            raise BackendUnavailable("another host may be at it")

    def delete(self, keys: Sequence[str]) -> dict[str, StorageError]:
        failed: dict[str, StorageError] = {}
        together = [key for key in keys if not _NOT_XML.search(key)]
        runs = [together[start : start + _KEYS_A_DELETE] for start in range(0, len(together), _KEYS_A_DELETE)]
        runs += [[key] for key in keys if _NOT_XML.search(key)]
        for number, run in enumerate(runs):
            try:
                failed |= self._delete_run(run)
            except StorageError as error:  # of the service, not of a key: what is left would fare no better
                return failed | {key: error for rest in runs[number:] for key in rest}
        return failed

    def _delete_run(self, keys: Sequence[str]) -> dict[str, StorageError]:
        with self._asking() as connection:
            if _NOT_XML.search(keys[0]):
                connection.client.delete_object(Bucket=self._bucket, Key=keys[0])
                return {}
            objects: Any = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
            answer = connection.client.delete_objects(Bucket=self._bucket, Delete=objects)
        return {
            error["Key"]: _of_code(error.get("Code", ""), error.get("Message", ""))
            for error in answer.get("Errors", ())
        }

    @contextmanager
    def _asking(self) -> Iterator[Connection]:
        """The connection, with the SDK's errors as ours."""
        try:
            yield connect(self._endpoint)
        except (sdk.BotoCoreError, sdk.ClientError, RetriesExceededError, S3DownloadFailedError) as error:
            found = translated(error, self._bucket)
            if isinstance(found, InvalidCredentials | ExpiredCredentials):
                connect.cache_clear()  # a renewed profile is read again
            raise found from error
        except OSError as error:  # last: some of the SDK's own are OSErrors, too
            raise translate(error, "the local file") from error


@lru_cache(maxsize=32)
def connect(endpoint: Endpoint) -> Connection:
    """The clients for an endpoint: made once, since making them costs more than most requests."""
    key = endpoint.credentials if isinstance(endpoint.credentials, AccessKey) else None
    core = CoreSession()
    core.register_component("data_loader", _LOADER)
    session = boto3.Session(
        botocore_session=core,
        aws_access_key_id=key.access_key_id if key else None,
        aws_secret_access_key=key.secret_access_key if key else None,
        aws_session_token=key.session_token if key else None,
        region_name=endpoint.region_name,
        profile_name=endpoint.credentials if isinstance(endpoint.credentials, str) else None,
    )
    _LOADER.search_paths[:] = dict.fromkeys(_LOADER.search_paths)  # each session adds boto3's
    client, creating = _client(session, endpoint), _client(session, endpoint)
    client.meta.events.register("before-parse.s3.ListObjectsV2", _keep_listing)
    for operation in ("PutObject", "CompleteMultipartUpload", "CopyObject"):
        creating.meta.events.register(f"provide-client-params.s3.{operation}", _only_create)
    return Connection(session, client, creating)


@lru_cache(maxsize=256)
def _server(connection: Connection, bucket: str) -> str:
    """What the service calls itself. Not asked by HEAD, whose failures do not say what is wrong."""
    answer = connection.client.list_objects_v2(Bucket=bucket, MaxKeys=1)
    return answer["ResponseMetadata"]["HTTPHeaders"].get("server", "")


def _client(session: boto3.Session, endpoint: Endpoint) -> S3Client:
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard"},
        max_pool_connections=CONNECTIONS,
        # Other services than AWS's seldom have a host name for each bucket.
        s3={"addressing_style": "path" if endpoint.endpoint_url else "auto"},
    )
    region_name = session.region_name or ("us-east-1" if endpoint.endpoint_url else None)
    return session.client("s3", endpoint_url=endpoint.endpoint_url, region_name=region_name, config=config)


def _only_create(params: dict[str, Any], **_: object) -> None:
    params["IfNoneMatch"] = "*"


def _keep_listing(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object) -> None:
    """Leave a listing as it came: botocore's general parser takes more time than all else."""
    if response_dict["status_code"] == 200:
        customized_response_dict["Listing"] = response_dict["body"]
        response_dict["body"] = b""


def _read_body(get: Callable[[], Mapping[str, Any]]) -> bytes:
    """The body of what `get` answers. One cut short is asked for again: botocore does that for heads only."""
    for _ in range(_BODY_ATTEMPTS - 1):
        with contextlib.suppress(*S3_RETRYABLE_DOWNLOAD_ERRORS):
            return bytes(get()["Body"].read())
    return bytes(get()["Body"].read())


def read_all(source: Source) -> bytes:
    """The content of a small source; raises InvalidPath where it has become shorter than it was."""
    return _File(source).read()


class _File(io.RawIOBase):
    """A source as a file, exactly as long as when it was opened.

    What is appended meanwhile is not read, and one cut short is an error before the object is complete.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._source.size}[whence]
        self._offset = start + offset
        return self._offset

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._source.size - self._offset)
        if wanted <= 0:
            return 0
        count = os.preadv(self._source.fd, [memoryview(buffer)[:wanted]], self._offset)
        if count == 0:
            raise InvalidPath(CUT_SHORT)
        self._offset += count
        return count

    def read(self, size: int = -1) -> bytes:
        """As of a buffered file: all that was asked for, less only at the end."""
        left = max(self._source.size - self._offset, 0)
        content = bytearray(left if size is None or size < 0 else min(size, left))
        view = memoryview(content)
        while view:
            view = view[self.readinto(view) :]
        return bytes(content)


# Of an object's metadata, the stamp: it tells after a crash whether an object is the one that was being stored.
STAMP = "brokervol-upload"

# Clocks are told to the second.
_CLOCK_STEP = timedelta(seconds=2)
_MD5 = re.compile("[0-9a-f]{32}")


def _stamped(stamp: str) -> dict[str, Any]:
    return {"Metadata": {STAMP: stamp}} if stamp else {}


def _found(answer: Any) -> Found:
    etag = answer.get("ETag", "").strip('"')
    # With a customer's key, the tag of the same content is another one each time.
    is_digest = _MD5.fullmatch(etag) and answer.get("ServerSideEncryption", "AES256") == "AES256"
    modified = answer.get("LastModified")
    return Found(
        answer["ContentLength"],
        etag,
        answer.get("StorageClass"),
        modified,
        stamp=answer.get("Metadata", {}).get(STAMP, ""),
        digest=etag if is_digest and "SSECustomerAlgorithm" not in answer else "",
        age_s=(_service_time(answer) - modified).total_seconds() if modified else 0,
    )


def _service_time(answer: Any) -> datetime:
    """The time by the service's clock, when it answered."""
    told = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return parsedate_to_datetime(told) if told else datetime.now(UTC)


def _kept(answer: Any) -> dict[str, Any]:
    return {name: answer[name] for name in _KEPT if name in answer}


# Of an object's properties, those that a copy in parts must be told again.
_KEPT = (
    *("CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage", "ContentType", "Metadata"),
    "WebsiteRedirectLocation",
)
_COPY_PART_BYTES = 512 * 1024 * 1024


def _transfer(size: int) -> TransferConfig:
    part = max(PART_BYTES, -(-size // _MOST_PARTS))
    config = TransferConfig(multipart_threshold=part, multipart_chunksize=part, max_concurrency=_PARTS_AT_ONCE)
    config.max_in_memory_upload_chunks = _PARTS_IN_MEMORY
    return config


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


# S3's error code -> kind and fact. A number is the status of an answer without a body.
_CODES: dict[str, tuple[type[StorageError], str]] = {
    **dict.fromkeys(("NoSuchKey", "404", "NotFound"), (MissingFile, "there is no such object in the bucket")),
    "NoSuchBucket": (MissingBucket, "the bucket does not exist"),
    "NoSuchUpload": (BackendUnavailable, "the service has forgotten the unfinished upload"),
    **dict.fromkeys(
        ("AccessDenied", "403", "Forbidden", "AllAccessDisabled", "AccountProblem"),
        (PermissionDenied, "the bucket's owner does not allow this to these credentials"),
    ),
    "InvalidObjectState": (Unsupported, "the object is archived and must be restored first"),
    "InvalidAccessKeyId": (InvalidCredentials, "the service does not know the access key"),
    "SignatureDoesNotMatch": (InvalidCredentials, "the secret access key does not belong to the access key"),
    **dict.fromkeys(
        ("InvalidToken", "TokenRefreshRequired", "InvalidSecurity", "InvalidClientTokenId", "401"),
        (InvalidCredentials, "the service does not accept the session token"),
    ),
    "RequestTimeTooSkewed": (InvalidCredentials, "this machine's clock differs too much from the service's"),
    **dict.fromkeys(
        ("ExpiredToken", "ExpiredTokenException", "RequestExpired"),
        (ExpiredCredentials, "the credentials have expired"),
    ),
    **dict.fromkeys(
        ("SlowDown", "429", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded"),
        (TooManyRequests, "the service asks for fewer requests a second"),
    ),
    **dict.fromkeys(
        ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"),
        (AlreadyExists, "an object of this name is already there"),
    ),
    **dict.fromkeys(
        ("PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"),
        (BackendUnavailable, "the bucket is in another region than region_name says"),
    ),
    "KeyTooLongError": (InvalidPath, "the key is longer than 1024 bytes"),
    **dict.fromkeys(("EntityTooLarge", "MaxSizeExceeded"), (TooLarge, "the file is larger than S3 allows")),
    **dict.fromkeys(("QuotaExceeded", "InsufficientCapacity", "507"), (NoSpace, "the bucket is full")),
    **dict.fromkeys(
        ("BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"),
        (BackendUnavailable, "the bytes were altered on their way"),
    ),
    **dict.fromkeys(
        ("RequestTimeout", "408", "504"),
        (TimedOut, "the service did not answer in time"),
    ),
    "InvalidStorageClass": (Unsupported, "the service does not have the configured storage class"),
    **dict.fromkeys(
        ("InvalidArgument", "InvalidRequest", "NotImplemented", "MethodNotAllowed", "501", "405", "400"),
        (Unsupported, "the service does not accept the request"),
    ),
    **dict.fromkeys(
        ("InternalError", "ServiceUnavailable", "500", "502", "503"), (BackendUnavailable, "the service fails")
    ),
}

# The SDK's own exception -> kind and fact; the first that fits.
_EXCEPTIONS: tuple[tuple[tuple[type[Exception], ...], type[StorageError], str], ...] = (
    ((sdk.ProfileNotFound,), InvalidCredentials, "the credentials file has no profile of the configured name"),
    (
        (sdk.NoCredentialsError, sdk.PartialCredentialsError),
        InvalidCredentials,
        "no credentials were found",
    ),
    ((sdk.UnauthorizedSSOTokenError, sdk.SSOTokenLoadError), ExpiredCredentials, "the login has expired"),
    (
        (sdk.CredentialRetrievalError, sdk.MetadataRetrievalError, sdk.TokenRetrievalError),
        InvalidCredentials,
        "the credentials could not be fetched from where the profile says",
    ),
    ((sdk.ConnectTimeoutError, sdk.ReadTimeoutError), TimedOut, "the service did not answer in time"),
    ((sdk.EndpointConnectionError, sdk.ProxyConnectionError), BackendUnavailable, "the service cannot be reached"),
    ((sdk.SSLError,), BackendUnavailable, "the service's certificate is not accepted"),
    (
        (sdk.FlexibleChecksumError, sdk.IncompleteReadError, sdk.ResponseStreamingError),
        BackendUnavailable,
        "the bytes were cut short or altered on their way",
    ),
    ((sdk.ConnectionError, sdk.HTTPClientError), BackendUnavailable, "the connection was lost"),
    ((sdk.NoRegionError,), BackendUnavailable, "neither region_name nor the profile names a region"),
)


def translated(error: BaseException, bucket: str) -> StorageError:
    """The library's error for the SDK's: kind, fact and S3's code, never what was sent."""
    while isinstance(error, RetriesExceededError):
        error = error.last_exception
    if isinstance(error, sdk.ClientError):
        about = error.response.get("Error", {})
        found = _of_code(about.get("Code", ""), about.get("Message", ""))
        return type(found)(f"{found}, bucket {bucket!r}")
    for exceptions, kind, fact in _EXCEPTIONS:
        if isinstance(error, exceptions):
            return kind(f"{fact} ({type(error).__name__}), bucket {bucket!r}")
    if isinstance(error, S3DownloadFailedError):
        return BackendUnavailable(f"the object was replaced while it was read, bucket {bucket!r}")
    if isinstance(error, OSError):
        return BackendUnavailable(f"the connection was lost ({error}), bucket {bucket!r}")
    return BackendUnavailable(f"the S3 SDK reports {type(error).__name__}, bucket {bucket!r}")


def _of_code(code: str, message: str) -> StorageError:
    kind, fact = _CODES.get(code, (BackendUnavailable, f"the service reports: {message[:200]}"))
    return kind(f"{fact} ({code})")


def _status(error: sdk.ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)

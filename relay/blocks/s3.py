"""A block store in a bucket of an S3 service; it acknowledges what that service has acknowledged."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from p2psync.errors import ConfigError
from relay import config
from relay.ports import StoredBlock

if TYPE_CHECKING:
    from obstore.store import S3Config
    from obstore.store import S3Store as Bucket

SCHEME: Final = "s3://"
PAGE: Final = 1000
CONNECT_TIMEOUT_S: Final = 5
TIMEOUT_S: Final = 60
"""One request; a service that hangs must not hold threads for ever."""
RETRIES: Final = 3
RETRY_TIMEOUT_S: Final = 20
_PROBE = "about/probe"


class S3Store:
    """Objects under a prefix of a bucket. Every method raises OSError when the service cannot do it."""

    def __init__(self, bucket: Bucket, *, presigned: bool = False) -> None:
        # Only a relay that uses it pays for loading it.
        import obstore

        self._api = obstore
        self._bucket = bucket
        self._presigned = presigned

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """See `BlockStore.put`."""
        # What is lent is copied: a request that was given up may still hold it.
        own = bytes(data) if isinstance(data, memoryview) else data
        with _as_os_error():
            self._api.put(self._bucket, key, own, use_multipart=False)

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """See `BlockStore.get`."""
        with _as_os_error():
            if start == 0 and stop is None:
                return bytes(self._api.get(self._bucket, key).bytes())
            size = self.size(key)
            if size is None:
                raise FileNotFoundError(key)
            stop = size if stop is None else min(stop, size)
            if start >= stop:
                return b""
            return bytes(self._api.get_range(self._bucket, key, start=start, end=stop))

    def size(self, key: str) -> int | None:
        """See `BlockStore.size`."""
        with _as_os_error():
            try:
                return int(self._api.head(self._bucket, key)["size"])
            except FileNotFoundError:
                return None

    def delete(self, keys: Collection[str]) -> None:
        """See `BlockStore.delete`."""
        names = list(keys)
        with _as_os_error():
            for start in range(0, len(names), PAGE):
                self._api.delete(self._bucket, names[start : start + PAGE])

    def list(self, prefix: str, after: str = "") -> Iterator[StoredBlock]:
        """See `BlockStore.list`."""
        with _as_os_error():
            for page in self._api.list(self._bucket, prefix or None, offset=after or None, chunk_size=PAGE):
                for found in page:
                    yield StoredBlock(found["path"], found["size"], int(found["last_modified"].timestamp()))

    def presign(self, method: str, key: str, expires_s: int) -> str | None:
        """See `BlockStore.presign`."""
        if not self._presigned or method not in ("GET", "PUT"):
            return None
        with _as_os_error():
            return self._api.sign(self._bucket, "GET" if method == "GET" else "PUT", key, timedelta(seconds=expires_s))

    def probe(self) -> None:
        """See `BlockStore.probe`."""
        self.put(_PROBE, b"p2psync-relay")


def open_bucket(settings: config.Storage) -> S3Store:
    """The store of `storage.url` "s3://BUCKET/PREFIX". ConfigError when the settings cannot be right."""
    from obstore.exceptions import BaseError
    from obstore.store import S3Store as Bucket

    name, _, prefix = settings.url.removeprefix(SCHEME).partition("/")
    if not name:
        raise ConfigError('storage.url: write "s3://BUCKET" or "s3://BUCKET/PREFIX"')
    service: S3Config = {
        "region": settings.region,
        "access_key_id": settings.access_key,
        "secret_access_key": str(settings.secret_key),
    }
    if settings.endpoint:
        service["endpoint"] = settings.endpoint
    try:
        bucket = Bucket(
            name,
            prefix=prefix.strip("/") or None,
            config=service,
            client_options={
                "allow_http": settings.allow_http,
                "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
                "timeout": timedelta(seconds=TIMEOUT_S),
            },
            retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_TIMEOUT_S)},
        )
    except (BaseError, ValueError) as error:
        raise ConfigError(f"storage: {_first_line(error)}") from None
    return S3Store(bucket, presigned=settings.presign)


@contextmanager
def _as_os_error() -> Iterator[None]:
    from obstore.exceptions import BaseError

    try:
        yield
    except BaseError as error:
        # The text of these goes on for many lines, with keys of objects and addresses.
        raise OSError(f"the S3 service: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]

"""Objects of an S3-compatible bucket, through obstore: a request has a time limit and is tried again with backoff."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
)
from obstore.exceptions import UnauthenticatedError as BadCredentialsError
from obstore.store import S3Store

from olivepress.errors import ServiceUnavailable

if TYPE_CHECKING:
    from olivepress.settings import Settings

NS_PER_S = 1_000_000_000
RETRIES = 5
BODY_TRIES = 3
CONNECT_TIMEOUT_S = 5.0
FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0
# A larger object is sent in parts, several at a time: a part that fails is sent again, not all of it.
PART_BYTES = 8 * 1024 * 1024
DELETED_AT_ONCE = 1000


@dataclass(frozen=True)
class Seen:
    """An object as a listing showed it: it may be gone by now."""

    key: str
    size_bytes: int
    written_ns: int
    """When it was last written, in nanoseconds by the bucket's clock, which tells whole seconds: never too late."""


class Bucket:
    """The objects below a prefix of a bucket.

    All methods raise ServiceUnavailable when the service does not answer, refuses the credentials, or has no such
    bucket: an operator can mend each of these, and then the same request succeeds.

    Args:
        timeout_s: for one request with its answer; all tries of one call together take at most `longest_s`.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        region: str | None = None,
        credentials: tuple[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        self.name = f"s3://{bucket}/{prefix}".rstrip("/")
        self.longest_s = 2 * timeout_s
        given = {"endpoint": endpoint, "region": region}
        if credentials:
            given |= {"access_key_id": credentials[0], "secret_access_key": credentials[1]}
        # What is not given comes from AWS_* variables, or from the machine's role.
        self._objects = S3Store(
            bucket,
            prefix=prefix or None,
            client_options={
                "timeout": timedelta(seconds=timeout_s),
                "connect_timeout": timedelta(seconds=min(CONNECT_TIMEOUT_S, timeout_s)),
                "allow_http": True,
            },
            retry_config={
                "max_retries": RETRIES,
                "retry_timeout": timedelta(seconds=self.longest_s - timeout_s),
                "backoff": {
                    "init_backoff": timedelta(seconds=FIRST_BACKOFF_S),
                    "max_backoff": timedelta(seconds=LONGEST_BACKOFF_S),
                    "base": 2,
                },
            },
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        )
        self._may_be_conditional = True

    @classmethod
    def of(cls, settings: "Settings") -> "Bucket":
        """The bucket that the settings name."""
        place = urlsplit(settings.store_url or "")
        keys = (settings.store_access_key, settings.store_secret_key)
        return cls(
            place.netloc,
            place.path.strip("/"),
            endpoint=settings.store_endpoint,
            region=settings.store_region,
            credentials=(keys[0].get_secret_value(), keys[1].get_secret_value()) if keys[0] and keys[1] else None,
            timeout_s=settings.store_timeout_s,
        )

    def create(self, key: str, content: bytes) -> None:
        """Writes an object unless there is one: of several writers at once, one does. It appears whole or not."""
        if len(content) > PART_BYTES or not self._may_be_conditional:
            self.write(key, content)
            return
        try:
            with self._named("write"):
                self._objects.put(key, content, mode="create", use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            # Also the answer while another writer is at it, who may yet fail.
            if self.look(key) is None:
                self.write(key, content)
        except NotSupportedError:  # an older service; the content is the same whoever writes it
            self._may_be_conditional = False
            self.write(key, content)

    def write(self, key: str, content: bytes) -> None:
        """Writes an object, in place of what is there; it appears whole or not at all."""
        with self._named("write"):
            in_parts = len(content) > PART_BYTES
            self._objects.put(key, content, use_multipart=in_parts, chunk_size=PART_BYTES, max_concurrency=2)

    def read(self, key: str) -> bytes:
        """The content of an object. Raises: FileNotFoundError."""
        for attempt in range(BODY_TRIES):
            with self._named("read"):
                answer = self._objects.get(key)
                try:
                    return bytes(answer.bytes())
                except (BaseError, OSError):  # the client tries again only what fails before the body
                    if attempt == BODY_TRIES - 1:
                        raise
        raise AssertionError  # the last try returns or raises

    def look(self, key: str) -> Seen | None:
        """An object's size and time; None where there is none."""
        try:
            with self._named("read"):
                meta = self._objects.head(key)
        except FileNotFoundError:
            return None
        return Seen(key, meta["size"], _ns(meta["last_modified"].timestamp()))

    def below(self, folder: str, after: str | None = None) -> Iterator[Seen]:
        """The objects below a folder, such as "chunks", by name; only those whose keys come after this one."""
        with self._named("read"):
            for some in self._objects.list(f"{folder}/", offset=after):
                for meta in some:
                    yield Seen(meta["path"], meta["size"], _ns(meta["last_modified"].timestamp()))

    def delete(self, keys: list[str]) -> None:
        """Removes objects; one that is not there does no harm."""
        for start in range(0, len(keys), DELETED_AT_ONCE):
            with self._named("write"):
                obstore.delete(self._objects, keys[start : start + DELETED_AT_ONCE])

    @contextmanager
    def _named(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (AlreadyExistsError, PreconditionError, NotSupportedError):
            raise
        except (BaseError, OSError) as error:
            # A listing that is refused has no class of its own.
            if isinstance(error, (PermissionDeniedError, BadCredentialsError)) or "403 Forbidden" in str(error):
                raise ServiceUnavailable(
                    f"the store {self.name} does not let this machine {doing}; check OLIVEPRESS_STORE_ACCESS_KEY and "
                    "OLIVEPRESS_STORE_SECRET_KEY (or the AWS_* variables) and what they are allowed to do there"
                ) from error
            if "NoSuchBucket" in str(error):
                raise ServiceUnavailable(
                    f"there is no bucket for the store {self.name}; make it, or mend OLIVEPRESS_STORE_URL"
                ) from error
            if isinstance(error, FileNotFoundError):
                raise
            raise ServiceUnavailable(
                f"the store {self.name} does not answer ({_first_line(error)}); check OLIVEPRESS_STORE_ENDPOINT, "
                "the service and the network"
            ) from error


def _ns(seconds: float) -> int:
    return int(seconds) * NS_PER_S


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]

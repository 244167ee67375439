"""The store as an S3-compatible bucket, safe with many writers on many machines and with a kill at any point.

    chunks/ab/abcdef…            a chunk, named by its SHA-256
    manifests/ab/abcdef….json    an artifact's manifest, named by its SHA-256
    renewals/random.json         what a writer relies on: see `bucket_collecting.py`
    trash/cutoff-random.json     what a collector is about to remove: see there
    clock/random                 written and removed to read the bucket's clock
    quarantine/abcdef…/random    what was found damaged and taken out of use (bucket_keeping.py)
    check.json                   how far a check has come

An object appears whole or not at all, and everybody sees it at once: this needs a service that is strongly consistent,
as AWS S3, MinIO, Ceph and R2 are. A manifest is written after all of its chunks.

An upload in parts that a kill cut off stays in the bucket, unseen, until a lifecycle rule of the bucket removes it
(AbortIncompleteMultipartUpload).
"""

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from olivepress.errors import BadArtifact, NotFound, TransientError
from olivepress.store.artifacts import ArtifactStore, in_order
from olivepress.store.bucket_objects import Bucket, Seen
from olivepress.store.manifest import Chunk, Manifest, is_sha256

CHUNKS, MANIFESTS, RENEWALS, TRASH, QUARANTINE = "chunks", "manifests", "renewals", "trash", "quarantine"
LOOK_AGAIN_AFTER_S = 0.5
# A collector needs seconds for what it has announced; one that was killed is gone on with an hour later.
COLLECTOR_WAIT_S = 20.0


class BucketStore(ArtifactStore):
    """Artifacts in a bucket.

    Args:
        sleep: waits, in seconds, while a collector is about to remove what a writer relies on.
    """

    # They wait for the network; eight hold up to 160 MiB.
    threads = 8

    def __init__(self, bucket: Bucket, sleep: Callable[[float], None] = time.sleep) -> None:
        self.bucket = bucket
        self._sleep = sleep

    @property
    def name(self) -> str:
        """Its URL."""
        return self.bucket.name

    def has(self, digest: str) -> bool:
        """See `Store.has`."""
        try:
            if not is_sha256(digest):
                return False
            absent = list(self._renew_all(digest, self.manifest(digest).chunks()))
            # Only what is there after it was renewed can be relied on.
            return not absent and self.bucket.look(manifest_key(digest)) is not None
        except (NotFound, BadArtifact):
            return False

    def free_bytes(self) -> int | None:
        """None: a bucket grows. Raises: ServiceUnavailable."""
        any(self.bucket.below("clock"))
        return None

    def sweep_temporary(self, older_than_s: float) -> int:
        """Nothing: what is half written cannot be seen in a bucket."""
        return 0

    def place_of_chunk(self, sha256: str) -> str:
        """Its URL."""
        return f"{self.name}/{chunk_key(sha256)}"

    def place_of_manifest(self, digest: str) -> str:
        """Its URL."""
        return f"{self.name}/{manifest_key(digest)}"

    def is_quarantined(self, sha256: str) -> bool:
        """Whether a check found this chunk damaged and took it out of use."""
        return any(True for _ in self.bucket.below(f"{QUARANTINE}/{sha256}"))

    def chunk_sizes(self) -> Iterator[int]:
        """The sizes in bytes of all chunks."""
        return (seen.size_bytes for seen in self.bucket.below(CHUNKS))

    def manifest_digests(self) -> Iterator[str]:
        """The digests of all artifacts that can be seen."""
        return (sha256 for seen in self.bucket.below(MANIFESTS) if is_sha256(sha256 := sha256_of_key(seen.key)))

    def renew(self, sha256s: set[str]) -> None:
        """Lets no collector remove these chunks and manifests for its grace period, if they are there after this.

        Raises: TransientError, when a collector that has announced their removal does not come to an end.
        """
        names = json.dumps(sorted(sha256s)).encode()
        self.bucket.write(f"{RENEWALS}/{secrets.token_hex(16)}.json", names)
        waited_s = 0.0
        while any(not sha256s.isdisjoint(self.announced(seen)) for seen in self.bucket.below(TRASH)):
            if waited_s >= COLLECTOR_WAIT_S:
                raise TransientError(
                    f"a collector is about to remove content of the store {self.name} that is put just now; its next "
                    "run finishes that (every hour, or `olivepress retention`), then try again"
                )
            self._sleep(LOOK_AGAIN_AFTER_S)
            waited_s += LOOK_AGAIN_AFTER_S

    def announced(self, announcement: Seen) -> set[str]:
        """The names in an object of trash/ or renewals/; none if it is gone."""
        try:
            return set(json.loads(self.bucket.read(announcement.key)))
        except FileNotFoundError:
            return set()

    def _has_chunk(self, chunk: Chunk) -> bool:
        seen = self.bucket.look(chunk_key(chunk.sha256))
        return seen is not None and seen.size_bytes == chunk.size_bytes

    def _write_chunk(self, chunk: Chunk, content: bytes) -> None:
        key = chunk_key(chunk.sha256)
        if self.bucket.look(key) is None:
            self.bucket.create(key, content)
        else:  # of another length: whoever wrote that was no olivepress
            self.bucket.write(key, content)

    def _load_chunk(self, sha256: str) -> bytes:
        return self.bucket.read(chunk_key(sha256))

    def _load_manifest(self, digest: str) -> bytes:
        return self.bucket.read(manifest_key(digest))

    def _renew_all(self, digest: str | None, chunks: frozenset[Chunk]) -> Iterator[Chunk]:
        self.renew({chunk.sha256 for chunk in chunks} | ({digest} if digest else set()))
        ordered = list(chunks)
        for chunk, is_there in zip(ordered, in_order(self._has_chunk, ordered, 2 * self.threads), strict=True):
            if not is_there:
                yield chunk

    def _put_manifest(self, manifest: Manifest) -> Manifest:
        key, content = manifest_key(manifest.digest), manifest.to_json()
        try:
            is_there = self.bucket.read(key) == content
        except FileNotFoundError:
            self.bucket.create(key, content)
        else:
            if not is_there:
                self.bucket.write(key, content)
        return manifest

    def room_is_named(self, needed_bytes: int) -> AbstractContextManager[None]:
        return nullcontext()  # a bucket grows


def chunk_key(sha256: str) -> str:
    """Where a chunk belongs."""
    return f"{CHUNKS}/{sha256[:2]}/{sha256}"


def manifest_key(digest: str) -> str:
    """Where an artifact's manifest belongs."""
    return f"{MANIFESTS}/{digest[:2]}/{digest}.json"


def sha256_of_key(key: str) -> str:
    """What the key of a chunk or a manifest says of its content."""
    return Path(key).name.removesuffix(".json")

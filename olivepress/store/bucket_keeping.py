"""Looks after a bucket; `keeping.py` says what that is.

A bucket has no rename: a part is copied to quarantine/, looked at once more, and then replaced or deleted. A writer
that puts it right between that look and the deletion loses what it wrote, and the next check finds it missing.
"""

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from olivepress.store.artifacts import sha256_of
from olivepress.store.bucket import CHUNKS, MANIFESTS, QUARANTINE, BucketStore, chunk_key, manifest_key, sha256_of_key
from olivepress.store.bucket_objects import Seen
from olivepress.store.keeping import NOTE, HeldPart, Part
from olivepress.store.manifest import Manifest, is_sha256


@dataclass(frozen=True)
class BucketKeeper:
    """Looks after a store in a bucket."""

    store: BucketStore

    def manifests(self) -> Iterator[HeldPart]:
        """See `Keeper.manifests`."""
        return self._held(self.store.bucket.below(MANIFESTS), is_manifest=True)

    def chunks(self, after: str = "") -> Iterator[HeldPart]:
        """See `Keeper.chunks`: a bucket lists in the order of names."""
        return self._held(self.store.bucket.below(CHUNKS, chunk_key(after) if after else None), is_manifest=False)

    def read(self, part: Part) -> bytes:
        """See `Keeper.read`."""
        return self.store.bucket.read(_key(part))

    def is_right(self, part: Part) -> bool:
        """See `Keeper.is_right`."""
        return sha256_of(self.read(part)) == part.sha256

    def copies(self, part: Part) -> Iterator[bytes]:
        """See `Keeper.copies`: what a collector announces stays in its place until it goes, so only the quarantine."""
        for seen in self.store.bucket.below(f"{QUARANTINE}/{part.sha256}"):
            with contextlib.suppress(FileNotFoundError):
                yield self.store.bucket.read(seen.key)

    def clear_way(self, part: Part) -> None:
        """See `Keeper.clear_way`: in a bucket nothing does."""

    def put(self, part: Part, content: bytes) -> None:
        """See `Keeper.put`."""
        self._copy_aside(part)
        self.store.bucket.write(_key(part), content)

    def quarantine(self, part: Part) -> bool:
        """See `Keeper.quarantine`."""
        if not self._copy_aside(part):
            return False
        with contextlib.suppress(FileNotFoundError):
            if self.is_right(part):
                return False
        self.store.bucket.delete([_key(part)])
        return True

    def set_aside(self, digest: str) -> bool:
        """See `Keeper.set_aside`."""
        try:
            content = self.read(Part(digest, True))
        except FileNotFoundError:
            return False
        chunks = Manifest.parse(content).chunks()
        self.store.bucket.write(f"{QUARANTINE}/{digest}/{secrets.token_hex(4)}", content)
        self.store.bucket.delete([manifest_key(digest)])
        # Looked at after the deletion: a writer that puts it from now on writes the manifest anew.
        if self.store.missing(chunks):
            return True
        self.store.bucket.create(manifest_key(digest), content)
        return False

    def quarantined(self) -> int:
        """See `Keeper.quarantined`."""
        return sum(1 for _ in self.store.bucket.below(QUARANTINE))

    def read_note(self) -> bytes | None:
        """See `Keeper.read_note`."""
        with contextlib.suppress(FileNotFoundError):
            return self.store.bucket.read(NOTE)
        return None

    def write_note(self, content: bytes | None) -> None:
        """See `Keeper.write_note`."""
        if content is None:
            self.store.bucket.delete([NOTE])
        else:
            self.store.bucket.write(NOTE, content)

    def _copy_aside(self, part: Part) -> bool:
        """Whether there was a damaged one to copy."""
        try:
            content = self.read(part)
        except FileNotFoundError:
            return False
        if sha256_of(content) == part.sha256:
            return False
        self.store.bucket.write(f"{QUARANTINE}/{part.sha256}/{secrets.token_hex(4)}", content)
        return True

    def _held(self, listing: Iterator[Seen], *, is_manifest: bool) -> Iterator[HeldPart]:
        for seen in listing:
            if is_sha256(sha256 := sha256_of_key(seen.key)):
                yield HeldPart(Part(sha256, is_manifest), seen.size_bytes)


def _key(part: Part) -> str:
    return manifest_key(part.sha256) if part.is_manifest else chunk_key(part.sha256)

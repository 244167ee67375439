"""Stores of both kinds that a test can look into, damage and make older."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from olivepress.store import DirectoryStore
from olivepress.store.artifacts import ArtifactStore
from olivepress.store.bucket import BucketStore
from olivepress.store.bucket_collecting import BucketCollector
from olivepress.store.collecting import Collector, StoreCollector
from tests.s3_server import S3Server, age

KINDS = ("directory", "bucket")


@dataclass(frozen=True)
class Opened:
    """A store, and what only a test does to it."""

    store: ArtifactStore
    chunks: Callable[[], set[str]]
    """The SHA-256 of all chunks that it holds."""
    overwrite: Callable[[str, bytes | None], None]
    """Replaces, behind the store's back, the content that has this SHA-256; None removes it."""
    make_older: Callable[[float], None]
    """All that it holds, in seconds."""
    collector: Callable[[], StoreCollector]
    """One that waits for nothing."""
    address: str
    """What a child process opens it by: see `reopened_stores.py`."""


def in_directory(root: Path) -> Opened:
    """A directory store."""
    store = DirectoryStore(root)

    def files() -> list[Path]:
        return [*root.glob("chunks/*/*"), *root.glob("manifests/*/*"), *root.glob("trash/*/*")]

    def overwrite(sha256: str, content: bytes | None) -> None:
        (path,) = (path for path in files() if path.stem == sha256)
        path.chmod(0o644)
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)

    def make_older(seconds: float) -> None:
        for path in files():
            then = path.stat().st_mtime - seconds
            os.utime(path, (then, then))

    return Opened(
        store,
        lambda: {path.name for path in root.glob("chunks/*/*")},
        overwrite,
        make_older,
        lambda: Collector(store, settle_s=0),
        f"directory {root}",
    )


def in_bucket(server: S3Server) -> Opened:
    """A store in a new bucket of this server."""
    bucket = server.bucket()
    store = BucketStore(bucket, sleep=lambda seconds: None)

    def overwrite(sha256: str, content: bytes | None) -> None:
        (key,) = (seen.key for top in ("chunks", "manifests") for seen in bucket.below(top) if sha256 in seen.key)
        if content is None:
            bucket.delete([key])
        else:
            bucket.write(key, content)

    name, _, prefix = bucket.name.removeprefix("s3://").partition("/")
    return Opened(
        store,
        lambda: {Path(seen.key).name for seen in bucket.below("chunks")},
        overwrite,
        lambda seconds: age(bucket, seconds),
        lambda: BucketCollector(store, settle_s=0, takeover_s=0),
        f"bucket {server.url} {name} {prefix}",
    )

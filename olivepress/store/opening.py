"""The store that the settings name."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from olivepress.errors import BadManifest, NotFound
from olivepress.store.artifacts import ArtifactStore
from olivepress.store.collecting import SETTLE_S, Collector, StoreCollector
from olivepress.store.directory import DirectoryStore
from olivepress.store.keeping import DirectoryKeeper, Keeper
from olivepress.store.protocol import Store

if TYPE_CHECKING:
    from olivepress.settings import Settings


def open_store(settings: "Settings") -> ArtifactStore:
    """The bucket of `store_url` where that is set, else the directory of `store_dir`."""
    if settings.store_url is None:
        return DirectoryStore(settings.store)
    # Only who has a bucket needs its client.
    from olivepress.store.bucket import BucketStore
    from olivepress.store.bucket_objects import Bucket

    return BucketStore(Bucket.of(settings))


def collector_of(store: Store, settle_s: float = SETTLE_S, go_on: Callable[[], None] = lambda: None) -> StoreCollector:
    """What collects this store; the arguments are those of `Collector`."""
    if isinstance(store, DirectoryStore):
        return Collector(store, settle_s, go_on)
    from olivepress.store.bucket import BucketStore
    from olivepress.store.bucket_collecting import BucketCollector

    assert isinstance(store, BucketStore)
    return BucketCollector(store, settle_s, go_on)


def keeper_of(store: Store) -> Keeper:
    """What looks after this store."""
    if isinstance(store, DirectoryStore):
        return DirectoryKeeper(store)
    from olivepress.store.bucket import BucketStore
    from olivepress.store.bucket_keeping import BucketKeeper

    assert isinstance(store, BucketStore)
    return BucketKeeper(store)


def store_at(settings: "Settings", place: str, *, must_exist: bool) -> ArtifactStore:
    """The store at s3://BUCKET/PREFIX or in a directory; a bucket is asked for as that of the settings is.

    Raises:
        NotFound: there is no store in this directory, and it must exist.
        BadManifest: this is no address of a bucket.
    """
    if "://" in place:
        try:
            return open_store(type(settings)(**settings.model_dump() | {"store_url": place}))
        except ValueError as error:
            raise BadManifest(f"'{place}' is no store; write s3://BUCKET/PREFIX, or a directory") from error
    root = Path(place).expanduser().absolute()
    if must_exist and not (root / "manifests").is_dir():
        raise NotFound(f"{root} holds no store; give the directory that has manifests/ and chunks/ in it")
    return DirectoryStore(root)

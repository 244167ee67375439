"""The store that the settings name."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from olivepress.store.collecting import SETTLE_S, Collector, StoreCollector
from olivepress.store.directory import DirectoryStore
from olivepress.store.protocol import Store

if TYPE_CHECKING:
    from olivepress.settings import Settings


def open_store(settings: "Settings") -> Store:
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

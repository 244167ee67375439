"""Content-addressed store of artifacts: immutable directories, kept as chunks that artifacts share.

protocol.py    what every store can do
manifest.py    what an artifact is: its files, their chunks, its digest. Pure
cutting.py     where a file is cut, so that fine-tunes of one base share chunks
artifacts.py   how directories become artifacts and back, in every kind of store; source.py reads them
directory.py   the store as a directory; safe with many writers and a kill at any point
cloning.py     lays out files without a copy where the file system can
bucket.py      the store as an S3-compatible bucket
collecting.py  removes what nothing refers to from a directory, bucket_collecting.py from a bucket
keeping.py     a store's parts one by one, for whoever looks after it; bucket_keeping.py for a bucket
checking.py    finds damage; healing.py puts right what it can
moving.py      copies a store into another one
opening.py     the store that the settings name
durable.py     files that appear whole or not at all
"""

from olivepress.store.directory import DirectoryStore
from olivepress.store.manifest import Chunk, FileEntry, Manifest
from olivepress.store.opening import collector_of, keeper_of, open_store, store_at
from olivepress.store.protocol import Share, Store, StoreStats

__all__ = [
    "Chunk",
    "DirectoryStore",
    "FileEntry",
    "Manifest",
    "Share",
    "Store",
    "StoreStats",
    "collector_of",
    "keeper_of",
    "open_store",
    "store_at",
]

"""Content-addressed store of artifacts: immutable directories, kept as chunks that artifacts share.

manifest.py    what an artifact is: its files, their chunks, its digest. Pure
cutting.py     where a file is cut, so that fine-tunes of one base share chunks
durable.py     files that appear whole or not at all
directory.py   the store as a directory; safe with many writers and a kill at any point
"""

from olivepress.store.directory import DirectoryStore, StoreStats
from olivepress.store.manifest import Chunk, FileEntry, Manifest

__all__ = ["Chunk", "DirectoryStore", "FileEntry", "Manifest", "StoreStats"]

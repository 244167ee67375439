"""Opens a test's store in another process; loads no test server, for such a process should start fast."""

from pathlib import Path

from olivepress.store import DirectoryStore, Store

REGION, CREDENTIALS = "us-east-1", ("key", "secret")
TIMEOUT_S = 5.0


def reopened(address: str) -> Store:
    """The store of an `Opened.address`."""
    kind, *place = address.split(" ")
    if kind == "directory":
        return DirectoryStore(Path(place[0]))
    from olivepress.store.bucket import BucketStore
    from olivepress.store.bucket_objects import Bucket

    url, name, prefix = place
    bucket = Bucket(name, prefix, endpoint=url, region=REGION, credentials=CREDENTIALS, timeout_s=TIMEOUT_S)
    return BucketStore(bucket)

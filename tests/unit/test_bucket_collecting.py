"""No collector removes from a bucket what a writer relies on, wherever either of them stops for the other."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from olivepress.errors import TransientError
from olivepress.store import Manifest
from olivepress.store.bucket import BucketStore
from olivepress.store.bucket_collecting import BucketCollector
from olivepress.store.bucket_objects import Bucket
from tests.s3_server import S3Server, age, s3_server

GRACE_S = 3600.0
OPERATIONS = ("create", "write", "read", "look", "below", "delete")


class Stopped(Exception):
    """A process ends here, as by kill -9."""


class SteppedBucket:
    """A bucket that calls `before` with the number of each operation, from 1 on."""

    def __init__(self, bucket: Bucket, before: Callable[[int], None]) -> None:
        self._bucket, self._before, self.count = bucket, before, 0
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> object:
        found = getattr(self._bucket, name)
        if name not in OPERATIONS:
            return found

        def counted(*arguments: object) -> object:
            with self._lock:
                self.count += 1
                number = self.count
            self._before(number)
            answer = found(*arguments)
            return iter(list(answer)) if name == "below" else answer

        return counted


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


class Shop:
    """A bucket with an artifact that is referenced and one that nobody needs, both put long ago."""

    def __init__(self, server: S3Server, root: Path) -> None:
        server.calm()
        self.bucket, self.root = server.bucket(), root
        self.store = BucketStore(self.bucket)
        self.kept = self.put({"a": b"shared", "b": b"only in kept"})
        self.doomed = self.put({"a": b"shared", "b": b"only in doomed"})
        age(self.bucket, 3 * GRACE_S)

    def put(self, files: dict[str, bytes], store: BucketStore | None = None) -> Manifest:
        source = self.root / "-".join(content.decode() for content in files.values())
        source.mkdir(exist_ok=True)
        for path, content in files.items():
            (source / path).write_bytes(content)
        return (store or self.store).put_directory(source)

    def stepped(self, before: Callable[[int], None]) -> BucketStore:
        """The store of another process, whose operations are counted. It does not wait for collectors."""
        return BucketStore(SteppedBucket(self.bucket, before), sleep=_give_up)  # type: ignore[arg-type]

    def collect(self, store: BucketStore | None = None) -> None:
        collector = BucketCollector(store or self.store, settle_s=0, takeover_s=0)
        collector.take_out(collector.plan(lambda: {self.kept.digest}, GRACE_S))
        collector.empty_trash()

    def put_doomed(self, store: BucketStore | None = None) -> bool:
        """Whether a writer could put it: it may have to wait."""
        try:
            return self.put({"a": b"shared", "b": b"only in doomed"}, store) == self.doomed
        except TransientError:
            return False

    def assert_whole(self, manifest: Manifest) -> None:
        for file in self.store.manifest(manifest.digest).files:
            assert b"".join(self.store.open_file(manifest.digest, file.path))


def _give_up(seconds: float) -> None:
    raise TransientError("another process has to go on first")


def operations_of(work: Callable[[BucketStore], object], shop: Shop) -> int:
    """How many operations a piece of work takes when nothing disturbs it."""
    store = shop.stepped(lambda number: None)
    work(store)
    return store.bucket.count  # type: ignore[attr-defined,no-any-return]


def test_a_writer_at_any_point_of_a_collection_keeps_what_it_put(server: S3Server, tmp_path: Path) -> None:
    steps = operations_of((shop := Shop(server, tmp_path)).collect, shop)
    assert steps > 10
    written = 0
    for at in range(1, steps + 1):
        # given a collector that stops before one of its operations while a writer puts what it collects
        shop = Shop(server, tmp_path)
        done: list[bool] = []
        collecting = shop.stepped(
            lambda number, at=at, shop=shop, done=done: (
                done.append(shop.put_doomed(shop.stepped(lambda _: None))) if number == at else None
            )
        )
        # when
        shop.collect(collecting)
        # then
        assert len(done) == 1
        if done == [True]:
            written += 1
            shop.assert_whole(shop.doomed)
        shop.assert_whole(shop.kept)
    assert 0 < written < steps  # some waited


def test_a_collection_at_any_point_of_a_put_takes_nothing_from_it(server: S3Server, tmp_path: Path) -> None:
    shop = Shop(server, tmp_path)
    steps = operations_of(shop.put_doomed, shop)
    assert steps >= 5
    for at in range(1, steps + 1):
        shop = Shop(server, tmp_path)
        writing = shop.stepped(lambda number, at=at, shop=shop: shop.collect() if number == at else None)

        assert shop.put_doomed(writing)

        shop.assert_whole(shop.doomed)
        shop.assert_whole(shop.kept)


def test_a_collection_at_any_point_of_an_answer_leaves_what_was_promised(server: S3Server, tmp_path: Path) -> None:
    shop = Shop(server, tmp_path)
    steps = operations_of(lambda store: store.has(shop.doomed.digest), shop)
    answers = set()
    for at in range(1, steps + 1):
        shop = Shop(server, tmp_path)
        asking = shop.stepped(lambda number, at=at, shop=shop: shop.collect() if number == at else None)
        answers.add(is_there := asking.has(shop.doomed.digest))
        if is_there:
            shop.assert_whole(shop.doomed)
    assert answers == {True, False}


def test_a_collector_that_is_killed_at_any_point_is_gone_on_with(server: S3Server, tmp_path: Path) -> None:
    shop = Shop(server, tmp_path)
    steps = operations_of(shop.collect, shop)

    def stop_at(at: int) -> Callable[[int], None]:
        def before(number: int) -> None:
            if number == at:
                raise Stopped

        return before

    for at in range(1, steps + 1, 3):
        shop = Shop(server, tmp_path)
        with pytest.raises(Stopped):
            shop.collect(shop.stepped(stop_at(at)))
        shop.assert_whole(shop.kept)

        shop.collect()

        shop.assert_whole(shop.kept)
        assert {seen.key[-64:] for seen in shop.bucket.below("chunks")} == {
            chunk.sha256 for chunk in shop.kept.chunks()
        }
        assert list(shop.bucket.below("trash")) == []


def test_a_second_collector_leaves_a_young_announcement_to_the_first(server: S3Server, tmp_path: Path) -> None:
    shop = Shop(server, tmp_path)
    first = BucketCollector(shop.store, settle_s=0)
    first.take_out(first.plan(lambda: {shop.kept.digest}, GRACE_S))

    emptied = BucketCollector(shop.store, settle_s=0).empty_trash()

    assert (emptied.removed.count, emptied.waiting.count) == (0, 2)
    assert first.empty_trash().removed.count == 2


def test_what_was_renewed_before_it_was_announced_is_forgotten_only_after_the_grace(
    server: S3Server, tmp_path: Path
) -> None:
    shop = Shop(server, tmp_path)
    assert shop.store.has(shop.doomed.digest)
    shop.collect()
    assert len(list(shop.bucket.below("renewals"))) == 1
    shop.assert_whole(shop.doomed)

    age(shop.bucket, 3 * GRACE_S)
    shop.collect()

    assert list(shop.bucket.below("renewals")) == []
    assert not shop.store.has(shop.doomed.digest)

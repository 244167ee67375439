"""A bucket that fails, stalls or lies makes nothing half-visible, and the error says what to look at."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from olivepress.errors import ServiceUnavailable, TransientError
from olivepress.settings import Settings
from olivepress.store import open_store
from olivepress.store.bucket import BucketStore
from olivepress.store.bucket_objects import PART_BYTES, Bucket
from olivepress.store.directory import DirectoryStore
from tests.s3_server import Request, S3Server, s3_server

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def store(server: S3Server) -> BucketStore:
    server.calm()
    return BucketStore(server.bucket(timeout_s=1.0))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(6):
        (source / f"file-{number}").write_bytes(os.urandom(1000))
    return source


class Every:
    """Answers every n-th request with this status, or the first n."""

    def __init__(self, status: int, *, nth: int = 0, first: int = 0) -> None:
        self._status, self._nth, self._first = status, nth, first
        self._count = 0
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> int | None:
        with self._lock:
            self._count += 1
            hit = self._count <= self._first or (self._nth and self._count % self._nth == 0)
        return self._status if hit else None


@pytest.mark.parametrize("status", [500, 503])
def test_a_bucket_that_fails_now_and_then_is_asked_again(
    store: BucketStore, server: S3Server, source: Path, tmp_path: Path, status: int
) -> None:
    server.status_of = Every(status, nth=3)

    digest = store.put_directory(source).digest
    store.materialise(digest, tmp_path / "target")

    assert store.has(digest)
    assert {path.name: path.read_bytes() for path in (tmp_path / "target").iterdir()} == {
        path.name: path.read_bytes() for path in source.iterdir()
    }


def test_a_bucket_that_keeps_failing_is_named_and_shows_nothing(
    store: BucketStore, server: S3Server, source: Path
) -> None:
    server.status_of = lambda request: 503 if request.method == "PUT" else None

    with pytest.raises(ServiceUnavailable, match=f"the store {store.name} does not answer .*OLIVEPRESS_STORE_ENDPOINT"):
        store.put_directory(source)

    server.calm()
    assert store.stats().artifacts == 0
    assert store.has(store.put_directory(source).digest)


def test_a_bucket_that_fails_at_any_request_of_a_put_shows_no_half_artifact(
    store: BucketStore, server: S3Server, source: Path
) -> None:
    store.put_directory(source)
    requests = len(server.requests)
    for failing in range(1, requests):
        # given a new bucket that refuses every request from this one on (403 is not tried again)
        server.calm()
        fresh = BucketStore(server.bucket(timeout_s=1.0))
        count = iter(range(1, 10_000))
        server.status_of = lambda request, count=count, failing=failing: 403 if next(count) >= failing else None
        # when
        with pytest.raises(ServiceUnavailable, match="does not let this machine"):
            fresh.put_directory(source)
        # then what can be seen is whole
        server.calm()
        for digest in fresh.manifest_digests():
            assert fresh.has(digest)


def test_a_read_that_stalls_is_given_up_and_tried_again(store: BucketStore, server: S3Server, source: Path) -> None:
    # given a body that never ends, the first time it is asked for
    digest = store.put_directory(source).digest
    released, stalls = threading.Event(), iter([True])

    def stall(request: Request, body: bytes) -> Iterator[bytes]:
        if request.method == "GET" and "/chunks/" in request.key and next(stalls, False):
            yield body[:10]
            released.wait(20)
        yield body

    server.body_of = stall
    # when, then
    try:
        assert b"".join(store.open_file(digest, "file-0")) == (source / "file-0").read_bytes()
        assert next(stalls, None) is None
    finally:
        released.set()


def test_a_read_that_always_stalls_ends_with_an_error(store: BucketStore, server: S3Server, source: Path) -> None:
    digest = store.put_directory(source).digest
    released = threading.Event()

    def stall(request: Request, body: bytes) -> Iterator[bytes]:
        if "/chunks/" in request.key:
            yield body[:10]
            released.wait(60)
        yield body

    server.body_of = stall
    try:
        with pytest.raises(ServiceUnavailable, match="does not answer"):
            list(store.open_file(digest, "file-0"))
    finally:
        released.set()


def test_a_chunk_that_is_sent_in_parts_comes_back(store: BucketStore, server: S3Server) -> None:
    content = os.urandom(PART_BYTES + MIB)

    chunk = store.put_chunk(content)

    assert store.read_chunk(chunk, "file") == content
    assert "POST" in {request.method for request in server.requests}


def test_of_two_writers_of_one_object_the_second_leaves_it(server: S3Server) -> None:
    bucket = server.bucket()
    bucket.create("chunks/aa/x", b"first")
    bucket.create("chunks/aa/x", b"again")
    assert bucket.read("chunks/aa/x") == b"first"


def test_a_writer_that_lost_to_one_who_then_failed_writes_it_itself(server: S3Server) -> None:
    # given a service that says "somebody else is at it", and then nobody was
    bucket = server.bucket()
    server.calm()
    conflicts = iter([412])
    server.status_of = lambda request: next(conflicts, None) if request.method == "PUT" else None
    # when
    bucket.create("chunks/aa/x", b"content")
    # then
    assert bucket.read("chunks/aa/x") == b"content"


def test_a_service_without_conditional_writes_works_too(server: S3Server) -> None:
    # given
    bucket = server.bucket()
    server.calm()
    refusals = iter([501])
    server.status_of = lambda request: next(refusals, None) if request.method == "PUT" else None
    # when
    bucket.create("chunks/aa/x", b"first")
    # then
    assert bucket.read("chunks/aa/x") == b"first"


def test_a_bucket_that_does_not_exist_is_named(server: S3Server, source: Path) -> None:
    server.calm()
    absent = BucketStore(server.opened("no-such-bucket", "p"))
    with pytest.raises(ServiceUnavailable, match=r"there is no bucket for the store s3://no-such-bucket/p"):
        absent.put_directory(source)
    with pytest.raises(ServiceUnavailable, match="there is no bucket"):
        absent.has("0" * 64)
    with pytest.raises(ServiceUnavailable, match="there is no bucket"):
        absent.free_bytes()


def test_a_service_that_nobody_runs_is_named() -> None:
    absent = Bucket("b", endpoint="http://127.0.0.1:9", region="x", credentials=("k", "s"), timeout_s=0.5)
    with pytest.raises(ServiceUnavailable, match="the store s3://b does not answer"):
        absent.read("key")


def test_a_writer_does_not_wait_for_ever_for_a_collector_that_is_gone(store: BucketStore, source: Path) -> None:
    # given an announcement that nobody carries out
    manifest = store.put_directory(source)
    store.bucket.write("trash/0-aa.json", f'["{manifest.digest}"]'.encode())
    slept: list[float] = []
    waiting = BucketStore(store.bucket, sleep=slept.append)
    # when, then
    with pytest.raises(TransientError, match="a collector is about to remove content"):
        waiting.put_directory(source)
    assert 10 <= sum(slept) <= 60


class TestSettings:
    def test_the_settings_choose_the_kind_of_store(self, server: S3Server, tmp_path: Path) -> None:
        server.calm()
        name = server.bucket().name.removeprefix("s3://").partition("/")[0]
        settings = Settings(
            data_dir=tmp_path,
            store_url=f"s3://{name}/team/models/",
            store_endpoint=server.url,
            store_region="us-east-1",
            store_access_key=SecretStr("key"),
            store_secret_key=SecretStr("secret"),
        )
        store = open_store(settings)

        store.put_chunk(b"content")

        assert store.name == f"s3://{name}/team/models"
        assert any(request.key.startswith("team/models/chunks/") for request in server.requests)
        assert isinstance(open_store(Settings(data_dir=tmp_path)), DirectoryStore)

    @pytest.mark.parametrize("url", ["models", "http://bucket", "s3://", "s3://UPPER/x", "s3://bucket/with space"])
    def test_an_address_that_is_no_bucket_is_refused(self, url: str) -> None:
        with pytest.raises(ValidationError, match="store_url"):
            Settings(store_url=url)

    def test_the_usual_variables_of_aws_count(self, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        server.calm()
        name = server.bucket().name.removeprefix("s3://").partition("/")[0]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)

        open_store(Settings(store_url=f"s3://{name}")).put_chunk(b"content")

        assert any(request.key.startswith("chunks/") for request in server.requests)

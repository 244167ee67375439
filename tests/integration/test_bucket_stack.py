"""With a bucket for its store, the API serves versions and retention keeps what they need."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from api.app import create_app
from olivepress import retention
from olivepress.client import Client
from olivepress.database.sessions import Database
from olivepress.delivery.pull import pull
from olivepress.registry import parse_reference
from olivepress.retention import Periods, StoreKind
from olivepress.settings import Settings
from olivepress.store.bucket import BucketStore
from tests.integration.api_cases import KEY, PACKAGE, api_over, publish_job, served
from tests.s3_server import age, s3_server


@pytest.fixture
def store() -> Iterator[BucketStore]:
    with s3_server() as server:
        yield BucketStore(server.bucket())


def test_a_version_is_pulled_from_a_bucket_and_survives_retention(
    database: Database, store: BucketStore, tmp_path: Path
) -> None:
    # given a version whose artifacts are in the bucket, and one that nobody refers to
    settings = Settings(data_dir=tmp_path, admin_key=SecretStr(KEY), flower_port=1)
    with api_over(database, tmp_path / "made") as made:
        (job,) = made.submit("/models/a", recipes=["cpu-int4"])["jobs"]
        publish_job(made, job)
        for number, digest in enumerate(made.store.manifest_digests()):
            made.store.materialise(digest, tmp_path / f"artifact-{number}")
            assert store.put_directory(tmp_path / f"artifact-{number}").digest == digest
    orphan = tmp_path / "orphan"
    orphan.mkdir()
    (orphan / "file").write_bytes(b"nobody needs it")
    digest = store.put_directory(orphan).digest
    age(store.bucket, 7200)
    # when
    report = retention.run(database, store, Periods(unreferenced_s=3600.0))
    # then
    assert report.problem is None
    assert report.amounts[StoreKind.ARTIFACTS].count == report.amounts[StoreKind.CHUNKS].count == 1
    assert report.amounts[StoreKind.TRASH].count == 2
    assert not store.has(digest)
    # when, then
    with served(create_app(settings, database, store, lambda: None)) as url, Client(url, KEY) as client:
        pull(client, client.version(parse_reference("a-int4")), tmp_path / "target")
        (check,) = (each for each in client.health() if each["name"] == "store")
    assert {path: (tmp_path / "target" / path).read_bytes() for path in PACKAGE} == PACKAGE
    assert check["status"] == "ok" and check["detail"] == f"{store.name} answers"

"""What deletion does to the store: files stay for the grace period, then go; what others share stays, and the row."""

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update

from olivepress import retention
from olivepress.cli import run
from olivepress.client import Client
from olivepress.database import deletion
from olivepress.database.backup import ARTIFACTS, Artifact, write_backup
from olivepress.database.deletion import MARGIN_S
from olivepress.database.sessions import Database
from olivepress.database.tables import RememberedRow, StepRow, VersionRow
from olivepress.delivery.pull import pull
from olivepress.registry import Order
from olivepress.retention import DAY_S, Periods
from tests.integration.api_cases import KEY, PACKAGE, Api, api_over, publish_job, served
from tests.integration.registry_cases import ANNA, FORCE, version

GRACE_S = 7 * DAY_S
PERIODS = Periods(remembered_s=DAY_S, unreferenced_s=DAY_S, settle_s=0)
OTHER = PACKAGE | {"new.txt": b"only in the second version"}


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[Api]:
    """An API with two versions that share most of their content."""
    with api_over(database, tmp_path) as api:
        for package in (PACKAGE, OTHER):
            publish_job(api, api.submit("/models/m")["jobs"][0], package)
        yield api


@pytest.fixture
def client(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    with served(api.app) as url, Client(url, KEY) as client:
        monkeypatch.setenv("OLIVEPRESS_URL", url)
        monkeypatch.setenv("OLIVEPRESS_API_KEY", KEY)
        yield client


def pass_days(api: Api, days: float) -> None:
    """As if all that has happened so far had happened that many days earlier."""
    with api.database.write() as session:
        for column in (VersionRow.files_until, VersionRow.deleted_at, RememberedRow.created_at, StepRow.finished_at):
            session.execute(update(column.class_).values({column.key: column - days * DAY_S}))
    for path in (*api.store.root.glob("chunks/*/*"), *api.store.root.glob("manifests/*/*")):
        os.utime(path, (path.stat().st_mtime - days * DAY_S,) * 2)


def collect(api: Api) -> None:
    """Two runs: the first takes out, the second empties the trash."""
    for _ in range(2):
        retention.run(api.database, api.store, PERIODS)


def delete(api: Api, text: str, order: Order = FORCE) -> None:
    with api.database.write() as session:
        deletion.delete(session, "default", version(text), order, GRACE_S)


def digest_of(api: Api, number: int) -> str:
    with api.database.read() as session:
        return session.scalars(select(VersionRow.artifact_digest).where(VersionRow.number == number)).one()


def artifacts_in(backup: Path) -> list[Artifact]:
    """The artifacts that a backup lists."""
    with tarfile.open(backup) as tar:
        lines = tar.extractfile(ARTIFACTS)
        assert lines is not None
        return [Artifact(**json.loads(line)) for line in lines]


def test_within_the_grace_period_a_version_comes_back_whole(api: Api, client: Client, tmp_path: Path) -> None:
    delete(api, "m-int4:1", ANNA)
    pass_days(api, 6.9)
    collect(api)

    client.undelete_version(version("m-int4:1"))
    pull(client, client.version(version("m-int4:1")), tmp_path / "m")

    assert {name: (tmp_path / "m" / name).read_bytes() for name in PACKAGE} == PACKAGE


def test_after_it_the_files_go_and_what_another_version_shares_stays(api: Api, client: Client, tmp_path: Path) -> None:
    gone = digest_of(api, 2)
    delete(api, "m-int4:2")
    pass_days(api, (GRACE_S + MARGIN_S) / DAY_S + 2)
    collect(api)

    assert not api.store.has(gone)
    stored = b"".join(path.read_bytes() for path in api.store.root.glob("chunks/*/*"))
    assert OTHER["new.txt"] not in stored
    pull(client, client.version(version("m-int4:1")), tmp_path / "m")
    assert {name: (tmp_path / "m" / name).read_bytes() for name in PACKAGE} == PACKAGE
    (deleted,) = api.get("/v1/models/m-int4", deleted=True)["versions"]
    assert (deleted["number"], deleted["deleted"]["reason"]) == (2, FORCE.reason)


def test_what_is_gone_can_be_made_again_under_a_new_number(api: Api) -> None:
    delete(api, "m-int4:2")
    pass_days(api, 10)
    collect(api)

    publish_job(api, api.submit("/models/m", fresh=True)["jobs"][0], OTHER)

    (newest, first) = api.get("/v1/models/m-int4")["versions"]
    assert (newest["number"], first["number"]) == (3, 1)
    assert api.store.has(digest_of(api, 3))


def test_a_backup_does_not_miss_the_files_of_a_version_that_was_deleted_for_good(api: Api, tmp_path: Path) -> None:
    gone = digest_of(api, 2)
    delete(api, "m-int4:2")
    pass_days(api, 10)
    collect(api)

    write_backup(api.database, tmp_path / "backup", api.store.has)

    missing = [one for one in artifacts_in(tmp_path / "backup") if one.is_published and not one.in_store]
    assert gone not in [one.digest for one in missing]
    assert missing == []


def test_pull_and_install_warn_of_what_is_known_against_a_version(
    api: Api, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client.deprecate(version("m-int4:1"), Order("anna", "too terse"), "m-int4:2")
    warning = "warning: m-int4:1: it is deprecated (too terse; use m-int4:2)"

    assert run(["pull", "m-int4:1", "--to", str(tmp_path / "m")]) == 0
    assert warning in capsys.readouterr().err
    assert run(["install", "m-int4:1", "--foundry-cache", str(tmp_path / "cache"), "--json"]) == 0
    assert warning in capsys.readouterr().err
    assert run(["pull", "m-int4:2", "--to", str(tmp_path / "other")]) == 0
    assert "warning" not in capsys.readouterr().err

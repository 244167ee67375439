"""A backup restored into either database is the same database."""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import JSON, Text, cast, event, func, select, text, update

from olivepress.database import migrations, signing_keys, steps, store_checks, workers
from olivepress.database import recipes as own_recipes
from olivepress.database.backup import CONTENTS, Backup, write_backup
from olivepress.database.migrations import current_revision
from olivepress.database.quotas import set_quota
from olivepress.database.restore import restore, restore_secrets
from olivepress.database.sessions import Database
from olivepress.database.steps import Ending
from olivepress.database.tables import AttemptRow, JobRow, LearnedCostRow, LeaseRow, StepRow, Table
from olivepress.database.versions import Publication, publish_version
from olivepress.errors import PermanentError
from olivepress.evidence.signing import SigningKey
from olivepress.jobs import AttemptOutcome, StepKind, StepState
from olivepress.quotas import Quota
from olivepress.recipes.recipe import BUILT_IN
from tests.integration.database_cases import (
    OTHER,
    POSTGRESQL,
    SQLITE,
    claimed,
    fresh_postgresql_url,
    run_until,
    sqlite_url,
    step_of,
    submit_paths,
    worker_facts,
)

BOTH = [SQLITE, POSTGRESQL]
FIRST_REVISION = "2026_11_23_first_tables"
ODD_TEXT = 'line one\nline "two" \\ ünïcödé 🫒\ttab\u2028end'


@pytest.fixture(params=BOTH)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database of either kind, to restore into."""
    if request.param == SQLITE:
        database = Database(sqlite_url(tmp_path))
        yield database
        database.dispose()
        return
    with fresh_postgresql_url(request.getfixturevalue("postgres")) as url:
        database = Database(url)
        yield database
        database.dispose()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "backup.tar.gz"


def fill(database: Database) -> None:
    """A row in every table: a published job, a running one, one that failed, and what belongs to them."""
    prompts = [{"prompt": ODD_TEXT, "expect": {"contains": "ü"}}]
    done, running, failing = submit_paths(
        database,
        "/models/a",
        "/models/b",
        "/models/c",
        prompts=prompts,
        name=ODD_TEXT,
        calibration=[{"text": ODD_TEXT}],
    )
    run_until(database, done, StepKind.PUBLISH)
    held = claimed(database, failing, StepKind.INGEST, OTHER)
    ending = Ending(AttemptOutcome.FAILED, 1, None, "Bad", ODD_TEXT, 0.1 + 0.2, 5_000_000_000, ODD_TEXT)
    with database.write() as session:
        steps.fail(session, held, ending, may_retry=False)
        workers.register(session, worker_facts(slots=2))
        assert workers.take_lease(session, "scheduler", "one", 3600)
        job = session.get_one(JobRow, done)
        wanted = Publication(
            job_id=done,
            team=job.team,
            model_name=job.model_name,
            alias="latest",
            package_digest="b" * 64,
            recipe_name="cpu-int4",
            precision="int4",
            family="qwen2",
            report={"figure": 1e-320, "large": 2**62, "text": ODD_TEXT, "nothing": None, "nested": [[], {}, [None]]},
            provenance={},
        )
        publish_version(session, wanted, lambda number: ("d" * 64, 5_000_000_000))
        session.add(
            LearnedCostRow(
                kind="convert", family="qwen2", memory_ratio=1.1, seconds_ratio=0.7, attempts=3, updated_at=1.5
            )
        )
        own_recipes.add(session, "default", replace(BUILT_IN["cpu-int4"], name="ours", summary=ODD_TEXT))
        set_quota(session, "default", Quota(max_bytes=2**50, max_versions=100))
        signing_keys.note(session, SigningKey(Ed25519PrivateKey.generate()).public)
        store_checks.note(session, {"fast": False, "store": "/models/store", "sound": True, "damage": [ODD_TEXT]})
    claimed(database, running, StepKind.INGEST)


def contents(database: Database) -> dict[str, list[dict[str, Any]]]:
    """All rows, JSON as its text. A lease's end is left out: a restore ends them."""
    found = {}
    with database.read() as session:
        for table in Table.metadata.sorted_tables:
            columns = [
                cast(column, Text).label(column.name) if isinstance(column.type, JSON) else column
                for column in table.columns
                if column.name not in ("lease_expires_at", "expires_at")
            ]
            query = select(*columns).order_by(*table.primary_key.columns)
            found[table.name] = [dict(row) for row in session.execute(query).mappings()]
    return found


def backed_up(database: Database, file: Path) -> Backup:
    return write_backup(database, file, lambda digest: True)


def rewritten(file: Path, change: Any) -> None:
    """The backup anew, with its members changed by a function of name and content; None drops one."""
    with tarfile.open(file) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    with tarfile.open(file, "w:gz") as tar:
        for name, content in members:
            content = change(name, content)
            if content is not None:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("database_kind", BOTH, indirect=True)
def test_every_row_of_every_table_is_the_same_after_a_restore(database: Database, target: Database, file: Path) -> None:
    fill(database)
    before = contents(database)
    assert [name for name, rows in before.items() if not rows] == [], (
        "each table needs a row, else its restore is not tested"
    )
    backed_up(database, file)
    done = restore(target, file, lambda digest: True)
    assert contents(target) == before
    assert done.backup.rows == {name: len(rows) for name, rows in before.items()}


@pytest.mark.parametrize("database_kind", BOTH, indirect=True)
def test_ids_that_were_given_are_not_given_again_after_a_restore(
    database: Database, target: Database, file: Path
) -> None:
    fill(database)
    (last,) = submit_paths(database, "/models/deleted")
    with database.write() as session:
        session.execute(StepRow.__table__.delete().where(StepRow.job_id == last))
        session.execute(JobRow.__table__.delete().where(JobRow.id == last))
    backed_up(database, file)
    restore(target, file, lambda digest: True)
    (new,) = submit_paths(target, "/models/new")
    assert new > last
    claimed(target, new, StepKind.INGEST)


def test_a_step_that_ran_at_the_backup_is_rescued_after_the_restore_and_its_worker_is_not_believed(
    database: Database, target: Database, file: Path
) -> None:
    (job,) = submit_paths(database, "/models/a")
    held = claimed(database, job, StepKind.INGEST)
    backed_up(database, file)
    restore(target, file, lambda digest: True)
    with target.write() as session:
        assert steps.rescue(session) == [held.step_id]
        assert session.scalars(select(AttemptRow.outcome)).all() == [AttemptOutcome.LEASE_LOST]
        session.execute(update(StepRow).values(run_at=0.0))
    claimed(target, job, StepKind.INGEST, OTHER)
    with target.write() as session:
        assert not steps.heartbeat(session, held, None, None)


def test_a_lease_of_a_scheduler_does_not_outlive_a_restore(database: Database, target: Database, file: Path) -> None:
    with database.write() as session:
        workers.take_lease(session, "scheduler", "one", 3600)
    backed_up(database, file)
    restore(target, file, lambda digest: True)
    with target.write() as session:
        assert workers.take_lease(session, "scheduler", "two", 10)
        assert session.scalars(select(LeaseRow.holder)).all() == ["two"]


@pytest.mark.parametrize("database_kind", BOTH, indirect=True)
def test_a_backup_of_an_older_schema_is_loaded_there_and_brought_up(
    database_url: str, target: Database, file: Path
) -> None:
    database = Database(database_url)
    with database.schema_change() as connection:
        migrations.upgrade_to(connection, FIRST_REVISION)
    assert backed_up(database, file).revision == FIRST_REVISION
    database.dispose()
    restore(target, file, lambda digest: True)
    migrations.check(target)


def test_a_backup_of_a_newer_schema_is_refused_by_its_name(database: Database, target: Database, file: Path) -> None:
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '2031_01_01_add_wings'"))
    backed_up(database, file)
    with pytest.raises(PermanentError, match="2031_01_01_add_wings"):
        restore(target, file, lambda digest: True)
    with target.snapshot() as connection:
        assert current_revision(connection) is None


def test_a_database_that_holds_something_is_left_alone_unless_it_is_to_be_replaced(
    database: Database, target: Database, file: Path
) -> None:
    backed_up(database, file)
    migrations.upgrade(target)
    restore(target, file, lambda digest: True)
    (job,) = submit_paths(target, "/models/kept")
    with pytest.raises(PermanentError, match=r"1 batches, 1 jobs, 6 steps.*--force"):
        restore(target, file, lambda digest: True)
    assert step_of(target, job, StepKind.INGEST).state == StepState.QUEUED
    restore(target, file, lambda digest: True, replace=True)
    with target.read() as session:
        assert session.scalar(select(func.count()).select_from(JobRow)) == 0


def test_a_row_without_its_parent_is_refused_and_nothing_is_written(
    database: Database, target: Database, file: Path
) -> None:
    submit_paths(database, "/models/a")
    backed_up(database, file)
    # A mistake that the checksums do not show: the list of contents is made anew too.
    noted: dict[str, Any] = {}

    def without_batches(name: str, content: bytes) -> bytes:
        if name == CONTENTS:
            values = json.loads(content)
            values["members"]["tables/batches.jsonl"] = noted
            return json.dumps(values).encode()
        if name != "tables/batches.jsonl":
            return content
        noted.update(rows=0, size_bytes=0, sha256="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
        return b""

    rewritten(file, without_batches)
    with pytest.raises(PermanentError, match="batches"):
        restore(target, file, lambda digest: True)
    with target.snapshot() as connection:
        assert current_revision(connection) is None


def test_a_log_with_a_nul_restores_also_into_postgresql_which_has_none(
    database: Database, target: Database, file: Path
) -> None:
    fill(database)
    with database.write() as session:
        session.execute(update(AttemptRow).values(log_tail="before\x00after"))
    backed_up(database, file)
    restore(target, file, lambda digest: True)
    with target.read() as session:
        assert set(session.scalars(select(AttemptRow.log_tail))) == {"before\ufffdafter"}


@pytest.mark.parametrize("name", ["tables/jobs.jsonl", "store/artifacts.jsonl", "secrets/admin-key"])
def test_a_changed_member_is_found_before_anything_is_written(database: Database, file: Path, name: str) -> None:
    fill(database)
    key = file.with_name("admin-key")
    key.write_text("secret\n")
    write_backup(database, file, lambda digest: True, [key])
    rewritten(file, lambda member, content: content[:-2] + b" \n" if member == name else content)
    before = contents(database)
    with pytest.raises(PermanentError, match=f"{name} has not the SHA-256"):
        restore(database, file, lambda digest: True, replace=True)
    assert contents(database) == before


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_file_that_ends_too_early_is_refused(database: Database, file: Path, share: float) -> None:
    fill(database)
    backed_up(database, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(PermanentError, match="is no whole backup"):
        restore(database, file, lambda digest: True, replace=True)


def test_a_missing_member_and_one_too_many_are_refused(database: Database, file: Path) -> None:
    backed_up(database, file)
    rewritten(file, lambda name, content: None if name == "tables/steps.jsonl" else content)
    with pytest.raises(PermanentError, match=r"tables/steps\.jsonl"):
        restore(database, file, lambda digest: True)
    file.unlink()
    backed_up(database, file)
    with tarfile.open(file) as tar, tarfile.open(file.with_name("more.tar"), "w") as more:
        for info in tar:
            more.addfile(info, tar.extractfile(info))
        more.addfile(tarfile.TarInfo("tables/../../evil"), io.BytesIO())
    with pytest.raises(PermanentError, match="evil"):
        restore(database, file.with_name("more.tar"), lambda digest: True)


@pytest.mark.parametrize("database_kind", BOTH, indirect=True)
def test_the_backup_is_one_moment_though_jobs_are_submitted_meanwhile(database: Database, file: Path) -> None:
    submit_paths(database, "/models/a")
    other = Database(database.engine.url.render_as_string(hide_password=False))
    submitted = []

    def submit_another(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "FROM steps" in statement and not submitted:
            submitted.extend(submit_paths(other, "/models/b"))

    event.listen(database.engine, "before_cursor_execute", submit_another)
    backup = backed_up(database, file)
    other.dispose()
    assert submitted
    assert (backup.rows["batches"], backup.rows["jobs"], backup.rows["steps"]) == (1, 1, 6)


def test_artifacts_that_the_store_lacks_are_told_with_what_needs_them(
    database: Database, target: Database, file: Path
) -> None:
    fill(database)
    backup = write_backup(database, file, lambda digest: digest != "d" * 64)
    assert backup.artifacts == 4
    with tarfile.open(file) as tar:
        member = tar.extractfile("store/artifacts.jsonl")
        assert member is not None
        listed = {line["digest"]: line for line in map(json.loads, member)}
    assert [digest for digest, line in listed.items() if not line["in_store"]] == ["d" * 64]
    assert listed["b" * 64]["referred_by"] == [
        "remembered.artifact_digest",
        "steps.artifact_digest",
        "versions.package_digest",
    ]
    done = restore(target, file, lambda digest: digest == "b" * 64)
    missing = {artifact.digest: artifact.is_published for artifact in done.missing}
    assert missing == {"a" * 64: False, "d" * 64: True, "e" * 64: False}


def test_a_backup_is_for_its_owner_only_and_replaces_no_file(database: Database, file: Path) -> None:
    backed_up(database, file)
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(PermanentError, match="exists already"):
        backed_up(database, file)
    assert sorted(path.name for path in file.parent.iterdir() if "sqlite" not in path.name) == [file.name]


def test_an_empty_database_is_not_backed_up_and_leaves_no_file(database_url: str, file: Path) -> None:
    database = Database(database_url)
    with pytest.raises(PermanentError, match="nothing to back up"):
        backed_up(database, file)
    database.dispose()
    assert not file.exists()


def test_key_files_come_back_with_their_mode_and_a_different_one_stays(
    database: Database, file: Path, tmp_path: Path
) -> None:
    names = ["admin-key", "flower-password"]
    for name in names:
        (tmp_path / name).write_text(f"{name} of the backup\n")
    write_backup(database, file, lambda digest: True, [tmp_path / name for name in names])
    other = tmp_path / "other"
    other.mkdir()
    (other / "admin-key").write_text("mine\n")
    assert restore_secrets(file, other, names) == {"admin-key": False, "flower-password": True}
    assert (other / "admin-key").read_text() == "mine\n"
    assert (other / "flower-password").read_text() == "flower-password of the backup\n"
    assert (other / "flower-password").stat().st_mode & 0o777 == 0o600
    assert restore_secrets(file, other, ["admin-key"], replace=True) == {"admin-key": True}
    assert (other / "admin-key").read_text() == "admin-key of the backup\n"

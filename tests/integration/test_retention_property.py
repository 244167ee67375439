"""However jobs, publications, deletions, time and retention interleave: what is needed stays, the rest goes.

Each protection of what the database refers to was taken out once, by hand, and this test failed for it: both artifacts
of a version, the grace period of a deleted one, an alias that would stay on it, steps of unfinished jobs, what the
source of a version said (its artifact, and that it is remembered), remembered results (their artifacts, their age, that
they were used lately), a needed manifest that is missing. What protects readers, writers and young content in the
store has its own test of this kind, in tests/unit/test_retention_property.py.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from olivepress import retention
from olivepress.database import deletion
from olivepress.database.cancelling import cancel_job
from olivepress.database.migrations import upgrade
from olivepress.database.sessions import Database, DatabaseNow
from olivepress.database.tables import AliasRow, JobRow, ModelRow, RememberedRow, StepRow, VersionRow
from olivepress.errors import TransientError
from olivepress.jobs import FINAL_JOB_STATES, StepKind, StepState
from olivepress.registry import Order, parse_reference
from olivepress.store import keeper_of
from olivepress.store.checking import Checker
from tests.integration.database_cases import sqlite_url
from tests.integration.press_cases import DAY_S, PERIODS, Press

GRACE_DAYS = 7.0
MEMORY = Path("/dev/shm")
anything = st.integers(0, 10**6)
# Kinds whose results are remembered by the key that their step has.
REMEMBERED = {StepKind.CONVERT, StepKind.PACKAGE, StepKind.REFERENCE, StepKind.VALIDATE}


class Office(RuleBasedStateMachine):
    """A database with its store; deletions have their grace period, and retention dies now and then."""

    template: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        # Hundreds of transactions, none of which has to survive a power cut.
        self.root = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        shutil.copyfile(self.template, self.root / "office.sqlite")
        self.database = Database(f"sqlite:///{self.root / 'office.sqlite'}")
        self.press = Press(self.database, self.root)
        self.paths: dict[int, str] = {}
        self.unfinished: list[int] = []
        self.asked_anew: set[str] = set()

    def teardown(self) -> None:
        try:
            self.everything_else_goes_in_the_end()
        finally:
            self.database.dispose()
            shutil.rmtree(self.root)

    def start(self, last: StepKind, path: str | None = None) -> int:
        path = path or f"/models/m{len(self.paths)}"
        job_id = int(self.press.job(path, last))
        self.paths[job_id] = path
        return job_id

    @initialize(last=st.sampled_from([StepKind.CONVERT, StepKind.PACKAGE, StepKind.REFERENCE, StepKind.VALIDATE]))
    def there_are_versions_and_a_job(self, last: StepKind) -> None:
        """From the beginning each kind of thing is there that retention must leave."""
        for _ in range(3):
            self.publishes()
        self.a_version_is_deleted(0)
        self.gets_as_far_as(last)

    @rule()
    def publishes(self) -> None:
        self.start(StepKind.PUBLISH)

    @rule(last=st.sampled_from([StepKind.CONVERT, StepKind.PACKAGE, StepKind.REFERENCE, StepKind.VALIDATE]))
    def gets_as_far_as(self, last: StepKind) -> None:
        self.unfinished.append(self.start(last))

    @rule(pick=anything, is_late=st.booleans())
    def somebody_uses_what_is_remembered(self, pick: int, is_late: bool) -> None:
        """The same checkpoint once more; its job is then over, so only memory needs what it used."""
        if is_late:
            self.time_passes_and_retention_runs(20, None)
        paths = sorted(set(self.paths.values()))
        job_id = self.start(StepKind.VALIDATE, paths[pick % len(paths)])
        with self.database.write() as session:
            cancel_job(session, job_id)
        if is_late:
            self.time_passes_and_retention_runs(15, None)

    @precondition(lambda self: self.unfinished)
    @rule(pick=anything)
    def a_job_goes_on_to_its_end(self, pick: int) -> None:
        job_id = self.unfinished.pop(pick % len(self.unfinished))
        self.press.go_on(job_id, self.paths[job_id])

    @precondition(lambda self: self.unfinished)
    @rule(pick=anything)
    def a_job_is_cancelled(self, pick: int) -> None:
        with self.database.write() as session:
            cancel_job(session, self.unfinished.pop(pick % len(self.unfinished)))

    @rule(pick=anything)
    def a_source_says_something_else_when_it_is_asked_anew(self, pick: int) -> None:
        """Memory then has that; versions are still held against what it said first."""
        with self.database.write() as session:
            rows = session.scalars(
                select(RememberedRow).where(RememberedRow.kind == StepKind.REFERENCE).order_by(RememberedRow.key)
            ).all()
            if rows:
                row = rows[pick % len(rows)]
                row.artifact_digest = self.press.put(f"said anew {pick % 3}")
                row.created_at = session.scalars(select(DatabaseNow())).one()
                self.asked_anew.add(row.key)

    @rule(pick=anything)
    def a_version_is_deleted(self, pick: int) -> None:
        with self.database.write() as session:
            kept = select(ModelRow.name, VersionRow.number).join(ModelRow).where(VersionRow.deleted_at.is_(None))
            names = [f"{name}:{number}" for name, number in session.execute(kept.order_by(VersionRow.id))]
            if len(names) > 1:
                order = Order("somebody", "no longer used", is_forced=True)
                wanted = parse_reference(names[1 + pick % (len(names) - 1)])
                deletion.delete(session, "default", wanted, order, GRACE_DAYS * DAY_S)

    @rule(days=st.sampled_from([0.6, 1.5, 5.0, 29.0, 31.0]), dies_after=st.none() | st.integers(0, 12))
    def time_passes_and_retention_runs(self, days: float, dies_after: int | None) -> None:
        self.press.age_rows(days)
        self.press.age_store(days)
        self.retention_runs(dies_after)

    @rule(pick=anything)
    def a_manifest_is_away_while_retention_runs(self, pick: int) -> None:
        """Of a version: somebody restores a directory of the store from a backup."""
        with self.database.read() as session:
            kept = session.scalars(select(VersionRow).where(VersionRow.deleted_at.is_(None)).order_by(VersionRow.id))
            published = [row.artifact_digest for row in kept]
        lost = self.press.store.places.manifest(published[pick % len(published)])
        self.press.age_store(1.5)
        lost.rename(self.root / lost.name)
        self.retention_runs(None)
        (self.root / lost.name).rename(lost)

    def retention_runs(self, dies_after: int | None) -> None:
        left = iter(range(10**6 if dies_after is None else dies_after))
        try:
            retention.run(self.database, self.press.store, PERIODS, lambda: next(left, None) is None)
        except TransientError:
            assert dies_after is not None

    def needed(self) -> set[str]:
        """Told from the rows anew, not by the query that is tested."""
        with self.database.read() as session:
            now = session.scalars(select(DatabaseNow())).one()
            versions = {
                row.id: row
                for row in session.scalars(select(VersionRow))
                if row.deleted_at is None or (row.files_until or 0) > now
            }
            found = {digest for row in versions.values() for digest in (row.package_digest, row.artifact_digest)}
            for alias in session.scalars(select(AliasRow)):
                assert versions[alias.version_id].deleted_at is None
            memory = {row.key: row for row in session.scalars(select(RememberedRow))}
            for step, job in session.execute(select(StepRow, JobRow).join(JobRow, JobRow.id == StepRow.job_id)):
                if step.state != StepState.SUCCEEDED:
                    continue
                is_source = step.kind == StepKind.REFERENCE and job.version_id in versions
                if step.artifact_digest and (is_source or job.state not in FINAL_JOB_STATES):
                    found.add(step.artifact_digest)
                is_young = step.finished_at > now - (PERIODS.remembered_s or 0)
                if step.kind in REMEMBERED and (is_young or (is_source and step.key not in self.asked_anew)):
                    # Whoever submits it again gets it from memory, with its artifact.
                    found |= {memory[step.key].artifact_digest} - {None}
        return found

    @invariant()
    def what_is_needed_is_whole(self) -> None:
        scan = Checker(keeper_of(self.press.store)).run()
        assert scan.findings == []
        assert self.needed() <= set(scan.artifacts)

    def everything_else_goes_in_the_end(self) -> None:
        for _ in range(2):
            self.time_passes_and_retention_runs(1000, None)
        needed = self.needed()
        assert set(self.press.store.manifest_digests()) == needed
        kept = {chunk.sha256 for digest in needed for chunk in self.press.store.manifest(digest).chunks()}
        assert {file.sha256 for file in self.press.store.places.chunks()} == kept


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A database without rows, to copy."""
    url = sqlite_url(tmp_path_factory.mktemp("template"))
    database = Database(url)
    upgrade(database)
    database.dispose()
    yield Path(url.removeprefix("sqlite:///"))


def test_retention_keeps_what_the_database_needs_and_loses_the_rest(template: Path) -> None:
    class OfficeHere(Office):
        pass

    OfficeHere.template = template
    chosen = settings(
        max_examples=6,
        stateful_step_count=12,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(OfficeHere, settings=chosen)

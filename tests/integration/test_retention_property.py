"""However jobs, publications, deletions, time and retention interleave: what is needed stays, the rest goes."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import select

from olivepress import retention
from olivepress.database import deletion
from olivepress.database.cancelling import cancel_job
from olivepress.database.migrations import upgrade
from olivepress.database.sessions import Database, DatabaseNow
from olivepress.database.tables import AliasRow, JobRow, StepRow, VersionRow
from olivepress.errors import TransientError
from olivepress.jobs import FINAL_JOB_STATES, StepKind
from olivepress.registry import Order, parse_reference
from olivepress.store import keeper_of
from olivepress.store.checking import Checker
from tests.integration.database_cases import sqlite_url
from tests.integration.press_cases import DAY_S, PERIODS, Press

GRACE_DAYS = 7.0
anything = st.integers(0, 10**6)


class Office(RuleBasedStateMachine):
    """A database with its store; deletions have their grace period, and retention dies now and then."""

    template: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        shutil.copyfile(self.template, self.root / "office.sqlite")
        self.database = Database(f"sqlite:///{self.root / 'office.sqlite'}")
        self.press = Press(self.database, self.root)
        self.paths: dict[int, str] = {}
        self.unfinished: list[int] = []
        self.names: list[str] = []
        self.publishes()

    def teardown(self) -> None:
        try:
            self.everything_else_goes_in_the_end()
        finally:
            self.database.dispose()
            shutil.rmtree(self.root)

    def start(self, last: StepKind) -> int:
        path = f"/models/m{len(self.paths)}"
        job_id = int(self.press.job(path, last))
        self.paths[job_id] = path
        return job_id

    @rule()
    def publishes(self) -> None:
        self.start(StepKind.PUBLISH)
        self.names.append(f"m{len(self.paths) - 1}-int4:1")

    @rule(last=st.sampled_from([StepKind.CONVERT, StepKind.PACKAGE, StepKind.REFERENCE, StepKind.VALIDATE]))
    def gets_as_far_as(self, last: StepKind) -> None:
        self.unfinished.append(self.start(last))

    @precondition(lambda self: self.unfinished)
    @rule(pick=anything)
    def a_job_goes_on_to_its_end(self, pick: int) -> None:
        job_id = self.unfinished.pop(pick % len(self.unfinished))
        self.press.go_on(job_id, self.paths[job_id])
        self.names.append(f"{Path(self.paths[job_id]).name}-int4:1")

    @precondition(lambda self: self.unfinished)
    @rule(pick=anything)
    def a_job_is_cancelled(self, pick: int) -> None:
        with self.database.write() as session:
            cancel_job(session, self.unfinished.pop(pick % len(self.unfinished)))

    @precondition(lambda self: len(self.names) > 1)
    @rule(pick=anything)
    def a_version_is_deleted(self, pick: int) -> None:
        name = self.names.pop(1 + pick % (len(self.names) - 1))
        with self.database.write() as session:
            order = Order("somebody", "no longer used", is_forced=True)
            deletion.delete(session, "default", parse_reference(name), order, GRACE_DAYS * DAY_S)

    @rule(days=st.sampled_from([0.6, 1.5, 5.0, 31.0]))
    def time_passes(self, days: float) -> None:
        self.press.age_rows(days)
        self.press.age_store(days)

    @rule(dies_after=st.none() | st.integers(0, 12))
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
                row.id: {row.package_digest, row.artifact_digest}
                for row in session.scalars(select(VersionRow))
                if row.deleted_at is None or (row.files_until or 0) > now
            }
            found = {digest for digests in versions.values() for digest in digests}
            assert all(alias.version_id in versions for alias in session.scalars(select(AliasRow)))
            for step, job in session.execute(select(StepRow, JobRow).join(JobRow, JobRow.id == StepRow.job_id)):
                is_source = step.kind == StepKind.REFERENCE and job.version_id in versions
                if step.artifact_digest and (is_source or job.state not in FINAL_JOB_STATES):
                    found.add(step.artifact_digest)
        return found

    @invariant()
    def what_is_needed_is_whole(self) -> None:
        scan = Checker(keeper_of(self.press.store)).run()
        assert scan.findings == []
        assert self.needed() <= set(scan.artifacts)

    def everything_else_goes_in_the_end(self) -> None:
        for _ in range(2):
            self.time_passes(1000)
            self.retention_runs(None)
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
        max_examples=4,
        stateful_step_count=12,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(OfficeHere, settings=chosen)

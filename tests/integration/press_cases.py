"""A database with a store beside it, and jobs that publish what is really in that store."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, update

from olivepress import retention
from olivepress.database.sessions import Database
from olivepress.database.tables import AttemptRow, JobRow, RememberedRow, StepRow, VersionRow, WorkerRow
from olivepress.database.unblocking import done_steps
from olivepress.jobs import JobId, StepKind, StepState
from olivepress.retention import Periods
from olivepress.steps import StepResult
from olivepress.store import DirectoryStore
from tests.integration.database_cases import DEFAULT_STEPS, INGESTED, RESULTS, claimed, step_of, submit_paths, succeed
from workers.steps import publish

DAY_S = 86_400.0
PERIODS = Periods(
    remembered_s=30 * DAY_S,
    attempts_s=90 * DAY_S,
    logs_s=30 * DAY_S,
    workers_s=30 * DAY_S,
    unreferenced_s=DAY_S,
    settle_s=0,
)


class Press:
    """A database and a store, and jobs whose convert and package artifacts are in it."""

    def __init__(self, database: Database, root: Path) -> None:
        self.database, self.root = database, root
        self.store = DirectoryStore(root / "store")

    def put(self, name: str) -> str:
        source = self.root / name.replace("/", "-")
        source.mkdir(exist_ok=True)
        (source / "genai_config.json").write_text('{"model": {"context_length": 4096}, "search": {"max_length": 2048}}')
        (source / "model.onnx.data").write_text(name)
        return self.store.put_directory(source).digest

    def job(self, path: str, last: StepKind = StepKind.PUBLISH) -> JobId:
        """A job of its own batch, run up to and with the given step."""
        (job_id,) = submit_paths(self.database, path)
        self.go_on(job_id, path, last)
        return job_id

    def go_on(self, job_id: int, path: str, last: StepKind = StepKind.PUBLISH) -> None:
        """Run what is left of a job up to and with the given step."""
        for kind in DEFAULT_STEPS:
            if step_of(self.database, job_id, kind).state == StepState.SUCCEEDED:
                continue
            result = RESULTS[kind]
            if kind is StepKind.INGEST:
                result = StepResult(INGESTED | {"checkpoint_digest": path})
            elif result.artifact_digest:
                result = replace(result, artifact_digest=self.put(f"{path}-{kind}"))
            held = claimed(self.database, job_id, kind)
            if kind is StepKind.PUBLISH:
                with self.database.write() as session:
                    published = publish.publish(session, self.store, job_id, done_steps(session, job_id))
                result = StepResult({"model": "m", "number": published.number}, published.artifact_digest)
            assert succeed(self.database, held, result)
            if kind is last:
                break

    def digest(self, job_id: int, kind: StepKind) -> str:
        return step_of(self.database, job_id, kind).artifact_digest or ""

    def run(self, periods: Periods = PERIODS) -> retention.Report:
        return retention.run(self.database, self.store, periods)

    def age_store(self, days: float = 2) -> None:
        for path in (*self.store.root.glob("*/??/*"), *self.store.root.glob("trash/*/*")):
            os.utime(path, (path.stat().st_mtime - days * DAY_S,) * 2)
        for batch in self.store.places.trash.iterdir():
            cutoff, _, rest = batch.name.partition("-")
            batch.rename(batch.with_name(f"{int(cutoff) - round(days * DAY_S * 1e9)}-{rest}"))

    def age_rows(self, days: float) -> None:
        """As if all that has happened so far had happened that many days earlier."""
        with self.database.write() as session:
            for column in (
                StepRow.started_at,
                StepRow.finished_at,
                AttemptRow.started_at,
                AttemptRow.finished_at,
                RememberedRow.created_at,
                WorkerRow.seen_at,
                JobRow.finished_at,
                VersionRow.deleted_at,
                VersionRow.files_until,
            ):
                session.execute(update(column.class_).values({column.key: column - days * DAY_S}))

    def rows(self, table: Any) -> int:
        with self.database.read() as session:
            return session.scalar(select(func.count()).select_from(table)) or 0

"""What must hold after a run: no job lost, no version twice, no row, process, directory or chunk left over."""

import contextlib
import json
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from sqlalchemy import select
from sqlalchemy.orm import Session

from olivepress import retention
from olivepress.database.tables import (
    AttemptRow,
    BatchRow,
    JobRow,
    ModelRow,
    RememberedRow,
    StepRow,
    Table,
    VersionRow,
)
from olivepress.errors import OlivepressError
from olivepress.jobs import FINAL_JOB_STATES, FINAL_STEP_STATES, AttemptOutcome, JobState, StepState
from tests.chaos.plan import Plan
from tests.chaos.stack import ChaosStack
from workers.workspace import sweep

if TYPE_CHECKING:
    from tests.chaos.run import Outcome

EVIDENCE = "evidence"
SHOWN_ATTEMPTS = 4


def all_of_it(stack: ChaosStack, plan: Plan, outcome: "Outcome") -> None:
    """Look at everything of a stack that has ended; what is wrong is added to the outcome's problems."""
    with stack.database.read() as session:
        _jobs(session, plan, outcome)
        _steps(session, outcome)
        _versions(session, outcome)
    outcome.problems += _workspaces(stack)
    outcome.problems += _store(stack)
    logs = stack.directory / "logs"
    outcome.discarded = sum(log.read_text(errors="replace").count("attempt_discarded") for log in logs.iterdir())


def no_strays(stack: ChaosStack, within_s: float) -> list[str]:
    """When all jobs are over, nothing may run but the services."""
    deadline = time.monotonic() + within_s
    while (left := stack.strays()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [f"a process is left over: {_described(process)}" for process in left]


def _jobs(session: Session, plan: Plan, outcome: "Outcome") -> None:
    """Every job is final, in the state that was planned, and has its version exactly if it succeeded."""
    names = {batch.id: (batch.team, batch.idempotency_key) for batch in session.scalars(select(BatchRow))}
    planned = {(batch.team, batch.key): batch for batch in plan.batches}
    if Counter(names.values()) != Counter(planned.keys()):
        outcome.problems.append(f"batches are {sorted(names.values())}, submitted were {sorted(planned)}")
    jobs = session.scalars(select(JobRow).order_by(JobRow.id)).all()
    outcome.states = Counter(job.state for job in jobs)
    outcome.lost = plan.jobs - sum(job.state in FINAL_JOB_STATES for job in jobs)
    versions = {version.id: version for version in session.scalars(select(VersionRow))}
    for job in jobs:
        batch = planned.get(names[job.batch_id])  # type: ignore[arg-type]
        if batch is None:
            continue
        states, error_class = plan.endings(batch, job.checkpoint_path)
        told = f"job {job.id} ({job.checkpoint_name}, {job.recipe_name}) is {job.state}"
        if job.state not in states:
            problem = f"{told}, planned was {sorted(states)}; {job.error_class}: {job.error_message}"
            outcome.problems.append(problem + _rows_of(session, job.id))
        elif job.state == JobState.FAILED and job.error_class != error_class:
            outcome.problems.append(
                f"{told} by {job.error_class}, planned was {error_class}" + _rows_of(session, job.id)
            )
        if (job.version_id is not None) != (job.state == JobState.SUCCEEDED):
            outcome.problems.append(f"{told} and its version is {job.version_id}" + _rows_of(session, job.id))
        if job.version_id is not None and job.state == JobState.SUCCEEDED:
            content = f"{Path(job.checkpoint_path).name} {job.recipe_name}"
            digest = versions[job.version_id].package_digest
            if outcome.packages.setdefault(content, digest) != digest:
                outcome.problems.append(f"{content} became two packages: {outcome.packages[content]} and {digest}")


def _steps(session: Session, outcome: "Outcome") -> None:
    """Every step is final; its attempts have endings, fences without holes, and at most one success: the last."""
    attempts = defaultdict(list)
    for attempt in session.scalars(select(AttemptRow).order_by(AttemptRow.fence)):
        attempts[attempt.step_id].append(attempt)
        outcome.attempts[attempt.outcome or "none"] += 1
    for step in session.scalars(select(StepRow)).all():
        own = attempts[step.id]
        wrong = [problem for problem, holds in _wrong_with(step, own) if holds]
        if wrong:
            outcome.problems.append(
                f"step {step.id} ({step.kind}): {'; '.join(wrong)}" + _rows_of(session, step.job_id)
            )


def _wrong_with(step: StepRow, own: list[AttemptRow]) -> Iterator[tuple[str, bool]]:
    succeeded = [attempt for attempt in own if attempt.outcome == AttemptOutcome.SUCCEEDED]
    ran_itself = step.state == StepState.SUCCEEDED and step.reused_step_id is None
    yield f"it is {step.state}", step.state not in FINAL_STEP_STATES
    yield "it still holds a lease", step.lease_expires_at is not None
    yield "it has no time of its end", step.finished_at is None
    yield "it succeeded without a result", step.state == StepState.SUCCEEDED and step.result is None
    fences = [attempt.fence for attempt in own]
    yield f"its fence is {step.fence}, its attempts have {fences}", fences != list(range(1, step.fence + 1))
    endless = [attempt.fence for attempt in own if attempt.outcome is None or attempt.finished_at is None]
    yield f"attempts without an ending: {endless}", bool(endless)
    yield f"it succeeded {len(succeeded)} times", len(succeeded) > 1
    yield "an attempt succeeded and it did not", bool(succeeded) and step.state != StepState.SUCCEEDED
    yield (
        "it succeeded by an attempt that is not its last",
        ran_itself and (not own or own[-1].outcome != AttemptOutcome.SUCCEEDED),
    )


def _versions(session: Session, outcome: "Outcome") -> None:
    """Each package is one version of its model, numbers have no holes, and each names a job that published it."""
    versions = defaultdict(list)
    for version in session.scalars(select(VersionRow).order_by(VersionRow.number)):
        versions[version.model_id].append(version)
    outcome.versions = sum(map(len, versions.values()))
    wanted: dict[tuple[str, str], set[str]] = defaultdict(set)
    for job in session.scalars(select(JobRow).where(JobRow.version_id.is_not(None))):
        digest = session.get_one(VersionRow, job.version_id).package_digest
        wanted[job.team, job.model_name].add(digest)
    for model in session.scalars(select(ModelRow)).all():
        own = versions[model.id]
        digests, numbers = [version.package_digest for version in own], [version.number for version in own]
        outcome.published_twice += len(digests) - len(set(digests))
        if numbers != list(range(1, len(own) + 1)) or model.next_number != len(own) + 1:
            outcome.problems.append(f"{model.name} of {model.team} has {numbers}, the next is {model.next_number}")
        if set(digests) != wanted[model.team, model.name]:
            outcome.problems.append(f"{model.name} of {model.team} has versions that no job published: {digests}")


def _workspaces(stack: ChaosStack) -> list[str]:
    workspaces = stack.directory / "data/workspaces"
    sweep(workspaces)  # what a worker does that starts; the last one may have been killed a moment before the end
    left = [path for path in workspaces.rglob("*") if path.is_file()]
    return [f"a workspace is left over: {path.relative_to(stack.directory)}" for path in left]


def _store(stack: ChaosStack) -> list[str]:
    """Every artifact that is referred to is whole; after retention there is nothing else."""
    problems = []
    with stack.database.read() as session:
        digests = set(session.scalars(select(VersionRow.artifact_digest)))
        digests |= set(session.scalars(select(VersionRow.package_digest)))
        remembered = set(session.scalars(select(RememberedRow.artifact_digest)))
    digests |= {digest for digest in remembered if digest}
    chunks: set[str] = set()
    target = stack.directory / "laid-out"
    for digest in sorted(digests):
        try:
            stack.store.materialise(digest, target)
            chunks |= {chunk.sha256 for chunk in stack.store.manifest(digest).chunks()}
        except OlivepressError as error:
            problems.append(f"artifact {digest} is not whole: {error}")
        shutil.rmtree(target, ignore_errors=True)
    # What was written until now is old.
    time.sleep(0.05)
    periods = retention.Periods(unreferenced_s=0.0, settle_s=0.0)
    report = retention.run(stack.database, stack.store, periods)
    stack.store.sweep_temporary(0.0)
    if report.problem:
        problems.append(f"retention: {report.problem}")
    places = stack.store.places
    kept = {file.sha256 for file in places.manifests()}, {file.sha256 for file in places.chunks()}
    for name, found, needed in (("manifests", kept[0], digests), ("chunks", kept[1], chunks)):
        if found != needed:
            gone, left = sorted(needed - found), sorted(found - needed)
            problems.append(f"after retention {name} are missing: {gone}, left over: {left}")
    rest = [str(path) for place in (places.tmp, places.trash) for path in place.iterdir()]
    return problems + [f"the store has a left-over {path}" for path in rest]


def keep_evidence(stack: ChaosStack, directory: Path) -> None:
    """All rows as JSON lines, and the store, beside the logs: the small disk goes with this process."""
    evidence = directory / EVIDENCE
    evidence.mkdir(exist_ok=True)
    with stack.database.read() as session:
        for table in Table.metadata.sorted_tables:
            rows = session.execute(select(table)).mappings()
            lines = [json.dumps(dict(row), default=str) for row in rows]
            (evidence / f"{table.name}.jsonl").write_text("\n".join(lines) + "\n")
    with contextlib.suppress(OSError, shutil.Error):
        shutil.copytree(stack.store.root, evidence / "store")


def _rows_of(session: Session, job_id: int) -> str:
    """A job's steps and attempts, as a person reads them."""
    of_step = ("state", "fence", "attempts", "worker_id", "reused_step_id", "run_at")
    of_attempt = ("fence", "worker_id", "outcome", "signal", "error_message", "started_at", "finished_at")
    lines = []
    for step in session.scalars(select(StepRow).where(StepRow.job_id == job_id).order_by(StepRow.position)).all():
        lines.append(f"{step.kind} {_short(step, *of_step)}")
        own = session.scalars(select(AttemptRow).where(AttemptRow.step_id == step.id).order_by(AttemptRow.fence)).all()
        lines += [f"    {_short(attempt, *of_attempt)}" for attempt in own[-SHOWN_ATTEMPTS:]]
    return "".join(f"\n    {line}" for line in lines)


def _short(row: Any, *names: str) -> str:
    return ", ".join(f"{name}={getattr(row, name)}" for name in names if getattr(row, name) is not None)


def _described(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        age_s = time.time() - process.create_time()
        return f"{process.pid} (parent {process.ppid()}, {age_s:.0f} s old) {' '.join(process.cmdline())}"
    return str(process.pid)

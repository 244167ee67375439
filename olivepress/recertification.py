"""Use case: versions that an alias points to are measured again once the runtime is another one.

All of it is decided in the database: a scheduler that takes over, or two that act at once, start nothing twice. A
version is certified once for each runtime that comes; the key of its batch names the version, the runtime, and the
recertification before it, so that a runtime that comes back counts as another one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from olivepress.database import recertifying
from olivepress.database.recertifying import Candidate
from olivepress.database.remeasuring import RUNTIME, Again, insert_again
from olivepress.database.sessions import Database
from olivepress.database.unblocking import HasArtifact
from olivepress.errors import PermanentError
from olivepress.jobs import FINAL_JOB_STATES, JobId, JobKind

AT_ONCE = 2
LOWEST_PRIORITY = 0


class Due(StrEnum):
    """Whether a version is to be certified again."""

    DUE = "due"
    RUNNING = "running"
    DONE = "done"
    """It was, for this runtime."""
    CURRENT = "current"
    """Its certificate is of this runtime."""
    UNCERTIFIED = "uncertified"
    """It was published without a certificate, so none is out of date."""
    UNKNOWN = "unknown"
    """No worker lives, or they have different runtimes: nobody can say what the runtime is."""


@dataclass(frozen=True)
class Planned:
    """A version that an alias points to, and whether it is to be certified again."""

    candidate: Candidate
    due: Due


def plan(runtime: str | None, candidates: Iterable[Candidate]) -> list[Planned]:
    """What is to be done with each version now that this is the runtime of all workers (None: not known). Pure."""
    return [Planned(candidate, _due(runtime, candidate)) for candidate in candidates]


def _due(runtime: str | None, candidate: Candidate) -> Due:
    last = candidate.last
    if last is not None and last.state not in FINAL_JOB_STATES:
        return Due.RUNNING
    if runtime is None:
        return Due.UNKNOWN
    if last is not None:
        # Also where it ended without a verdict: what broke once is a person's to look at, not to be tried for ever.
        return Due.DONE if last.runtime == runtime else Due.DUE
    if candidate.certified_with is None:
        return Due.UNCERTIFIED
    return Due.CURRENT if candidate.certified_with == runtime else Due.DUE


def look(database: Database) -> tuple[str | None, list[Planned]]:
    """The runtime that all living workers have, and what it means for each version that an alias points to."""
    with database.read() as session:
        runtime = recertifying.runtime_of_workers(session)
        return runtime, plan(runtime, recertifying.candidates(session))


@dataclass(frozen=True)
class Started:
    """Jobs that were started, and why others could not be, a sentence for each."""

    jobs: list[JobId]
    problems: list[str]


def start_due(database: Database, has_artifact: HasArtifact, most: int | None = AT_ONCE) -> Started:
    """Start recertifications that are due, each in a transaction of its own.

    Args:
        most: how many may run at once, those that do included; None: all that are due.
    """
    runtime, planned = look(database)
    due = [one.candidate for one in planned if one.due is Due.DUE]
    running = sum(one.due is Due.RUNNING for one in planned)
    room = len(due) if most is None else max(0, most - running)
    started = Started([], [])
    for candidate in due:
        if len(started.jobs) >= room or runtime is None:
            break
        try:
            job_id = _start(database, has_artifact, candidate, runtime)
        except PermanentError as error:
            started.problems.append(str(error))
            continue
        if job_id is not None:
            started.jobs.append(job_id)
    return started


def _start(database: Database, has_artifact: HasArtifact, candidate: Candidate, runtime: str) -> JobId | None:
    """The new job; None where another scheduler was faster."""
    before = candidate.last.job_id if candidate.last is not None else 0
    again = Again(
        version_id=candidate.version_id,
        kind=JobKind.RECERTIFY,
        batch_name=f"recertify {candidate.version} with {RUNTIME} {runtime}",
        priority=LOWEST_PRIORITY,
        runtime=runtime,
        idempotency_key=f"recertify:{candidate.version_id}:{runtime}:{before}",
    )
    with database.write() as session:
        inserted = insert_again(session, again, has_artifact)
    return inserted[1] if inserted is not None else None

"""States of step, job and attempt; who moves each; what a crash leaves behind. Pure.

    step      who moves it
    BLOCKED   submission makes it so.  -> QUEUED, SUCCEEDED (remembered key): whoever finished the last
              predecessor, in the same transaction.  -> CANCELLED: the same, when a predecessor ended badly
    QUEUED    -> RUNNING: a worker, by claim.  -> SUCCEEDED: whoever finished the other step with this key.
              -> CANCELLED: the API.  -> FAILED: the scheduler, when no living worker could take it for long
    RUNNING   holds a lease and a fence.  -> SUCCEEDED, FAILED, CANCELLED: the worker that holds the fence, by
              finish.  -> QUEUED (retry, `run_at` in the future), DEAD: that worker, or the scheduler's
              rescue when the lease has run out
    others    final; nobody moves them

A crash of the API, the scheduler or Redis changes no row. A crash of a worker leaves RUNNING rows whose lease runs
out; rescue queues them again under a new fence, so the late answer of the old worker is discarded. A step is
therefore run at least once, and its result counts exactly once.

A job with a ladder tries one recipe after the other. Its steps up to the first validate are made by submission; those
of a next rung by whoever finished a validate whose gates failed, in the same transaction, in front of publish. A
job's recipe and model name are those of the rung that it is on.

A job's state is computed from its steps by `job_state` and stored beside them in the same transaction. A batch's
state is computed from its jobs by `batch_state` and never stored.
"""

import hashlib
import json
import random
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, NewType

from olivepress.errors import IllegalTransition

BatchId = NewType("BatchId", int)
JobId = NewType("JobId", int)
StepId = NewType("StepId", int)
AttemptId = NewType("AttemptId", int)

LEASE_S = 60.0
HEARTBEAT_EVERY_S = LEASE_S / 3
# Without a successful heartbeat for this long, a worker ends its own child: before anybody else may claim the step.
SELF_FENCE_S = LEASE_S * 0.8
MAX_ATTEMPTS = 3
RETRY_BASE_S = 2.0
RETRY_CAP_S = 300.0


class JobKind(StrEnum):
    """What a job is for; `steps.plan` says which steps that takes."""

    CONVERT = "convert"
    """A checkpoint becomes a model version."""
    IMPORT = "import"
    """An ONNX model directory that was made elsewhere becomes a model version."""
    VALIDATE = "validate"
    """A published version is measured again, because somebody asked."""
    RECERTIFY = "recertify"
    """A published version is measured again, because the runtime is another one; what fails is flagged."""

    @property
    def measures_again(self) -> bool:
        """Whether its subject is a version that exists."""
        return self in (JobKind.VALIDATE, JobKind.RECERTIFY)


class StepKind(StrEnum):
    """The units of a job; `steps.plan` orders them."""

    INGEST = "ingest"
    CONVERT = "convert"
    QUANTIZE = "quantize"
    PACKAGE = "package"
    REFERENCE = "reference"
    VALIDATE = "validate"
    PUBLISH = "publish"
    SEAL = "seal"
    """The report of a version that was measured again is signed; only where the stack signs."""


class StepState(StrEnum):
    """Where a step is; the module's docstring says who moves it."""

    BLOCKED = "blocked"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DEAD = "dead"
    CANCELLED = "cancelled"


class JobState(StrEnum):
    """Where a job or a batch is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AttemptOutcome(StrEnum):
    """How one run of a step ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CRASHED = "crashed"
    OUT_OF_MEMORY = "out_of_memory"
    TIME_LIMIT = "time_limit"
    CANCELLED = "cancelled"
    LEASE_LOST = "lease_lost"
    SHUTDOWN = "shutdown"


TRANSITIONS: dict[StepState, frozenset[StepState]] = {
    StepState.BLOCKED: frozenset({StepState.QUEUED, StepState.SUCCEEDED, StepState.CANCELLED}),
    StepState.QUEUED: frozenset({StepState.RUNNING, StepState.SUCCEEDED, StepState.CANCELLED, StepState.FAILED}),
    StepState.RUNNING: frozenset(
        {StepState.SUCCEEDED, StepState.FAILED, StepState.CANCELLED, StepState.QUEUED, StepState.DEAD}
    ),
    StepState.SUCCEEDED: frozenset(),
    StepState.FAILED: frozenset(),
    StepState.DEAD: frozenset(),
    StepState.CANCELLED: frozenset(),
}
FINAL_STEP_STATES = frozenset(state for state, targets in TRANSITIONS.items() if not targets)
FINAL_JOB_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})

# One job: each step needs all steps before it. Part of a step's key, so raise a number when a step's code changes
# what it writes for the same input.
STEP_VERSIONS: dict[StepKind, int] = {
    StepKind.INGEST: 4,
    StepKind.CONVERT: 4,
    StepKind.QUANTIZE: 2,
    StepKind.PACKAGE: 3,
    StepKind.REFERENCE: 3,
    StepKind.VALIDATE: 5,
    StepKind.PUBLISH: 1,
    StepKind.SEAL: 1,
}
# Run by a worker itself, in no child: one that has the signing key, once the stack has signed. They touch the database
# and the store only, so that they are no business of the pool that a job names.
PUBLISHING_STEPS = frozenset({StepKind.PUBLISH, StepKind.SEAL})
# More steps than any job has: the longest ladder takes fewer.
MAX_POSITION = 99


def check_transition(old: StepState, new: StepState) -> None:
    """Hold a change of state against the table.

    Raises:
        IllegalTransition: the table does not have it.
    """
    if new not in TRANSITIONS[old]:
        raise IllegalTransition(f"a step that is {old} cannot become {new}")


def job_state(steps: Iterable[StepState], *, gate_failed: bool = False) -> JobState:
    """The state of a job with these step states.

    A failed gate is a succeeded validate with verdict failed: no step failed, and yet the job did.
    """
    states = list(steps)
    if StepState.RUNNING in states:
        # Also while a cancelled job's step is being ended.
        return JobState.RUNNING
    if gate_failed or any(state in (StepState.FAILED, StepState.DEAD) for state in states):
        return JobState.FAILED
    if any(state is StepState.CANCELLED for state in states):
        return JobState.CANCELLED
    if all(state is StepState.SUCCEEDED for state in states):
        return JobState.SUCCEEDED
    return JobState.RUNNING if StepState.SUCCEEDED in states else JobState.QUEUED


def batch_state(jobs: Iterable[JobState]) -> JobState:
    """The state of a batch with these job states: failed as soon as it is over and one of its jobs failed."""
    states = list(jobs)
    if all(state in FINAL_JOB_STATES for state in states):
        for state in (JobState.FAILED, JobState.CANCELLED):
            if state in states:
                return state
        return JobState.SUCCEEDED
    return JobState.QUEUED if all(state is JobState.QUEUED for state in states) else JobState.RUNNING


def step_key(kind: StepKind, inputs: dict[str, Any], spec: dict[str, Any], fingerprint: str) -> str:
    """SHA-256 (hex) of everything that decides a step's result: the same key gives the same result.

    Args:
        kind: which step; its version in STEP_VERSIONS enters too.
        inputs: digests of the artifacts and checkpoints that go in.
        spec: what is asked, as JSON values; no path, name or time.
        fingerprint: the toolchain of the worker.
    """
    return digest_of([kind.value, STEP_VERSIONS[kind], inputs, spec, fingerprint])


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def rank(priority: int, position: int) -> int:
    """Order among a team's waiting steps, the smallest first: by priority (0 to 9, 9 first), then by progress.

    Steps of jobs that are further along go first, so that a batch's first models come early.
    """
    return (9 - priority) * 100 + MAX_POSITION - min(position, MAX_POSITION)


def retry_delay_s(attempt: int, jitter: random.Random) -> float:
    """Seconds to wait after the given attempt (1 is the first): exponential, capped, with full jitter.

    Method: Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015), the equal-jitter form.
    """
    delay: float = min(RETRY_CAP_S, RETRY_BASE_S * 2.0 ** (attempt - 1))
    return delay / 2 + jitter.uniform(0, delay / 2)

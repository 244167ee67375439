"""One attempt at a step, in a thread of the worker: claim, run the child, keep the lease, finish.

claimed ── remembered by identity (ingest) ──────────────► succeeded
   │
   ├─ publish, seal: a transaction, no child ────────────► succeeded
   │
   └─ child runs ─ Success ─ output into the store ──────► succeeded
                 ├ Failure, permanent ───────────────────► failed
                 ├ Failure, transient; crash; time limit ► queued again, dead after the last attempt
                 ├ the job was cancelled ────────────────► cancelled
                 ├ the worker shuts down ────────────────► queued again, the attempt does not count
                 └ the fence moved, or no heartbeat came
                   through for 0.8 of the lease ─────────► the child is ended, nothing is written
"""

import time
from pathlib import Path
from typing import Any

import structlog

from olivepress.database import attempt_logs, steps, unblocking
from olivepress.database.attempt_logs import Noted
from olivepress.database.sessions import Session
from olivepress.database.steps import Claim, Ending
from olivepress.errors import OlivepressError, ServiceUnavailable, TransientError
from olivepress.jobs import AttemptOutcome, StepId, StepKind
from olivepress.steps import (
    READS_CHECKPOINT,
    Done,
    JobFacts,
    StepResult,
    artifacts_of,
    ingest_key,
    spec_of,
    told_to_ingest,
)
from workers import endings
from workers.attempt_log import AttemptLog
from workers.child import ChildRequest, Failure, Progress, Success
from workers.child_process import ChildProcess
from workers.endings import Ended, completed, ending_of, failed, with_what_it_left
from workers.identity import CheckpointWatch, base_of
from workers.lease import Lease, LeaseLost
from workers.memory_allowance import Grant
from workers.runtime import Runtime
from workers.steps import publish, seal
from workers.workspace import Workspace, attempt_workspace

WAIT_FOR_MESSAGE_S = 0.2
# Between a child's last word and the end of its process lies next to nothing.
LAST_WORD_TO_END_S = 5.0
NOT_CLAIMED = "not claimed: done by now, or not this worker's"
log = structlog.get_logger(__name__)


def run(step_id: StepId, runtime: Runtime) -> str:
    """Claim the step and see it through; a step that is not there to be claimed is nobody's error.

    Returns:
        How it went, for people who look at the tasks; nothing acts on it.
    """
    if runtime.shutdown.is_set():
        return NOT_CLAIMED
    asked_at = time.monotonic()
    try:
        with runtime.database.write() as session:
            held = steps.claim(session, step_id, runtime.offer)
    except ServiceUnavailable as error:
        # The scheduler sends it again. If only the answer was lost, the lease gives it back.
        log.warning("claim_given_up", step_id=step_id, error=str(error))
        return NOT_CLAIMED
    if held is None:
        log.debug("step_not_claimed", step_id=step_id)
        return NOT_CLAIMED
    bound = log.bind(step_id=step_id, job_id=held.job_id, step=held.kind.value, attempt=held.attempt)
    bound.info("attempt_started")
    lease = Lease(held, runtime, asked_at)
    try:
        with lease.kept():
            outcome = Attempt(held, runtime, lease).run()
    except LeaseLost as error:
        bound.warning("attempt_discarded", reason=str(error))
        return "discarded: the lease was lost"
    runtime.ring()
    bound.info("attempt_ended", outcome=outcome.value)
    return outcome.value


class Attempt:
    """One run of a claimed step.

    Raises:
        LeaseLost: the database did not answer for most of the lease.
    """

    def __init__(self, held: Claim, runtime: Runtime, lease: Lease) -> None:
        self._held = held
        self._runtime = runtime
        self._lease = lease
        self._job, self._done = lease.again(self._read_facts)
        # What the child left in figures and words, once it has ended.
        self._left: Ending | None = None
        self._noted = Noted()

    def run(self) -> AttemptOutcome:
        """See the step through and write how it ended.

        Raises:
            LeaseLost: nothing was written.
        """
        try:
            if self._held.kind is StepKind.PUBLISH:
                return self._publish()
            if self._held.kind is StepKind.SEAL:
                return self._seal()
            return self._run_step()
        except LeaseLost:
            raise
        except OlivepressError as error:
            return self._fail(Ended(self._after(ending_of(error)), may_retry=isinstance(error, TransientError)))
        except Exception as error:  # The edge of the thread: a bug or a broken disk must not wait for the lease's end.
            log.exception("attempt_broke", step_id=self._held.step_id)
            return self._fail(Ended(self._after(ending_of(error)), may_retry=True))

    def _read_facts(self) -> tuple[JobFacts, Done]:
        with self._runtime.database.read() as session:
            return unblocking.job_facts(session, self._held.job_id), unblocking.done_steps(session, self._held.job_id)

    def _run_step(self) -> AttemptOutcome:
        watch = CheckpointWatch(self._held.kind, self._job, self._done)
        remember_as = self._held.key
        if self._held.kind is StepKind.INGEST:
            identity = watch.settled_identity()
            remember_as = self._ingest_key(identity) if identity else None
            if remember_as and (outcome := self._recall(remember_as)):
                return outcome
        watch.check()
        runtime = self._runtime
        with attempt_workspace(runtime.workspaces, self._held.step_id, self._held.fence) as workspace:
            ended = self._run_child(workspace)
            if ended.result is None:
                return self._fail(ended)
            watch.check()
            self._lease.check()
            artifact = self._store_output(workspace)
        result = StepResult(ended.result | watch.facts(), artifact)

        def succeed(session: Session) -> bool:
            attempt_logs.note(session, self._held, self._noted)
            return steps.succeed(
                session,
                self._held,
                result,
                runtime.offer,
                runtime.store.has,
                ending=ended.ending,
                remember_as=remember_as,
            )

        return self._lease.finish(AttemptOutcome.SUCCEEDED, succeed)

    def _ingest_key(self, identity: str) -> str:
        return ingest_key(identity, self._limits() | told_to_ingest(self._job), self._runtime.offer.fingerprint)

    def _limits(self) -> dict[str, Any]:
        """What the administrator lets ingest read."""
        settings = self._runtime.settings
        pickles = {"allow_pickle": True} if settings.allow_pickle else {}
        return {"roots": [str(root) for root in settings.roots], **pickles}

    def _recall(self, key: str) -> AttemptOutcome | None:
        offer, has_artifact = self._runtime.offer, self._runtime.store.has
        is_known = True

        def recall(session: Session) -> bool:
            nonlocal is_known
            known = unblocking.recall(session, key, has_artifact)
            is_known = known is not None
            if known is None:
                return True
            result = StepResult(known.result, known.artifact_digest)
            return steps.succeed(session, self._held, result, offer, has_artifact, reused_step_id=known.step_id)

        outcome = self._lease.finish(AttemptOutcome.SUCCEEDED, recall)
        return outcome if is_known else None

    def _publish(self) -> AttemptOutcome:
        runtime = self._runtime

        def publish_it(session: Session) -> bool:
            key_file = runtime.settings.signing_key_file
            published = publish.publish(session, runtime.store, self._held.job_id, self._done, key_file)
            said = {
                "model": published.model_name,
                "number": published.number,
                "is_new": published.is_new,
                "notes": [f"the alias was left where it is: {reason}" for reason in published.objections],
            }
            result = StepResult(said, published.artifact_digest)
            if not steps.succeed(session, self._held, result, runtime.offer, runtime.store.has):
                # Roll back: the version and the number are not ours to give.
                raise LeaseLost("the lease ran out before the publication was written")
            return True

        return self._lease.finish(AttemptOutcome.SUCCEEDED, publish_it)

    def _seal(self) -> AttemptOutcome:
        runtime = self._runtime

        def seal_it(session: Session) -> bool:
            said = seal.seal(session, self._held.job_id, self._done, runtime.settings.signing_key_file)
            return steps.succeed(session, self._held, StepResult(said), runtime.offer, runtime.store.has)

        return self._lease.finish(AttemptOutcome.SUCCEEDED, seal_it)

    def _store_output(self, workspace: Workspace) -> str | None:
        if not any(workspace.output.iterdir()):
            return None
        return self._runtime.store.put_directory(workspace.output).digest

    def _run_child(self, workspace: Workspace) -> Ended:
        inputs: dict[str, Path] = {}
        for name, digest in artifacts_of(self._held.kind, self._job, self._done).items():
            inputs[name] = workspace.inputs / name
            self._runtime.store.materialise(digest, inputs[name])
        if (must_end := self._must_end(0.0)) is not None:
            return must_end
        runtime, name = self._runtime, f"step-{self._held.step_id}-{self._held.fence}"
        assert runtime.memory is not None
        written = AttemptLog(workspace.log_file)
        with runtime.memory.granted(name) as grant:
            child = ChildProcess(self._request(workspace, inputs, grant))
            try:
                with (
                    runtime.watchdog.guard(self._lease.deadline, lambda: self._lease.give_up(child.kill)),
                    runtime.memory.watched(grant, child.keeper_pid, child.kill),
                    self._lease.noting(lambda: _noted(written, grant)),
                ):
                    ended = self._listen(child)
                    is_ending = ended.ending.outcome in (AttemptOutcome.SUCCEEDED, AttemptOutcome.FAILED)
                    child.end(LAST_WORD_TO_END_S if is_ending else 0.0, grant.family)
            finally:
                child.end(family=grant.family)
            written.finish()
            self._noted = Noted(written.tail(), written.lines, grant.peak_bytes or None, child.cpu_s)
            self._left = endings.spent(child, grant, self._noted)
            return completed(ended, self._left, grant)

    def _request(self, workspace: Workspace, inputs: dict[str, Path], grant: Grant) -> ChildRequest:
        spec = spec_of(self._held.kind, self._job, self._done)
        if self._held.kind is StepKind.INGEST:
            spec |= self._limits()
        if self._held.kind in READS_CHECKPOINT:
            base = base_of(self._job)
            spec["base"] = str(base) if base else None
        return ChildRequest(
            kind=self._held.kind,
            code=self._runtime.code,
            spec=spec,
            inputs=inputs,
            output=workspace.output,
            scratch=workspace.scratch,
            log_file=workspace.log_file,
            exclusive_lock=self._runtime.settings.exclusive_lock,
            control_group=grant.group,
        )

    def _listen(self, child: ChildProcess) -> Ended:
        """Until the child has said how it went, or must be ended."""
        started = time.monotonic()
        while True:
            try:
                message = child.receive(WAIT_FOR_MESSAGE_S)
            except EOFError:
                # The watchdog may have ended it.
                self._lease.check()
                return Ended(Ending(AttemptOutcome.CRASHED), may_retry=True)
            if isinstance(message, Success):
                return Ended(Ending(AttemptOutcome.SUCCEEDED, cpu_s=message.cpu_s), message.result)
            if isinstance(message, Failure):
                return failed(message)
            if isinstance(message, Progress):
                self._lease.show(message.phase, message.share)
            self._lease.check()
            if (must_end := self._must_end(time.monotonic() - started)) is not None:
                return must_end

    def _must_end(self, running_s: float) -> Ended | None:
        if self._held.step_id in self._runtime.cancelled:
            return endings.cancelled()
        if self._lease.must_let_go():
            return endings.shut_down()
        limit_s = self._runtime.settings.step_time_limit_s
        return endings.too_long(limit_s) if running_s > limit_s else None

    def _after(self, ending: Ending) -> Ending:
        """An ending that came after the child's: with what that left."""
        return with_what_it_left(ending, self._left) if self._left else ending

    def _fail(self, ended: Ended) -> AttemptOutcome:
        held, ending = self._held, ended.ending

        def fail(session: Session) -> bool:
            if self._left is not None:
                attempt_logs.note(session, held, self._noted)
            if ending.outcome is AttemptOutcome.CANCELLED:
                return steps.cancel_running(session, held, ending)
            if ending.outcome is AttemptOutcome.SHUTDOWN:
                return steps.hand_back(session, held, ending)
            return steps.fail(session, held, ending, may_retry=ended.may_retry)

        return self._lease.finish(ending.outcome, fail)


def _noted(written: AttemptLog, grant: Grant) -> Noted:
    written.read()
    return Noted(written.tail(), written.lines, grant.peak_bytes or None, round(grant.cpu_s, 2))

"""One attempt at a step, in a thread of the worker: claim, run the child, keep the lease, finish.

claimed ── remembered by identity (ingest) ──────────────► succeeded
   │
   ├─ publish: a transaction, no child ──────────────────► succeeded
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

import structlog

from olivepress.database import steps, unblocking
from olivepress.database.steps import Claim, Ending
from olivepress.errors import OlivepressError, ServiceUnavailable, TransientError
from olivepress.jobs import AttemptOutcome, StepId, StepKind
from olivepress.steps import StepResult, artifacts_of, ingest_key, spec_of
from workers.child import ChildRequest, Failure, Progress, Success
from workers.child_process import ChildProcess
from workers.endings import Ended, completed, ending_of, failed
from workers.identity import CheckpointWatch, base_of
from workers.lease import Lease, LeaseLost
from workers.runtime import Runtime
from workers.steps import publish
from workers.workspace import Workspace, attempt_workspace

WAIT_FOR_MESSAGE_S = 0.2
SAMPLE_MEMORY_EVERY_S = 0.5
log = structlog.get_logger(__name__)


def run(step_id: StepId, runtime: Runtime) -> None:
    """Claim the step and see it through; a step that is not there to be claimed is nobody's error."""
    with runtime.database.write() as session:
        held = steps.claim(session, step_id, runtime.offer)
    if held is None:
        log.debug("step_not_claimed", step_id=step_id)
        return
    bound = log.bind(step_id=step_id, job_id=held.job_id, step=held.kind.value, attempt=held.attempt)
    bound.info("attempt_started")
    try:
        outcome = Attempt(held, runtime).run()
    except LeaseLost as error:
        bound.warning("attempt_discarded", reason=str(error))
        return
    runtime.ring()
    bound.info("attempt_ended", outcome=outcome.value)


class Attempt:
    """One run of a claimed step."""

    def __init__(self, held: Claim, runtime: Runtime) -> None:
        self._held = held
        self._runtime = runtime
        self._lease = Lease(held, runtime)
        with runtime.database.read() as session:
            self._job = unblocking.job_facts(session, held.job_id)
            self._done = unblocking.done_steps(session, held.job_id)

    def run(self) -> AttemptOutcome:
        """See the step through and write how it ended.

        Raises:
            LeaseLost: nothing was written.
        """
        try:
            if self._held.kind is StepKind.PUBLISH:
                return self._publish()
            return self._run_step()
        except (ServiceUnavailable, LeaseLost):
            raise
        except OlivepressError as error:
            return self._fail(Ended(ending_of(error), may_retry=isinstance(error, TransientError)))
        except Exception as error:  # The edge of the thread: a bug or a broken disk must not wait for the lease's end.
            log.exception("attempt_broke", step_id=self._held.step_id)
            return self._fail(Ended(ending_of(error), may_retry=True))

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
            self._lease.keep(None, None)
            artifact = self._store_output(workspace)
        result = StepResult(ended.result | watch.facts(), artifact)
        with runtime.database.write() as session:
            is_ours = steps.succeed(
                session,
                self._held,
                result,
                runtime.offer,
                runtime.store.has,
                ending=ended.ending,
                remember_as=remember_as,
            )
        return _written(is_ours, AttemptOutcome.SUCCEEDED)

    def _ingest_key(self, identity: str) -> str:
        return ingest_key(identity, self._roots(), self._runtime.offer.fingerprint)

    def _roots(self) -> list[str]:
        return [str(root) for root in self._runtime.settings.roots]

    def _recall(self, key: str) -> AttemptOutcome | None:
        with self._runtime.database.write() as session:
            known = unblocking.recall(session, key, self._runtime.store.has)
            if known is None:
                return None
            result = StepResult(known.result, known.artifact_digest)
            is_ours = steps.succeed(
                session, self._held, result, self._runtime.offer, self._runtime.store.has, reused_step_id=known.step_id
            )
        return _written(is_ours, AttemptOutcome.SUCCEEDED)

    def _publish(self) -> AttemptOutcome:
        runtime = self._runtime
        with runtime.database.write() as session:
            published = publish.publish(session, runtime.store, self._held.job_id, self._done)
            result = StepResult(
                {"model": published.model_name, "number": published.number, "is_new": published.is_new},
                published.artifact_digest,
            )
            if not steps.succeed(session, self._held, result, runtime.offer, runtime.store.has):
                # Roll back: the version and the number are not ours to give.
                raise LeaseLost("the lease ran out before the publication was written")
        return AttemptOutcome.SUCCEEDED

    def _store_output(self, workspace: Workspace) -> str | None:
        if not any(workspace.output.iterdir()):
            return None
        return self._runtime.store.put_directory(workspace.output).digest

    def _run_child(self, workspace: Workspace) -> Ended:
        runtime = self._runtime
        inputs: dict[str, Path] = {}
        for name, digest in artifacts_of(self._held.kind, self._done).items():
            inputs[name] = workspace.inputs / name
            runtime.store.materialise(digest, inputs[name])
        spec = spec_of(self._held.kind, self._job, self._done)
        if self._held.kind is StepKind.INGEST:
            spec["roots"] = self._roots()
        if self._held.kind is StepKind.CONVERT:
            base = base_of(self._job)
            spec["base"] = str(base) if base else None
        child = ChildProcess(
            ChildRequest(
                kind=self._held.kind,
                code=runtime.code,
                spec=spec,
                inputs=inputs,
                output=workspace.output,
                scratch=workspace.scratch,
                log_file=workspace.log_file,
                exclusive_lock=runtime.settings.exclusive_lock,
            )
        )
        try:
            ended = self._listen(child)
        finally:
            child.end()
        return completed(ended, child, workspace.log_file)

    def _listen(self, child: ChildProcess) -> Ended:
        """Until the child has said how it went, or must be ended."""
        started = sampled = time.monotonic()
        phase: str | None = None
        share: float | None = None
        while True:
            try:
                message = child.receive(WAIT_FOR_MESSAGE_S)
            except EOFError:
                return Ended(Ending(AttemptOutcome.CRASHED), may_retry=True)
            now = time.monotonic()
            if isinstance(message, Success):
                return Ended(Ending(AttemptOutcome.SUCCEEDED, cpu_s=message.cpu_s), message.result)
            if isinstance(message, Failure):
                return failed(message)
            if isinstance(message, Progress):
                phase, share = message.phase, message.share
            if now - sampled >= SAMPLE_MEMORY_EVERY_S:
                child.sample_memory()
                sampled = now
            self._lease.keep(phase, share)
            if (must_end := self._must_end(now - started)) is not None:
                return must_end

    def _must_end(self, running_s: float) -> Ended | None:
        runtime = self._runtime
        if self._held.step_id in runtime.cancelled:
            return Ended(Ending(AttemptOutcome.CANCELLED))
        if self._lease.must_let_go():
            return Ended(Ending(AttemptOutcome.SHUTDOWN))
        limit_s = runtime.settings.step_time_limit_s
        if running_s > limit_s:
            message = (
                f"the step ran longer than its time limit of {limit_s:.0f} s; raise OLIVEPRESS_STEP_TIME_LIMIT_S or "
                "look into the attempt's log for what it waits for"
            )
            ending = Ending(AttemptOutcome.TIME_LIMIT, error_class="TimeLimit", error_message=message)
            return Ended(ending, may_retry=True)
        return None

    def _fail(self, ended: Ended) -> AttemptOutcome:
        held, ending = self._held, ended.ending
        with self._runtime.database.write() as session:
            if ending.outcome is AttemptOutcome.CANCELLED:
                is_ours = steps.cancel_running(session, held, ending)
            elif ending.outcome is AttemptOutcome.SHUTDOWN:
                is_ours = steps.hand_back(session, held, ending)
            else:
                is_ours = steps.fail(session, held, ending, may_retry=ended.may_retry)
        return _written(is_ours, ending.outcome)


def _written(is_ours: bool, outcome: AttemptOutcome) -> AttemptOutcome:
    if not is_ours:
        raise LeaseLost("the step was given to somebody else before its end was written")
    return outcome

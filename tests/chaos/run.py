"""One run: batches are submitted and cancelled while things go wrong, then everything is repaired and must end."""

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import func, select

from olivepress.database.tables import BatchRow, JobRow
from olivepress.errors import ServiceUnavailable
from olivepress.jobs import FINAL_JOB_STATES
from olivepress.manifest import parse_manifest
from tests.chaos import checks
from tests.chaos.faults import Faults, rescue_times
from tests.chaos.plan import Plan, PlannedBatch
from tests.chaos.stack import ChaosStack, end, running_stack

FAULT_EVERY_S = (0.3, 1.5)
TICK_S = 0.02
# Two slots on two cores do about a job a second when nothing goes wrong.
SETTLE_S, SETTLE_PER_JOB_S = 40.0, 0.8
STRAYS_GONE_WITHIN_S = 3.0


@dataclass
class Outcome:
    """What a run gave."""

    jobs: int = 0
    states: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    versions: int = 0
    lost: int = 0
    published_twice: int = 0
    discarded: int = 0
    """Late answers of attempts that had lost their lease, as the workers' logs have them."""
    rescue_s: list[float] = field(default_factory=list)
    left_after_s: list[float] = field(default_factory=list)
    settled_s: float = 0.0
    packages: dict[str, str] = field(default_factory=dict)
    """Digest of the package of each checkpoint directory and recipe, as "directory recipe"."""
    problems: list[str] = field(default_factory=list)


class Submitter(threading.Thread):
    """Submits the plan's batches when their time has come and cancels some; tries again while the API is down."""

    def __init__(self, stack: ChaosStack, plan: Plan, seconds: float) -> None:
        super().__init__(name="submitter", daemon=True)
        self._stack, self._plan, self._seconds = stack, plan, seconds
        self._begun = time.monotonic()
        self.hurry = threading.Event()
        """Set: the rest is submitted at once."""
        self.give_up = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        """Until all is submitted, and cancelled where that was planned."""
        to_cancel: list[tuple[float, int]] = []
        try:
            for batch in self._plan.batches:
                self._wait_until(self._begun + batch.at_share * self._seconds)
                batch_id = self._submit(batch)
                if batch.cancel_after_s is not None:
                    to_cancel.append((time.monotonic() + batch.cancel_after_s, batch_id))
                to_cancel = [each for each in to_cancel if not self._cancel_if_due(*each)]
            for due, batch_id in to_cancel:
                self._wait_until(due)
                self._cancel_if_due(due, batch_id)
        except Exception as error:  # The edge of the thread: told at the end of the run.
            self.error = error

    def _wait_until(self, due: float) -> None:
        while time.monotonic() < due and not self.hurry.wait(min(0.05, max(0.0, due - time.monotonic()))):
            pass

    def _submit(self, batch: PlannedBatch) -> int:
        while True:
            try:
                with self._stack.client() as client:
                    return int(client.submit(parse_manifest(batch.manifest), batch.key)["id"])
            except ServiceUnavailable:
                if self.give_up.wait(0.2):
                    raise

    def _cancel_if_due(self, due: float, batch_id: int) -> bool:
        while time.monotonic() >= due or self.hurry.is_set():
            try:
                with self._stack.client() as client:
                    client.cancel_batch(batch_id)
                return True
            except ServiceUnavailable:
                if self.give_up.wait(0.2):
                    raise
        return False


def run(directory: Path, plan: Plan, kind: str, seed: int, seconds: float, lease_s: float) -> Outcome:
    """Run a plan.

    Args:
        directory: with the plan's checkpoints in `checkpoints`; all else is made.
        kind: of database, "sqlite" or "postgresql".
        seconds: how long things go wrong; 0: a quiet run.
    """
    outcome = Outcome(jobs=plan.jobs)
    with running_stack(directory, kind, lease_s, store_bytes=(64 + 4 * plan.jobs) * 2**20) as stack:
        faults = Faults(stack, random.Random(seed))
        submitter = Submitter(stack, plan, seconds)
        submitter.start()
        _let_things_go_wrong(faults, seconds)
        repaired = time.monotonic()
        submitter.hurry.set()
        settled = _wait_for_the_end(stack, plan, submitter, faults)
        outcome.settled_s = time.monotonic() - repaired
        submitter.give_up.set()
        outcome.problems += faults.problems + settled
        outcome.problems += checks.no_strays(stack, STRAYS_GONE_WITHIN_S)
        for process in stack.strays():
            process.kill()
        for name, code in end(stack).items():
            if not stack.services[name].has_ended_well(code):
                last = stack.services[name].last_lines()
                outcome.problems.append(f"{name} ended with {code} when it was asked to stop:\n{last}")
        outcome.problems += checks.no_strays(stack, STRAYS_GONE_WITHIN_S)
        outcome.rescue_s = rescue_times(stack.database, faults.killed_workers)
        outcome.faults, outcome.left_after_s = faults.counts, faults.left_after_s
        checks.all_of_it(stack, plan, outcome)
        if outcome.problems:
            checks.keep_evidence(stack, directory)
    return outcome


def _let_things_go_wrong(faults: Faults, seconds: float) -> None:
    finish = time.monotonic() + seconds
    next_fault = time.monotonic() + FAULT_EVERY_S[1]
    while time.monotonic() < finish:
        faults.work_off()
        faults.look_after()
        if time.monotonic() >= next_fault:
            faults.happen()
            next_fault = time.monotonic() + faults.chance.uniform(*FAULT_EVERY_S)
        time.sleep(TICK_S)
    faults.work_off(all_of_it=True)


def _wait_for_the_end(stack: ChaosStack, plan: Plan, submitter: Submitter, faults: Faults) -> list[str]:
    """Until everything is submitted and every job is final; what is not in time is a problem."""
    within_s = SETTLE_S + SETTLE_PER_JOB_S * plan.jobs
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        faults.work_off()
        if submitter.error:
            return [f"submitting failed: {submitter.error!r}"]
        if not submitter.is_alive() and _count_unfinished(stack) == 0:
            return []
        faults.look_after()
        time.sleep(0.1)
    return [f"not everything was over {within_s:.0f} s after the last fault: {_count_unfinished(stack)} jobs are not"]


def _count_unfinished(stack: ChaosStack) -> int:
    with stack.database.read() as session:
        # An empty database is no end.
        if not session.scalar(select(func.count()).select_from(BatchRow)):
            return 1
        return session.scalar(select(func.count()).where(JobRow.state.not_in(FINAL_JOB_STATES))) or 0

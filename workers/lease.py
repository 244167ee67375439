"""The worker's side of a lease: extends it in time, and knows by its own clock when it can no longer be sure of it.

A thread of each attempt's own sends the heartbeats, so neither a long copy nor a hanging database holds up anything
else. What must be written is tried again through an outage, for as long as nobody else can have been given the step.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import structlog

from olivepress import jobs
from olivepress.database import attempt_logs, steps
from olivepress.database.attempt_logs import Noted
from olivepress.database.sessions import Session
from olivepress.database.steps import Claim
from olivepress.errors import ServiceUnavailable, TransientError
from olivepress.jobs import AttemptOutcome
from workers.runtime import Runtime

LOOK_EVERY_S = 0.25
SHOW_PROGRESS_EVERY_S = 0.5
NOTE_EVERY_S = 2.0
# A heartbeat that failed, and anything else that met an outage.
BEAT_AGAIN_AFTER_S = 2.0
TRY_AGAIN_AFTER_S = 0.5
OUT_OF_REACH = "the database could not be reached for most of the lease"
log = structlog.get_logger(__name__)
T = TypeVar("T")


class LeaseLost(TransientError):
    """The step is somebody else's by now, or may become so: nothing of this attempt may be written."""


class Lease:
    """One claim's time.

    Args:
        asked_at: when (monotonic) the claim was sent: the lease began after that.
    """

    def __init__(self, held: Claim, runtime: Runtime, asked_at: float) -> None:
        self._held = held
        self._runtime = runtime
        self._sure_since = self._sent = asked_at
        # The first lines at once.
        self._noted_at = asked_at - NOTE_EVERY_S
        self._has_failed = False
        self._progress: tuple[str | None, float | None] = (None, None)
        self._shown: tuple[str | None, float | None] = (None, None)
        self._looked: Callable[[], Noted] | None = None
        self._noted = Noted()
        self._lost: str | None = None
        self._shutdown_at: float | None = None
        self._stop = threading.Event()

    def deadline(self) -> float:
        """When, on the monotonic clock, it can no longer be relied on: the watchdog ends the child then."""
        return self._sure_since + jobs.SELF_FENCE_S

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Send heartbeats meanwhile."""
        thread = threading.Thread(target=self._keep, name=f"lease-{self._held.step_id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            # Not joined: its last heartbeat may hang, and counts for nothing.
            self._stop.set()

    def show(self, phase: str, share: float) -> None:
        """Where the step is; goes into the row soon."""
        self._progress = (phase, share)

    @contextmanager
    def noting(self, look: Callable[[], Noted]) -> Iterator[None]:
        """Meanwhile write what `look` tells of the attempt into its row, soon after it changed."""
        self._looked = look
        try:
            yield
        finally:
            self._looked = None

    def beat(self) -> None:
        """Send a heartbeat when one is due, or soon after something changed. Errors are kept for `check`."""
        now = time.monotonic()
        noted = self._news(now)
        progress = self._progress
        is_news = progress != self._shown and now - self._sent >= SHOW_PROGRESS_EVERY_S
        every_s = min(BEAT_AGAIN_AFTER_S, jobs.HEARTBEAT_EVERY_S) if self._has_failed else jobs.HEARTBEAT_EVERY_S
        is_due = now - self._sent >= every_s
        if not is_due and (self._has_failed or not (is_news or noted)):
            return
        self._sent = now
        try:
            with self._runtime.database.write() as session:
                is_ours = steps.heartbeat(session, self._held, *progress)
                if is_ours and noted:
                    attempt_logs.note(session, self._held, noted)
        except ServiceUnavailable as error:
            self._has_failed = True
            log.warning("heartbeat_failed", step_id=self._held.step_id, error=str(error))
            return
        if not is_ours:
            self._lost = "the step was given to somebody else"
            return
        self._has_failed = False
        self._sure_since, self._shown = now, progress
        if noted:
            self._noted, self._noted_at = noted, now

    def give_up(self, kill: Callable[[], None]) -> None:
        """What the watchdog does past the deadline: a heartbeat that comes through afterwards brings nothing back."""
        self._lost = self._lost or OUT_OF_REACH
        kill()

    def check(self) -> None:
        """Hold the attempt against its lease.

        Raises:
            LeaseLost: the step is not ours any more, or has not been extended for too long to be sure.
        """
        if self._lost:
            raise LeaseLost(self._lost)
        if time.monotonic() >= self.deadline():
            raise LeaseLost(OUT_OF_REACH)

    def again(self, call: Callable[[], T]) -> T:
        """What `call` gives; tried again through an outage of the database.

        Raises:
            LeaseLost: the outage lasted too long.
        """
        while True:
            try:
                return call()
            except ServiceUnavailable as error:
                # Not `check`: a heartbeat finds nothing to extend also when our own end of the step was committed.
                if time.monotonic() >= self.deadline():
                    raise LeaseLost(OUT_OF_REACH) from error
                log.warning("tried_again", step_id=self._held.step_id, error=str(error))
                time.sleep(TRY_AGAIN_AFTER_S)

    def finish(self, outcome: AttemptOutcome, change: Callable[[Session], bool]) -> AttemptOutcome:
        """Commit the end of the attempt, in a transaction that is tried again through an outage.

        The connection may be cut while the answer to the commit is on its way. Then the second try finds the step
        finished, and the attempt's row says that we did it: the row belongs to this fence, and what others write into
        it (a rescue) is another outcome.

        Args:
            change: false, or LeaseLost to roll back, if the step is no longer this worker's.

        Raises:
            LeaseLost: it is not, or the outage lasted too long. Nothing was written.
        """

        def write() -> bool:
            try:
                with self._runtime.database.write() as session:
                    if change(session):
                        return True
            except LeaseLost:
                pass
            with self._runtime.database.read() as session:
                return attempt_logs.outcome_of(session, self._held) is outcome

        if not self.again(write):
            raise LeaseLost("the step was given to somebody else before its end was written")
        return outcome

    def must_let_go(self) -> bool:
        """Whether the worker was asked to end and the grace for running steps is over."""
        if not self._runtime.shutdown.is_set():
            return False
        if self._shutdown_at is None:
            self._shutdown_at = time.monotonic()
        return time.monotonic() - self._shutdown_at >= self._runtime.settings.shutdown_grace_s

    def _keep(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S) and self._lost is None:
            # So that the grace begins also while the attempt is busy with something else.
            self.must_let_go()
            try:
                self.beat()
            except Exception:  # The edge of the thread: without it the attempt would lose its lease and not say why.
                log.exception("heartbeat_broke", step_id=self._held.step_id)

    def _news(self, now: float) -> Noted | None:
        look = self._looked
        if look is None or now - self._noted_at < NOTE_EVERY_S:
            return None
        noted = look()
        is_due = now - self._sent >= jobs.HEARTBEAT_EVERY_S
        return noted if is_due or noted.log_lines != self._noted.log_lines else None

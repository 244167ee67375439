"""The worker's side of a lease: extends it in time, and knows by its own clock when it can no longer be sure of it."""

import time

import structlog

from olivepress import jobs
from olivepress.database import steps
from olivepress.database.steps import Claim
from olivepress.errors import ServiceUnavailable, TransientError
from workers.runtime import Runtime

SHOW_PROGRESS_EVERY_S = 0.5
log = structlog.get_logger(__name__)


class LeaseLost(TransientError):
    """The step is somebody else's by now, or may become so: nothing of this attempt may be written."""


class Lease:
    """One claim's time."""

    def __init__(self, held: Claim, runtime: Runtime) -> None:
        self._held = held
        self._runtime = runtime
        # From before the claim was sent would be exact; the claim was committed a moment ago, 0.8 covers it.
        self._sure_since = self._sent = time.monotonic()
        self._shown: tuple[str | None, float | None] = (None, None)
        self._shutdown_at: float | None = None

    def keep(self, phase: str | None, share: float | None) -> None:
        """Send a heartbeat when one is due, or soon after the progress changed.

        Raises:
            LeaseLost: the step is not ours any more, or has not been extended for too long to be sure.
        """
        now = time.monotonic()
        is_news = (phase, share) != self._shown and now - self._sent > SHOW_PROGRESS_EVERY_S
        if is_news or now - self._sent >= jobs.HEARTBEAT_EVERY_S:
            self._sent = now
            try:
                with self._runtime.database.write() as session:
                    is_ours = steps.heartbeat(session, self._held, phase, share)
            except ServiceUnavailable as error:
                log.warning("heartbeat_failed", step_id=self._held.step_id, error=str(error))
            else:
                if not is_ours:
                    raise LeaseLost("the step was given to somebody else")
                self._sure_since, self._shown = now, (phase, share)
        if time.monotonic() - self._sure_since > jobs.SELF_FENCE_S:
            raise LeaseLost("the database could not be reached for most of the lease")

    def must_let_go(self) -> bool:
        """Whether the worker was asked to end and the grace for running steps is over."""
        if not self._runtime.shutdown.is_set():
            return False
        if self._shutdown_at is None:
            self._shutdown_at = time.monotonic()
        return time.monotonic() - self._shutdown_at >= self._runtime.settings.shutdown_grace_s

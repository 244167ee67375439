"""How attempts end, in words: what the child said, and what only its supervisor knows."""

import signal
from dataclasses import dataclass, replace
from typing import Any

from olivepress.database.attempt_logs import Noted
from olivepress.database.steps import Ending
from olivepress.errors import OlivepressError, RuntimeCrashed
from olivepress.jobs import AttemptOutcome
from olivepress.placement import gib
from workers.child import Failure
from workers.child_process import ChildProcess
from workers.memory_allowance import Grant
from workers.out_of_memory import says_so

OUT_OF_MEMORY = "OutOfMemory"


@dataclass(frozen=True)
class Ended:
    """How a child ended, and what it left."""

    ending: Ending
    result: dict[str, Any] | None = None
    may_retry: bool = False
    is_out_of_memory: bool = False
    """The child said so itself."""


def ending_of(error: Exception) -> Ending:
    """An error that the worker itself met."""
    message = str(error)
    if not isinstance(error, OlivepressError):
        message = f"the worker met {type(error).__name__}: {error}; its log has the details"
    return Ending(AttemptOutcome.FAILED, error_class=type(error).__name__, error_message=message)


def failed(message: Failure) -> Ended:
    """An error that the child told."""
    ending = Ending(
        AttemptOutcome.FAILED,
        error_class=message.error_class,
        error_message=message.message,
        cpu_s=message.cpu_s,
    )
    return Ended(ending, may_retry=message.may_retry, is_out_of_memory=message.is_out_of_memory)


def cancelled() -> Ended:
    """Somebody cancelled the job."""
    return Ended(Ending(AttemptOutcome.CANCELLED, error_message="its job was cancelled"))


def shut_down() -> Ended:
    """The worker was asked to end."""
    message = "the worker was asked to end; the step went back to the queue, and this attempt does not count"
    return Ended(Ending(AttemptOutcome.SHUTDOWN, error_message=message))


def too_long(limit_s: float) -> Ended:
    """The step took more time than it may."""
    message = (
        f"the step ran longer than its time limit of {limit_s:.0f} s; raise OLIVEPRESS_STEP_TIME_LIMIT_S or "
        "look into the attempt's log for what it waits for"
    )
    return Ended(Ending(AttemptOutcome.TIME_LIMIT, error_class="TimeLimit", error_message=message), may_retry=True)


def spent(child: ChildProcess, grant: Grant, noted: Noted) -> Ending:
    """What the child leaves however it ended: exit code or signal, CPU seconds, peak memory, the log's tail."""
    return Ending(
        AttemptOutcome.SUCCEEDED,
        exit_code=child.exit_code,
        signal=child.signal,
        cpu_s=child.cpu_s if child.cpu_s is not None else grant.cpu_s,
        peak_rss_bytes=grant.peak_bytes or None,
        log_tail=noted.log_tail,
    )


def completed(ended: Ended, left: Ending, grant: Grant) -> Ended:
    """The ending with what the supervisor knows of it; one that was for want of memory is told as such."""
    ending = ended.ending
    if ending.outcome in (AttemptOutcome.CRASHED, AttemptOutcome.FAILED) and _is_out_of_memory(ended, left, grant):
        ending = replace(
            ending,
            outcome=AttemptOutcome.OUT_OF_MEMORY,
            error_class=OUT_OF_MEMORY,
            error_message=_memory_words(ending, grant),
        )
        ended = replace(ended, may_retry=True)
    elif ending.outcome is AttemptOutcome.CRASHED:
        message = f"the process that ran the step {_how(left)} without a result; the attempt's log has its last lines"
        ending = replace(ending, error_class="ChildCrashed", error_message=message)
    return replace(ended, ending=with_what_it_left(ending, left))


def with_what_it_left(ending: Ending, left: Ending) -> Ending:
    """An ending with the figures and the log of its child."""
    return replace(left, outcome=ending.outcome, error_class=ending.error_class, error_message=ending.error_message)


def _is_out_of_memory(ended: Ended, left: Ending, grant: Grant) -> bool:
    if grant.exceeded_bytes is not None or ended.is_out_of_memory:
        return True
    ending = ended.ending
    has_evidence = grant.kernel_killed or grant.was_near or grant.host_was_full
    says = says_so(left.log_tail or "")
    if ending.outcome is AttemptOutcome.CRASHED:
        # We send SIGKILL too, but those attempts have other outcomes.
        return says if left.signal != signal.SIGKILL else has_evidence or says
    # A process of the step's own, such as the one that measures, ended for it.
    is_crash_below = ending.error_class == RuntimeCrashed.__name__
    return is_crash_below and (says or ("SIGKILL" in (ending.error_message or "") and has_evidence))


def _memory_words(ending: Ending, grant: Grant) -> str:
    used = f"it used {gib(grant.peak_bytes)} of the {gib(grant.allowance_bytes)} that this worker gives a step"
    if grant.exceeded_bytes is not None:
        what = "the step was ended because it used more memory than it may"
    elif ending.outcome is AttemptOutcome.CRASHED or grant.kernel_killed:
        what = "the step was killed for want of memory"
    else:
        what = f"the step found no memory ({' '.join((ending.error_message or '').split())[:300]})"
    return f"{what}: {used}; raise OLIVEPRESS_MEMORY, or lower OLIVEPRESS_SLOTS so that each step gets a larger part"


def _how(left: Ending) -> str:
    if left.signal is None:
        return f"ended with exit code {left.exit_code}" if left.exit_code is not None else "ended"
    try:
        return f"was killed by {signal.Signals(left.signal).name} (signal {left.signal})"
    except ValueError:
        return f"was killed by signal {left.signal}"

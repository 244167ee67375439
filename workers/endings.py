"""How attempts end, in words: what the child said, and what only its parent knows."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from olivepress.database.steps import Ending
from olivepress.errors import OlivepressError
from olivepress.jobs import AttemptOutcome
from workers.child import Failure
from workers.child_process import ChildProcess

LOG_TAIL_LINES = 200
LOG_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True)
class Ended:
    """How a child ended, and what it left."""

    ending: Ending
    result: dict[str, Any] | None = None
    may_retry: bool = False


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
    return Ended(ending, may_retry=message.may_retry)


def completed(ended: Ended, child: ChildProcess, log_file: Path) -> Ended:
    """The ending with what only the parent knows: exit code or signal, peak memory, the log's tail."""
    ending, code = ended.ending, child.exit_code()
    error_class, error_message = ending.error_class, ending.error_message
    if ending.outcome is AttemptOutcome.CRASHED:
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        error_class = "ChildCrashed"
        error_message = f"the process that ran the step {how} without a result; the attempt's log has its last lines"
    full = replace(
        ending,
        exit_code=code if code is not None and code >= 0 else None,
        signal=-code if code is not None and code < 0 else None,
        error_class=error_class,
        error_message=error_message,
        peak_rss_bytes=child.peak_rss_bytes or None,
        log_tail=_tail(log_file),
    )
    return Ended(full, ended.result, ended.may_retry)


def _tail(log_file: Path) -> str:
    try:
        with log_file.open("rb") as log_stream:
            size = log_stream.seek(0, 2)
            log_stream.seek(max(0, size - LOG_TAIL_BYTES))
            text = log_stream.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    # PostgreSQL takes no NUL in text.
    return "\n".join(text.replace("\x00", "").splitlines()[-LOG_TAIL_LINES:])

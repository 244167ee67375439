"""What the toolchain's exceptions mean: one olivepress error for each, with the cause in the toolchain's own words."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from olivepress.errors import ConversionFailed, DiskFull, OlivepressError
from workers.toolchains.native_words import native_words

log = logging.getLogger(__name__)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
# safetensors and onnx write in Rust and C++, and tell the error number only in words.
NO_ROOM_IN_WORDS = ("No space left on device", "StorageFull", "Disk quota exceeded")


def is_disk_full(problem: BaseException | None) -> bool:
    """Whether this exception, or one that led to it, says that no room is left."""
    while problem is not None:
        if isinstance(problem, OSError) and problem.errno in NO_ROOM:
            return True
        if any(words in str(problem) for words in NO_ROOM_IN_WORDS):
            return True
        problem = problem.__cause__ or problem.__context__
    return False


def explained(problem: Exception, doing: str, what_now: str) -> OlivepressError:
    """The olivepress error that stands for an exception of the toolchain; `doing` and `what_now` as below."""
    if is_disk_full(problem):
        return DiskFull(f"no room was left in the workspace while {doing}; free some, and the step is tried again")
    return ConversionFailed(f"{doing} failed: {native_words(problem)} ({type(problem).__name__}); {what_now}")


@contextmanager
def told_as_conversion_failure(doing: str, what_now: str) -> Iterator[None]:
    """Turn whatever the toolchain raises in this block into DiskFull or ConversionFailed.

    This is the edge of the toolchain: over a bad checkpoint its libraries raise nearly every type.

    Args:
        doing: what goes on, such as "building int4 from /models/support-en".
        what_now: a sentence on what the reader can do.
    """
    try:
        yield
    except (OlivepressError, MemoryError):
        raise
    except Exception as problem:
        log.info("while %s", doing, exc_info=problem)
        raise explained(problem, doing, what_now) from problem

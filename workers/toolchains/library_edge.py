"""The edge to transformers and peft: whatever they raise over a stranger's files becomes one message."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

from olivepress.errors import BadCheckpoint, OlivepressError

log = logging.getLogger(__name__)

MESSAGE_CHARACTERS = 300
RUST_PANIC = "PanicException"


@contextmanager
def library_edge(problem: str, what_now: str) -> Iterator[None]:
    """Turn any exception into BadCheckpoint: the problem, what the library said of it, what to do now.

    Values of a stranger's config lead to exceptions of every type. The libraries are kept from printing their own
    reports as well; what they warn of goes to the attempt's log.
    """
    verbosity, shows_progress = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        for warning in caught:
            log.info("%s: %s", warning.category.__name__, warning.message)
    except (OlivepressError, MemoryError):
        raise
    except BaseException as error:
        # What Rust calls a panic, the tokenizers over a bad pattern, is no Exception in Python.
        if not isinstance(error, Exception) and type(error).__name__ != RUST_PANIC:
            raise
        log.info("the library said: %s: %s", type(error).__name__, error)
        said = " ".join(str(error).split())[:MESSAGE_CHARACTERS] or type(error).__name__
        raise BadCheckpoint(f"{problem} ({said}); {what_now}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shows_progress:
            transformers_logging.enable_progress_bar()

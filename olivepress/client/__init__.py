"""The Python client of the REST API: one thin method a route, JSON values out, olivepress errors raised.

One file per resource, on the transport that all of them use.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from olivepress.client.batches import BatchCalls
from olivepress.client.keys import KeyCalls
from olivepress.client.measuring import MeasuringCalls
from olivepress.client.models import ModelCalls
from olivepress.client.quotas import QuotaCalls
from olivepress.client.recipes import RecipeCalls
from olivepress.client.registry import RegistryCalls
from olivepress.client.stack import StackCalls
from olivepress.client.transport import DEFAULT_TEAM, Json
from olivepress.errors import DiskFull

__all__ = ["DEFAULT_TEAM", "Client", "Json", "OnBytes", "full_disk_is_named"]

OnBytes = Callable[[int, int], None]
"""Called with the bytes received and the bytes in all."""
NO_SPACE = 28


class Client(BatchCalls, KeyCalls, MeasuringCalls, ModelCalls, QuotaCalls, RecipeCalls, RegistryCalls, StackCalls):
    """A connection to the API; use as a context manager. Methods raise the olivepress error that the API answers.

    All raise ServiceUnavailable when the API does not answer, and NotAllowed when it refuses the key.
    """


@contextlib.contextmanager
def full_disk_is_named(directory: Path, needed_bytes: int) -> Iterator[None]:
    """Turns "no space left" while writing into a directory into DiskFull."""
    try:
        yield
    except OSError as error:
        if error.errno != NO_SPACE:
            raise
        needed_mb = needed_bytes / 1e6
        raise DiskFull(
            f"no room is left in {directory} for {needed_mb:.0f} MB; free some space and try again"
        ) from error

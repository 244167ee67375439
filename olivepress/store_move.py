"""Use case: copy the store into another one, so that the stack can go over to it."""

from collections.abc import Callable
from pathlib import Path

from olivepress.database.sessions import Database
from olivepress.database.store_views import who_writes
from olivepress.errors import PermanentError
from olivepress.retention import LEASE, Turn
from olivepress.store import Store, keeper_of
from olivepress.store.moving import Moved, Mover
from olivepress.store.protocol import Progress


def move(
    database: Database,
    source: Store,
    target: Store,
    *,
    verify: bool = False,
    while_running: bool = False,
    on_progress: Progress | None = None,
    must_stop: Callable[[], bool] = lambda: False,
) -> Moved:
    """Copy what `target` lacks; `source` stays as it is, and nothing is collected from it meanwhile.

    The API may run, for it only reads. What writes must be stopped for the run after which the stack goes over.

    Args:
        while_running: a run beside writers, to have less to copy in the one that counts.

    Raises:
        PermanentError: source and target are one, or a scheduler or workers run.
        TransientError: retention or a repair is under way.
        DiskFull, ServiceUnavailable.
    """
    refuse_one(source.name, target.name)
    if not while_running:
        with database.read() as session:
            writers = who_writes(session)
        if writers:
            raise PermanentError(
                f"{' and '.join(writers)} may write to {source.name} meanwhile; stop the stack, or copy most of it now "
                "with --while-running and run this again when the stack is stopped"
            )
    turn = Turn(database, must_stop, LEASE)
    try:
        return Mover(keeper_of(source), keeper_of(target), on_progress, turn.go_on).run(verify=verify)
    finally:
        turn.give_back()


def refuse_one(source: str, target: str) -> None:
    """Raises PermanentError where two stores' names mean one place, or one inside the other."""
    if _are_one(source, target):
        raise PermanentError(
            f"{target} is the store that is to be moved, or one lies in the other; choose another place"
        )


def _are_one(source: str, target: str) -> bool:
    if source.startswith("s3://") or target.startswith("s3://"):
        one, other = f"{source.rstrip('/')}/", f"{target.rstrip('/')}/"
        return one.startswith(other) or other.startswith(one)
    first, second = Path(source).resolve(), Path(target).expanduser().resolve()
    return first.is_relative_to(second) or second.is_relative_to(first)

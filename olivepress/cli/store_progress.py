"""How far a command that reads the whole store has come: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from olivepress.cli.output import console
from olivepress.cli.tables import duration, size

LINE_EVERY_S = 30.0


@contextmanager
def store_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Gives what to call with the bytes done and the bytes in all."""
    shown = console(stderr=True)
    if not shown.is_terminal:
        yield Lines(what).show
        return
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), DownloadColumn()),
        *(TransferSpeedColumn(), TimeRemainingColumn()),
    )
    with Progress(*columns, console=shown, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done_bytes, total_bytes: progress.update(task, completed=done_bytes, total=total_bytes)


class Lines:
    """Says now and then how far it is, and how long the rest takes at the present pace."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._clock = what, clock
        self._first: tuple[float, int] | None = None
        self._said_at = clock()

    def show(self, done_bytes: int, total_bytes: int) -> None:
        """Called with the bytes done and the bytes in all."""
        now = self._clock()
        if self._first is None:
            self._first = now, done_bytes
        if now - self._said_at < LINE_EVERY_S:
            return
        self._said_at = now
        began_at, at_first = self._first
        pace = (done_bytes - at_first) / max(now - began_at, 1e-9)
        left = f", {duration((total_bytes - done_bytes) / pace)} left" if pace > 0 else ""
        typer.echo(f"{self._what}: {size(done_bytes)} of {size(total_bytes)}{left}", err=True)

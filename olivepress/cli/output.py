"""Where a command's output goes: people read tables, scripts read one JSON document."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from olivepress.client import Client
from olivepress.connection import Connection

# Wide enough for every table, where there is no terminal that says how wide it is.
PIPE_SIZE = (100, 24)


def connect() -> Client:
    """The client for the stack that runs here, or that OLIVEPRESS_URL names."""
    found = Connection.discover()
    return Client(found.url, found.key)


def console(*, stderr: bool = False) -> Console:
    """A console for people, on standard output or standard error."""
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    width = None if is_terminal else shutil.get_terminal_size(PIPE_SIZE).columns
    return Console(stderr=stderr, width=width, highlight=False)


@contextmanager
def download_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error; gives what to call with the bytes done and the bytes in all."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        download = progress.add_task(what, total=None)
        yield lambda done_bytes, total_bytes: progress.update(download, completed=done_bytes, total=total_bytes)


def say(line: str) -> None:
    """Tell a person something, on standard error: it is no part of the output."""
    typer.echo(line, err=True)


def emit(value: Any) -> None:
    """Print the one JSON document of a command with --json."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))

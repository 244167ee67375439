"""`olivepress watch`: follow a batch, then show what became of it."""

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from olivepress.cli import FAILED
from olivepress.cli.options import AsJson, Team
from olivepress.cli.output import connect, console, emit
from olivepress.cli.progress import watch_batch
from olivepress.cli.tables import batch_table, failure_lines, reuse_lines
from olivepress.client import DEFAULT_TEAM, Client
from olivepress.errors import NotFound
from olivepress.jobs import JobState


def watch(
    batch: Annotated[int | None, typer.Argument(metavar="BATCH", min=1, help="Its id. Default: the newest.")] = None,
    team: Team = DEFAULT_TEAM,
    as_json: AsJson = False,
) -> None:
    """Follow a batch until it is over.

    Ctrl-C ends the watching, not the batch. The exit code is 1 if a job failed or was cancelled.

    [bold]Examples[/]
      olivepress watch                  the newest batch
      olivepress watch 7
      olivepress watch 7 --json | jq '.jobs[] | {name, version, error_message}'
    """
    with connect() as client:
        follow(client, batch if batch is not None else newest_batch(client, team), as_json=as_json)


def follow(client: Client, batch_id: int, *, as_json: bool) -> None:
    """Watch a batch, show what became of it, and exit with 1 unless all of its jobs succeeded."""
    try:
        batch = watch_batch(client, batch_id, console(stderr=as_json))
    except KeyboardInterrupt:
        typer.echo(
            f"\nbatch {batch_id} goes on without you; see it again: olivepress watch {batch_id}; "
            f"end it: olivepress cancel --batch {batch_id}",
            err=True,
        )
        raise
    if as_json:
        emit(batch)
    else:
        show_outcome(batch, console())
    if batch["state"] != JobState.SUCCEEDED:
        raise typer.Exit(FAILED)


def show_accepted(
    client: Client,
    submitted: dict[str, Any],
    accepted: str,
    *,
    watch: bool | None,
    as_json: bool,
    see: str | None = None,
) -> None:
    """Say what was accepted, or follow it where that was asked for or somebody looks.

    Args:
        submitted: the API's answer, with the batch's id.
        watch: None: on a terminal.
        see: the command that shows it; None: the one that watches the batch.
    """
    if sys.stdout.isatty() if watch is None else watch:
        typer.echo(accepted, err=True)
        follow(client, submitted["id"], as_json=as_json)
    elif as_json:
        emit(submitted)
    else:
        see = see or f"olivepress watch {submitted['id']}"
        typer.echo(f"{accepted}; see it: {see}")


def show_outcome(batch: dict[str, Any], to: Console) -> None:
    """The table of a batch that is over, what was reused, and the message of each job that failed."""
    to.print()
    to.print(batch_table(batch))
    for text in reuse_lines(batch):
        to.print(Text(text, style="dim"), soft_wrap=True)
    for line in failure_lines(batch):
        to.print(line, soft_wrap=True)
    versions = [job["version"] for job in batch["jobs"] if job["version"]]
    if versions:
        hint = f"install one: olivepress install {versions[0]} --foundry-cache DIR"
        to.print(Text(hint, style="dim"), soft_wrap=True)


def newest_batch(client: Client, team: str) -> int:
    """The id of the batch that was submitted last.

    Raises:
        NotFound: the team has none.
    """
    found = client.batches(team, limit=1)
    if not found:
        raise NotFound(f"team '{team}' has no batch yet; submit one: olivepress submit DIR")
    return int(found[0]["id"])

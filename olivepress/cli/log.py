"""`olivepress log`: what a job's steps print, also while they run."""

import json
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer

from olivepress.cli.options import AsJson
from olivepress.cli.output import connect, emit
from olivepress.client import Client
from olivepress.jobs import StepKind

INTERRUPTED = 130


def log(
    job_id: Annotated[int, typer.Argument(metavar="JOB", min=1, help="The job's number.")],
    step: Annotated[StepKind | None, typer.Option(help="Only of this step.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print or follow what a job's steps print.

    Of each attempt there are the last 200 lines. With --follow and --json, each event is one line of JSON.

    [bold]Examples[/]
      olivepress log 12 --step convert
      olivepress log 12 --follow
      olivepress log 12 -f --json | jq -r 'select(.event == "lines").lines[]'
    """
    try:
        with connect() as client:
            if not follow and as_json:
                emit(client.job_log(job_id, step))
                return
            for event in client.follow_log(job_id, step) if follow else _written(client, job_id, step):
                for line in [json.dumps(event, ensure_ascii=False)] if as_json else _as_text(event):
                    typer.echo(line)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _written(client: Client, job_id: int, step: str | None) -> Iterator[dict[str, Any]]:
    """What is there now, as the events of one who follows."""
    for part in client.job_log(job_id, step):
        who = {"step": part["step"], "attempt": part["attempt"]}
        yield {"event": "attempt", **who, "worker_id": part["worker_id"]}
        lines = part["log"].split("\n") if part["log"] else []
        yield {"event": "lines", **who, "skipped": max(0, part["log_lines"] - len(lines)), "lines": lines}
        if part["outcome"]:
            yield {"event": "ended", **who, "outcome": part["outcome"], "error_message": None}


def _as_text(event: dict[str, Any]) -> Iterable[str]:
    kind = event["event"]
    if kind == "lines":
        skipped = [f"… {event['skipped']} lines skipped"] if event["skipped"] else []
        return [*skipped, *event["lines"]]
    if kind == "over":
        return []
    who = f"--- {event['step']}, attempt {event['attempt']}"
    if kind == "attempt":
        return [f"{who}, on {event['worker_id']}"]
    return [f"{who}: {event['outcome']}" + (f": {event['error_message']}" if event["error_message"] else "")]

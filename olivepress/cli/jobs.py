"""`olivepress jobs`, `job` and `cancel`."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from olivepress.cli.options import AsJson, Team
from olivepress.cli.output import connect, console, emit
from olivepress.cli.tables import (
    attempts_table,
    duration,
    jobs_table,
    ladder_text,
    size,
    size_change,
    state_text,
    steps_table,
)
from olivepress.client import DEFAULT_TEAM
from olivepress.errors import BadManifest
from olivepress.jobs import FINAL_JOB_STATES, JobState, StepKind

LOG_LINES = 15


def jobs(
    state: Annotated[list[JobState] | None, typer.Option(help="Only jobs in this state; repeat for several.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, metavar="ID", help="Only jobs of this batch.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 30,
    before: Annotated[int | None, typer.Option(min=1, metavar="ID", help="Only older ones: the next page.")] = None,
    team: Team = DEFAULT_TEAM,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first.

    [bold]Examples[/]
      olivepress jobs
      olivepress jobs --state failed --limit 100
      olivepress jobs --batch 7 --json | jq '.[].version'
    """
    with connect() as client:
        found = client.jobs(team, states=state or (), batch=batch, limit=limit, before=before)
    if as_json:
        emit(found)
    elif found:
        console().print(jobs_table(found))
    else:
        typer.echo("no such job; submit one: olivepress submit DIR", err=True)


def job(
    job_id: Annotated[int, typer.Argument(metavar="ID", min=1, help="The job's number.")],
    log: Annotated[bool, typer.Option("--log", help="Print the whole log tails of all attempts.")] = False,
    step: Annotated[StepKind | None, typer.Option(help="With --log: only of this step.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a job: its steps, attempts, error and log.

    [bold]Examples[/]
      olivepress job 12
      olivepress job 12 --log --step convert
      olivepress job 12 --json | jq '.report.gates'
    """
    with connect() as client:
        found = client.job(job_id)
        logs = client.job_log(job_id, step)
    if as_json:
        emit(found | {"logs": logs})
    elif log:
        for part in logs:
            typer.echo(f"--- {part['step']}, attempt {part['attempt']}, {part['outcome'] or 'running'}")
            typer.echo(part["log"])
    else:
        _show_job(found, logs, console())


def cancel(
    job_id: Annotated[int | None, typer.Argument(metavar="JOB", min=1, help="The job's number.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, metavar="ID", help="All jobs of this batch.")] = None,
    as_json: AsJson = False,
) -> None:
    """Cancel a job, or a whole batch.

    Waiting steps end at once, a running one within seconds. What is published stays.

    [bold]Examples[/]
      olivepress cancel 12
      olivepress cancel --batch 7
    """
    if (job_id is None) == (batch is None):
        raise BadManifest("say what to cancel: either a JOB, or --batch ID")
    with connect() as client:
        found = client.cancel_job(job_id) if job_id is not None else client.cancel_batch(batch or 0)
    if as_json:
        emit(found)
        return
    what = f"job {job_id}" if job_id is not None else f"batch {batch}"
    ending = "" if found["state"] in FINAL_JOB_STATES else "; what runs is being ended"
    typer.echo(f"{what} is {found['state']}{ending}")


def _show_job(found: dict[str, Any], logs: list[dict[str, Any]], to: Console) -> None:
    title = f"job {found['id']}  {found['name']}  {found['recipe']}  "
    to.print(Text.assemble((title, "bold"), state_text(found["state"]), f"  {duration(found['seconds'])}"))
    facts = {"checkpoint": found["path"], "base": found["base"], "batch": str(found["batch_id"])}
    facts["measures"] = found.get("subject")
    if ingested := found["ingested"]:
        parts = (ingested.get("architecture"), ingested.get("dtype"), size(ingested.get("size_bytes")))
        facts["architecture"] = ", ".join(str(part) for part in parts if part)
    if found["ladder"]:
        facts["ladder"] = ladder_text(found)
    if found["version"]:
        figures = found["figures"] or {}
        sizes = size_change(figures.get("source_size_bytes"), figures.get("size_bytes"))
        facts["published as"] = f"{found['version']}  {sizes}"
    for name, value in facts.items():
        if value:
            to.print(Text(f"  {name:14}{value}"), soft_wrap=True)
    to.print(steps_table(found))
    for step in found["steps"]:
        for note in step.get("notes") or ():
            to.print(Text.assemble((f"note of {step['kind']}  ", "bold"), note), soft_wrap=True)
    for step in found["steps"]:
        if len(step["attempts"]) > 1 or step["error_message"]:
            to.print(Text(f"attempts of {step['kind']}", style="bold"))
            to.print(attempts_table(step))
    if found["error_message"]:
        to.print(Text.assemble(("error  ", "bold red"), found["error_message"]), soft_wrap=True)
        _show_log_tail(logs, to)


def _show_log_tail(logs: list[dict[str, Any]], to: Console) -> None:
    if not logs or not logs[-1]["log"].strip():
        return
    last = logs[-1]
    to.print(Text(f"end of the log of {last['step']}, attempt {last['attempt']} (all of it: --log)", style="bold"))
    for line in last["log"].splitlines()[-LOG_LINES:]:
        to.print(Text(f"  {line}", style="dim"), soft_wrap=True)

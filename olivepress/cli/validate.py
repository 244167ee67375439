"""`olivepress validate`: a published version is measured again."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from olivepress.cli.gates import Gates, read_gates
from olivepress.cli.options import AsJson, Team
from olivepress.cli.output import connect
from olivepress.cli.watch import show_accepted
from olivepress.client import DEFAULT_TEAM
from olivepress.errors import BadManifest
from olivepress.job_orders import ValidationOrder
from olivepress.manifest import read_prompts
from olivepress.registry import parse_reference
from olivepress.strict_model import describe


def validate(
    reference: Annotated[str, typer.Argument(metavar="NAME[:VERSION|@ALIAS]", help="Default version: @latest.")],
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Other domain prompts (JSONL). Default: those it was asked first."),
    ] = None,
    gates: Gates = None,
    soak: Annotated[
        str | None,
        typer.Option(metavar="LONG", help="Repeat sessions while memory is watched: 90s, 5m, or 50 sessions."),
    ] = None,
    priority: Annotated[int | None, typer.Option(min=0, max=9, help="9 goes first. Default: 5.")] = None,
    pool: Annotated[str | None, typer.Option(metavar="POOL", help="Only workers of this pool. Default: any.")] = None,
    watch: Annotated[
        bool | None, typer.Option("--watch/--no-watch", show_default=False, help="Follow it. Default: on a terminal.")
    ] = None,
    team: Team = DEFAULT_TEAM,
    as_json: AsJson = False,
) -> None:
    """Measure a published version again.

    Nothing is converted or published, and no alias moves. The report is the job's: olivepress report --job ID. What the
    source answers is known for the first prompts only. The exit code of --watch is 1 if a gate failed.

    [bold]Examples[/]
      olivepress validate support-en-int4
      olivepress validate support-en-int4:3 --prompts new.jsonl --soak 5m
      olivepress validate support-en-int4@production --gates max_rss_slope=1000 --gates min_prompts_passed=0.95
    """
    given = {"gates": read_gates(gates) or None, "soak": soak, "priority": priority, "pool": pool}
    asked = read_prompts(prompts) if prompts else None
    try:
        order = ValidationOrder.model_validate({k: v for k, v in {"prompts": asked, **given}.items() if v is not None})
    except ValidationError as error:
        raise BadManifest(f"the command line: {describe(error)}") from None
    with connect() as client:
        submitted = client.validate(parse_reference(reference), order, team)
        (job_id,) = submitted["jobs"]
        accepted, see = f"job {job_id} measures {reference} again", f"olivepress report --job {job_id}"
        show_accepted(client, submitted, accepted, watch=watch, as_json=as_json, see=see)

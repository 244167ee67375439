"""`olivepress recertify`: which versions are to be certified again, now that the runtime is another one."""

from typing import Annotated, Any

import typer
from rich.text import Text

from olivepress.cli.options import AsJson
from olivepress.cli.output import connect, console, emit
from olivepress.cli.tables import NOTHING, given, plain_table, state_text, word

SAID = {
    "due": "is to be certified again",
    "running": "is certified again now",
    "done": "was certified again",
    "current": "has a certificate of this runtime",
    "uncertified": "was published without a certificate",
    "unknown": "no worker lives, or they differ",
}


def recertify(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be started.")] = False,
    as_json: AsJson = False,
) -> None:
    """Certify versions again for another runtime.

    The scheduler does so by itself, two at a time, unless OLIVEPRESS_RECERTIFY is off; this starts all that are due. A
    version that an alias points to is certified once for each runtime; one that fails is flagged, and keeps its alias.

    [bold]Examples[/]
      olivepress recertify --dry-run
      olivepress recertify --json
    """
    with connect() as client:
        found = client.recertifications()
        started: dict[str, Any] = {"jobs": [], "problems": []} if dry_run else client.recertify()
    if as_json:
        emit(found | {"started": started})
        return
    out = console()
    table = plain_table("version", word("team"), "aliases", word("certified with"), word("job"), "now")
    for one in found["versions"]:
        said = Text.assemble(SAID.get(one["due"], one["due"]))
        if one["due"] == "done":
            said.append(": ").append_text(state_text(one["last_state"]))
        aliases = ", ".join(one["aliases"])
        certified_with = one["certified_with"] or NOTHING
        table.add_row(one["version"], one["team"], aliases, certified_with, given(one["last_job_id"]), said)
    out.print(f"the runtime of all workers: {found['runtime'] or 'not known'}")
    if found["versions"]:
        out.print(table)
    for problem in started["problems"]:
        out.print(Text(problem, style="yellow"), soft_wrap=True)
    if not dry_run:
        jobs = ", ".join(map(str, started["jobs"]))
        typer.echo(f"started: job {jobs}" if jobs else "nothing was due")

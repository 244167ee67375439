"""`olivepress report` and `olivepress compare`: what was measured of published versions."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from olivepress.cli.options import AsJson, Team
from olivepress.cli.output import connect, console, emit
from olivepress.cli.tables import figure, plain_table, state_text, word
from olivepress.client import DEFAULT_TEAM, Client
from olivepress.errors import BadArtifact, NotFound
from olivepress.foundry.inference_model import SUMS_FILE
from olivepress.registry import parse_reference
from olivepress.reports import document, wording
from olivepress.reports.compare import MEASURES, Compared, compare
from olivepress.reports.pages import compare_page, report_page

Json = dict[str, Any]
FILE_SUFFIX = ".json"
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write one self-contained page there.")]


def report(
    reference: Annotated[
        str, typer.Argument(metavar="NAME[:VERSION|@ALIAS]|FILE.json", help="Default version: @latest.")
    ] = "",
    job: Annotated[
        int | None, typer.Option("--job", min=1, metavar="ID", help="What this job measured, also where a gate failed.")
    ] = None,
    html: Html = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of reports instead.")] = False,
    team: Team = DEFAULT_TEAM,
    as_json: AsJson = False,
) -> None:
    """Show what was measured of a version.

    Its figures, gates, notes; as a page or a document also answers, charts and the certificate.

    [bold]Examples[/]
      olivepress report support-en-int4
      olivepress report support-en-int4:3 --html report.html
      olivepress report --job 12
      olivepress report support-en-int4@production --json > report.json
    """
    if schema:
        emit(document.schema())
        return
    if bool(reference) == (job is not None):
        raise typer.BadParameter("name a version, such as support-en-int4:3, or a --job", param_hint="NAME")
    found = _of_job(job) if job is not None else _documents([reference], team)[0]
    if html:
        html.write_text(report_page(found), encoding="utf-8")
        typer.echo(f"wrote {html}", err=True)
    if as_json:
        emit(found)
    elif not html:
        _show(found)


def compare_versions(
    references: Annotated[list[str], typer.Argument(metavar="NAME[:VERSION|@ALIAS]|FILE.json...")],
    html: Html = None,
    team: Team = DEFAULT_TEAM,
    as_json: AsJson = False,
) -> None:
    """Compare versions.

    Size, speed, memory, quality and verdicts beside each other, the best of each marked.

    [bold]Examples[/]
      olivepress compare support-en-int4 support-en-int8 support-en-fp16
      olivepress compare support-en-int4:1 support-en-int4:2 --html compare.html
    """
    documents = _documents(references, team)
    compared = compare(documents)
    if html:
        html.write_text(compare_page(documents), encoding="utf-8")
        typer.echo(f"wrote {html}", err=True)
    if as_json:
        emit(compared.to_dict())
    elif not html:
        console().print(_compared_table(compared))
        for note in compared.notes:
            console().print(Text(note, style="yellow"))


def _of_job(job_id: int) -> Json:
    with connect() as client:
        job = client.job(job_id)
    if job["report"] is None:
        raise NotFound(f"job {job_id} has measured nothing (yet); look at it: olivepress job {job_id}")
    return document.document_of_job(job)


def _documents(references: list[str], team: str) -> list[Json]:
    """The report documents of these versions or files; the stack is asked only where a version is named."""
    found: list[Json] = []
    client: Client | None = None
    try:
        for reference in references:
            if reference.endswith(FILE_SUFFIX):
                found.append(read_report(Path(reference)))
                continue
            client = client or connect()
            found.append(document.document_of(client.version(parse_reference(reference), team)))
    finally:
        if client is not None:
            client.close()
    return found


def read_report(path: Path) -> Json:
    """A report that `--json` wrote.

    Raises:
        BadArtifact: the file holds something else.
    """
    what_now = "write it with `olivepress report NAME --json`"
    if path.with_name(SUMS_FILE).exists():
        what_now = f"it is part of a version, which is verified as a whole: olivepress verify {path.parent}"
    try:
        found: Json = json.loads(path.read_text(encoding="utf-8"))
        known = found["schema_version"] == document.SCHEMA_VERSION and "gates" in found["report"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadArtifact(f"{path} is no report document; {what_now}") from error
    if not known:
        raise BadArtifact(f"{path} is a report of schema {found['schema_version']}, which is not known; {what_now}")
    return found


def _show(found: Json) -> None:
    out = console()
    heading = Text(found["version"], style="bold")
    heading.append(f"  {found['recipe']}  ", style="dim")
    out.print(heading.append_text(state_text(found["verdict"])))
    figures = plain_table("measure", figure("figure"), header=False)
    alone = compare([found])
    for row in alone.rows:
        figures.add_row(row.measure.title, row.figures[0].text)
    out.print(figures)
    if found["report"]["gates"] is None:
        out.print(Text(found["report"]["problem"], style="yellow"))
        return
    out.print(_gates_table(found["report"]["gates"]))
    if found["rungs"]:
        out.print(_rungs_table(found["rungs"]))
    missing = {measure.key for measure in MEASURES} - {row.measure.key for row in alone.rows}
    if "kl_divergence" in missing:
        problem = document.at(found["report"], "quality", "problem") or "validate again to measure it"
        out.print(Text(f"quality against the source was not measured: {problem}", style="yellow"))


def _gates_table(gates: list[Json]) -> Table:
    table = plain_table(word("gate"), word("verdict"), "why")
    for gate in gates:
        table.add_row(gate["name"], state_text(gate["verdict"]), gate["note"])
    return table


def _rungs_table(rungs: list[Json]) -> Table:
    """The recipes of a ladder in the order in which they were tried."""
    table = plain_table(word("rung"), word("verdict"), figure("size"), figure("tokens/s"), figure("KL"), "failed gates")
    for rung in rungs:
        table.add_row(
            rung["recipe"],
            state_text(rung["verdict"] or "not_measured"),
            wording.size(rung.get("size_bytes")),
            wording.digits((rung.get("figures") or {}).get("tokens_per_s")),
            wording.digits(rung.get("kl_divergence")),
            ", ".join(rung.get("failed_gates") or ()),
        )
    return table


def _compared_table(compared: Compared) -> Table:
    table = plain_table(word(""), *(figure(name.replace(":", "\n:")) for name in compared.versions))
    table.add_row("verdict", *map(state_text, compared.verdicts))
    for row in compared.rows:
        cells = [
            Text(f"{one.text} *" if one.is_best else one.text, style="green" if one.is_best else "")
            for one in row.figures
        ]
        table.add_row(row.measure.title, *cells)
    table.add_row("not beaten in everything", *("yes" if is_front else wording.NOTHING for is_front in compared.front))
    return table

"""`olivepress lineage`: where a version comes from, and what came from a checkpoint."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from rich.tree import Tree

from olivepress.cli.options import AsJson, Team
from olivepress.cli.output import connect, console, emit, say
from olivepress.cli.registry_tables import descendants_table, standing_lines
from olivepress.cli.tables import NOTHING, duration, size, state_text
from olivepress.client import DEFAULT_TEAM
from olivepress.lineage import schema as lineage_schema
from olivepress.lineage import short
from olivepress.lineage_drawing import drawing
from olivepress.registry import parse_reference
from olivepress.reports.lineage_page import lineage_page

Json = dict[str, Any]
DIGEST = re.compile("[0-9a-f]{8,64}")


def lineage(
    reference: Annotated[str, typer.Argument(metavar="NAME[:VERSION|@ALIAS]", help="Default version: @latest.")] = "",
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", metavar="DIGEST", help="Instead: what came from this checkpoint or base."),
    ] = None,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Write the drawing there.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write one self-contained page there.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a lineage instead.")] = False,
    team: Team = DEFAULT_TEAM,
    as_json: AsJson = False,
) -> None:
    """Show where a version comes from.

    Checkpoint, steps with their keys, toolchains and attempts, artifacts, aliases: as a tree, a document, a drawing.

    [bold]Examples[/]
      olivepress lineage support-en-int4:3
      olivepress lineage support-en-int4@production --html lineage.html
      olivepress lineage support-en-int4 --json | jq '.steps[].key'
      olivepress lineage --checkpoint c0ffee0123456789
    """
    if schema:
        emit(lineage_schema())
    elif checkpoint is not None:
        if reference:
            raise typer.BadParameter("give either a version or --checkpoint", param_hint="NAME")
        _show_descendants(checkpoint, team, as_json=as_json)
    elif reference:
        wanted = parse_reference(reference)
        with connect() as client:
            found = client.lineage(wanted, team)
        _write(found, svg, html)
        if as_json:
            emit(found)
        elif not (svg or html):
            _show(found)
    else:
        raise typer.BadParameter("name a version, such as support-en-int4:3", param_hint="NAME")


def _write(found: Json, svg: Path | None, html: Path | None) -> None:
    for file, content in ((svg, drawing), (html, lineage_page)):
        if file is not None:
            file.write_text(content(found), encoding="utf-8")
            say(f"wrote {file}")


def _show_descendants(digest: str, team: str, *, as_json: bool) -> None:
    if not DIGEST.fullmatch(digest):
        raise typer.BadParameter("write 8 to 64 digits of its SHA-256: 0-9, a-f", param_hint="--checkpoint")
    with connect() as client:
        found = client.descendants(digest, team)
    if as_json:
        emit(found)
    elif found:
        console().print(descendants_table(found))
    else:
        say(f"no version of team '{team}' came from the checkpoint {digest}")


def _show(found: Json) -> None:
    version = found["version"]
    heading = Text.assemble((version["version"], "bold"), "  ").append_text(state_text(version["verdict"]))
    tree = Tree(heading, guide_style="dim")
    for line in standing_lines(version):
        tree.add(line)
    names = {one["id"]: _thing_text(one) for one in found["things"]}
    made = {key for step in found["steps"] for key in step["made"]}
    given = tree.add(Text("from", style="dim"))
    for one in found["things"]:
        if one["id"] not in made and one["kind"] not in ("artifact", "report"):
            given.add(names[one["id"]])
    for step in found["steps"]:
        branch = tree.add(_step_text(step))
        for key in step["made"]:
            branch.add(Text("→ ").append_text(names[key]))
    if not found["steps"]:
        tree.add(Text("it was not made here: no steps are known", style="dim"))
    for again in version["validations"]:
        tree.add(_again_text(again))
    aliases = ", ".join(f"@{alias}" for alias in version["aliases"]) or NOTHING
    tree.add(Text(f"aliases: {aliases}; {size(version['size_bytes'])}; artifact {short(version['artifact_digest'])}"))
    console().print(tree)


def _again_text(again: Json) -> Text:
    """A validation after the publication."""
    what = "certified again" if again["kind"] == "recertify" else "validated again"
    text = Text.assemble((what, "bold"), f"  job {again['job_id']}  ").append_text(
        state_text(again["verdict"] or again["state"])
    )
    return text.append(f"  runtime {again['runtime']}", style="dim") if again["runtime"] else text


def _thing_text(one: Json) -> Text:
    name = one["name"] if one["kind"] in ("artifact", "report", "base", "prompts", "calibration") else ""
    text = Text(name or f"{one['kind']} {one['name']}")
    if one["digest"]:
        text.append(f"  {short(one['digest'])}", style="cyan")
    return text.append(f"  {one['detail']}", style="dim") if one["detail"] else text


def _step_text(step: Json) -> Text:
    text = Text(step["kind"], style="bold")
    text.append(f"  {duration(step['seconds'])}", style="")
    text.append(f"  {step['host'] or step['worker_id'] or NOTHING}", style="dim")
    if len(step["attempts"]) > 1:
        text.append(f"  {len(step['attempts'])} attempts", style="yellow")
    if step["is_reused"]:
        source = f"job {step['reused_job']}" if step["reused_job"] else "another team's job"
        text.append(f"  reused from {source}", style="green")
    return text.append(f"  key {short(step['key'])}", style="dim") if step["key"] else text

"""`olivepress recipes`: what a checkpoint can become, and recipes of one's own."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from olivepress.cli.options import AsJson, Team
from olivepress.cli.output import connect, console, emit
from olivepress.cli.tables import recipes_table
from olivepress.client import DEFAULT_TEAM
from olivepress.recipes.files import parse_recipe, read_mapping, schema, to_yaml
from olivepress.recipes.recipe import BUILT_IN, Recipe

Json = dict[str, Any]
app = typer.Typer(rich_markup_mode="rich", add_completion=False)
Reference = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="Without a version: the newest.")]


@app.callback(invoke_without_command=True)
def recipes(context: typer.Context, team: Team = DEFAULT_TEAM, as_json: AsJson = False) -> None:
    """List what a checkpoint can become.

    A recipe says precision, quantization, Foundry settings and gates. Those built in have names that begin with cpu-;
    a team keeps its own under names of its own, in numbered versions.

    [bold]Examples[/]
      olivepress recipes
      olivepress recipes show cpu-int4 > phi-small.yaml
      olivepress recipes add phi-small.yaml
      olivepress recipes --json | jq '.[].name'
    """
    if context.invoked_subcommand:
        return
    with connect() as client:
        found = client.recipes(team)
    if as_json:
        emit(found)
    else:
        console().print(recipes_table(found))


@app.command()
def show(reference: Reference, team: Team = DEFAULT_TEAM, as_json: AsJson = False) -> None:
    """Show a recipe, as the YAML that `olivepress recipes add` takes.

    Example: olivepress recipes show phi-small@2
    """
    found = _built_in(reference)
    if found is None:
        with connect() as client:
            found = client.recipe(reference, team)
    if as_json:
        emit(found)
    else:
        typer.echo(to_yaml(Recipe.from_dict(found)), nl=False)


@app.command()
def add(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A recipe in YAML or JSON.")],
    team: Team = DEFAULT_TEAM,
    as_json: AsJson = False,
) -> None:
    """Keep a recipe of your own under its name.

    Other content under a name that there is becomes its next version; the same content is the version that has it.

    Example: olivepress recipes add phi-small.yaml
    """
    keys = read_mapping(file, "a recipe")
    parse_recipe(keys, str(file), needs_name=True)
    with connect() as client:
        kept = client.add_recipe(keys, team)
        newest = client.recipe(kept["name"], team)
    if as_json:
        emit(kept)
        return
    reference = f"{kept['name']}@{kept['version']}"
    typer.echo(f"kept as {reference}; use it: olivepress submit DIR --recipe {kept['name']}")
    if newest["version"] != kept["version"]:
        note = f"{kept['name']} alone means version {newest['version']}; write {reference} for this one"
        typer.echo(f"note: this content was a version already, and not the newest: {note}", err=True)


@app.command()
def remove(reference: Reference, team: Team = DEFAULT_TEAM, as_json: AsJson = False) -> None:
    """Offer a recipe of your own no more: all versions, or the one that is named.

    Jobs that use it keep it, and each version can still be shown by its number.

    Example: olivepress recipes remove phi-small@1
    """
    with connect() as client:
        removed = client.remove_recipe(reference, team)
    if as_json:
        emit(removed)
    else:
        typer.echo("removed " + ", ".join(f"{recipe['name']}@{recipe['version']}" for recipe in removed))


@app.command("schema")
def print_schema() -> None:
    """Print the JSON schema of a recipe, for editors; needs no stack.

    Example: olivepress recipes schema > recipe.schema.json
    """
    typer.echo(json.dumps(schema(), indent=2))


def _built_in(reference: str) -> Json | None:
    """A built-in recipe, which needs no stack to be shown."""
    name, _, version = reference.partition("@")
    found = BUILT_IN.get(name)
    return found.to_dict() if found and version in ("", str(found.version)) else None

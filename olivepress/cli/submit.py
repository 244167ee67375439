"""`olivepress submit`: checkpoints, or a manifest, become a batch."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from olivepress.cli.options import AsJson
from olivepress.cli.output import connect
from olivepress.cli.watch import show_accepted
from olivepress.errors import BadManifest
from olivepress.manifest import (
    HUB_PREFIX,
    OLIVE_CONFIG,
    Manifest,
    load_manifest,
    parse_manifest,
    read_prompts,
    read_workflow,
)
from olivepress.recipes.auto_opt import recipe_for
from olivepress.recipes.calibration import read_calibration
from olivepress.recipes.olive_config import input_path, recipe_of_workflow


def submit(  # one parameter for each option
    directories: Annotated[
        list[str] | None, typer.Argument(metavar="DIR", show_default=False, help="Checkpoints; or a quoted glob.")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A batch.yaml instead of DIRs; options given here override it.")
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="NAME or NAME@VERSION; repeat for several. Default: cpu-int4."),
    ] = None,
    ladder: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Recipes in order, such as cpu-int4,cpu-int8: the first that passes counts."
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="PRECISION", help="int4, int8, fp16 or fp32: the built-in recipe of it.")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="With --precision: cpu or gpu.")] = None,
    provider: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --precision: such as CPUExecutionProvider.")
    ] = None,
    olive_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An Olive workflow of your own: its passes, as one more recipe.")
    ] = None,
    base: Annotated[str | None, typer.Option(metavar="DIR", help="The base of LoRA adapters.")] = None,
    name: Annotated[
        str | None, typer.Option(help="What a single DIR's model is called. Default: the folder's name.")
    ] = None,
    batch_name: Annotated[str | None, typer.Option(help="What the batch is called.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Domain prompts (JSONL): a question and what to expect, a line.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text that calibrated passes learn from: JSON lines or plain.")
    ] = None,
    team: Annotated[str | None, typer.Option(metavar="TEAM", help="Whose batch it is. Default: default.")] = None,
    priority: Annotated[int | None, typer.Option(min=0, max=9, help="9 goes first. Default: 5.")] = None,
    alias: Annotated[str | None, typer.Option(help="The alias to move to the new versions. Default: latest.")] = None,
    pool: Annotated[str | None, typer.Option(metavar="POOL", help="Only workers of this pool. Default: any.")] = None,
    soak: Annotated[
        str | None,
        typer.Option(metavar="LONG", help="Repeat sessions while memory is watched: 90s, 5m, or 50 sessions."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Validate anew what was validated before.")] = False,
    watch: Annotated[
        bool | None, typer.Option("--watch/--no-watch", show_default=False, help="Follow it. Default: on a terminal.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Submit checkpoints as one batch.

    Every checkpoint with every recipe is one job. What was done before for the same files is not done again.

    [bold]Examples[/]
      olivepress submit ./runs/support-en ./runs/support-fr
      olivepress submit ./runs/checkpoint-500 --name support-en --prompts support.jsonl
      olivepress submit ./lora/legal --base ./base --recipe cpu-int4 --recipe cpu-int8
      olivepress submit ./runs/support-en --ladder cpu-int4,cpu-int8,cpu-fp16 --prompts support.jsonl
      olivepress submit ./runs/support-en --precision int4 --device cpu --provider CPUExecutionProvider
      olivepress submit ./runs/support-en --olive-config finetuned_conversion_config.json
      olivepress submit --manifest batch.yaml --no-watch --json
    """
    recipes = [*(recipe or []), *_of_precision(precision, device, provider), *_of_workflow(olive_config)]
    changes = _given(
        name=batch_name,
        recipes=recipes or None,
        ladder=_rungs(ladder, recipes),
        prompts=read_prompts(prompts) if prompts else None,
        calibration=read_calibration(calibration) if calibration else None,
        team=team,
        priority=priority,
        alias=alias,
        pool=pool,
        soak=soak,
        fresh=fresh or None,
    )
    if manifest is not None:
        if directories or base or name:
            raise BadManifest("DIR, --base and --name do not go with --manifest; write them into its 'checkpoints'")
        wanted = _overridden(load_manifest(manifest), changes)
    else:
        entries = _entries(directories or [], base, name, olive_config)
        wanted = parse_manifest({"checkpoints": entries, **changes}, "the command line")
    with connect() as client:
        submitted = client.submit(wanted)
        accepted = f"batch {submitted['id']} with {_jobs(len(submitted['jobs']))}"
        show_accepted(client, submitted, accepted, watch=watch, as_json=as_json)


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"


def _rungs(ladder: str | None, recipes: list[Any]) -> list[str] | None:
    """The recipes of a ladder, as they are named on the command line."""
    if ladder is None:
        return None
    if recipes:
        raise BadManifest("--ladder does not go with other recipes; put all of them into it, in order")
    return [name for name in map(str.strip, ladder.split(",")) if name]


def _of_precision(precision: str | None, device: str | None, provider: str | None) -> list[str]:
    """The recipe that stands for the options of `olive auto-opt`."""
    if precision is None:
        if device or provider:
            raise BadManifest("--device and --provider go with --precision; add it, or name a --recipe instead")
        return []
    found = recipe_for(precision, device, provider)
    target = found.execution_provider.value
    typer.echo(f"--precision {precision} on {target.upper()} is the recipe {found.name}", err=True)
    return [found.name]


def _of_workflow(file: Path | None) -> list[dict[str, Any]]:
    """The recipe of an Olive workflow, with what was translated said on standard error."""
    if file is None:
        return []
    workflow = read_workflow(file)
    for note in recipe_of_workflow(workflow, str(file)).notes:
        typer.echo(f"{file.name}: {note}", err=True)
    return [{OLIVE_CONFIG: workflow}]


def _entries(
    directories: list[str], base: str | None, name: str | None, olive_config: Path | None
) -> list[dict[str, Any]]:
    if not directories and olive_config and (path := input_path(read_workflow(olive_config))):
        raise BadManifest(f"nothing to submit; name a checkpoint's DIR, such as the {path} that {olive_config} names")
    if not directories:
        raise BadManifest("nothing to submit; name a checkpoint's DIR, or a manifest with --manifest FILE")
    if name and len(directories) > 1:
        raise BadManifest(f"--name is for one DIR, here are {len(directories)}; a manifest can name each")
    for directory in directories:
        if directory.endswith((".yaml", ".yml")) and Path(directory).is_file():
            raise BadManifest(f"{directory} is a manifest, no checkpoint; submit it with --manifest {directory}")
    base_path = _absolute(base) if base else None
    return [_given(path=_absolute(directory), base=base_path, name=name) for directory in directories]


def _overridden(manifest: Manifest, changes: dict[str, Any]) -> Manifest:
    written = manifest.model_dump(exclude_none=True, exclude_unset=True)
    for one, other in (("ladder", "recipes"), ("recipes", "ladder")):
        if one in changes:
            written.pop(other, None)
    return parse_manifest(written | changes, "the command line")


def _absolute(path: str) -> str:
    """The path as a worker can find it. Links stay: a checkpoint is called as its folder here is."""
    if path.startswith(HUB_PREFIX):
        return path
    return os.path.abspath(Path(path).expanduser())  # noqa: PTH100  # also takes ".." away, which absolute() leaves


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}

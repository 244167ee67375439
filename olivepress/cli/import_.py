"""`olivepress import`: a model that was made elsewhere becomes a version of the stack, or an archive a directory."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from olivepress.checkpoints.model_files import declared_name, find_model_directory
from olivepress.cli.gates import Gates, read_gates
from olivepress.cli.install import register_by_sdk
from olivepress.cli.options import AsJson
from olivepress.cli.output import connect, download_bar, emit, say
from olivepress.cli.watch import show_accepted
from olivepress.client import full_disk_is_named
from olivepress.delivery import archive
from olivepress.errors import BadCheckpoint, BadManifest, PermanentError
from olivepress.evidence.known_keys import KnownKeys
from olivepress.evidence.trust import check_without_stack, unpacked_content
from olivepress.foundry.cache import install_into_cache
from olivepress.job_orders import ImportOrder
from olivepress.manifest import read_prompts
from olivepress.registry import name_from_directory
from olivepress.strict_model import describe


def import_(  # one parameter for each option
    source: Annotated[
        Path, typer.Argument(metavar="DIR|FILE", help="A model directory, or what `olivepress export` wrote.")
    ],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Only unpack FILE there, a new directory.")
    ] = None,
    foundry_cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Only install FILE there: Foundry Local's cache directory.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the model is called. Default: as it calls itself.")] = None,
    family: Annotated[
        str | None, typer.Option(metavar="FAMILY", help="Such as qwen2. Default: what its config says.")
    ] = None,
    made_from: Annotated[
        Path | None,
        typer.Option("--source", metavar="DIR", help="The checkpoint that it was made from, to compare with."),
    ] = None,
    base: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The base of --source, where that is an adapter.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Domain prompts (JSONL): a question and what to expect, a line.")
    ] = None,
    gates: Gates = None,
    soak: Annotated[
        str | None,
        typer.Option(metavar="LONG", help="Repeat sessions while memory is watched: 90s, 5m, or 50 sessions."),
    ] = None,
    without_validation: Annotated[
        bool, typer.Option("--without-validation", help="Publish it unmeasured; needs --reason, and is flagged.")
    ] = False,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="One line, which is kept.")] = None,
    alias: Annotated[str | None, typer.Option(help="The alias to move to it. Default: latest.")] = None,
    priority: Annotated[int | None, typer.Option(min=0, max=9, help="9 goes first. Default: 5.")] = None,
    pool: Annotated[str | None, typer.Option(metavar="POOL", help="Only workers of this pool. Default: any.")] = None,
    watch: Annotated[
        bool | None, typer.Option("--watch/--no-watch", show_default=False, help="Follow it. Default: on a terminal.")
    ] = None,
    team: Annotated[str | None, typer.Option("--team", metavar="TEAM", help="Whose model it is.")] = None,
    as_json: AsJson = False,
) -> None:
    """Import a model that was made elsewhere.

    A directory of onnxruntime-genai (a model builder's or Olive's output, an entry of a Foundry Local cache, a pulled
    version) or an exported FILE becomes a version of the stack: checked, measured, held against gates, published. A
    worker must see it under an allowed root. With --source it is proved against its checkpoint as a conversion is; else
    only its own files and your prompts tell whether it is right. With --to or --foundry-cache FILE is only unpacked or
    installed, without a stack. Nothing in either is trusted.

    [bold]Examples[/]
      olivepress import ./olive-output --name support-en-int4 --prompts support.jsonl
      olivepress import ./olive-output --source ./checkpoints/support-en
      olivepress import ~/.foundry/cache/models/Microsoft/phi-4-mini --gates edge_cases=false
      olivepress import ./model --without-validation --reason "measured by the vendor"
      olivepress import support-en.tar                   into the stack
      olivepress import support-en.tar --foundry-cache ~/.foundry/cache/models
      olivepress import support-en.tar --to ./support-en --json
    """
    if (reason is not None) != without_validation:
        raise BadManifest('--without-validation needs --reason "...", and --reason goes only with it')
    given = {
        "name": name,
        "family": family,
        "source": _seen(made_from) if made_from else None,
        "base": _seen(base) if base else None,
        "prompts": read_prompts(prompts) if prompts else None,
        "gates": read_gates(gates) or None,
        "soak": soak,
        "unvalidated": reason,
        "alias": alias,
        "priority": priority,
        "pool": pool,
        "team": team,
    }
    wanted = {key: value for key, value in given.items() if value is not None}
    if to is None and foundry_cache is None:
        _into_stack(source, wanted, watch=watch, as_json=as_json)
        return
    if to is not None and foundry_cache is not None:
        raise BadManifest("say where to: either --to DIR or --foundry-cache DIR")
    if wanted:
        raise BadManifest("with --to or --foundry-cache a FILE is unpacked as it is; leave the other options out")
    _out_of_archive(source, to, foundry_cache, as_json=as_json)


def _into_stack(source: Path, wanted: dict[str, Any], *, watch: bool | None, as_json: bool) -> None:
    path = _seen(source)
    try:
        name = wanted.get("name") or _own_name(Path(path))
        order = ImportOrder.model_validate({"path": path, "name": name, **wanted})
    except ValidationError as error:
        raise BadManifest(f"the command line: {describe(error)}") from None
    if order.unvalidated is None and not order.source:
        asked = "only your prompts tell" if order.prompts else "and without --prompts nothing tells"
        say(f"note: without --source it is not compared with its checkpoint, {asked} whether it answers as it should")
    with connect() as client:
        submitted = client.import_model(order)
        (job_id,) = submitted["jobs"]
        show_accepted(client, submitted, f"job {job_id} imports {order.name}", watch=watch, as_json=as_json)


def _seen(path: Path) -> str:
    """A path as a worker on this machine sees it."""
    return os.path.abspath(path.expanduser())  # noqa: PTH100  # also takes ".." away, which absolute() leaves


def _own_name(path: Path) -> str:
    """What the model calls itself, as far as this machine can see it; else the name of the directory or file."""
    if path.is_file():
        return archive.read_archive(path).model
    try:
        declared = declared_name(find_model_directory(path)) if path.is_dir() else None
    except (BadCheckpoint, OSError):
        # The worker says what is wrong with it; its path may be another machine's.
        declared = None
    return name_from_directory(declared.partition(":")[0] if declared else path.name)


def _out_of_archive(file: Path, to: Path | None, foundry_cache: Path | None, *, as_json: bool) -> None:
    if file.is_dir():
        raise BadManifest(f"{file} is a directory; with --to or --foundry-cache give the file that was exported")
    found = archive.read_archive(file)
    name = f"{found.model}:{found.number}"
    with download_bar(name) as show:

        def write(directory: Path) -> None:
            archive.extract(found, directory, show)
            check_without_stack(unpacked_content(directory, found.manifest), name, KnownKeys.default(), say)

        if foundry_cache is not None:
            installed = install_into_cache(write, foundry_cache, found.model, found.number, register=register_by_sdk)
            directory, was_there = installed.directory, installed.was_there
        else:
            directory, was_there = _unpack(write, found, to or Path()), False
    if as_json:
        emit({"version": name, "directory": str(directory), "was_there": was_there})
    else:
        typer.echo(f"{name} {'was there before' if was_there else 'is in'}: {directory}")


def _unpack(write: Callable[[Path], None], found: archive.Archive, target: Path) -> Path:
    """The version as a new directory, which appears whole or not at all."""
    target = target.expanduser().absolute()
    if target.exists():
        raise PermanentError(f"{target} exists already; remove it or choose another directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        with full_disk_is_named(target.parent, found.manifest.size_bytes):
            write(partial)
        # mkdtemp makes it private; this is as readable as any new directory.
        partial.chmod(0o755)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target

"""`olivepress up`: the whole stack on this machine."""

import os
import signal
import tempfile
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from olivepress.cli.options import AsJson
from olivepress.cli.output import emit
from olivepress.services.log_follower import LogFollower
from olivepress.services.stack import Stack
from olivepress.settings import Settings

CHECK_EVERY_S = 0.5


def up(
    root: Annotated[
        list[Path] | None,
        typer.Option(help="Directory under which checkpoints may lie; repeat for more. Default: home, here, /tmp."),
    ] = None,
    api_port: Annotated[int | None, typer.Option(help="Port of the API on loopback; 0: any free one.")] = None,
    flower_port: Annotated[int | None, typer.Option(help="Port of Flower on loopback; 0: any free one.")] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Steps that run at a time.")] = None,
    restart: Annotated[bool, typer.Option(help="Restart a part that dies.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show the services' log lines.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the API, the scheduler, a worker, Flower and an embedded Redis on this machine until Ctrl-C.

    Data lies in one directory (OLIVEPRESS_DATA_DIR) and survives restarts. With --json the addresses are printed as
    soon as the API answers.

    [bold]Examples[/]
      olivepress up
      olivepress up --root /models --root /scratch/runs --slots 2
      olivepress up --api-port 0 --quiet --json      any free port; a script reads which
    """
    settings = stack_settings(Settings(), root, api_port, flower_port, slots)
    console = Console(stderr=True)
    stop = stop_on_signals()
    with Stack(settings, may_restart=restart) as stack:
        if as_json:
            emit(vars(stack.access))
        _print_addresses(stack, settings, console)
        with LogFollower(stack.log_files, console, is_quiet=quiet):
            while not stop.wait(CHECK_EVERY_S):
                for event in stack.check():
                    console.print(f"[yellow]{event}[/]")
        console.print("stopping …")
    console.print("stopped; the data stays in", str(settings.data_dir))


def stack_settings(
    settings: Settings, roots: list[Path] | None, api_port: int | None, flower_port: int | None, slots: int | None
) -> Settings:
    """The settings with what the command line says; without any root: home, the current and the temporary directory."""
    chosen = roots or settings.roots or [Path.home(), Path.cwd(), Path(tempfile.gettempdir())]
    changes: dict[str, object] = {"checkpoint_roots": os.pathsep.join(str(path.resolve()) for path in chosen)}
    for name, value in (("api_port", api_port), ("flower_port", flower_port), ("slots", slots)):
        if value is not None:
            changes[name] = value
    return settings.model_copy(update=changes)


def stop_on_signals() -> threading.Event:
    """An event that SIGINT and SIGTERM set."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _print_addresses(stack: Stack, settings: Settings, console: Console) -> None:
    access = stack.access
    rows = {
        "API": access.url,
        "API documentation": f"{access.url}/docs",
        "admin key": access.admin_key_file,
        "Flower": f"{access.flower_url}  (user {access.flower_user}, password in {access.flower_password_file})",
        "data": str(settings.data_dir),
        "checkpoint roots": ", ".join(str(path) for path in settings.roots),
    }
    console.print("[bold]olivepress is up[/]; Ctrl-C stops it")
    for name, value in rows.items():
        console.print(f"  {name:18} {value}", highlight=False, soft_wrap=True)
    console.print("  next               olivepress submit DIR", highlight=False)

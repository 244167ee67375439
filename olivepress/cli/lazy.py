"""Commands that are imported when they are run: help is fast, and a client needs no server packages."""

import importlib
from dataclasses import dataclass
from typing import Any

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from olivepress.errors import PermanentError

OWN_PACKAGES = frozenset({"olivepress", "api", "scheduler", "workers"})


@dataclass(frozen=True)
class LazyCommand:
    """Where a command is defined, and what help says of it before it is loaded."""

    module: str
    attribute: str
    """A function with Typer annotations, or a Typer application with commands of its own."""
    summary: str
    panel: str
    extra: str | None = None
    """The extra of the distribution that it needs beyond the base."""


class LazyGroup(TyperGroup):
    """A group of lazy commands; `lazy_commands` is set by a subclass."""

    lazy_commands: dict[str, LazyCommand]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # What help and completion need to know of a command before it is loaded.
        self.commands = {
            **self.commands,
            **{
                name: TyperCommand(name, help=entry.summary, rich_help_panel=entry.panel)
                for name, entry in self.lazy_commands.items()
            },
        }

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command itself, now that it is to be run."""
        if args[0] not in self.lazy_commands:
            return super().resolve_command(ctx, args)
        return args[0], load(args[0], self.lazy_commands[args[0]]), args[1:]


def load(name: str, entry: LazyCommand) -> Any:
    """Import a command.

    Raises:
        PermanentError: an extra that it needs is not installed.
    """
    try:
        target = getattr(importlib.import_module(entry.module), entry.attribute)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if entry.extra is None or missing in OWN_PACKAGES:
            raise
        raise PermanentError(
            f"'olivepress {name}' needs packages that are not installed (the first is {missing}); "
            f"run: pip install 'olivepress[{entry.extra}]'"
        ) from None
    if not isinstance(target, typer.Typer):
        holder = typer.Typer(add_completion=False)
        holder.command(name)(target)
        target = holder
    command = typer.main.get_command(target)
    command.name = name
    return command

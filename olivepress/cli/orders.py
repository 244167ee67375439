"""Who gives a command, and why: what commands that change the registry have in common."""

import getpass
from typing import Annotated, Any

import typer

from olivepress.cli.output import say
from olivepress.cli.registry_tables import objections
from olivepress.registry import Order

UNKNOWN = "somebody"
Reason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="One line, which is kept.")]
Force = Annotated[bool, typer.Option("--force", help="Override what speaks against it; needs --reason.")]


def order(reason: str | None, *, is_forced: bool = False) -> Order:
    """What the user of this machine orders.

    Raises:
        BadManifest: it is forced without a reason, or the reason is no printable line.
    """
    return Order(user_name(), reason, is_forced)


def user_name() -> str:
    """Who uses this machine, as it knows them; no proof of anything."""
    try:
        name = getpass.getuser()
    except (ImportError, KeyError, OSError):
        # A user id without a name, as in a container.
        return UNKNOWN
    return name if name.strip() and name.isprintable() and len(name) <= 100 else UNKNOWN


def warn_about(version: dict[str, Any]) -> None:
    """Say on standard error what is known against a version (as `Client.version` gave it)."""
    for text in objections(version):
        say(f"warning: {version['version']}: {text}")

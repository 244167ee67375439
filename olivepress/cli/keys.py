"""`olivepress keys …`: the keys that sign what a stack publishes."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from olivepress.cli.lazy import LazyCommand, LazyGroup
from olivepress.cli.options import AsJson
from olivepress.cli.output import connect, console, emit, say
from olivepress.cli.tables import NOTHING, plain_table, word
from olivepress.errors import NotFound
from olivepress.evidence.known_keys import KnownKeys
from olivepress.evidence.signing import PublicKey
from olivepress.evidence.trust import Trust


class Commands(LazyGroup):
    """Those that a client has no packages for are loaded when they are run."""

    lazy_commands = {  # noqa: RUF012  # read only; ClassVar would clash with the attribute's declaration
        "rotate": LazyCommand(
            "olivepress.cli.rotate", "rotate", "Replace the key that signs, on the machine that has it.", "", "server"
        ),
    }


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Show, trust and replace the keys that sign.\n\nExample: olivepress keys show",
)


@app.callback()
def keys() -> None:
    """Show, trust and replace the keys that sign."""


@app.command()
def show(
    pem: Annotated[bool, typer.Option("--pem", help="Print only the present public key, as openssl reads it.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the stack's public keys, the newest first, and which of them this machine relies on.

    [bold]Examples[/]
      olivepress keys show
      olivepress keys show --pem > publisher.pem      for `olivepress verify --key`
    """
    with connect() as client:
        trust = Trust.of(client, say)
        found = client.signing_keys()
    if not found and not as_json:
        raise NotFound(f"{trust.stack} has published nothing that is signed; is OLIVEPRESS_SIGNING_KEY_FILE set there?")
    known, distrusted = trust.known.of(trust.stack), trust.known.distrusted()
    if as_json:
        here = [{"is_known_here": one["id"] in known, "is_distrusted": one["id"] in distrusted} for one in found]
        emit([entry | more for entry, more in zip(found, here, strict=True)])
        return
    if pem:
        typer.echo(PublicKey.from_text(found[0]["public_key"]).pem, nl=False)
        return
    table = plain_table(word("key"), "since", "handed over by", "known here")
    for entry in found:
        since = datetime.fromtimestamp(entry["created_at"], UTC).strftime("%Y-%m-%d %H:%M UTC")
        here_too = "yes" if entry["id"] in known else "distrusted" if entry["id"] in distrusted else "no"
        table.add_row(entry["id"], since, entry["endorsed_by"] or NOTHING, here_too)
    console().print(table)


@app.command()
def trust(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="The key's id, as whoever runs the stack told you.")],
    as_json: AsJson = False,
) -> None:
    """Rely on a key of the stack from now on.

    For a key that took the place of a known one without being handed over to. Ask whoever runs the stack for its id, by
    another way than the stack itself.

    [bold]Example[/]
      olivepress keys trust 3f9a5c0e7b21d846
    """
    with connect() as client:
        believed = Trust.of(client, say)
        key = believed.accept(key_id)
    if as_json:
        emit({"stack": believed.stack, "id": key.id, "public_key": key.text, "file": str(KnownKeys.default().file)})
    else:
        typer.echo(f"{key.id} is relied on for {believed.stack}")


@app.command()
def distrust(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="The key's id, as whoever runs the stack told you.")],
    as_json: AsJson = False,
) -> None:
    """Never rely on a key again, because somebody else may have it.

    What it signed is not verified any more, and a key that it hands over to is not believed. `olivepress keys trust`
    takes it back.

    [bold]Example[/]
      olivepress keys distrust 3f9a5c0e7b21d846
    """
    with connect() as client:
        believed = Trust.of(client, say)
        key = believed.refuse(key_id)
    if as_json:
        emit({"id": key.id, "public_key": key.text, "file": str(KnownKeys.default().file)})
    else:
        typer.echo(f"{key.id} is not relied on any more")

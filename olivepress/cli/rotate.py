"""`olivepress keys rotate`: a new signing key, which the old one hands over to."""

import typer

from olivepress.cli.options import AsJson
from olivepress.cli.output import emit
from olivepress.database import migrations, signing_keys
from olivepress.database.sessions import Database
from olivepress.errors import NotFound
from olivepress.evidence.signing import SigningKey
from olivepress.settings import SIGNING_KEY_FILE, Settings


def rotate(as_json: AsJson = False) -> None:
    """Replace the key that signs, on the machine that has it.

    Needs OLIVEPRESS_SIGNING_KEY_FILE (or the data directory of `olivepress up`) and the database. The old key signs the
    new one, so clients that know the old one go over by themselves; then it is gone. Versions that it signed stay
    verifiable: its public half stays known. Workers take the new key with their next publication; where several have a
    copy of the file, give all of them the new one.

    A key that somebody else may have must not hand over: delete its file, start the services again, and tell the users
    the new key's id (`olivepress keys trust`).

    [bold]Example[/]
      olivepress keys rotate
    """
    settings = Settings()
    file = settings.signing_key_file or settings.data_dir / SIGNING_KEY_FILE
    if not file.exists():
        raise NotFound(
            f"there is no signing key {file} to be replaced; set OLIVEPRESS_SIGNING_KEY_FILE, or run `olivepress up`"
        )
    old = SigningKey.load(file)
    fresh = SigningKey.write_new(file)
    try:
        new = SigningKey.load(fresh)
        database = Database(settings.database)
        try:
            migrations.check(database)
            with database.write() as session:
                signing_keys.note(session, old.public)
                signing_keys.note(session, new.public, old.public, old.endorse(new.public))
        finally:
            database.dispose()
        # Only now: what it signs can be verified by everybody from the first moment.
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)
    if as_json:
        emit({"file": str(file), "former": old.public.id, "id": new.public.id, "public_key": new.public.text})
    else:
        typer.echo(f"{file} holds the key {new.public.id} now; {old.public.id} handed over to it and is gone")

"""Tables and lines about models, versions and aliases, from the JSON values that the client gives."""

from collections.abc import Iterable
from typing import Any

from rich.table import Table
from rich.text import Text

from olivepress.cli.tables import (
    NOTHING,
    figure,
    given,
    milliseconds,
    number,
    plain_table,
    prompts_passed,
    size,
    state_text,
    when,
    word,
)
from olivepress.registry import Standing

Json = dict[str, Any]
CAUSES = {"published": "published", "promoted": "promoted", "rolled_back": "moved back", "deleted": "version deleted"}


def models_table(models: Iterable[Json]) -> Table:
    """Models with their newest version."""
    table = plain_table(
        "model",
        figure("newest"),
        word("recipe"),
        figure("size"),
        figure("tokens/s"),
        "aliases",
        word("published"),
    )
    for model in models:
        newest = model["newest"] or {}
        figures = newest.get("figures") or {}
        table.add_row(
            model["name"],
            str(newest.get("number", NOTHING)),
            newest.get("recipe", NOTHING),
            size(newest.get("size_bytes")),
            number(figures.get("tokens_per_s")),
            ", ".join(f"{alias} → {target}" for alias, target in model["aliases"].items()) or NOTHING,
            when(newest.get("created_at")),
        )
    return table


def versions_table(model: Json) -> Table:
    """The versions of one model, newest first."""
    table = plain_table(
        figure("version"),
        word("recipe"),
        figure("size"),
        figure("tokens/s"),
        figure("first\ntoken"),
        figure("prompts\npassed"),
        word("certif-\nicate"),
        figure("job"),
        "aliases",
        word("published"),
    )
    for version in model["versions"]:
        figures = version["figures"]
        table.add_row(
            str(version["number"]),
            version["recipe"],
            size(version["size_bytes"]),
            number(figures["tokens_per_s"]),
            milliseconds(figures["first_token_ms"]),
            prompts_passed(figures),
            state_text(figures["certificate"] or NOTHING),
            given(version["job_id"]),
            ", ".join(version["aliases"]) or NOTHING,
            when(version["created_at"]),
        )
    return table


def aliases_table(found: Json) -> Table:
    """Where the aliases of a model point (as `Client.aliases` gives them)."""
    table = plain_table("alias", figure("version"), word("since"), "by", "why")
    for alias in found["aliases"]:
        why = "; ".join([*filter(None, [alias["reason"]]), *_overridden(alias)])
        table.add_row(
            alias["alias"], str(alias["number"]), when(alias["moved_at"]), alias["moved_by"] or NOTHING, why or NOTHING
        )
    return table


def moves_table(moves: Iterable[Json]) -> Table:
    """Moves of aliases, as they are given."""
    table = plain_table(word("when"), "alias", figure("from"), figure("to"), word("what"), "by", "why")
    for move in moves:
        why = "; ".join([*filter(None, [move["reason"]]), *_overridden(move)])
        table.add_row(
            when(move["moved_at"]),
            move["alias"],
            given(move["from_number"]),
            given(move["to_number"]),
            CAUSES.get(move["cause"], move["cause"]),
            move["moved_by"],
            why or NOTHING,
        )
    return table


def descendants_table(versions: Iterable[Json]) -> Table:
    """Versions that came from a checkpoint (as `Client.descendants` gives them)."""
    table = plain_table(
        "model:version", word("recipe"), word("came from it as"), word("verdict"), word("published"), "note"
    )
    for version in versions:
        table.add_row(
            version["version"],
            version["recipe"],
            version["came_as"],
            state_text(version["verdict"]),
            when(version["created_at"]),
            "deleted" if version["is_deleted"] else NOTHING,
        )
    return table


def standing_lines(version: Json) -> list[Text]:
    """What is known against a version, and whether it is deleted: a line each."""
    name = version["version"]
    lines = [Text(f"{name}: {text}", style="yellow") for text in objections(version)]
    if deleted := version["deleted"]:
        reason = f" ({deleted['reason']})" if deleted["reason"] else ""
        until = when(deleted["files_until"])
        text = f"{name}: it was deleted by {deleted['deleted_by']}{reason}; its files stay until {until}"
        lines.append(Text(text, style="yellow"))
    return lines


def validation_lines(version: Json) -> list[Text]:
    """What was measured of a version again: a line each, oldest first."""
    lines = []
    for one in version.get("validations") or []:
        why = "" if one["kind"] == "validate" else " for another runtime"
        runtime = f", runtime {one['runtime']}" if one["runtime"] else ""
        outcome = one["verdict"] or one["state"]
        day = when(one["finished_at"] or one["created_at"])
        text = Text(f"{version['version']}: measured again{why} by job {one['job_id']}, {day}{runtime}: ")
        text.append_text(state_text(outcome))
        lines.append(text.append(f", signed by {one['signed_by']}" if one.get("signed_by") else ""))
    return lines


def objections(version: Json) -> list[str]:
    """What speaks against using a version."""
    # A stack of an older release says nothing of it.
    deprecated = version.get("deprecated") or {}
    flags, reason, successor = version.get("flags") or {}, deprecated.get("reason"), deprecated.get("successor")
    return Standing(version["version"], flags, reason, successor).objections()


def _overridden(move: Json) -> list[str]:
    return [f"although {text}" for text in move["overridden"]]

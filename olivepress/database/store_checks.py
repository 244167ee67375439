"""What checks of the store found last, for those who cannot look into it themselves."""

from typing import Any

from sqlalchemy.orm import Session

from olivepress.database.sessions import DatabaseNow, seconds_now
from olivepress.database.table import Json
from olivepress.database.tables import StoreCheckRow
from olivepress.database.upsert import upsert

FULL, FAST = "full", "fast"
# Of each list in a report: of a store that is damaged all over, the rest says no more.
KEPT = 200


def note(session: Session, report: Json) -> None:
    """Keep what a check found (`olivepress.store_check.Report.to_dict`) in place of the last one of its kind."""
    shown = {key: value[:KEPT] if isinstance(value, list) else value for key, value in report.items()}
    values: dict[str, Any] = {
        "kind": FAST if report["fast"] else FULL,
        "store": report["store"],
        "finished_at": DatabaseNow(),
        "is_sound": report["sound"],
        "report": shown,
    }
    statement = upsert(session, StoreCheckRow).values(values)
    session.execute(statement.on_conflict_do_update(index_elements=["kind"], set_=values))


def last(session: Session, kind: str = FULL) -> Json | None:
    """The last check of a kind: kind, store, finished_at, sound, report; None where there was none."""
    row = session.get(StoreCheckRow, kind)
    if row is None:
        return None
    return {
        "kind": row.kind,
        "store": row.store,
        "finished_at": row.finished_at,
        "sound": row.is_sound,
        "report": row.report,
    }


def seconds_since_last(session: Session, store: str) -> float | None:
    """How long ago the last full check of the store of this name was over; None: there was none, or of another."""
    row = session.get(StoreCheckRow, FULL)
    return None if row is None or row.store != store else seconds_now(session) - row.finished_at

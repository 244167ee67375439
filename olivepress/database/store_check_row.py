"""The table of what checks of the store found last."""

from sqlalchemy.orm import Mapped, mapped_column

from olivepress.database.table import Json, Table


class StoreCheckRow(Table):
    """The last check of its kind; the next one takes its place."""

    __tablename__ = "store_checks"

    kind: Mapped[str] = mapped_column(primary_key=True)
    """full, or fast: whether everything is there in full length."""
    store: Mapped[str]
    finished_at: Mapped[float]
    is_sound: Mapped[bool]
    report: Mapped[Json]

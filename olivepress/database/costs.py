"""What past attempts took, kept as ratios to the prediction, and the prediction of a step that they correct."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from olivepress.database.sessions import seconds_now
from olivepress.database.tables import LearnedCostRow
from olivepress.database.upsert import upsert
from olivepress.jobs import StepKind
from olivepress.recipes.recipe import Recipe
from olivepress.step_cost import Learned, Ratio, StepCost, corrected, cost_family_of, expected
from olivepress.steps import Done


def learned(session: Session) -> Learned:
    """All ratios: a few for each family of models in use."""
    rows = session.scalars(select(LearnedCostRow))
    return {(StepKind(row.kind), row.family): _ratio(row) for row in rows}


def predicted(session: Session, kind: StepKind, recipe: Recipe, done: Done) -> StepCost:
    """What a step of a job is going to take, as far as the steps before it tell."""
    ingested = done[StepKind.INGEST].result if StepKind.INGEST in done else {}
    cost = expected(kind, ingested, recipe)
    if not ingested:
        return cost
    row = session.get(LearnedCostRow, (kind.value, cost_family_of(ingested, recipe)))
    return corrected(cost, _ratio(row) if row else None)


def learn(session: Session, kind: StepKind, recipe: Recipe, done: Done, used: StepCost) -> None:
    """Take one succeeded attempt into the ratio of its kind and family.

    Args:
        done: with the result of the attempt's own step.
        used: what it took; without seconds or memory nothing is learned.
    """
    ingested = done[StepKind.INGEST].result
    predicted_cost = expected(kind, ingested, recipe)
    if not (used.memory_bytes and used.seconds is not None and predicted_cost.memory_bytes and predicted_cost.seconds):
        return
    key = (kind.value, cost_family_of(ingested, recipe))
    now = seconds_now(session)
    # Two first attempts of a family may end together: the second finds the row that this leaves.
    values = {"kind": key[0], "family": key[1], "memory_ratio": 1.0, "seconds_ratio": 1.0, "attempts": 0}
    session.execute(upsert(session, LearnedCostRow).values(updated_at=now, **values).on_conflict_do_nothing())
    row = session.get_one(LearnedCostRow, key, with_for_update=True, populate_existing=True)
    after = _ratio(row).after(used.memory_bytes / predicted_cost.memory_bytes, used.seconds / predicted_cost.seconds)
    row.memory_ratio, row.seconds_ratio, row.attempts = after.memory, after.seconds, after.attempts
    row.updated_at = now
    session.flush()


def _ratio(row: LearnedCostRow) -> Ratio:
    return Ratio(row.memory_ratio, row.seconds_ratio, row.attempts)

"""The ladder of a job: the next recipe where the gates of one failed, and what every rung gave."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from olivepress.database.figures import figures_in
from olivepress.database.new_steps import blocked_step
from olivepress.database.sessions import seconds_now
from olivepress.database.tables import JobRow, Json, StepRow
from olivepress.gates import Verdict
from olivepress.jobs import StepKind, StepState, rank
from olivepress.recipes.recipe import Recipe
from olivepress.registry import model_name
from olivepress.steps import rung_plan


def climb(session: Session, job: JobRow) -> bool:
    """Put a job whose gates failed on the next rung: its steps come in front of publish.

    Returns:
        False if there is no further rung.
    """
    if not job.ladder or job.rung + 1 >= len(job.ladder):
        return False
    job.rung += 1
    rung = job.ladder[job.rung]
    recipe = Recipe.from_dict(rung["recipe"])
    job.recipe, job.recipe_name = rung["recipe"], recipe.name
    job.model_name = model_name(job.checkpoint_name, rung["suffix"])
    is_publish = (StepRow.job_id == job.id) & (StepRow.kind == StepKind.PUBLISH)
    publish = session.scalars(select(StepRow).where(is_publish).with_for_update()).one()
    first, kinds = publish.position, rung_plan(recipe)
    publish.position = first + len(kinds)
    publish.rank = rank(job.priority, publish.position)
    session.flush()
    now = seconds_now(session)
    session.add_all(blocked_step(job, kind, position, now, rung=job.rung) for position, kind in enumerate(kinds, first))
    session.flush()
    return True


def report_part(session: Session, job_id: int) -> Json:
    """What a report says of the rungs of a job's ladder that were tried, the first first; {} without a ladder.

    It is no part of what validate remembers, for other jobs may come to the same artifact without the ladder.

    Returns:
        {"rungs": [{"recipe", "precision", "verdict", "size_bytes", "kl_divergence", "figures", "failed_gates": names}]}
    """
    ladder = session.scalars(select(JobRow.ladder).where(JobRow.id == job_id)).one()
    if not ladder:
        return {}
    query = (
        select(StepRow.rung, StepRow.result)
        .where(StepRow.job_id == job_id, StepRow.kind == StepKind.VALIDATE, StepRow.state == StepState.SUCCEEDED)
        .order_by(StepRow.rung)
    )
    return {"rungs": [_rung_view(ladder[rung]["recipe"], result or {}) for rung, result in session.execute(query)]}


def _rung_view(recipe: dict[str, Any], result: dict[str, Any]) -> Json:
    report = result.get("report", {})
    return {
        "recipe": recipe["name"],
        "precision": recipe["precision"],
        "verdict": result.get("verdict"),
        "size_bytes": report.get("size_bytes"),
        "kl_divergence": ((report.get("quality") or {}).get("held_out") or {}).get("kl_divergence"),
        "figures": figures_in(report),
        "failed_gates": [gate["name"] for gate in report.get("gates", ()) if gate["verdict"] == Verdict.FAILED],
    }

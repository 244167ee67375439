"""Publishing: a model version, its number and its alias in one transaction."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from olivepress.database.sessions import DatabaseNow
from olivepress.database.tables import AliasRow, JobRow, ModelRow, StepRow, VersionRow
from olivepress.database.upsert import upsert
from olivepress.jobs import StepKind


@dataclass(frozen=True)
class Publication:
    """What is about to become a model version."""

    job_id: int
    team: str
    model_name: str
    alias: str
    package_digest: str
    recipe_name: str
    precision: str
    family: str
    report: dict[str, Any]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Published:
    """The version that a job published, or found published with the same content."""

    model_name: str
    number: int
    artifact_digest: str
    is_new: bool


@dataclass(frozen=True)
class PublishedJob:
    """What publishing needs to know of a job."""

    team: str
    model_name: str
    checkpoint_name: str
    alias: str
    recipe: dict[str, Any]
    step_keys: dict[str, str]
    fingerprint: str | None


def published_job(session: Session, job_id: int) -> PublishedJob:
    """The names of a job, its recipe, and the keys of its steps for the provenance."""
    job = session.get_one(JobRow, job_id)
    # The key of an ingest is a place, not content; the checkpoint's digest stands for it.
    query = select(StepRow).where(StepRow.job_id == job_id, StepRow.kind != StepKind.INGEST)
    rows = {row.kind: row for row in session.scalars(query)}
    return PublishedJob(
        team=job.team,
        model_name=job.model_name,
        checkpoint_name=job.checkpoint_name,
        alias=job.alias,
        recipe=job.recipe,
        step_keys={kind: row.key for kind, row in rows.items() if row.key},
        fingerprint=rows[StepKind.CONVERT].fingerprint,
    )


# Number in, (digest of the artifact with its overlay, size in bytes) out.
WriteOverlay = Callable[[int], tuple[str, int]]


def publish_version(session: Session, wanted: Publication, write_overlay: WriteOverlay) -> Published:
    """Give the artifact the next number of its model and move the alias to it.

    The same content under the same name gives the version that exists. The overlay is written while the model's row is
    locked, because it holds the number; an interruption leaves unreferenced chunks and no version.
    """
    model = _locked_model(session, wanted.team, wanted.model_name)
    query = select(VersionRow).where(
        VersionRow.model_id == model.id, VersionRow.package_digest == wanted.package_digest
    )
    version = session.scalar(query)
    is_new = version is None
    if version is None:
        number = model.next_number
        artifact_digest, size_bytes = write_overlay(number)
        version = VersionRow(
            model_id=model.id,
            number=number,
            package_digest=wanted.package_digest,
            artifact_digest=artifact_digest,
            size_bytes=size_bytes,
            recipe_name=wanted.recipe_name,
            precision=wanted.precision,
            family=wanted.family,
            job_id=wanted.job_id,
            report=wanted.report,
            provenance=wanted.provenance,
            created_at=session.scalar(select(DatabaseNow())),
        )
        model.next_number = number + 1
        session.add(version)
        session.flush()
    _move_alias(session, model.id, wanted.alias, version.id)
    session.execute(update(JobRow).where(JobRow.id == wanted.job_id).values(version_id=version.id))
    return Published(wanted.model_name, version.number, version.artifact_digest, is_new)


def _locked_model(session: Session, team: str, name: str) -> ModelRow:
    session.execute(
        upsert(session, ModelRow)
        .values(team=team, name=name, next_number=1, created_at=DatabaseNow())
        .on_conflict_do_nothing(index_elements=["team", "name"])
    )
    query = select(ModelRow).where(ModelRow.team == team, ModelRow.name == name).with_for_update()
    return session.scalars(query).one()


def _move_alias(session: Session, model_id: int, name: str, version_id: int) -> None:
    alias = session.get(AliasRow, (model_id, name))
    now = session.scalar(select(DatabaseNow()))
    if alias is None:
        session.add(AliasRow(model_id=model_id, name=name, version_id=version_id, moved_at=now))
    elif alias.version_id != version_id:
        alias.version_id = version_id
        alias.moved_at = now or 0.0

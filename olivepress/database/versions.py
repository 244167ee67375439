"""Publishing: a model version, its number and its alias in one transaction; and finding what was published."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from olivepress.database.quotas import check_version
from olivepress.database.sessions import DatabaseNow, seconds_now
from olivepress.database.tables import AliasMoveRow, AliasRow, JobRow, ModelRow, StepRow, VersionRow
from olivepress.database.upsert import upsert
from olivepress.errors import NotFound
from olivepress.jobs import StepKind
from olivepress.registry import MoveCause, Order, Standing, VersionFlag, VersionReference, verdict_of


@dataclass(frozen=True)
class Publication:
    """What is about to become a model version."""

    job_id: int | None
    team: str
    model_name: str
    alias: str
    package_digest: str
    recipe_name: str
    precision: str
    family: str
    report: dict[str, Any]
    provenance: dict[str, Any]
    flags: Mapping[VersionFlag, str] = field(default_factory=dict)
    """What is known against it from the start, each with its reason."""


@dataclass(frozen=True)
class Published:
    """The version that a job published, or found published with the same content."""

    model_name: str
    number: int
    artifact_digest: str
    is_new: bool
    objections: tuple[str, ...] = ()
    """What is known against it, for which the alias was left where it is."""


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
    # Of a ladder's steps the last rung's count: it is the one that passed.
    query = select(StepRow).where(StepRow.job_id == job_id, StepRow.kind != StepKind.INGEST).order_by(StepRow.rung)
    rows = {row.kind: row for row in session.scalars(query)}
    return PublishedJob(
        team=job.team,
        model_name=job.model_name,
        checkpoint_name=job.checkpoint_name,
        alias=job.alias,
        recipe=job.recipe,
        step_keys={kind: row.key for kind, row in rows.items() if row.key},
        fingerprint=rows[StepKind.PACKAGE].fingerprint,
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
        VersionRow.model_id == model.id,
        VersionRow.package_digest == wanted.package_digest,
        VersionRow.deleted_at.is_(None),
    )
    version = session.scalar(query)
    is_new = version is None
    if version is None:
        version = _new_version(session, model, wanted, write_overlay)
    objections = standing(model, version).objections()
    if not objections:
        by = f"job {wanted.job_id}" if wanted.job_id is not None else f"team {wanted.team}"
        move_alias(session, model.id, wanted.alias, version.id, MoveCause.PUBLISHED, Order(by))
    if wanted.job_id is not None:
        session.execute(update(JobRow).where(JobRow.id == wanted.job_id).values(version_id=version.id))
    return Published(wanted.model_name, version.number, version.artifact_digest, is_new, tuple(objections))


def find_model(session: Session, team: str, name: str, *, lock: bool = False) -> ModelRow:
    """A team's model by its name.

    Args:
        lock: until the end of the transaction nobody else publishes to it or moves its aliases.

    Raises:
        NotFound: the team has no model of this name.
    """
    query = select(ModelRow).where(ModelRow.team == team, ModelRow.name == name)
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise NotFound(f"team '{team}' has no model '{name}'; `olivepress models` lists those that exist")
    return row


def find_version(
    session: Session, team: str, wanted: VersionReference, *, lock: bool = False, also_deleted: bool = False
) -> tuple[ModelRow, VersionRow]:
    """The version that a reference names, with its model.

    Args:
        lock: see `find_model`.

    Raises:
        NotFound: the team has no such model, version or alias; or the version is deleted, and only others will do.
    """
    model = find_model(session, team, wanted.name, lock=lock)
    query = select(VersionRow).where(VersionRow.model_id == model.id)
    if wanted.number is not None:
        query = query.where(VersionRow.number == wanted.number)
    else:
        query = query.join(AliasRow, AliasRow.version_id == VersionRow.id).where(
            AliasRow.model_id == model.id, AliasRow.name == wanted.alias
        )
    row = session.scalar(query)
    if row is None:
        raise NotFound(f"there is no version {wanted}; `olivepress models {wanted.name}` lists those that exist")
    if row.deleted_at is not None and not also_deleted:
        raise NotFound(_deleted_text(session, wanted, row))
    return model, row


def standing(model: ModelRow, version: VersionRow) -> Standing:
    """What is known against a version."""
    return Standing(
        version=f"{model.name}:{version.number}",
        flags=version.flags,
        deprecated_reason=version.deprecated_reason if version.deprecated_at is not None else None,
        successor=version.successor,
    )


def move_alias(
    session: Session,
    model_id: int,
    name: str,
    version_id: int | None,
    cause: MoveCause,
    order: Order,
    overridden: Sequence[str] = (),
) -> None:
    """Point an alias to a version, or take it away (None), and keep who did it and why.

    The caller holds the model's lock. An alias that points there already is left as it is.
    """
    alias = session.get(AliasRow, (model_id, name))
    before = alias.version_id if alias is not None else None
    if before == version_id:
        return
    now = seconds_now(session)
    if version_id is None:
        session.delete(alias)
    elif alias is None:
        session.add(AliasRow(model_id=model_id, name=name, version_id=version_id, moved_at=now))
    else:
        alias.version_id, alias.moved_at = version_id, now
    session.add(
        AliasMoveRow(
            model_id=model_id,
            alias=name,
            cause=cause,
            from_version_id=before,
            to_version_id=version_id,
            moved_at=now,
            moved_by=order.by,
            reason=order.reason,
            overridden=list(overridden),
        )
    )
    session.flush()


def _new_version(session: Session, model: ModelRow, wanted: Publication, write_overlay: WriteOverlay) -> VersionRow:
    artifact_digest, size_bytes = write_overlay(model.next_number)
    check_version(session, wanted.team, size_bytes)
    now = seconds_now(session)
    version = VersionRow(
        model_id=model.id,
        number=model.next_number,
        package_digest=wanted.package_digest,
        artifact_digest=artifact_digest,
        size_bytes=size_bytes,
        recipe_name=wanted.recipe_name,
        precision=wanted.precision,
        family=wanted.family,
        job_id=wanted.job_id,
        verdict=verdict_of(wanted.report),
        report=wanted.report,
        provenance=wanted.provenance,
        created_at=now,
        flags={flag.value: {"reason": reason, "flagged_at": now} for flag, reason in wanted.flags.items()},
    )
    model.next_number += 1
    session.add(version)
    session.flush()
    return version


def _locked_model(session: Session, team: str, name: str) -> ModelRow:
    session.execute(
        upsert(session, ModelRow)
        .values(team=team, name=name, next_number=1, created_at=DatabaseNow())
        .on_conflict_do_nothing(index_elements=["team", "name"])
    )
    return find_model(session, team, name, lock=True)


def _deleted_text(session: Session, wanted: VersionReference, row: VersionRow) -> str:
    until = row.files_until or 0.0
    if until <= seconds_now(session):
        return f"{wanted} was deleted by {row.deleted_by}, and its grace period is over; choose another version"
    day = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{wanted} was deleted by {row.deleted_by}; until {day} `olivepress undelete {wanted}` brings it back"

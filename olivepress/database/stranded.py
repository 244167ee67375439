"""Queued steps that no living worker could take: given another key, told in plain words, at last failed."""

from dataclasses import replace

from sqlalchemy import select, true, update
from sqlalchemy.orm import Session

from olivepress.database.dispatching import fits, need_of, rooms_of
from olivepress.database.sessions import seconds_now
from olivepress.database.steps import fail_waiting
from olivepress.database.tables import StepRow
from olivepress.database.unblocking import HasArtifact, Offer, rekey
from olivepress.database.workers import alive, pressing
from olivepress.jobs import PUBLISHING_STEPS, StepState
from olivepress.placement import lacks_key, why_nowhere

AT_A_TIME = 200


def look_after_stranded(session: Session, has_artifact: HasArtifact, fail_after_s: float) -> list[int]:
    """Note for each queued step whether a living worker could take it.

    A step whose key was made by a toolchain that is gone (an upgrade, other hardware) gets the key of one that is
    there. One that needs more than any worker offers says so, and fails after `fail_after_s`. One that only lacks a
    worker with the signing key says so and waits: its job is done but for that. Without any living worker that could
    run a step of its kind nothing is noted: that is an outage, not a step's fault.

    Returns:
        Ids of the steps that failed.
    """
    workers = alive(session)
    if not workers:
        return []
    room_of = rooms_of(session, workers)
    rooms = list(room_of.values())
    is_placeable = fits(rooms)
    session.execute(
        update(StepRow)
        .where(StepRow.state == StepState.QUEUED, StepRow.unplaceable.is_not(None), is_placeable)
        .values(unplaceable=None, unplaceable_since=None)
    )
    can_be_asked = true() if pressing(session) else StepRow.kind.in_(PUBLISHING_STEPS)
    query = (
        select(StepRow)
        .where(StepRow.state == StepState.QUEUED, ~is_placeable, can_be_asked)
        .order_by(StepRow.unplaceable_since.is_not(None), StepRow.unplaceable_since, StepRow.id)
        .limit(AT_A_TIME)
    )
    now = seconds_now(session)
    failed = []
    for row in session.scalars(query).all():
        without_key = replace(need_of(row), fingerprint=None)
        other = next((worker for worker in workers if room_of[worker.id].fits(without_key)), None)
        if other is not None:
            rekey(session, row, Offer.of(other), has_artifact)
            continue
        row.unplaceable = why_nowhere(without_key, rooms)
        row.unplaceable_since = row.unplaceable_since or now
        if now - row.unplaceable_since > fail_after_s and not lacks_key(without_key, rooms):
            fail_waiting(session, row, f"no worker could take this step for {fail_after_s:.0f} s: {row.unplaceable}")
            failed.append(row.id)
    return failed

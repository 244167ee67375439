"""Use case: measure a published version again, because somebody asks. Nothing is published, and no alias moves."""

from olivepress.database.remeasuring import Again, insert_again
from olivepress.database.sessions import Database
from olivepress.database.unblocking import HasArtifact
from olivepress.database.versions import find_version
from olivepress.job_orders import ValidationOrder
from olivepress.jobs import JobKind
from olivepress.registry import VersionReference
from olivepress.soak import parse_soak
from olivepress.submission import Submitted


def validate(
    database: Database, has_artifact: HasArtifact, team: str, wanted: VersionReference, order: ValidationOrder
) -> Submitted:
    """A batch with one job that measures the version anew, whatever is remembered.

    Raises:
        NotFound: the team has no such version, or it is deleted.
        PermanentError: nothing here tells how it was made.
        BadArtifact: the store does not have all of it any more.
        BadRecipe: a gate cannot be.
    """
    with database.write() as session:
        model, version = find_version(session, team, wanted)
        again = Again(
            version_id=version.id,
            kind=JobKind.VALIDATE,
            batch_name=f"validate {model.name}:{version.number}",
            prompts=order.prompts or (),
            gates=order.gates or {},
            soak=parse_soak(order.soak),
            priority=order.priority,
            pool=order.pool,
        )
        inserted = insert_again(session, again, has_artifact)
    assert inserted is not None, "only an idempotency key can be taken"
    batch_id, job_id = inserted
    return Submitted(batch_id, [job_id])

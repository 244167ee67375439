"""Which families the artifacts of the store belong to."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from olivepress.database.tables import VersionRow


def families(session: Session) -> dict[str, str]:
    """Digest of a published artifact → family of its checkpoint; of the package that it was made of, too."""
    found: dict[str, str] = {}
    query = select(VersionRow.artifact_digest, VersionRow.package_digest, VersionRow.family)
    for artifact, package, family in session.execute(query):
        found |= {artifact: family, package: family}
    return found

"""Published versions without the steps that make them, for tests of the registry."""

from typing import Any

from olivepress.database.sessions import Database
from olivepress.database.versions import Publication, Published, publish_version
from olivepress.jobs import digest_of
from olivepress.registry import Order, VersionReference, parse_reference

TEAM = "default"
ANNA = Order("anna")
FORCE = Order("ben", "the customer waits", is_forced=True)


def publish(database: Database, content: str = "a", name: str = "m-int4", **changes: Any) -> Published:
    """Publish this content under a name."""
    values: dict[str, Any] = {
        "job_id": None,
        "team": TEAM,
        "model_name": name,
        "alias": "latest",
        "package_digest": digest_of(content),
        "recipe_name": "cpu-int4",
        "precision": "int4",
        "family": "qwen2",
        "report": {"gates": []},
        "provenance": {},
    }
    with database.write() as session:
        wanted = Publication(**values | changes)
        return publish_version(session, wanted, lambda number: (digest_of([content, number]), 1000 * number))


def version(text: str) -> VersionReference:
    """A version as people write it."""
    return parse_reference(text)

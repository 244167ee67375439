"""What the client asks of models made elsewhere, and of versions measured again."""

import uuid

from olivepress.client.models import version_place
from olivepress.client.transport import DEFAULT_TEAM, LARGE_ANSWER_TIMEOUT_S, Json, Transport
from olivepress.errors import ServiceUnavailable
from olivepress.job_orders import ImportOrder, ValidationOrder
from olivepress.registry import VersionReference


class MeasuringCalls(Transport):
    """Imports, validations, recertifications."""

    def validate(self, wanted: VersionReference, order: ValidationOrder, team: str = DEFAULT_TEAM) -> Json:
        """Measure a published version again: the batch with its one job, whose report has the result.

        Raises:
            NotFound: the team has no such version.
            BadRecipe: a gate cannot be.
            PermanentError: the stack does not know how the version was made.
        """
        body = order.model_dump(mode="json", exclude_none=True, exclude_unset=True)
        place = f"{version_place(wanted)}/validations"
        return self.document("POST", place, json=body, params={"team": team}, timeout=LARGE_ANSWER_TIMEOUT_S)

    def validations(self, wanted: VersionReference, team: str = DEFAULT_TEAM) -> list[Json]:
        """What was measured of a version again, oldest first: job_id, kind, state, verdict, runtime, times.

        Raises:
            NotFound: the team has no such version.
        """
        return self.list_of(f"{version_place(wanted)}/validations", team=team)

    def import_model(self, order: ImportOrder, idempotency_key: str | None = None) -> Json:
        """Import a model directory, or the file of an exported version, that a worker sees: the batch with its one job.

        Raises:
            BadManifest: a name cannot be used.
            BadRecipe: a gate cannot be.
        """
        body = order.model_dump(mode="json", exclude_none=True, exclude_unset=True)
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        send = {"json": body, "headers": headers, "timeout": LARGE_ANSWER_TIMEOUT_S}
        try:
            return self.document("POST", "/v1/imports", **send)
        except ServiceUnavailable:
            # The answer may have been lost after the commit; with its key it is imported once.
            return self.document("POST", "/v1/imports", **send)

    def recertifications(self) -> Json:
        """The runtime of all workers, and for each version with an alias whether it is to be certified again."""
        return self.document("GET", "/v1/recertifications")

    def recertify(self) -> Json:
        """Start all recertifications that are due: `jobs`, and `problems` where one could not be started."""
        return self.document("POST", "/v1/recertifications", timeout=LARGE_ANSWER_TIMEOUT_S)

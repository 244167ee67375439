"""What the client asks of batches and jobs."""

import json
import uuid
from collections.abc import Iterable, Iterator

from olivepress.client.transport import (
    DEFAULT_TEAM,
    LARGE_ANSWER_TIMEOUT_S,
    Json,
    Transport,
    without_none,
)
from olivepress.errors import ServiceUnavailable
from olivepress.manifest import Manifest


class BatchCalls(Transport):
    """Batches and jobs."""

    def submit(self, manifest: Manifest, idempotency_key: str | None = None) -> Json:
        """Submit a batch: its id, the ids of its jobs, its state.

        Raises:
            BadManifest: the API cannot accept it, and says why.
            UnknownRecipe: a recipe that the API does not have.
        """
        body = manifest.model_dump(mode="json", exclude_none=True, exclude_unset=True)
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        send = {"json": body, "headers": headers, "timeout": LARGE_ANSWER_TIMEOUT_S}
        try:
            return self.document("POST", "/v1/batches", **send)
        except ServiceUnavailable:
            # The answer may have been lost after the commit; with its key the batch is submitted once.
            return self.document("POST", "/v1/batches", **send)

    def batches(self, team: str = DEFAULT_TEAM, limit: int = 50, before: int | None = None) -> list[Json]:
        """The newest batches of a team; `before` an id for the next page."""
        return self.list_of("/v1/batches", team=team, limit=limit, before=before)

    def batch(self, batch_id: int, states: Iterable[str] = ()) -> Json:
        """A batch with its jobs (in these states only, if given) and their steps.

        Raises:
            NotFound: there is no such batch.
        """
        params = without_none(state=list(states) or None)
        return self.document("GET", f"/v1/batches/{batch_id}", params=params, timeout=LARGE_ANSWER_TIMEOUT_S)

    def cancel_batch(self, batch_id: int) -> Json:
        """Cancel the jobs of a batch that are not over; the batch as it is then.

        Raises:
            NotFound: there is no such batch.
        """
        return self.document("POST", f"/v1/batches/{batch_id}/cancel", timeout=LARGE_ANSWER_TIMEOUT_S)

    def jobs(
        self,
        team: str = DEFAULT_TEAM,
        states: Iterable[str] = (),
        batch: int | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> list[Json]:
        """The newest jobs of a team with their steps; `before` an id for the next page."""
        return self.list_of("/v1/jobs", team=team, state=list(states) or None, batch=batch, limit=limit, before=before)

    def job(self, job_id: int) -> Json:
        """A job with its steps, their attempts, and the validation's report.

        Raises:
            NotFound: there is no such job.
        """
        return self.document("GET", f"/v1/jobs/{job_id}")

    def job_log(self, job_id: int, step: str | None = None) -> list[Json]:
        """The ends of the logs of a job's attempts, oldest first.

        Raises:
            NotFound: there is no such job.
        """
        logs: list[Json] = self.document("GET", f"/v1/jobs/{job_id}/log", params=without_none(step=step))["logs"]
        return logs

    def follow_log(self, job_id: int, step: str | None = None) -> Iterator[Json]:
        """What a job's attempts print, as it comes: events `attempt`, `lines`, `ended` and at last `over`.

        Raises:
            NotFound: there is no such job.
            ServiceUnavailable: also when the connection breaks before the end.
        """
        params = without_none(step=step, follow=True)
        with self.stream(f"/v1/jobs/{job_id}/log", params=params) as response:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    event: Json = json.loads(line.removeprefix("data: "))
                    yield event
                    if event["event"] == "over":
                        return
        raise ServiceUnavailable(f"the service at {self.url} ended in the middle of the log; follow it again")

    def cancel_job(self, job_id: int) -> Json:
        """Cancel a job; the job as it is then.

        Raises:
            NotFound: there is no such job.
        """
        return self.document("POST", f"/v1/jobs/{job_id}/cancel")

"""What the client asks of the stack's parts: workers, health, the store, retention."""

from olivepress.client.transport import LARGE_ANSWER_TIMEOUT_S, Json, Transport, decoded, error_of

# It reads every manifest of the store, which may be on another machine.
RETENTION_TIMEOUT_S = 3600.0


class StackCalls(Transport):
    """The parts of the stack, and what it keeps."""

    def workers(self) -> list[Json]:
        """Workers that live, and those that were seen within the last day."""
        return self.list_of("/v1/workers")

    def costs(self) -> list[Json]:
        """What past attempts took against what sizes predict: kind, family, memory_ratio, seconds_ratio, attempts."""
        return self.list_of("/v1/costs")

    def health(self) -> list[Json]:
        """Every part of the stack: name, status (ok, warn, fail), detail, what_now."""
        return self.list_of("/v1/health")

    def healthz(self) -> Json:
        """Whether the stack is alive, and its version; needs no key. Says `down` rather than raise."""
        with self.lost_is_named():
            response = self.http.get("/healthz")
        if response.status_code not in (200, 503):
            raise error_of(response)
        return decoded(response, Json)

    def retention(self, *, dry_run: bool) -> Json:
        """Remove what is too old to keep, or with `dry_run` look what would go: counts and bytes by kind.

        Raises:
            TransientError: a run is under way already.
        """
        return self.document("GET" if dry_run else "POST", "/v1/retention", timeout=RETENTION_TIMEOUT_S)

    def store(self) -> Json:
        """What the store holds: artifacts, logical_bytes, stored_bytes, and the same for each of its families; and the
        last full check (see `store_check`), if there was one.
        """
        return self.document("GET", "/v1/store", timeout=LARGE_ANSWER_TIMEOUT_S)

    def store_check(self, kind: str = "full") -> Json:
        """What the last check of the store found: kind (full or fast), store, finished_at, sound, report.

        Raises:
            NotFound: there was none of this kind.
        """
        return self.document("GET", "/v1/store/check", params={"kind": kind})

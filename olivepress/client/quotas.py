"""What the client asks of quotas."""

from urllib.parse import quote

from olivepress.client.transport import DEFAULT_TEAM, Json, Transport


class QuotaCalls(Transport):
    """What teams may have."""

    def quotas(self) -> list[Json]:
        """Every team that has a quota: its limits and what it has."""
        return self.list_of("/v1/quotas")

    def quota(self, team: str = DEFAULT_TEAM) -> Json:
        """A team's limits (max_bytes, max_versions, max_jobs; None: none) and what it has."""
        return self.document("GET", f"/v1/quotas/{quote(team, safe='')}")

    def set_quota(self, team: str, limits: Json) -> Json:
        """Change some of a team's limits (None lifts one); what it then has."""
        return self.document("PATCH", f"/v1/quotas/{quote(team, safe='')}", json=limits)

"""What people change about versions: where aliases point, what is deprecated, what is deleted."""

from urllib.parse import quote

from olivepress.client.models import model_place, version_part, version_place
from olivepress.client.transport import DEFAULT_TEAM, Json, Transport, without_none
from olivepress.registry import Order, VersionReference


class RegistryCalls(Transport):
    """Changes of the registry; an `Order` says who wants one, why, and whether it is forced."""

    def aliases(self, name: str, team: str = DEFAULT_TEAM) -> Json:
        """The aliases of a model: where each points, since when, and who moved it there.

        Raises:
            NotFound: the team has no such model.
        """
        return self.document("GET", f"{model_place(name)}/aliases", params={"team": team})

    def alias_history(
        self,
        name: str,
        alias: str | None = None,
        team: str = DEFAULT_TEAM,
        limit: int = 100,
        before: int | None = None,
    ) -> list[Json]:
        """The moves of a model's aliases (of one, if given), newest first; `before` an id for the next page.

        Raises:
            NotFound: the team has no such model.
        """
        return self.list_of(f"{model_place(name)}/aliases/history", team=team, alias=alias, limit=limit, before=before)

    def promote(self, wanted: VersionReference, alias: str, order: Order, team: str = DEFAULT_TEAM) -> Json:
        """Point an alias to a version: where it points now and pointed before.

        Raises:
            NotFound: the team has no such version.
            Guarded: something is known against it, and the order does not force it.
        """
        body = {"version": version_part(wanted), **_forced(order)}
        return self.document("PUT", _alias_place(wanted.name, alias), json=body, params={"team": team})

    def roll_back(self, name: str, alias: str, order: Order, team: str = DEFAULT_TEAM) -> Json:
        """Point an alias to the version that it pointed to before.

        Raises:
            NotFound: there is no such alias, or it pointed nowhere else.
            Guarded: something is known against that version, and the order does not force it.
        """
        place = f"{_alias_place(name, alias)}/back"
        return self.document("POST", place, json=_forced(order), params={"team": team})

    def deprecate(
        self, wanted: VersionReference, order: Order, successor: str | None = None, team: str = DEFAULT_TEAM
    ) -> Json:
        """Say that a version should not be used any more, and what should instead; the version.

        Raises:
            NotFound: the team has no such version or successor.
        """
        body = without_none(successor=successor, by=order.by, reason=order.reason)
        return self.document("PUT", f"{version_place(wanted)}/deprecation", json=body, params={"team": team})

    def undeprecate(self, wanted: VersionReference, team: str = DEFAULT_TEAM) -> Json:
        """Take a deprecation back: whether there was one.

        Raises:
            NotFound: the team has no such version.
        """
        return self.document("DELETE", f"{version_place(wanted)}/deprecation", params={"team": team})

    def delete_version(self, wanted: VersionReference, order: Order, team: str = DEFAULT_TEAM) -> Json:
        """Delete a version: until when it can be undeleted, and where its aliases point now.

        Raises:
            NotFound: the team has no such version, or it is deleted already.
            Guarded: an alias points to it, and the order does not force it.
        """
        return self.document("POST", f"{version_place(wanted)}/delete", json=_forced(order), params={"team": team})

    def undelete_version(self, wanted: VersionReference, team: str = DEFAULT_TEAM) -> Json:
        """Take a deletion back.

        Raises:
            NotFound: the team has no such version.
            PermanentError: it is not deleted, or it is too late.
        """
        return self.document("POST", f"{version_place(wanted)}/undelete", params={"team": team})


def _alias_place(name: str, alias: str) -> str:
    return f"{model_place(name)}/aliases/{quote(alias, safe='')}"


def _forced(order: Order) -> Json:
    return without_none(by=order.by, reason=order.reason, force=order.is_forced or None)

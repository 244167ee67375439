"""What the API takes and answers where people change the registry; schemas.py has what they look at."""

from pydantic import BaseModel, ConfigDict, Field

from api.schemas import Answer
from olivepress.registry import MoveCause, Order, VerdictKind


class Change(BaseModel):
    """Who changes the registry, and why."""

    model_config = ConfigDict(extra="forbid")

    by: str | None = Field(None, description="Who it is, as the caller says; without it, the team.", examples=["anna"])
    reason: str | None = Field(None, description="One line, which is kept.", examples=["passed the pilot"])

    def order(self, team: str, *, is_forced: bool = False) -> Order:
        """The same as the rules know it. Raises: BadManifest."""
        return Order(self.by if self.by is not None else f"team {team}", self.reason, is_forced)


class ForcedChange(Change):
    """A change that may override what speaks against it."""

    force: bool = Field(False, description="Override what speaks against it; needs a reason.")

    def forced_order(self, team: str) -> Order:
        """The same as the rules know it. Raises: BadManifest."""
        return self.order(team, is_forced=self.force)


class Promotion(ForcedChange):
    """Which version an alias is to point to."""

    version: str = Field(max_length=64, description="A number, or an alias.", examples=["3", "latest"])


class DeprecationOrder(Change):
    """Why a version should not be used any more, and what instead."""

    successor: str | None = Field(None, max_length=200, examples=["support-en-int4:4"])


class MovedAlias(Answer):
    """An alias and where it points now."""

    model: str
    alias: str = Field(examples=["production"])
    number: int
    from_number: int | None = Field(description="Where it pointed before.")
    is_moved: bool
    overridden: list[str] = Field(description="What spoke against it and was overridden.")


class Alias(Answer):
    """Where an alias points, since when, and who moved it there."""

    alias: str
    number: int
    version: str = Field(examples=["support-en-int4:3"])
    moved_at: float
    moved_by: str | None
    reason: str | None
    overridden: list[str]


class Aliases(Answer):
    """The aliases of a model."""

    model: str
    team: str
    aliases: list[Alias]


class AliasMove(Answer):
    """One move of an alias."""

    id: int
    alias: str
    cause: MoveCause
    from_number: int | None = Field(description="Null: it was not there.")
    to_number: int | None = Field(description="Null: it went.")
    moved_at: float
    moved_by: str
    reason: str | None
    overridden: list[str] = Field(description="What spoke against it and was overridden.")


class DeletedVersion(Answer):
    """A version that was deleted."""

    version: str
    files_until: float = Field(description="Until then it can be undeleted.")
    aliases: dict[str, int | None] = Field(description="Aliases that pointed to it, and where they point now.")


class Undone(Answer):
    """Whether there was something to take back."""

    version: str
    was_undone: bool


class Descendant(Answer):
    """A version that came from a checkpoint."""

    id: int = Field(description="For the next page.")
    version: str
    model: str
    number: int
    came_as: str = Field(pattern="^(checkpoint|base)$", description="Whether it was made of it, or of its adapter.")
    checkpoint_digest: str | None
    base_digest: str | None
    recipe: str
    verdict: VerdictKind
    created_at: float
    is_deleted: bool

"""What people ask for beside a batch of checkpoints: a version measured again, a model imported. What the API takes."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from olivepress.gates import NEEDS_SOURCE
from olivepress.manifest import Name, Place, Prompts, check_soak
from olivepress.registry import LATEST
from olivepress.strict_model import Strict

Label = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_-]{0,62}$")]
Priority = Annotated[int, Field(ge=0, le=9)]
Soak = Annotated[str, AfterValidator(check_soak)]


class ValidationOrder(Strict):
    """How a published version is measured again; what is left out is as it was when it was published."""

    prompts: Prompts | None = None
    """Other domain prompts. What the source answers was only asked for the first ones."""
    gates: dict[str, Any] | None = None
    """Limits in the place of the recipe's, by the names of gates."""
    soak: Soak | None = None
    """How long sessions are repeated: 90s, 5m, 1h, or a number of sessions. Default: briefly."""
    priority: Priority = 5
    """9 goes first."""
    pool: Label | None = None
    """Only workers that offer this pool run it."""


class ImportOrder(Strict):
    """A directory, or the file of an exported version, as a worker finds it, and what it is to become."""

    path: Place
    name: Name | None = None
    """What the model is called. Default: the name of the directory or file."""
    family: Name | None = None
    """Such as qwen2. Default: what genai_config.json says."""
    source: Place | None = None
    """The checkpoint that it was made from: what it says is held against that. Default: nothing is."""
    base: Place | None = None
    """The base of the source, where that is an adapter. Default: as the adapter says."""
    prompts: Prompts | None = None
    gates: dict[str, Any] | None = None
    """Limits in the place of the usual ones, by the names of gates."""
    soak: Soak | None = None
    """How long validate repeats sessions: 90s, 5m, 1h, or a number of sessions. Default: briefly."""
    unvalidated: str | None = None
    """Publish it without measuring it, for this reason; the version is flagged, and no alias moves to it."""
    team: Label = "default"
    priority: Priority = 5
    """9 goes first."""
    alias: str = LATEST
    pool: Label | None = None
    """Only workers that offer this pool run its steps."""

    @model_validator(mode="after")
    def _check_unmeasured(self) -> "ImportOrder":
        if self.unvalidated is not None and (self.prompts or self.gates or self.soak or self.source):
            raise ValueError("what is not validated is asked no prompts, held against no gates or source, nor soaked")
        if self.base is not None and self.source is None:
            raise ValueError("'base' is the base of the source; name the adapter as 'source'")
        unmet = sorted(NEEDS_SOURCE & {name for name, limit in (self.gates or {}).items() if limit is not None})
        if unmet and self.source is None:
            raise ValueError(f"the gate '{unmet[0]}' compares with the source; name the checkpoint as 'source'")
        return self

"""What the models of a manifest share: no unknown keys, messages of a chat, and how what is wrong is told."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class Strict(BaseModel):
    """Unknown keys are errors: a misspelt key must not be ignored in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Message(Strict):
    """One message of a chat."""

    role: Annotated[str, Field(pattern="^(system|user|assistant)$")]
    content: str


def describe(error: ValidationError) -> str:
    """What is wrong where, in one line: `checkpoints.0.path: Field required; …`."""
    parts = []
    for item in error.errors()[:5]:
        place = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "there is no such key"
        parts.append(f"{place}: {message}" if place else message)
    return "; ".join(parts)

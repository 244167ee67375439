"""The manifest of a batch: what people write in batch.yaml and what the API takes as JSON.

In the file, `prompts` and `calibration` name files beside the manifest and `olive_config` a workflow; `load_manifest`
reads them, so that what is sent holds the prompts, the text and the workflow themselves.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError, WithJsonSchema, model_validator

from olivepress.errors import BadManifest, BadRecipe
from olivepress.recipes.calibration import Calibration, read_calibration
from olivepress.recipes.calibration import check_calibration as check_calibration
from olivepress.recipes.files import parse_recipe, read_mapping
from olivepress.recipes.olive_config import recipe_of_workflow
from olivepress.recipes.recipe import DEFAULT_RECIPE, Recipe
from olivepress.registry import LATEST
from olivepress.soak import parse_soak
from olivepress.strict_model import Message, Strict
from olivepress.strict_model import describe as describe

MAX_CHECKPOINTS = 10_000
HUB_PREFIX = "hf://"
OLIVE_CONFIG = "olive_config"


class Expectation(Strict):
    """What an answer must be; every part that is given must hold. `equals` ignores white space at both ends."""

    equals: str | None = None
    contains: str | None = None
    regex: str | None = None
    json_schema: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check(self) -> "Expectation":
        if self.equals is None and self.contains is None and self.regex is None and self.json_schema is None:
            raise ValueError("expect needs one of: equals, contains, regex, json_schema")
        if self.regex is not None:
            try:
                re.compile(self.regex)
            except re.error as error:
                raise ValueError(f"expect.regex is no regular expression: {error}") from None
        if self.json_schema is not None:
            # Loaded where it is needed, for it takes as long as the rest of the client.
            from olivepress.json_shapes import check_schema

            try:
                check_schema(self.json_schema)
            except BadManifest as error:
                raise ValueError(str(error)) from None
        return self


class DomainPrompt(Strict):
    """A question of the fine-tune's domain: one line of a prompts file."""

    name: str | None = None
    messages: list[Message] | None = None
    prompt: str | None = None
    expect: Expectation | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=2048)] = 64

    @model_validator(mode="after")
    def _check(self) -> "DomainPrompt":
        if bool(self.messages) == (self.prompt is not None):
            raise ValueError("a domain prompt has either messages or prompt")
        return self


Prompts = Annotated[list[DomainPrompt], Field(max_length=1000)]
# PostgreSQL holds no NUL, and no path or name has one.
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00]*$")]
Place = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]


class CheckpointEntry(Strict):
    """One checkpoint of a batch, or a glob of them."""

    path: Place
    name: Name | None = None
    base: Place | None = None
    prompts: Prompts | None = None
    calibration: Calibration | None = None
    """What calibrated passes of a recipe learn from; None: what the batch gives."""
    chat_template: Literal["chat_template.jinja", "tokenizer_config.json"] | None = None
    """Which of two different templates of the checkpoint is meant."""


def inline_recipe(entry: dict[str, Any], source: str = "the recipe") -> Recipe:
    """The recipe that stands in a manifest itself: its keys, or {"olive_config": an Olive workflow}.

    Raises:
        BadRecipe: names every key that is wrong.
    """
    if OLIVE_CONFIG not in entry:
        return parse_recipe(entry, source)
    if len(entry) > 1:
        raise BadRecipe(f"{source} has keys beside {OLIVE_CONFIG}; write them as a recipe of its own")
    return recipe_of_workflow(entry[OLIVE_CONFIG])


def _check_recipe(value: str | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(value, dict):
        try:
            inline_recipe(value)
        except BadRecipe as error:
            raise ValueError(str(error)) from None
    return value


def check_soak(value: str) -> str:
    """The text, if it says how long a soak is. Raises: ValueError, as pydantic's validators do."""
    try:
        parse_soak(value)
    except BadManifest as error:
        raise ValueError(str(error)) from None
    return value


RecipeEntry = Annotated[
    str | dict[str, Any],
    AfterValidator(_check_recipe),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string", "maxLength": 100}, {"type": "object"}],
            "description": "A recipe's NAME or NAME@VERSION; the keys of a recipe (see /v1/recipes/schema); or "
            '{"olive_config": an Olive workflow}.',
        }
    ),
]


class Manifest(Strict):
    """Every checkpoint with every recipe: one job each. Or with a ladder of recipes: one job."""

    name: Name | None = None
    team: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_-]{0,62}$")] = "default"
    recipes: Annotated[list[RecipeEntry], Field(min_length=1, max_length=20)] = [DEFAULT_RECIPE]  # noqa: RUF012
    olive_config: dict[str, Any] | None = None
    """An Olive workflow: short for one more of `recipes`, {"olive_config": the workflow}."""
    ladder: Annotated[list[RecipeEntry], Field(min_length=2, max_length=8)] | None = None
    """Instead of `recipes`: a checkpoint is one job, which takes the first of these whose gates its model passes."""
    checkpoints: Annotated[list[CheckpointEntry], Field(min_length=1, max_length=MAX_CHECKPOINTS)]
    prompts: Prompts | None = None
    calibration: Calibration | None = None
    """What calibrated passes learn from, for checkpoints that bring none of their own."""
    priority: Annotated[int, Field(ge=0, le=9)] = 5
    """9 goes first."""
    alias: str = LATEST
    pool: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_-]{0,62}$")] | None = None
    """Only workers that offer this pool run its steps."""
    soak: Annotated[str, AfterValidator(check_soak)] | None = None
    """How long validate repeats sessions to see memory grow: 90s, 5m, 1h, or a number of sessions. Default: briefly."""
    fresh: bool = False
    """Validate anew even where the same artifact was validated before."""

    @model_validator(mode="before")
    @classmethod
    def _take_workflow_as_recipe(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get(OLIVE_CONFIG), dict):
            return values
        named = values.get("recipes", [])
        rest = {key: value for key, value in values.items() if key not in (OLIVE_CONFIG, "recipes")}
        recipes = [*named, {OLIVE_CONFIG: values[OLIVE_CONFIG]}] if isinstance(named, list) else named
        return rest | {"recipes": recipes}

    @model_validator(mode="after")
    def _check_ladder(self) -> "Manifest":
        if self.ladder and "recipes" in self.model_fields_set:
            raise ValueError(
                "recipes and ladder exclude each other: a matrix gives every recipe a job, a ladder one job"
            )
        return self


def load_manifest(path: Path) -> Manifest:
    """Read a batch.yaml; checkpoint paths, prompts files and calibration files are relative to it.

    Raises:
        BadManifest: the file is missing, is no YAML, or says something that a manifest cannot say.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadManifest(f"cannot read the manifest {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadManifest(f"{path} is no YAML: {error}") from None
    if not isinstance(values, dict):
        raise BadManifest(f"{path} holds no manifest; it needs at least 'checkpoints:' with a list of paths")
    folder = path.resolve().parent
    entries = values.get("checkpoints")
    if isinstance(entries, list):
        values["checkpoints"] = [_resolved(entry, folder) for entry in entries]
    if isinstance(values.get("prompts"), str):
        values["prompts"] = read_prompts(folder / values["prompts"])
    if isinstance(values.get("calibration"), str):
        values["calibration"] = read_calibration(folder / values["calibration"])
    written = [*_listed(values.get("recipes")), *_listed(values.get("ladder"))]
    for holder in (values, *(one for one in written if isinstance(one, dict))):
        if isinstance(holder.get(OLIVE_CONFIG), str):
            holder[OLIVE_CONFIG] = read_workflow(folder / holder[OLIVE_CONFIG])
    return parse_manifest(values, source=str(path))


def parse_manifest(values: dict[str, Any], source: str = "the manifest") -> Manifest:
    """A manifest from JSON values.

    Raises:
        BadManifest: names every key that is wrong.
    """
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        raise BadManifest(f"{source}: {describe(error)}") from None


def read_workflow(path: Path) -> dict[str, Any]:
    """An Olive workflow from a JSON or YAML file.

    Raises:
        BadRecipe: the file is missing or holds none.
    """
    return read_mapping(path, "an Olive workflow")


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Domain prompts from a JSONL file, one JSON object a line; empty lines are skipped.

    Raises:
        BadManifest: the file is missing or a line is wrong (named by its number).
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadManifest(f"cannot read the prompts file {path}: {error}") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompt = DomainPrompt.model_validate(json.loads(line))
        except json.JSONDecodeError as error:
            raise BadManifest(f"{path} line {number} is no JSON: {error.msg}") from None
        except ValidationError as error:
            raise BadManifest(f"{path} line {number}: {describe(error)}") from None
        prompts.append(prompt.model_dump(exclude_none=True))
    if not prompts:
        raise BadManifest(f"{path} holds no prompt; write one JSON object a line, with 'prompt' or 'messages'")
    return prompts


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _resolved(entry: Any, folder: Path) -> Any:
    """A checkpoint entry with its paths made absolute and its files read; a bare string is a path."""
    if isinstance(entry, str):
        entry = {"path": entry}
    if not isinstance(entry, dict):
        return entry
    entry = dict(entry)
    for key in ("path", "base"):
        value = entry.get(key)
        if isinstance(value, str) and value and not value.startswith(HUB_PREFIX):
            entry[key] = str(folder / Path(value).expanduser())
    if isinstance(entry.get("prompts"), str):
        entry["prompts"] = read_prompts(folder / entry["prompts"])
    if isinstance(entry.get("calibration"), str):
        entry["calibration"] = read_calibration(folder / entry["calibration"])
    return entry

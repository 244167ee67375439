"""Recipes as people write them: a mapping in YAML or JSON, checked, and written back. Pure but for `read_mapping`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from olivepress.errors import BadRecipe
from olivepress.gates import GateLimits, parse_limits
from olivepress.jobs import digest_of
from olivepress.json_values import why_not_kept
from olivepress.recipes.keys import FoundryKeys, KeysModel, PassesKeys, PassKeys, RecipeKeys
from olivepress.recipes.olive_catalog import precision_left, why_unusable
from olivepress.recipes.recipe import (
    BLOCK_SIZES,
    BUILT_IN,
    KEPT_IN_8_BITS,
    MIXED_PRECISION_PARTS,
    Algorithm,
    ExecutionProvider,
    FoundrySettings,
    OlivePasses,
    Precision,
    Recipe,
)

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
UNNAMED_VERSION = 0
MAX_BYTES = 2**20
# /v1/recipes/schema is no recipe.
RESERVED_NAMES = ("schema",)
# Only what rounds weights to few bits has these.
QUANTIZATION_KEYS = (
    "block_size",
    "is_symmetric",
    "algorithm",
    "accuracy_level",
    "mixed_precision",
    "nodes_to_exclude",
)


@dataclass(frozen=True)
class Mistake:
    """A key that is wrong, as a path with dots, and what is wrong with it and what to do."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place} {self.text}"


def schema() -> dict[str, Any]:
    """JSON schema of a recipe file."""
    described = RecipeKeys.model_json_schema()
    return {"$schema": SCHEMA_DIALECT, **described}


def parse_recipe(values: Any, source: str, *, needs_name: bool = False) -> Recipe:
    """A recipe from what a file or a request holds; its version is 0 until the stack numbers it.

    Args:
        source: how messages call it, such as "recipe.yaml".
        needs_name: whether it is to be kept under its name.

    Raises:
        BadRecipe: names every key that is wrong.
    """
    if not isinstance(values, Mapping):
        raise BadRecipe(f"{source} holds no recipe; it needs keys, at least 'precision:'")
    if found := mistakes(values):
        title = f"{source}, recipe '{values['name']}'" if values.get("name") else source
        raise BadRecipe(f"{title}: {'; '.join(str(mistake) for mistake in found)}")
    if needs_name and not values.get("name"):
        raise BadRecipe(f"{source}: name is missing; give the recipe one, such as 'name: {suggested_name(values)}'")
    return _recipe(RecipeKeys.model_validate(values))


def mistakes(values: Mapping[str, Any]) -> list[Mistake]:
    """What is wrong with a recipe's keys, each by itself and together; empty if nothing is."""
    if "version" in values:
        return [Mistake("version", "is given by the stack; leave it out")]
    if wrong := why_not_kept(values):
        return [Mistake(*wrong)]
    try:
        keys = RecipeKeys.model_validate(values)
    except ValidationError as error:
        return [_mistake(item) for item in error.errors()[:5]]
    return [*_quantization_mistakes(keys), *_other_mistakes(keys)]


def content_digest(recipe: Recipe) -> str:
    """Digest of all that a recipe says, its version apart: equal recipes are one version."""
    return digest_of(recipe.to_dict() | {"version": None})


def to_yaml(recipe: Recipe) -> str:
    """The recipe as a file that `parse_recipe` takes; its version is a comment, and what means nothing is left out."""
    text = yaml.safe_dump(to_keys(recipe), sort_keys=False, allow_unicode=True, width=100)
    return f"# version {recipe.version}\n{text}" if recipe.version else text


def to_keys(recipe: Recipe) -> dict[str, Any]:
    """The recipe in the keys of a file, those left out that mean nothing for it."""
    keys: dict[str, Any] = {
        "name": recipe.name,
        "summary": recipe.summary,
        "precision": recipe.precision.value,
    }
    if recipe.built_precision.is_quantized:
        keys |= {
            "block_size": recipe.block_size,
            "is_symmetric": recipe.is_symmetric,
            "algorithm": recipe.algorithm.value,
            "accuracy_level": recipe.accuracy_level,
        }
    keys |= {
        "mixed_precision": recipe.mixed_precision,
        "nodes_to_exclude": list(recipe.nodes_to_exclude) or None,
        "execution_provider": recipe.execution_provider.value,
        "context_length": recipe.context_length,
    }
    keys = {key: value for key, value in keys.items() if value is not None}
    keys |= {"foundry": asdict(recipe.foundry), "gates": _gate_keys(recipe.gates)}
    if passes := recipe.olive_passes:
        written = {"before": list(passes.before), "after": list(passes.after)}
        if passes.builder_precision:
            written["builder_precision"] = passes.builder_precision.value  # type: ignore[assignment]
        keys["olive_passes"] = written
    return keys


def _gate_keys(limits: GateLimits) -> dict[str, Any]:
    """The limits that are set, and those that are not where they usually are."""
    usual = asdict(GateLimits())
    return {name: limit for name, limit in asdict(limits).items() if limit is not None or usual[name] is not None}


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """The mapping that a YAML or JSON file holds.

    Args:
        what: how messages call it, such as "the recipe".

    Raises:
        BadRecipe: the file is missing, too large, or no mapping.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise BadRecipe(f"{path} is larger than {MAX_BYTES // 2**20} MiB, so it is not {what}; name another file")
        text = content.decode("utf-8-sig")
        values = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise BadRecipe(f"cannot read {what} {path}: {error.strerror}; check the path") from None
    except json.JSONDecodeError as error:
        raise BadRecipe(f"{path} line {error.lineno} is no JSON: {error.msg}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BadRecipe(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise BadRecipe(f"{path} is not {what}: it holds no mapping of keys to values")
    return values


def suggested_name(values: Mapping[str, Any]) -> str:
    """A name for a recipe that has none: its precision and the start of its digest."""
    return f"{values.get('precision', 'own')}-{digest_of(dict(values))[:6]}"


def short_summary(recipe: Recipe) -> str:
    """What a recipe does, in a few words, where nobody wrote a summary."""
    words = [f"{recipe.precision} for {recipe.execution_provider}"]
    if recipe.built_precision.is_quantized:
        words.append(f"block size {recipe.block_size}")
        words.append("symmetric" if recipe.is_symmetric else "asymmetric")
        words += [] if recipe.algorithm is Algorithm.DEFAULT else [recipe.algorithm.value]
        words += [recipe.mixed_precision] if recipe.mixed_precision else []
    passes = recipe.olive_passes
    words += [f"with Olive's {one['type']}" for one in (*passes.before, *passes.after)]
    return ", ".join(words)


def _recipe(keys: RecipeKeys) -> Recipe:
    passes = keys.olive_passes
    is_quantized = (passes.builder_precision or keys.precision).is_quantized
    recipe = Recipe(
        name=keys.name or suggested_name(keys.model_dump(mode="json", exclude_unset=True, exclude={"summary"})),
        version=UNNAMED_VERSION,
        summary=keys.summary or "",
        precision=keys.precision,
        block_size=keys.block_size if is_quantized else None,
        is_symmetric=keys.is_symmetric and not keys.algorithm.is_k_quant,
        algorithm=keys.algorithm,
        mixed_precision=_in_order(keys.mixed_precision),
        accuracy_level=keys.accuracy_level,
        execution_provider=keys.execution_provider,
        foundry=_foundry(keys),
        gates=parse_limits(keys.gates),
        nodes_to_exclude=tuple(dict.fromkeys(keys.nodes_to_exclude)),
        olive_passes=OlivePasses(
            before=tuple(one.model_dump() for one in passes.before),
            after=tuple(one.model_dump() for one in passes.after),
            # The same said twice is said once.
            builder_precision=None if passes.builder_precision is keys.precision else passes.builder_precision,
        ),
        context_length=keys.context_length,
    )
    return recipe if recipe.summary else replace(recipe, summary=short_summary(recipe))


def _foundry(keys: RecipeKeys) -> FoundrySettings:
    settings = FoundrySettings(**keys.foundry.model_dump())
    # One that was asked for is checked against the cap; the default one keeps to it.
    return replace(settings, max_length=min(settings.max_length, keys.context_length or settings.max_length))


def _in_order(mixed_precision: str | None) -> str | None:
    """The parts in one order, so that two ways to write them are one recipe."""
    if not mixed_precision:
        return None
    asked = {part.strip() for part in mixed_precision.split(",")}
    return ",".join(part for part in MIXED_PRECISION_PARTS if part in asked)


def _quantization_mistakes(keys: RecipeKeys) -> list[Mistake]:
    given, precision = keys.model_fields_set, keys.olive_passes.builder_precision or keys.precision
    if not precision.is_quantized:
        text = f"means nothing for {precision}, which quantizes nothing; leave it out, or take precision int4 or int8"
        return [Mistake(key, text) for key in QUANTIZATION_KEYS if key in given]
    found = []
    if keys.algorithm.is_k_quant and "is_symmetric" in given and keys.is_symmetric:
        found.append(
            Mistake(
                "is_symmetric",
                f"is true, but {keys.algorithm} ignores it: its weights are always asymmetric; write false, or take "
                "algorithm default or rtn",
            )
        )
    if precision is Precision.INT8 and keys.algorithm in KEPT_IN_8_BITS:
        found.append(
            Mistake("algorithm", f"{keys.algorithm} keeps some matrices in 8 bits, as int8 does all; take k_quant")
        )
    elif keys.mixed_precision is not None:
        found += _mixed_precision_mistakes(keys, precision)
    if wrong := [name for name in keys.nodes_to_exclude if not name or "," in name or name != name.strip()]:
        found.append(
            Mistake("nodes_to_exclude", f"has {wrong[0]!r}; write node names of the graph, such as /lm_head/MatMul")
        )
    return found


def _mixed_precision_mistakes(keys: RecipeKeys, precision: Precision) -> list[Mistake]:
    place = "mixed_precision"
    if precision is Precision.INT8:
        return [Mistake(place, "means nothing for int8, where every matrix has 8 bits; leave it out, or take int4")]
    if keys.algorithm in KEPT_IN_8_BITS:
        own = KEPT_IN_8_BITS[keys.algorithm]
        return [Mistake(place, f"is part of {keys.algorithm} ({own}); leave it out, or take algorithm k_quant")]
    parts = [part.strip() for part in (keys.mixed_precision or "").split(",")]
    if wrong := [part for part in parts if part not in MIXED_PRECISION_PARTS]:
        return [Mistake(place, f"has {wrong[0]!r}; write some of: {', '.join(MIXED_PRECISION_PARTS)}")]
    return []


def _other_mistakes(keys: RecipeKeys) -> list[Mistake]:
    found = []
    if keys.name in BUILT_IN:
        found.append(Mistake("name", f"'{keys.name}' is that of a built-in recipe; give yours another"))
    if keys.name in RESERVED_NAMES:
        found.append(Mistake("name", f"'{keys.name}' is taken by the API; give the recipe another"))
    try:
        parse_limits(keys.gates)
    except BadRecipe as error:
        found.append(Mistake("gates:", str(error).removeprefix("gates: ")))
    length = keys.foundry.max_length
    if keys.context_length and "max_length" in keys.foundry.model_fields_set and length > keys.context_length:
        found.append(
            Mistake("foundry.max_length", f"is {length}, more than the context_length of {keys.context_length}")
        )
    passes = keys.olive_passes
    if passes.builder_precision and not (passes.before or passes.after):
        found.append(Mistake("olive_passes.builder_precision", "needs passes before or after; leave it out"))
    return [*found, *_pass_mistakes(keys)]


def _pass_mistakes(keys: RecipeKeys) -> list[Mistake]:
    """What data alone tells of passes; the worker knows the rest."""
    passes = keys.olive_passes
    found = [
        Mistake(f"olive_passes.{when}.{number}.type", why)
        for when, named in (("before", passes.before), ("after", passes.after))
        for number, one in enumerate(named)
        if (why := why_unusable(one.model_dump(), on_checkpoint=when == "before"))
    ]
    built = passes.builder_precision or keys.precision
    # A model is called after its precision: one of 4 bits is not published as one of 8.
    made = passes.after if passes.after and not built.is_quantized else () if passes.after else passes.before
    left = precision_left([one.model_dump() for one in made])
    if left and left != keys.precision and not found:
        text = f"is {keys.precision}, but the passes make {left} of it; write {left}"
        found.append(Mistake("precision", text + (f", and builder_precision: {built}" if passes.after else "")))
    return found


def _mistake(item: Any) -> Mistake:
    """What pydantic found, as what, which, and what now."""
    place = ".".join(str(part) for part in item["loc"])
    kind, given = item["type"], item["input"]
    if kind == "extra_forbidden":
        known = _known_keys(item["loc"][:-1])
        near = get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return Mistake(place, f"is no key of a recipe; {hint}there is: {', '.join(known)}")
    if kind == "missing":
        return Mistake(place, f"is missing; {_choices(place) or 'add it'}")
    if kind in ("enum", "literal_error"):
        return Mistake(place, f"is {given!r}; {_choices(place) or item['msg']}")
    text = item["msg"].removeprefix("Input ").removeprefix("should ").removeprefix("String ").removeprefix("should ")
    return Mistake(place, f"is {given!r}; it should {text}")


def _choices(place: str) -> str | None:
    choices: dict[str, tuple[Any, ...]] = {
        "precision": tuple(Precision),
        "olive_passes.builder_precision": tuple(Precision),
        "block_size": BLOCK_SIZES,
        "algorithm": tuple(Algorithm),
        "execution_provider": tuple(ExecutionProvider),
    }
    return f"choose one of: {', '.join(str(choice) for choice in choices[place])}" if place in choices else None


def _known_keys(place: tuple[int | str, ...]) -> list[str]:
    models: dict[str, type[KeysModel]] = {"foundry": FoundryKeys, "olive_passes": PassesKeys}
    model = models.get(str(place[0]), RecipeKeys) if len(place) == 1 else PassKeys if place else RecipeKeys
    return list(model.model_fields)

"""Recipes: the built-in ones and a team's own."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path

from api.routes import DEFAULT_TEAM, PRINTABLE, Stack, Team
from api.schemas import Recipe
from olivepress.database import recipes as kept
from olivepress.database.tables import Json
from olivepress.errors import NotFound, UnknownRecipe
from olivepress.recipes import files as recipe_files
from olivepress.recipes.recipe import BUILT_IN, RecipeReference, parse_reference

router = APIRouter(prefix="/recipes", tags=["recipes"])
Reference = Annotated[
    str,
    Path(
        max_length=100,
        pattern=PRINTABLE,
        description="A recipe's name, which means its newest version, or NAME@VERSION.",
        examples=["cpu-int4", "phi-small@2"],
    ),
]
Keys = Annotated[
    dict[str, Any],
    Body(
        description="The keys of a recipe; /v1/recipes/schema describes them.",
        examples=[{"name": "phi-small", "precision": "int4", "block_size": 64, "is_symmetric": False}],
    ),
]


@router.get("", response_model=list[Recipe], summary="List the recipes")
def list_recipes(stack: Stack, team: Team = DEFAULT_TEAM) -> list[Json]:
    """What a checkpoint can be turned into: the built-in recipes, then the newest version of each of the team's own."""
    with stack.database.read() as session:
        own = kept.own_recipes(session, team)
    newest = [versions[-1] for versions in own.values()]
    return [recipe.to_dict() for recipe in (*BUILT_IN.values(), *newest)]


@router.get("/schema", summary="Look at the JSON schema of a recipe")
def schema() -> dict[str, Any]:
    """What can stand in a recipe: its keys, their values and what they mean."""
    return recipe_files.schema()


@router.get("/{reference}", response_model=Recipe, summary="Look at a recipe")
def recipe(stack: Stack, reference: Reference, team: Team = DEFAULT_TEAM) -> Json:
    """In full. A version that was removed can still be looked at by its number."""
    with stack.database.read() as session:
        return kept.recipe(session, team, _parsed(reference)).to_dict()


@router.post("", status_code=HTTPStatus.CREATED, response_model=Recipe, summary="Keep a recipe of one's own")
def add(stack: Stack, keys: Keys, team: Team = DEFAULT_TEAM) -> Json:
    """The same content gives the version that has it; other content under the name is its next version."""
    new = recipe_files.parse_recipe(keys, "the recipe", needs_name=True)
    with stack.database.write() as session:
        return kept.add(session, team, new).to_dict()


@router.delete("/{reference}", response_model=list[Recipe], summary="Remove a recipe")
def remove(stack: Stack, reference: Reference, team: Team = DEFAULT_TEAM) -> list[Json]:
    """Offer a recipe (or one version of it) no more. Jobs that use it keep it, and it stays readable by its version."""
    with stack.database.write() as session:
        return [removed.to_dict() for removed in kept.remove(session, team, _parsed(reference))]


def _parsed(reference: str) -> RecipeReference:
    try:
        return parse_reference(reference)
    except UnknownRecipe as error:
        raise NotFound(str(error)) from None

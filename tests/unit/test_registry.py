"""Names of models, aliases and versions."""

import pytest

from olivepress.errors import BadManifest
from olivepress.recipes import recipe_named
from olivepress.registry import (
    check_model_name,
    model_name,
    model_suffixes,
    name_from_directory,
    parse_reference,
)


def test_a_model_is_named_after_its_checkpoint_and_precision() -> None:
    assert model_name("support-en", "int4") == "support-en-int4"


def test_recipes_of_one_precision_in_a_batch_publish_under_names_of_their_own() -> None:
    alone = [recipe_named("cpu-int4-128"), recipe_named("cpu-int8")]
    assert model_suffixes(alone) == {"cpu-int4-128": "int4", "cpu-int8": "int8"}
    several = [recipe_named("cpu-int4"), *alone]
    assert model_suffixes(several) == {"cpu-int4": "int4", "cpu-int4-128": "int4-128", "cpu-int8": "int8"}


@pytest.mark.parametrize(
    "name", ["", "Support", "a b", "a/b", "-a", "a.", "a:1", "a..b", "x" * 101, "con", "nul.x", "ä"]
)
def test_a_name_that_a_file_system_could_not_hold_is_refused(name: str) -> None:
    with pytest.raises(BadManifest, match="cannot be a model name"):
        check_model_name(name)


@pytest.mark.parametrize(
    ("directory", "name"),
    [("Support EN", "support-en"), ("checkpoint-500", "checkpoint-500"), ("..", "checkpoint"), ("Läufe", "l-ufe")],
)
def test_a_folder_gives_a_legal_name(directory: str, name: str) -> None:
    assert name_from_directory(directory) == name
    check_model_name(name)


def test_a_version_is_named_by_number_by_alias_or_as_the_latest() -> None:
    assert parse_reference("m:3").number == 3
    assert parse_reference("m@production").alias == "production"
    assert parse_reference("m").alias == "latest"


@pytest.mark.parametrize("text", ["m:", "m:0", "m:01", "m:x", "m@", "m@A", ":3"])
def test_what_names_no_version_is_refused(text: str) -> None:
    with pytest.raises(BadManifest):
        parse_reference(text)

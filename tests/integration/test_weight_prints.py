"""The print of a source tells its own built model from any other, and is no larger for larger weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoints import tiny_checkpoint
from tests.integration.conversion_cases import in_torch, run_convert
from workers.measures.weight_print import (
    GROUPS,
    SIGNS,
    WeightPrint,
    from_arrays,
    group_starts,
    random_signs,
    to_arrays,
)
from workers.toolchains.weight_prints import faults, print_of

pytestmark = pytest.mark.toolchain
RECIPES = ("cpu-int4", "cpu-int4-128", "cpu-int8", "cpu-fp16", "cpu-fp32")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two checkpoints of one shape."""
    directory = tmp_path_factory.mktemp("sources")
    return {name: tiny_checkpoint(directory / name, "llama", seed=seed) for seed, name in enumerate(("own", "other"))}


@pytest.fixture(scope="module")
def models(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The first of them, built by each recipe."""
    directory = tmp_path_factory.mktemp("models")
    for recipe in RECIPES:
        run_convert(sources["own"], recipe, directory / recipe)
    return {recipe: directory / recipe / "output" / "model.onnx" for recipe in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_built_model_has_its_sources_weights_and_no_others(
    sources: dict[str, Path], models: dict[str, Path], recipe: str
) -> None:
    own, other = (print_of(in_torch(sources[name])) for name in ("own", "other"))

    assert faults(own, models[recipe]) == ([], [])
    found, _ = faults(other, models[recipe])
    assert len(found) >= len(other.matrices)


@pytest.mark.parametrize("factor", [0.9, 1.1])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_matrix_of_another_length_is_named(
    sources: dict[str, Path], models: dict[str, Path], recipe: str, factor: float
) -> None:
    source = in_torch(sources["own"])
    with torch.no_grad():
        source.model.layers[1].mlp.up_proj.weight *= factor

    (found,), _ = faults(print_of(source), models[recipe])

    assert found.startswith("'model.layers.1.mlp.up_proj' is ")


@pytest.mark.parametrize("recipe", ["cpu-fp16", "cpu-fp32"])
def test_without_rounding_a_small_change_is_seen(
    sources: dict[str, Path], models: dict[str, Path], recipe: str
) -> None:
    source = in_torch(sources["own"])
    with torch.no_grad():
        weight = source.model.layers[0].self_attn.k_proj.weight
        weight += 0.02 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))

    (found,), _ = faults(print_of(source), models[recipe])

    assert found == "'model.layers.0.self_attn.k_proj' is not its source's: it is 2% of its length away from it"


def test_matrices_whose_names_are_not_found_are_told(sources: dict[str, Path], models: dict[str, Path]) -> None:
    own = print_of(in_torch(sources["own"]))
    renamed = WeightPrint(own.is_tied, {f"x.{name}.y": each for name, each in own.matrices.items()}, own.vectors)

    found, unplaced = faults(renamed, models["cpu-int8"])

    assert (found, len(unplaced)) == ([], len(own.matrices))


def test_a_print_comes_back_as_it_was(sources: dict[str, Path]) -> None:
    own = print_of(in_torch(sources["own"]))

    described, arrays = to_arrays(own)
    again = from_arrays(json.loads(json.dumps(described)), arrays)

    assert again.matrices.keys() == own.matrices.keys()
    assert all(np.array_equal(again.matrices[name].sums, each.sums) for name, each in own.matrices.items())
    with pytest.raises(ValueError, match="numbers where"):
        from_arrays(described, arrays | {"vectors": arrays["vectors"][1:]})


def test_signs_are_the_same_each_time_and_differ_from_word_to_word() -> None:
    assert np.array_equal(random_signs("rows of a", 1000), random_signs("rows of a", 1000))
    assert set(np.unique(random_signs("rows of a", 1000))) == {-1.0, 1.0}
    assert abs(float((random_signs("rows of a", 1000) * random_signs("rows of b", 1000)).mean())) < 0.1
    assert random_signs("rows of a", 3).shape == (3, SIGNS)


@pytest.mark.parametrize("rows", [1, 3, 64, 1000])
def test_every_group_has_rows(rows: int) -> None:
    starts = group_starts(rows)

    assert len(starts) == min(rows, GROUPS)
    assert (np.diff([*starts, rows]) > 0).all()

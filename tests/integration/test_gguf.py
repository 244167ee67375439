"""A GGUF file is converted as the checkpoint that it stands for, or refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.integrations.gguf.dequant import GGML_BLOCK, dequantize

from olivepress.checkpoints.files import hash_file
from olivepress.checkpoints.gguf_header import PLAIN_TYPES, TYPES
from olivepress.checkpoints.reading import inspect
from olivepress.errors import BadCheckpoint, NoRoom, UnsupportedArchitecture
from olivepress.recipes.files import parse_recipe
from olivepress.recipes.recipe import recipe_named
from tests.checkpoints import LLAMA3_ROPE, tiny_adapter, tiny_checkpoint
from tests.gguf_files import gguf_checkpoint
from tests.integration.conversion_cases import in_torch, logits_in_runtime, logits_in_torch
from tests.integration.ingest_cases import edit_json, run
from workers.steps import convert, quantize, reference
from workers.steps.context import StepContext
from workers.toolchains import gguf_expanded
from workers.toolchains.gguf_expanded import expanded
from workers.toolchains.versions import toolchain_versions

pytestmark = pytest.mark.toolchain

FACTORS = [1.0 + pair / 10 for pair in range(8)]
LONGROPE = {
    "rope_type": "longrope",
    "long_factor": [2 * factor for factor in FACTORS],
    "short_factor": FACTORS,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 1.0,
    "original_max_position_embeddings": 2048,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "rope_theta": 1e6}
HALF_TURNED = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tied": False}),
    "llama with Llama 3's rope": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama with linear scaling": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    ),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral with wide heads": ("mistral", {"head_dim": 32}),
    "qwen2": ("qwen2", {}),
    "qwen2 with YaRN": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "phi3 with a window": ("phi3", {"sliding_window": 16}),
    "phi3 with LongRoPE": ("phi3", {"original_max_position_embeddings": 2048, "rope_parameters": LONGROPE}),
    "phi3 turned in half": ("phi3", {"hidden_size": 128, "tied": False, "rope_parameters": HALF_TURNED}),
    "gemma": ("gemma", {"head_dim": 32}),
    "gemma2": ("gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}),
    "gemma3": (
        "gemma3_text",
        {"num_hidden_layers": 7, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16},
    ),
    "granite": ("granite", {}),
    "smollm3": ("smollm3", {}),
}
LIKE_WORDS = ("Hello, world! 123 Grüße aus Köln 你好 🙂 it's  \n\n x", "<|im_start|>user\nhi<|im_end|>", "e\u0301")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose vocabulary is filled up to more rows than it has tokens."""
    return tiny_checkpoint(tmp_path_factory.mktemp("source") / "llama", "llama", vocab_size=544)


@pytest.fixture(scope="module")
def of_floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of floats whose table of embeddings is 512 × 256."""
    root = tmp_path_factory.mktemp("floats")
    checkpoint = tiny_checkpoint(root / "source", "qwen2", hidden_size=256, num_hidden_layers=1)
    return gguf_checkpoint(checkpoint, root / "gguf", "F32")


@pytest.mark.parametrize("name", MODELS)
def test_it_comes_back_as_the_model_that_it_was_written_from(tmp_path: Path, name: str) -> None:
    architecture, fields = MODELS[name]
    checkpoint = tiny_checkpoint(tmp_path / "source", architecture, **fields)

    restored = expanded(gguf_checkpoint(checkpoint, tmp_path / "gguf", "BF16"), tmp_path / "restored")

    wanted = logits_in_torch(in_torch(checkpoint))
    np.testing.assert_array_equal(logits_in_torch(in_torch(restored)), wanted)
    assert _dtypes(restored) == {"BF16"}


def test_what_is_converted_says_what_its_source_says(source: Path, tmp_path: Path) -> None:
    directory = gguf_checkpoint(source, tmp_path / "gguf", "F16")

    ingested = run(directory)
    parity = _convert(directory, ingested, tmp_path)["parity"]

    # As it was submitted, not what it is expanded to.
    assert ingested["size_bytes"] == (directory / "model.gguf").stat().st_size
    assert ingested["files"] == [
        {
            "path": "model.gguf",
            "size_bytes": (directory / "model.gguf").stat().st_size,
            "sha256": hash_file(directory / "model.gguf"),
        }
    ]
    assert parity["correlation"] > 1 - 1e-9
    wanted = logits_in_torch(in_torch(source))
    np.testing.assert_allclose(logits_in_runtime(tmp_path / "output"), wanted, atol=1e-3)
    built, original = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "output", source))
    assert [built.encode(text) for text in LIKE_WORDS] == [original.encode(text) for text in LIKE_WORDS]


def test_quantized_blocks_are_built_from_what_they_stand_for(source: Path, tmp_path: Path) -> None:
    directory = gguf_checkpoint(source, tmp_path / "gguf", "Q8_0")
    plain = expanded(directory, tmp_path / "plain")

    _convert(directory, run(directory), tmp_path)

    wanted = logits_in_torch(in_torch(plain))
    np.testing.assert_allclose(logits_in_runtime(tmp_path / "output"), wanted, atol=1e-3)
    # Eight bits round something, and not much.
    unrounded = logits_in_torch(in_torch(source))
    assert 0.01 < np.abs(wanted - unrounded).max() < 0.1 * np.abs(unrounded).max()
    assert _dtypes(plain) == {"F32"}


def test_the_reference_is_what_it_stands_for(source: Path, tmp_path: Path) -> None:
    directory = gguf_checkpoint(source, tmp_path / "gguf", "F16")
    told = []
    for path in (directory, source):
        context = _context(tmp_path / path.name)
        asked = {"path": str(path), "base": None, "ingest": run(path), "prompts": []}
        told.append(reference.run(asked, context) | {"files": None})

    assert told[0] == told[1]


def test_what_quantizes_the_checkpoint_is_given_what_it_stands_for(source: Path, tmp_path: Path) -> None:
    directory = gguf_checkpoint(source, tmp_path / "gguf", "F16")
    passes = {"before": [{"type": "Rtn", "config": {"group_size": 32}}]}
    recipe = parse_recipe({"precision": "int4", "olive_passes": passes}, "a.yaml")
    asked = _spec(run(directory)) | {"on": "checkpoint", "quantize": recipe.quantize_options(), "calibration": None}

    agreed = quantize.run(asked | {"path": str(directory), "base": None}, _context(tmp_path))["parity"]

    assert agreed["correlation"] > 0.9
    assert (tmp_path / "output/model.safetensors").is_file()


def test_an_adapter_is_merged_into_what_its_base_stands_for(source: Path, tmp_path: Path) -> None:
    base = gguf_checkpoint(source, tmp_path / "base", "F32")
    adapter = tiny_adapter(tmp_path / "adapter", source)

    ingested = run(adapter, base)
    built, _ = convert.plain_source(adapter, base, _spec(ingested), _context(tmp_path / "from gguf"))
    wanted, _ = convert.plain_source(adapter, source, _spec(run(adapter, source)), _context(tmp_path / "from source"))

    assert [file["path"] for file in ingested["base"]["files"]] == ["model.gguf"]
    assert torch.equal(*(_tensors(path)["model.layers.1.mlp.up_proj.weight"] for path in (built, wanted)))


@pytest.mark.parametrize("kind", [name for name, _, _ in TYPES.values() if name not in PLAIN_TYPES])
def test_blocks_of_every_type_are_widened_to_the_bit(of_floats: Path, tmp_path: Path, kind: str) -> None:
    number = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[number]
    generator = np.random.default_rng(5)
    stored = generator.integers(0, 256, (512, 256 // block * block_bytes), dtype=np.uint8)
    # Scales anywhere in a block must be numbers: no half of these bytes has all bits of an exponent set.
    stored &= 0xBB

    tensor = _restored_table(of_floats, tmp_path, stored, number)

    if number in GGML_BLOCK:
        wanted = dequantize(torch.from_numpy(stored).flatten(), int(number)).reshape(512, 256)
        assert torch.allclose(tensor, wanted, rtol=1e-6, atol=0, equal_nan=True)
    else:
        assert torch.equal(tensor, torch.from_numpy(gguf.dequantize(stored, number)))
    assert tensor.unique().numel() > 3


def test_the_table_of_types_is_the_one_of_its_library() -> None:
    for number, (name, block, block_bytes) in TYPES.items():
        kind = gguf.GGMLQuantizationType(number)

        assert kind.name == name
        assert gguf.GGML_QUANT_SIZES[kind] == (block, block_bytes)


def test_it_is_widened_in_small_parts(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = gguf_checkpoint(source, tmp_path / "gguf", "Q8_0")
    whole = expanded(directory, tmp_path / "whole")
    monkeypatch.setattr(gguf_expanded, "CHUNK_WEIGHTS", 64 * 3)

    parts = expanded(directory, tmp_path / "parts")

    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_vectors_that_16_bits_do_not_hold_are_kept(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "source"))
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float() + 2.0**-20
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})

    restored = expanded(gguf_checkpoint(copy, tmp_path / "gguf", "BF16"), tmp_path / "restored")

    assert torch.equal(_tensors(restored)["model.norm.weight"], tensors["model.norm.weight"])
    assert json.loads((restored / "config.json").read_text())["dtype"] == "float32"


def test_what_lies_beside_it_counts(source: Path, tmp_path: Path) -> None:
    directory = gguf_checkpoint(source, tmp_path / "gguf", "F16", keys={"tokenizer.ggml.pre": "unheard-of"})
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, directory)
    edit_json(directory / "config.json", max_position_embeddings=2048, model_type="mistral", sliding_window=16)
    edit_json(directory / "config.json", architectures=["MistralForCausalLM"])

    ingested = run(directory)

    assert ingested["architecture"] == "MistralForCausalLM"
    assert ingested["context_length"] == 2048
    assert {file["path"] for file in ingested["files"]} == {
        *("config.json", "model.gguf", "tokenizer.json", "tokenizer_config.json")
    }


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"num_key_value_heads": 4}, "'num_key_value_heads' is 4 in .*config.json and 2 in model.gguf; put"),
        ({"model_type": "qwen2"}, "is of a 'qwen2', and model.gguf of a 'llama'"),
        ({"rope_parameters": {"rope_theta": 5e5}}, "turns its rotary embeddings otherwise than model.gguf"),
        ({"rope_parameters": {**LLAMA3_ROPE, "factor": 32.0}}, "turns its rotary embeddings otherwise"),
    ],
)
def test_a_config_of_another_model_beside_it_is_refused(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "source", "llama", rope_parameters=LLAMA3_ROPE)
    directory = gguf_checkpoint(checkpoint, tmp_path / "gguf")
    shutil.copy(checkpoint / "config.json", directory)
    run(directory)
    edit_json(directory / "config.json", **changed)
    shutil.rmtree(tmp_path / "scratch")

    with pytest.raises(BadCheckpoint, match=says):
        run(directory)


def test_one_beside_a_checkpoint_is_passed_over(source: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(source, tmp_path / "both"))
    before = run(directory)
    (directory / "model.gguf").write_bytes(b"GGUF and no more")

    assert run(directory) == before


def test_a_laptop_tells_its_facts_from_the_header(source: Path, tmp_path: Path) -> None:
    directory = gguf_checkpoint(source, tmp_path / "gguf", "Q4_0")

    facts = inspect(directory)

    ingested = run(directory)
    for fact in ("architecture", "family", "parameters", "context_length", "vocabulary_size", "tied_embeddings"):
        assert facts[fact] == ingested[fact], fact
    assert (facts["dtype"], facts["problems"], facts["chat_template"]) == ("Q4_0", [], "model.gguf")
    assert facts["sizes"]["is_expanded"] and ingested["sizes"]["is_expanded"]


def test_a_tokenizer_that_does_not_come_back_as_it_was_is_asked_for(source: Path, tmp_path: Path) -> None:
    directory = gguf_checkpoint(source, tmp_path / "gguf", keys={"tokenizer.ggml.model": "llama"})
    problem = r"of the kind 'llama' \(cut as 'qwen2'\).*; put the tokenizer .* beside it"

    assert len(inspect(directory)["problems"]) == 1
    with pytest.raises(BadCheckpoint, match=problem):
        run(directory)


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("qwen2", ["it", "'s", "Ġ", "2", "0", "2", "4"]),
        ("llama-bpe", ["it", "'s", "Ġ", "202", "4"]),
        ("tekken", ["it", "'s", "Ġ", "2", "0", "2", "4"]),
        ("smollm", ["it", "'s", "Ġ", "2", "0", "2", "4"]),
        ("gpt-2", ["it", "'s", "Ġ2024"]),
    ],
)
def test_a_text_is_cut_as_the_tokenizer_in_it_says(source: Path, tmp_path: Path, pre: str, pieces: list[str]) -> None:
    directory = gguf_checkpoint(source, tmp_path / "gguf", keys={"tokenizer.ggml.pre": pre})

    tokenizer = Tokenizer.from_file(str(expanded(directory, tmp_path / "restored") / "tokenizer.json"))

    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("it's 2024")] == pieces
    # Llama 3 and Mistral begin each text with a token of their own.
    assert (tokenizer.encode("it").tokens[0] == "<|endoftext|>") == (pre in ("llama-bpe", "tekken"))


def test_an_architecture_that_does_not_come_back_as_it_was_is_refused(source: Path, tmp_path: Path) -> None:
    directory = gguf_checkpoint(source, tmp_path / "gguf", keys={"general.architecture": "nemotron"})

    with pytest.raises(UnsupportedArchitecture, match=r"is of the architecture 'nemotron', and .* llama, .* smollm3;"):
        run(directory)


def test_what_it_states_and_nobody_understands_is_refused(source: Path, tmp_path: Path) -> None:
    directory = gguf_checkpoint(source, tmp_path / "gguf", keys={"llama.attention.temperature_length": 3})

    with pytest.raises(BadCheckpoint, match=r"states 'attention.temperature_length' .*; put the config.json"):
        run(directory)


def test_a_granite_without_its_multipliers_is_refused(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "source", "granite")
    directory = gguf_checkpoint(checkpoint, tmp_path / "gguf", keys={"granite.residual_scale": ...})

    with pytest.raises(BadCheckpoint, match=r"'residual_scale' is missing; submit the checkpoint"):
        run(directory)


def test_one_that_would_fill_the_disk_is_refused_before_a_byte_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = gguf_checkpoint(source, tmp_path / "gguf", "Q4_0")
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    with pytest.raises(NoRoom, match=r"0\.1 GB as a checkpoint, and the worker has 0\.0 GB of disk free; free some"):
        run(directory)

    assert not list((tmp_path / "scratch").rglob("*.safetensors"))


def test_the_library_that_widens_it_counts_among_the_toolchain() -> None:
    assert toolchain_versions()["gguf"]


def _spec(ingested: dict[str, Any]) -> dict[str, Any]:
    return {"ingest": ingested, "build": recipe_named("cpu-fp32").build_options()}


def _context(workspace: Path) -> StepContext:
    for name in ("output", "steps"):
        (workspace / name).mkdir(parents=True)
    return StepContext(workspace / "output", workspace / "steps", workspace / "lock")


def _convert(directory: Path, ingested: dict[str, Any], workspace: Path) -> dict[str, Any]:
    return convert.run(_spec(ingested) | {"path": str(directory), "base": None}, _context(workspace))


def _restored_table(of_floats: Path, root: Path, stored: np.ndarray, number: gguf.GGMLQuantizationType) -> torch.Tensor:
    """What these bytes come back as in the place of the table of embeddings."""
    reader = gguf.GGUFReader(of_floats / "model.gguf")
    (root / "gguf").mkdir()
    writer = gguf.GGUFWriter(root / "gguf" / "model.gguf", "qwen2")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        if tensor.name != "token_embd.weight":
            writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.add_tensor("token_embd.weight", stored, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return _tensors(expanded(root / "gguf", root / "restored"))["model.embed_tokens.weight"]


def _tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def _dtypes(directory: Path) -> set[str]:
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (no mapping)

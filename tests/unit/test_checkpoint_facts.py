"""What headers and config alone tell of a checkpoint."""

import json
from pathlib import Path

import pytest

from olivepress.checkpoints.reading import CheckpointKind, inspect, read_checkpoint
from olivepress.conversion_cost import Sizes
from olivepress.errors import BadCheckpoint
from tests.unit.plain_checkpoints import (
    SHAPES,
    TEMPLATE,
    header_of,
    safetensors_bytes,
    write_adapter,
    write_checkpoint,
    write_json,
    write_safetensors,
    write_sharded,
)

PARAMETERS = 32 * 8 + 8 * 16 + 8


class TestFacts:
    def test_a_full_checkpoint(self, tmp_path: Path) -> None:
        checkpoint = read_checkpoint(write_checkpoint(tmp_path / "m"))

        assert checkpoint.kind is CheckpointKind.FULL
        assert checkpoint.architecture == "Qwen2ForCausalLM"
        assert checkpoint.family == "qwen2"
        assert checkpoint.parameters == PARAMETERS
        assert checkpoint.dtype == "bfloat16"
        assert checkpoint.tied_embeddings is True
        assert checkpoint.context_length == 4096
        assert checkpoint.vocabulary_size == 32
        assert checkpoint.size_bytes == (tmp_path / "m" / "model.safetensors").stat().st_size
        assert len(checkpoint.tensors) == 3

    def test_shards_make_one_checkpoint(self, tmp_path: Path) -> None:
        checkpoint = read_checkpoint(write_sharded(tmp_path / "m"))

        assert [file.path.name for file in checkpoint.weights] == [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ]
        assert checkpoint.parameters == PARAMETERS

    def test_shards_that_the_index_does_not_name_are_left_alone(self, tmp_path: Path) -> None:
        directory = write_sharded(tmp_path / "m")
        (directory / "model-00003-of-00003.safetensors").write_text("a leftover of an earlier run")

        checkpoint = read_checkpoint(directory)

        assert "model-00003-of-00003.safetensors" not in {path.name for path in checkpoint.files}

    def test_an_adapter_has_the_facts_of_its_base(self, tmp_path: Path) -> None:
        base, adapter = write_checkpoint(tmp_path / "base"), write_adapter(tmp_path / "adapter")

        checkpoint = read_checkpoint(adapter, base)

        assert checkpoint.kind is CheckpointKind.ADAPTER
        assert checkpoint.architecture == "Qwen2ForCausalLM"
        assert checkpoint.parameters == PARAMETERS
        assert checkpoint.dtype == "bfloat16"
        assert checkpoint.size_bytes == sum(path.stat().st_size for path in tmp_path.glob("*/*.safetensors"))

    def test_an_adapters_own_tokenizer_comes_before_its_bases(self, tmp_path: Path) -> None:
        base, adapter = write_checkpoint(tmp_path / "base"), write_adapter(tmp_path / "adapter")
        assert read_checkpoint(adapter, base).tokenizer_directory == base

        write_json(adapter / "tokenizer.json", {})

        assert read_checkpoint(adapter, base).tokenizer_directory == adapter

    def test_a_head_that_is_tied_counts_once(self, tmp_path: Path) -> None:
        directory = write_checkpoint(tmp_path / "m")
        write_safetensors(directory / "model.safetensors", SHAPES | {"lm_head.weight": ("BF16", [32, 8])})
        assert read_checkpoint(directory).parameters == PARAMETERS

        config = json.loads((directory / "config.json").read_text())
        write_json(directory / "config.json", config | {"tie_word_embeddings": False})

        assert read_checkpoint(directory).parameters == PARAMETERS + 32 * 8

    def test_whether_the_head_is_tied_is_seen_where_config_does_not_say(self, tmp_path: Path) -> None:
        directory = write_checkpoint(tmp_path / "m", tie_word_embeddings=None)
        assert read_checkpoint(directory).tied_embeddings is True

        write_safetensors(directory / "model.safetensors", SHAPES | {"lm_head.weight": ("BF16", [32, 8])})

        assert read_checkpoint(directory).tied_embeddings is False

    def test_tables_that_are_computed_anew_are_no_parameters(self, tmp_path: Path) -> None:
        directory = write_checkpoint(tmp_path / "m")
        extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", [64])}
        write_safetensors(directory / "model.safetensors", SHAPES | extra)

        assert read_checkpoint(directory).parameters == PARAMETERS

    def test_two_types_of_numbers_are_mixed(self, tmp_path: Path) -> None:
        directory = write_checkpoint(tmp_path / "m")
        write_safetensors(directory / "model.safetensors", SHAPES | {"model.norm.weight": ("F32", [8])})

        assert read_checkpoint(directory).dtype == "mixed"

    def test_fields_of_a_nested_text_config_are_found(self, tmp_path: Path) -> None:
        nested = {"text_config": {"vocab_size": 32, "max_position_embeddings": 512}}
        directory = write_checkpoint(tmp_path / "m", vocab_size=None, max_position_embeddings=None, **nested)

        checkpoint = read_checkpoint(directory)

        assert (checkpoint.vocabulary_size, checkpoint.context_length) == (32, 512)


class TestTemplateAndTokenizer:
    """Problems that `inspect` lists and ingest refuses."""

    def problems(self, directory: Path) -> list[str]:
        return inspect(directory)["problems"]  # type: ignore[no-any-return]

    def test_a_sound_checkpoint_has_none(self, tmp_path: Path) -> None:
        assert self.problems(write_checkpoint(tmp_path / "m")) == []

    def test_a_missing_tokenizer_is_told_with_the_way_to_save_one(self, tmp_path: Path) -> None:
        directory = write_checkpoint(tmp_path / "m")
        (directory / "tokenizer.json").unlink()

        (problem,) = self.problems(directory)

        assert "has no tokenizer (looked for tokenizer.json" in problem
        assert "tokenizer.save_pretrained(...)" in problem

    def test_a_missing_chat_template_is_told_with_both_places_for_it(self, tmp_path: Path) -> None:
        directory = write_checkpoint(tmp_path / "m")
        write_json(directory / "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer", "chat_template": ""})

        (problem,) = self.problems(directory)

        assert "has no chat template" in problem
        assert "into chat_template.jinja, or into tokenizer_config.json as 'chat_template'" in problem

    def test_a_template_in_a_file_of_its_own_counts(self, tmp_path: Path) -> None:
        directory = write_checkpoint(tmp_path / "m")
        write_json(directory / "tokenizer_config.json", {})
        (directory / "chat_template.jinja").write_text(TEMPLATE)

        facts = inspect(directory)

        assert facts["problems"] == []
        assert facts["chat_template"] == "chat_template.jinja"

    def test_the_same_template_in_both_places_is_no_problem(self, tmp_path: Path) -> None:
        directory = write_checkpoint(tmp_path / "m")
        (directory / "chat_template.jinja").write_text(TEMPLATE + "\n")

        assert self.problems(directory) == []

    def test_two_templates_that_differ_are_refused_with_both_shown(self, tmp_path: Path) -> None:
        directory = write_checkpoint(tmp_path / "m")
        (directory / "chat_template.jinja").write_text(TEMPLATE.replace("content", "text"))

        (problem,) = self.problems(directory)

        assert "two chat templates that differ" in problem
        assert """chat_template.jinja has "…sages %}{{ message['text']""" in problem
        assert """tokenizer_config.json has "…sages %}{{ message['content']""" in problem

    def test_an_adapters_own_template_needs_a_tokenizer_beside_it(self, tmp_path: Path) -> None:
        base = write_checkpoint(tmp_path / "base")
        adapter = write_adapter(tmp_path / "adapter", base_model_name_or_path=str(base))
        (adapter / "chat_template.jinja").write_text(TEMPLATE)
        assert self.problems(adapter) == []

        (adapter / "chat_template.jinja").write_text(TEMPLATE.replace("content", "text"))

        (problem,) = self.problems(adapter)
        assert f"{adapter} has a chat template of its own and no tokenizer" in problem
        assert "save the tokenizer beside the adapter" in problem

    def test_of_several_named_templates_the_default_counts(self, tmp_path: Path) -> None:
        directory = write_checkpoint(tmp_path / "m")
        named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]
        write_json(directory / "tokenizer_config.json", {"chat_template": named})
        assert self.problems(directory) == []

        write_json(directory / "tokenizer_config.json", {"chat_template": named[:1]})

        assert "none is called 'default'" in self.problems(directory)[0]

    def test_a_template_that_is_no_text_is_told(self, tmp_path: Path) -> None:
        directory = write_checkpoint(tmp_path / "m")
        write_json(directory / "tokenizer_config.json", {"chat_template": 7})
        assert "is no text" in self.problems(directory)[0]

        (directory / "chat_template.jinja").write_bytes(b"\xff")
        write_json(directory / "tokenizer_config.json", {})

        assert "is no UTF-8 text" in self.problems(directory)[0]


class TestInspect:
    def test_it_gives_json_values_with_the_sizes_that_costs_are_predicted_from(self, tmp_path: Path) -> None:
        facts = inspect(write_checkpoint(tmp_path / "m"))

        assert json.loads(json.dumps(facts)) == facts
        assert Sizes(**facts["sizes"]).parameters == facts["parameters"]
        assert facts["tokenizer_class"] == "Qwen2Tokenizer"
        assert facts["chat_template"] == "tokenizer_config.json"
        assert facts["base"] is None

    def test_it_finds_the_base_that_an_adapter_names(self, tmp_path: Path) -> None:
        base = write_checkpoint(tmp_path / "base")

        facts = inspect(write_adapter(tmp_path / "adapter", base_model_name_or_path=str(base)))

        assert facts["kind"] == "adapter"
        assert facts["base"] == str(base)

    def test_a_path_without_a_directory_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(BadCheckpoint, match="there is no directory"):
            inspect(tmp_path / "none")

    def test_a_header_that_says_too_much_is_refused_and_not_believed(self, tmp_path: Path) -> None:
        directory = write_checkpoint(tmp_path / "m")
        header = header_of({"model.embed_tokens.weight": ("BF16", [2**40, 2**20])})
        (directory / "model.safetensors").write_bytes(safetensors_bytes(header, 10))

        with pytest.raises(BadCheckpoint, match="cut short"):
            inspect(directory)

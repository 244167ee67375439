"""A sound checkpoint goes through ingest with its facts, however unusual it looks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from olivepress.checkpoints.reading import CheckpointKind
from olivepress.errors import BadCheckpoint
from tests.checkpoints import MODEL_TYPES, tiny_adapter, tiny_checkpoint
from tests.integration.ingest_cases import (
    DOWN,
    EMBEDDING,
    add_token,
    copy_of,
    edit_json,
    edit_weights,
    renamed,
    run,
    set_config,
    sound,
    with_number,
)

__all__ = ["copy_of", "sound"]

pytestmark = pytest.mark.toolchain

FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


class TestSound:
    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("model_type", MODEL_TYPES)
    def test_every_kind_of_model_goes_through(self, tmp_path: Path, model_type: str, tied: bool) -> None:
        directory = tiny_checkpoint(tmp_path / "m", model_type, tied=tied)

        result = run(directory)

        assert result["family"] == model_type
        assert result["tied_embeddings"] is tied
        assert result["notes"] == []

    def test_the_facts_of_a_full_checkpoint(self, sound: Path) -> None:
        result = run(sound / "qwen2")

        parameters = sum(tensor.numel() for tensor in load_file(sound / "qwen2" / "model.safetensors").values())
        assert result["kind"] == CheckpointKind.FULL
        assert result["architecture"] == "Qwen2ForCausalLM"
        assert result["parameters"] == parameters
        assert result["dtype"] == "bfloat16"
        assert result["context_length"] == 4096
        assert result["vocabulary_size"] == 512
        assert result["size_bytes"] == (sound / "qwen2" / "model.safetensors").stat().st_size
        assert {file["path"] for file in result["files"]} == FILES
        assert result["base"] is None
        assert result["base_path"] is None

    def test_the_facts_of_an_adapter_are_its_bases(self, sound: Path) -> None:
        base = run(sound / "qwen2")

        result = run(sound / "lora", sound / "qwen2")

        assert result["kind"] == CheckpointKind.ADAPTER
        assert {file["path"] for file in result["files"]} == {"adapter_config.json", "adapter_model.safetensors"}
        assert result["base"] == {key: base[key] for key in ("checkpoint_digest", "files", "architecture", "family")}
        assert result["base_path"] == str(sound / "qwen2")
        same = ("architecture", "family", "parameters", "dtype", "tied_embeddings", "context_length", "vocabulary_size")
        assert {key: result[key] for key in same} == {key: base[key] for key in same}

    # What peft says while it saves such an adapter.
    @pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
    @pytest.mark.parametrize(
        "kind",
        [
            {"dora": True},
            {"rslora": True},
            {"modules_to_save": ["lm_head"]},
            {"target_modules": ["q_proj", "v_proj"]},
            {"target_modules": ["q_proj", "embed_tokens"]},
        ],
        ids=str,
    )
    def test_every_kind_of_lora_goes_through(self, sound: Path, tmp_path: Path, kind: dict[str, Any]) -> None:
        base = tiny_checkpoint(tmp_path / "untied", tied=False)
        adapter = tiny_adapter(tmp_path / "adapter", base, **kind)

        assert run(adapter, base)["notes"] == []

    def test_the_base_that_an_adapter_names_is_taken_from_under_the_roots(self, sound: Path) -> None:
        assert run(sound / "lora")["base_path"] == str(sound / "qwen2")

    def test_an_adapter_with_tokens_of_its_own_brings_their_rows_along(self, sound: Path, tmp_path: Path) -> None:
        adapter = shutil.copytree(sound / "lora", tmp_path / "lora")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(sound / "qwen2" / name, adapter)
        add_token(adapter, "<|new|>", 512)
        edit_json(adapter / "adapter_config.json", modules_to_save=["embed_tokens", "lm_head"])
        prefix = "base_model.model."
        rows = {f"{prefix}{name}": torch.ones(513, 64) for name in (EMBEDDING, "lm_head.weight")}

        edit_weights(adapter, lambda tensors: tensors.update(rows), "adapter_model")

        assert run(adapter, sound / "qwen2")["vocabulary_size"] == 513

    def test_the_digest_depends_on_the_content_and_not_on_the_place(
        self, sound: Path, copy_of: Callable[[str], Path]
    ) -> None:
        digest = run(sound / "qwen2")["checkpoint_digest"]
        directory = copy_of("qwen2")
        assert run(directory)["checkpoint_digest"] == digest

        with_number(0.25)(directory)

        assert run(directory)["checkpoint_digest"] != digest

    def test_the_digest_of_an_adapter_covers_its_base(self, sound: Path, copy_of: Callable[[str], Path]) -> None:
        digest = run(sound / "lora", sound / "qwen2")["checkpoint_digest"]
        base = copy_of("qwen2")
        assert run(sound / "lora", base)["checkpoint_digest"] == digest

        with_number(0.25)(base)

        assert run(sound / "lora", base)["checkpoint_digest"] != digest

    def test_progress_rises_to_one_and_covers_every_byte(self, sound: Path) -> None:
        shares: list[tuple[str, float]] = []

        run(sound / "lora", sound / "qwen2", report_progress=lambda *share: shares.append(share))

        assert shares[0] == ("checking", 0.0)
        assert shares[-1] == ("reading", 1.0)
        assert [share for _, share in shares] == sorted(share for _, share in shares)

    def test_nothing_is_written_to_the_checkpoint(self, copy_of: Callable[[str], Path]) -> None:
        directory = copy_of("qwen2")
        before = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}

        run(directory)

        assert {path.name: path.stat().st_mtime_ns for path in directory.iterdir()} == before
        assert [path.name for path in directory.parent.iterdir()] == ["qwen2"]


class TestUnusualAndSound:
    """What looks odd and is no reason to refuse."""

    def test_code_beside_an_architecture_that_transformers_has_itself_is_not_run(
        self, copy_of: Callable[[str], Path]
    ) -> None:
        directory = copy_of("qwen2")
        trap = directory.parent / "ran"
        code = f"from pathlib import Path\nPath({str(trap)!r}).touch()\n"
        (directory / "modeling_own.py").write_text(code)
        set_config(auto_map={"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Model"})(
            directory
        )

        run(directory)

        assert not trap.exists()

    def test_names_without_the_prefix_of_the_model_are_understood(self, copy_of: Callable[[str], Path]) -> None:
        directory = copy_of("qwen2")
        renamed(lambda name: name.removeprefix("model."))(directory)

        assert run(directory)["parameters"] > 100_000

    def test_tables_that_older_versions_saved_are_left_alone(self, copy_of: Callable[[str], Path]) -> None:
        directory = copy_of("qwen2")
        extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.full((8,), 1e30)}
        edit_weights(directory, lambda tensors: tensors.update(extra))

        assert run(directory)["notes"] == []

    def test_a_tied_head_that_is_stored_as_well_and_equal_is_allowed(
        self, sound: Path, copy_of: Callable[[str], Path]
    ) -> None:
        directory = copy_of("qwen2")
        edit_weights(directory, lambda tensors: tensors.update({"lm_head.weight": tensors[EMBEDDING].clone()}))

        result = run(directory)

        assert result["tied_embeddings"] is True
        assert result["parameters"] == run(sound / "qwen2")["parameters"]

    def test_a_matrix_of_zeros_is_noted(self, copy_of: Callable[[str], Path]) -> None:
        directory = copy_of("qwen2")
        edit_weights(directory, lambda tensors: tensors[DOWN].zero_())

        assert run(directory)["notes"] == [f"'{DOWN}' in {directory} is all zeros"]

    def test_an_adapter_that_changes_nothing_is_refused(self, sound: Path, copy_of: Callable[[str], Path]) -> None:
        adapter = copy_of("lora")

        def zero(tensors: dict[str, torch.Tensor]) -> None:
            for name, tensor in tensors.items():
                if ".lora_B." in name:
                    tensor.zero_()

        edit_weights(adapter, zero, "adapter_model")

        with pytest.raises(BadCheckpoint, match=r"changes nothing: .* save it after the training"):
            run(adapter, sound / "qwen2")

    def test_a_tokenizer_that_transformers_opens_by_other_rules_is_noted(self, copy_of: Callable[[str], Path]) -> None:
        directory = copy_of("qwen2")
        path = directory / "tokenizer.json"
        tokenizer = json.loads(path.read_text())
        # GPT-2's way keeps digits together; transformers gives every qwen2 model Qwen's, which parts them.
        tokenizer["pre_tokenizer"] = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        }
        path.write_text(json.dumps(tokenizer))

        (note,) = run(directory)["notes"]

        assert note == f"Qwen2Tokenizer, as transformers opens {path}, cuts text otherwise than the file itself says"

    def test_a_base_of_another_name_is_noted(self, sound: Path, tmp_path: Path) -> None:
        other = shutil.copytree(sound / "qwen2", tmp_path / "other")

        assert run(sound / "lora", other)["notes"] == [
            f"the adapter was trained on '{sound / 'qwen2'}', the base given is called 'other'; their sizes agree"
        ]

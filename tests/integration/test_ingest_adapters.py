"""An adapter whose base is absent, out of bounds or another than it was trained on is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from olivepress.errors import BadCheckpoint, PathNotAllowed, UnsafeCheckpoint
from tests.checkpoints import tiny_adapter, tiny_checkpoint
from tests.integration.ingest_cases import DOWN, copy_of, edit_json, edit_weights, run, sound, with_number

pytestmark = pytest.mark.toolchain

__all__ = ["copy_of", "sound"]

LORA_A = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"


class TestBase:
    def test_an_absent_base_is_asked_for(self, sound: Path, copy_of: Callable[[str], Path]) -> None:
        adapter = copy_of("lora")
        edit_json(adapter / "adapter_config.json", base_model_name_or_path="Qwen/Qwen2.5-0.5B")

        with pytest.raises(
            BadCheckpoint, match=r"LoRA adapter of 'Qwen/Qwen2\.5-0\.5B'.* give its base in the manifest"
        ):
            run(adapter)

    def test_a_base_that_the_adapter_names_outside_the_roots_is_not_there(self, copy_of: Callable[[str], Path]) -> None:
        adapter = copy_of("lora")

        with pytest.raises(BadCheckpoint, match="no directory that may be read here; give its base") as refusal:
            run(adapter)

        assert type(refusal.value) is BadCheckpoint

    def test_a_base_that_the_user_gives_outside_the_roots_is_not_allowed(self, sound: Path, tmp_path: Path) -> None:
        adapter = shutil.copytree(sound / "lora", tmp_path / "lora")

        with pytest.raises(PathNotAllowed, match="qwen2' lies outside"):
            run(adapter, sound / "qwen2", roots=[tmp_path])

    def test_a_base_with_a_link_out_of_the_roots_is_not_allowed(
        self, copy_of: Callable[[str], Path], sound: Path
    ) -> None:
        adapter, base = copy_of("lora"), copy_of("qwen2")
        (base / "model.safetensors").unlink()
        (base / "model.safetensors").symlink_to(sound / "qwen2" / "model.safetensors")

        with pytest.raises(PathNotAllowed, match=r"qwen2/model\.safetensors' is a link that leads out"):
            run(adapter, base, roots=[adapter.parent])

    def test_a_broken_base_is_named(self, copy_of: Callable[[str], Path]) -> None:
        adapter, base = copy_of("lora"), copy_of("qwen2")
        with_number(float("nan"))(base)

        with pytest.raises(BadCheckpoint, match=f"'{DOWN}' in {base}/model.safetensors holds 1 NaN"):
            run(adapter, base)


class TestMismatch:
    @pytest.mark.parametrize(
        ("base_config", "complaint"),
        [
            pytest.param(
                {"hidden_size": 96}, r"lora_B\.weight' is 64 × 4, over this base it would be 96 × 4; give", id="width"
            ),
            pytest.param(
                {"num_hidden_layers": 1}, r"it changes '.*layers\.1\..*', which the base does not have", id="depth"
            ),
            pytest.param({"intermediate_size": 192}, r"lora_A\.weight' is 4 × 128, over .* 4 × 192", id="mlp"),
        ],
    )
    def test_a_base_of_another_size_is_refused(
        self, sound: Path, tmp_path: Path, base_config: dict[str, Any], complaint: str
    ) -> None:
        base = tiny_checkpoint(tmp_path / "other", **base_config)

        with pytest.raises(BadCheckpoint, match=complaint) as refusal:
            run(sound / "lora", base)

        assert f"{sound / 'lora'} does not match its base {base}" in str(refusal.value)
        assert "give the base it was trained on" in str(refusal.value)

    def test_a_deeper_base_is_refused(self, tmp_path: Path, sound: Path) -> None:
        adapter = tiny_adapter(tmp_path / "lora", sound / "qwen2", target_modules=["q_proj", "v_proj"])
        base = tiny_checkpoint(tmp_path / "deep", num_hidden_layers=3)

        with pytest.raises(
            BadCheckpoint, match=r"it lacks '.*layers\.2\..* and 1 more, which the base's size asks for"
        ):
            run(adapter, base)

    def test_a_base_of_another_family_is_refused(self, sound: Path, tmp_path: Path) -> None:
        base = tiny_checkpoint(tmp_path / "phi", "phi3")

        with pytest.raises(BadCheckpoint, match=r"does not match its base .*give the base it was trained on"):
            run(sound / "lora", base)

    def test_modules_that_the_base_does_not_have_are_named(self, sound: Path, copy_of: Callable[[str], Path]) -> None:
        adapter = copy_of("lora")
        edit_json(adapter / "adapter_config.json", target_modules=["c_attn"])

        with pytest.raises(BadCheckpoint, match=r"does not match its base .*c_attn.*give the base it was trained on"):
            run(adapter, sound / "qwen2")

    def test_an_adapters_tokenizer_must_fit_the_bases_embeddings(
        self, sound: Path, copy_of: Callable[[str], Path], tmp_path: Path
    ) -> None:
        adapter = copy_of("lora")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(sound / "qwen2" / name, adapter)
        base = tiny_checkpoint(tmp_path / "small", vocab_size=500, bos_token_id=1, eos_token_id=2, pad_token_id=1)

        with pytest.raises(BadCheckpoint, match=r"tokenizer in .*/lora has tokens .* no embedding for \(12, "):
            run(adapter, base)


class TestDamage:
    def test_a_pickled_adapter_is_unsafe(self, sound: Path, copy_of: Callable[[str], Path]) -> None:
        adapter = copy_of("lora")
        (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")

        with pytest.raises(UnsafeCheckpoint, match=r"adapter_model\.bin"):
            run(adapter, sound / "qwen2")

    def test_an_adapter_of_another_kind_is_refused_by_name(self, sound: Path, copy_of: Callable[[str], Path]) -> None:
        adapter = copy_of("lora")
        edit_json(adapter / "adapter_config.json", peft_type="PROMPT_TUNING")

        with pytest.raises(
            BadCheckpoint, match="adapter of type 'PROMPT_TUNING', and only LoRA adapters are converted"
        ):
            run(adapter, sound / "qwen2")

    @pytest.mark.parametrize("rank_pattern", [3, "x"])
    def test_a_config_that_peft_cannot_use_is_refused(
        self, sound: Path, copy_of: Callable[[str], Path], rank_pattern: object
    ) -> None:
        adapter = copy_of("lora")
        edit_json(adapter / "adapter_config.json", rank_pattern=rank_pattern)

        with pytest.raises(BadCheckpoint, match=r"does not match its base .*or save the adapter again"):
            run(adapter, sound / "qwen2")

    def test_a_missing_matrix_is_named(self, sound: Path, copy_of: Callable[[str], Path]) -> None:
        adapter = copy_of("lora")
        edit_weights(adapter, lambda tensors: tensors.pop(LORA_A), "adapter_model")

        with pytest.raises(BadCheckpoint, match=f"it lacks '{LORA_A}'"):
            run(adapter, sound / "qwen2")

    def test_nan_is_named(self, sound: Path, copy_of: Callable[[str], Path]) -> None:
        adapter = copy_of("lora")
        edit_weights(adapter, lambda tensors: tensors[LORA_A][0, :7].fill_(torch.nan), "adapter_model")

        with pytest.raises(
            BadCheckpoint, match=f"'{LORA_A}' in .*adapter_model.safetensors holds 7 NaN of 512 numbers"
        ):
            run(adapter, sound / "qwen2")

    def test_a_rank_that_the_matrices_do_not_have_is_refused(self, sound: Path, copy_of: Callable[[str], Path]) -> None:
        adapter = copy_of("lora")
        edit_json(adapter / "adapter_config.json", r=8)

        with pytest.raises(BadCheckpoint, match=r"is 4 × .*, over this base it would be 8 ×"):
            run(adapter, sound / "qwen2")

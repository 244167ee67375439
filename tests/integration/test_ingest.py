"""A sound checkpoint goes through ingest with its facts; a checkpoint that would go wrong later is refused here."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from olivepress.checkpoints import CheckpointKind
from olivepress.errors import BadCheckpoint, UnsafeCheckpoint, UnsupportedArchitecture
from tests.checkpoints import CHAT_TEMPLATE, MODEL_TYPES, tiny_adapter, tiny_checkpoint
from tests.integration.ingest_cases import (
    DOWN,
    EMBEDDING,
    copy_of,
    edit_json,
    edit_weights,
    renamed,
    run,
    sound,
    with_number,
)

__all__ = ["copy_of", "sound"]

pytestmark = pytest.mark.toolchain

FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def add_token(directory: Path, content: str, number: int) -> None:
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | {"id": number, "content": content})
    path.write_text(json.dumps(tokenizer))


def empty_tokenizer(directory: Path) -> None:
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"] |= {"vocab": {"a": 0}, "merges": []}
    tokenizer["added_tokens"] = []
    path.write_text(json.dumps(tokenizer))


def set_template(template: Any) -> Callable[[Path], None]:
    return lambda directory: edit_json(directory / "tokenizer_config.json", chat_template=template)


def set_config(**values: Any) -> Callable[[Path], None]:
    return lambda directory: edit_json(directory / "config.json", **values)


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

    def test_an_adapter_that_changes_nothing_is_noted(self, sound: Path, copy_of: Callable[[str], Path]) -> None:
        adapter = copy_of("lora")

        def zero(tensors: dict[str, torch.Tensor]) -> None:
            for name, tensor in tensors.items():
                if ".lora_B." in name:
                    tensor.zero_()

        edit_weights(adapter, zero, "adapter_model")

        assert "changes nothing" in run(adapter, sound / "qwen2")["notes"][0]

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


# What is broken on purpose: how, what class the refusal has, what it names, and what it tells to do.
Breakage = tuple[Callable[[Path], object], type[BadCheckpoint], str, str]
BROKEN: dict[str, Breakage] = {
    "an unknown architecture": (
        set_config(architectures=["FalconForCausalLM"], model_type="falcon"),
        UnsupportedArchitecture,
        "is a FalconForCausalLM",
        "the supported architectures are .*LlamaForCausalLM.*Phi3ForCausalLM.*Qwen2ForCausalLM",
    ),
    "an architecture that was never heard of": (
        set_config(architectures=["MadeUpForCausalLM"]),
        UnsupportedArchitecture,
        "is a MadeUpForCausalLM",
        "the supported architectures are",
    ),
    "a model that classifies": (
        set_config(architectures=["Qwen2ForSequenceClassification"]),
        UnsupportedArchitecture,
        "is a Qwen2ForSequenceClassification",
        "the supported architectures are",
    ),
    "remote code": (
        set_config(architectures=["OwnForCausalLM"], model_type="own", auto_map={"AutoConfig": "own.Config"}),
        UnsafeCheckpoint,
        "needs Python code of its own for OwnForCausalLM",
        "submit a checkpoint of a supported architecture",
    ),
    "an unknown model_type": (
        set_config(model_type="qwen2-mine"),
        BadCheckpoint,
        "names the model_type 'qwen2-mine'",
        "put back the config.json",
    ),
    "an architecture of another family": (
        set_config(architectures=["LlamaForCausalLM"]),
        BadCheckpoint,
        "at odds with itself: it names the architecture LlamaForCausalLM and the model_type 'qwen2'",
        "put back the config.json",
    ),
    "a config value of the wrong type": (
        set_config(num_attention_heads="four"),
        BadCheckpoint,
        r"config\.json is no configuration of a qwen2 model \(.*num_attention_heads",
        "put back the config.json",
    ),
    "a config that makes no model": (
        set_config(vocab_size=-1),
        BadCheckpoint,
        r"config\.json makes no Qwen2ForCausalLM",
        "put back the config.json",
    ),
    "a forged number of layers": (
        set_config(num_hidden_layers=10**9, layer_types=...),
        BadCheckpoint,
        "promises 1,000,000,000 layers and the weights hold only 26 tensors",
        "put back the config.json",
    ),
    "a layer too many in config": (
        set_config(num_hidden_layers=3, layer_types=...),
        BadCheckpoint,
        r"lacks 'model\.layers\.2\.input_layernorm\.weight', .* and 9 more",
        "save or copy all of the weights again",
    ),
    "a layer too few in config": (
        set_config(num_hidden_layers=1, layer_types=...),
        BadCheckpoint,
        r"holds 'model\.layers\.1\.input_layernorm\.weight'.* has no place",
        "put the config.json and the weights together",
    ),
    "a missing tensor": (
        lambda d: edit_weights(d, lambda tensors: tensors.pop(DOWN)),
        BadCheckpoint,
        rf"lacks '{DOWN}', which a Qwen2ForCausalLM needs and the builder would fill with random numbers",
        "save or copy all of the weights again",
    ),
    "missing embeddings": (
        lambda d: edit_weights(d, lambda tensors: tensors.pop(EMBEDDING)),
        BadCheckpoint,
        f"lacks 'lm_head.weight', '{EMBEDDING}'",
        "save or copy all of the weights again",
    ),
    "a missing bias": (
        lambda d: edit_weights(d, lambda tensors: tensors.pop("model.layers.0.self_attn.q_proj.bias")),
        BadCheckpoint,
        r"lacks 'model\.layers\.0\.self_attn\.q_proj\.bias'",
        "save or copy all of the weights again",
    ),
    "a tensor of another shape": (
        lambda d: edit_weights(d, lambda tensors: tensors.update({DOWN: torch.zeros(64, 96)})),
        BadCheckpoint,
        rf"'{DOWN}' in .* is 64 × 96, by config\.json it would be 64 × 128",
        "put the config.json and the weights together",
    ),
    "another vocabulary size in config": (
        set_config(vocab_size=520),
        BadCheckpoint,
        rf"'{EMBEDDING}' in .* is 512 × 64, by config\.json it would be 520 × 64",
        "put the config.json and the weights together",
    ),
    "an extra tensor": (
        lambda d: edit_weights(d, lambda tensors: tensors.update({"v_head.summary.weight": torch.ones(1, 64)})),
        BadCheckpoint,
        r"holds 'v_head\.summary\.weight', for which .* has no place",
        "take the extra tensors out",
    ),
    "tensors of a torch.compile wrapper": (
        renamed(lambda name: f"_orig_mod.{name}"),
        BadCheckpoint,
        r"carry the prefix '_orig_mod\.' of a wrapper",
        "_orig_mod for torch.compile",
    ),
    "tensors of a peft wrapper": (
        renamed(lambda name: f"base_model.model.{name}"),
        BadCheckpoint,
        r"carry the prefix 'base_model\.model\.' of a wrapper",
        "merge_and_unload",
    ),
    "a tied head that differs": (
        lambda d: edit_weights(d, lambda tensors: tensors.update({"lm_head.weight": tensors[EMBEDDING] * 2})),
        BadCheckpoint,
        f"says that 'lm_head.weight' is '{EMBEDDING}' .* hold two that differ",
        "set tie_word_embeddings to false",
    ),
    "NaN": (
        with_number(float("nan")),
        BadCheckpoint,
        f"'{DOWN}' .* holds 1 NaN of 8,192 numbers",
        "earlier checkpoint",
    ),
    "an infinity": (
        with_number(float("-inf")),
        BadCheckpoint,
        f"'{DOWN}' .* holds 1 infinite of 8,192",
        "copy the file",
    ),
    "an absurd number": (
        with_number(3.3e38),
        BadCheckpoint,
        f"'{DOWN}' .* looks damaged: it holds 3",
        "copy the file again",
    ),
    "embeddings that are all zero": (
        lambda d: edit_weights(d, lambda tensors: tensors[EMBEDDING].zero_()),
        BadCheckpoint,
        f"'{EMBEDDING}' .* is all zeros",
        "copy the file again",
    ),
    "no tokenizer": (
        lambda d: (d / "tokenizer.json").unlink(),
        BadCheckpoint,
        r"has no tokenizer \(looked for tokenizer\.json",
        "tokenizer.save_pretrained",
    ),
    "a tokenizer that is no JSON": (
        lambda d: (d / "tokenizer.json").write_text("{"),
        BadCheckpoint,
        "tokenizer in .* cannot be loaded",
        "tokenizer.save_pretrained",
    ),
    "a tokenizer of one token": (empty_tokenizer, BadCheckpoint, r"knows only \d tokens?", "tokenizer.save_pretrained"),
    "a token without an embedding": (
        lambda d: add_token(d, "<|new|>", 512),
        BadCheckpoint,
        r"no embedding for \(1, such as '<\|new\|>', number 512; the model has 512 rows\)",
        "resize_token_embeddings",
    ),
    "no end of sequence": (
        lambda d: (set_config(eos_token_id=None)(d), edit_json(d / "tokenizer_config.json", eos_token=None)),
        BadCheckpoint,
        "names an end-of-sequence token",
        "set 'eos_token_id'",
    ),
    "an end of sequence that is no token": (
        set_config(eos_token_id=[511, 99_999]),
        BadCheckpoint,
        r"config\.json ends answers with token 99999, and the model has only 512",
        "set 'eos_token_id'",
    ),
    "no chat template": (set_template(...), BadCheckpoint, "has no chat template", "chat_template.jinja"),
    "two chat templates": (
        lambda d: (d / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("assistant", "bot")),
        BadCheckpoint,
        "two chat templates that differ: .*bot.*assistant",
        "remove the one",
    ),
    "a chat template that does not compile": (
        set_template("{% for message in messages %}"),
        BadCheckpoint,
        r"chat template in .*tokenizer_config\.json does not work \(.*[Uu]nexpected end of template",
        "mend it",
    ),
    "a chat template that fails": (
        set_template("{{ messages[0].content + 1 }}"),
        BadCheckpoint,
        r"chat template in .*tokenizer_config\.json does not work \(.*can only concatenate str",
        "mend it",
    ),
    "a chat template that refuses a user": (
        set_template("{{ raise_exception('only systems may speak') }}"),
        BadCheckpoint,
        r"does not work \(only systems may speak\)",
        "mend it",
    ),
    "a chat template that forgets the message": (
        set_template("<|im_start|>assistant"),
        BadCheckpoint,
        "leaves out what the user says",
        "put back the one",
    ),
    "a pickle": (
        lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
        UnsafeCheckpoint,
        r"pytorch_model\.bin",
        "save it as safetensors",
    ),
    "a cut file": (
        lambda d: os.truncate(d / "model.safetensors", 100_000),
        BadCheckpoint,
        r"model\.safetensors is cut short: its header promises 216,824 bytes, the file has 100,000",
        "copy it again",
    ),
}


class TestRefusals:
    @pytest.mark.parametrize(("break_it", "error", "names", "tells"), BROKEN.values(), ids=BROKEN)
    def test_a_broken_checkpoint_is_refused_with_what_which_and_what_now(
        self,
        copy_of: Callable[[str], Path],
        break_it: Callable[[Path], object],
        error: type[BadCheckpoint],
        names: str,
        tells: str,
    ) -> None:
        directory = copy_of("qwen2")
        break_it(directory)

        with pytest.raises(BadCheckpoint, match=names) as refusal:
            run(directory)

        assert type(refusal.value) is error
        assert refusal.match(tells)
        assert refusal.match(str(directory))
        assert "\n" not in str(refusal.value)

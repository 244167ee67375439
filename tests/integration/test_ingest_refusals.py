"""Each checkpoint that would go wrong later is refused here with one message: what, which, what now."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from olivepress.errors import BadCheckpoint, UnsafeCheckpoint, UnsupportedArchitecture
from tests.checkpoints import CHAT_TEMPLATE
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

pytestmark = pytest.mark.toolchain

__all__ = ["copy_of", "sound"]


def empty_tokenizer(directory: Path) -> None:
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"] |= {"vocab": {"a": 0}, "merges": []}
    tokenizer["added_tokens"] = []
    path.write_text(json.dumps(tokenizer))


def set_template(template: Any) -> Callable[[Path], None]:
    return lambda directory: edit_json(directory / "tokenizer_config.json", chat_template=template)


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
        lambda d: (
            set_config(eos_token_id=None)(d),
            edit_json(d / "generation_config.json", eos_token_id=None),
            edit_json(d / "tokenizer_config.json", eos_token=None),
        ),
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
    "an end of sequence that is a word": (
        set_config(eos_token_id=300),
        BadCheckpoint,
        r"config\.json ends answers with token 300, which is the ordinary text '.+'",
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

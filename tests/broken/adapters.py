"""LoRA adapters without their base, over another one, or damaged."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from olivepress.errors import ConversionFailed
from tests.broken.breakage import Broken
from tests.broken.weights import LFS_POINTER
from tests.checkpoints import write_tokenizer
from tests.integration.ingest_cases import edit_json, edit_weights

GIVE = "give (?:the base it was trained on|that)"
DOES_NOT_MATCH = "does not match its base .*"
# A name of modules that takes longer to compare with every letter.
EXPLODING = "(.+)+x$"


def config(**values: Any) -> Callable[[Path], None]:
    return lambda directory: edit_json(directory / "adapter_config.json", **values)


def tensors(change: Callable[[torch.Tensor], torch.Tensor], named: str = "") -> Callable[[Path], None]:
    def break_it(directory: Path) -> None:
        def edit(stored: dict[str, torch.Tensor]) -> None:
            stored.update({name: change(tensor) for name, tensor in stored.items() if named in name})

        edit_weights(directory, edit, "adapter_model")

    return break_it


def another_tokenizer(directory: Path) -> None:
    write_tokenizer(directory)
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = dict(zip(vocabulary, reversed(vocabulary.values()), strict=True))
    path.write_text(json.dumps(tokenizer))


def lora(break_it: Callable[[Path], object], says: str, **more: Any) -> Broken:
    return Broken(break_it, says, **({"source": "lora", "base": "qwen2"} | more))


TABLE: Mapping[str, Broken] = {
    "an adapter without its base": lora(
        config(base_model_name_or_path="gone/away"), "is a LoRA adapter of 'gone/away', .*; give its base", base=None
    ),
    "an adapter of an adapter": lora(config(), "is an adapter itself; merge it into its own base", base="lora"),
    "an adapter of a wider base": lora(config(), DOES_NOT_MATCH + f"; {GIVE}", base="wide"),
    "an adapter of another architecture": lora(config(), DOES_NOT_MATCH + f"; {GIVE}", base="phi3"),
    "an adapter of another rank": lora(config(r=16), DOES_NOT_MATCH + f"4 × .* would be 16 × .*; {GIVE}"),
    "an adapter of no rank": lora(config(r=0), DOES_NOT_MATCH + f"positive integer.*; {GIVE}"),
    "an adapter of modules that there are not": lora(
        config(target_modules=["nope"]), DOES_NOT_MATCH + f"nope.* not found.*; {GIVE}"
    ),
    "an adapter of a pattern that explodes": lora(
        config(target_modules=EXPLODING), DOES_NOT_MATCH + f"it did not end within .*; {GIVE}"
    ),
    "an adapter that says it is DoRA": lora(
        config(use_dora=True), DOES_NOT_MATCH + f"lacks .*lora_magnitude_vector.*; {GIVE}"
    ),
    "a DoRA adapter that does not say so": lora(
        config(use_dora=False), DOES_NOT_MATCH + f"changes .*lora_magnitude_vector.*; {GIVE}", source="dora"
    ),
    "an adapter of another kind": lora(
        config(peft_type="IA3"), "is an adapter of type 'IA3', and only LoRA .*; merge it into its base"
    ),
    "an adapter of integers": lora(tensors(lambda tensor: tensor.int()), "is stored as I32, .*; save the adapter"),
    "an adapter before its training": lora(
        tensors(torch.zero_, ".lora_B."), "changes nothing: .*; save it after the training"
    ),
    "an adapter of enormous numbers": lora(
        tensors(lambda tensor: tensor.mul_(1e15)), "looks damaged: .*; copy the file"
    ),
    "an adapter scaled without end": lora(
        config(lora_alpha=1e30), "merging the adapter .*; merge it by hand", error=ConversionFailed
    ),
    "a pointer in the place of an adapter": lora(
        lambda d: (d / "adapter_model.safetensors").write_text(LFS_POINTER), "is a Git LFS pointer, .*; run"
    ),
    "an adapter with another tokenizer": lora(
        another_tokenizer, f"gives .* of the .* tokens of its base .* the same number, .*; {GIVE}"
    ),
}

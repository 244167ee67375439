"""How many bytes ten LoRA fine-tunes (q_proj, v_proj) of one base take in the store, against one of them.

    python bench/variants.py [--variants 10] [--layers 12] [--hidden 512] [--precision int4]

The base is a random Qwen2-style checkpoint; each variant gets random changes of its q and v weights, as merging an
adapter leaves them, and is really converted by the builder (a few seconds each), then put into a store. Prints the
bytes of one, of all (logical) and stored, and the ratio of stored to one: 1.00 would be nothing for nine more. A second
recipe of the first variant shows what precisions share.

The share of q and v in a model decides: hidden² + hidden · key-value width of a layer, and two scales with them. With
more heads for keys and values, or a smaller vocabulary, variants differ more; the defaults have the proportions of a
model of half a billion parameters, whose 24 layers of 896 give 1.40 by the same arithmetic (see docs/store.md).
"""

import argparse
import contextlib
import io
import json
import logging
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
from onnxruntime_genai.models import builder
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from olivepress.store import DirectoryStore
from tests.checkpoints import write_tokenizer


def make_base(arguments: argparse.Namespace) -> torch.nn.Module:
    """A checkpoint with the proportions of Qwen2.5-0.5B: 7 times as many query heads, 5.4 times as wide inside."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.hidden * 11 // 2,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // 64,
        num_key_value_heads=max(1, arguments.hidden // 64 // 7),
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    config.architectures = ["Qwen2ForCausalLM"]
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def write_variant(model: torch.nn.Module, seed: int, directory: Path) -> Path:
    """The checkpoint with other q and v weights; seed 0 leaves them."""
    weights = dict(model.named_parameters())
    torch.manual_seed(seed)
    kept = {}
    with torch.no_grad():
        for name, weight in weights.items():
            if seed and ("q_proj.weight" in name or "v_proj.weight" in name):
                kept[name] = weight.clone()
                rank = 8
                change = torch.randn(weight.shape[0], rank) @ torch.randn(rank, weight.shape[1])
                weight += (change * 0.002).to(weight.dtype)
    directory.mkdir()
    model.save_pretrained(directory)
    write_tokenizer(directory)
    with torch.no_grad():
        for name, weight in kept.items():
            weights[name].copy_(weight)
    return directory


def disk_usage(directory: Path) -> int:
    """What du(1) says of a directory, in bytes."""
    return int(subprocess.run(["du", "-s", "-B1", directory], check=True, capture_output=True).stdout.split()[0])


def convert(checkpoint: Path, output: Path, precision: str) -> Path:
    """The ONNX model, by the builder as the product calls it."""
    arguments = ("", str(checkpoint), str(output), precision, "cpu", str(output.parent / "cache"))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            builder.create_model(*arguments, **builder.parse_extra_options(*arguments, []))
    return output


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--variants", type=int, default=10)
    arguments.add_argument("--layers", type=int, default=12)
    arguments.add_argument("--hidden", type=int, default=512)
    arguments.add_argument("--vocabulary", type=int, default=40_000)
    arguments.add_argument("--precision", default="int4")
    chosen = arguments.parse_args()
    logging.disable(logging.ERROR)
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        model, store = make_base(chosen), DirectoryStore(place / "store")
        sizes, stored, used = [], [], []
        for number in range(chosen.variants):
            checkpoint = write_variant(model, number, place / f"checkpoint-{number}")
            converted = convert(checkpoint, place / f"converted-{number}", chosen.precision)
            sizes.append(store.put_directory(converted).size_bytes)
            stored.append(store.stats().stored_bytes)
            used.append(disk_usage(place / "store"))
        print(f"one variant          {sizes[0] / 1e6:8.1f} MB")  # noqa: T201
        print(f"{chosen.variants} variants, logical {sum(sizes) / 1e6:8.1f} MB")  # noqa: T201
        print(f"{chosen.variants} variants, stored  {stored[-1] / 1e6:8.1f} MB   {stored[-1] / stored[0]:5.2f} × one")  # noqa: T201
        print(f"{chosen.variants} variants, du      {used[-1] / 1e6:8.1f} MB   {used[-1] / used[0]:5.2f} × one")  # noqa: T201
        second = convert(place / "checkpoint-0", place / "second", "int8" if chosen.precision == "int4" else "int4")
        size = store.put_directory(second).size_bytes
        added = store.stats().stored_bytes - stored[-1]
        print(f"a second recipe adds {added / 1e6:8.1f} MB of its {size / 1e6:.1f} MB")  # noqa: T201
        found = {"ratio": stored[-1] / stored[0], "du_ratio": used[-1] / used[0], "second_recipe": added / size}
        print(json.dumps({name: round(value, 3) for name, value in found.items()} | {"variants": chosen.variants}))  # noqa: T201


if __name__ == "__main__":
    main()

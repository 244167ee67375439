"""Every folder that is no checkpoint, or not a whole one, is refused: by class, by name, with what to do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from olivepress.checkpoints.reading import read_checkpoint
from olivepress.errors import BadCheckpoint, UnsafeCheckpoint
from tests.unit.plain_checkpoints import (
    SHAPES,
    safetensors_bytes,
    write_adapter,
    write_checkpoint,
    write_json,
    write_safetensors,
    write_sharded,
)


def edit(directory: Path, name: str, **values: Any) -> None:
    path = directory / name
    write_json(path, json.loads(path.read_text()) | values)


def rename(directory: Path, old: str, new: str) -> None:
    (directory / old).rename(directory / new)


def empty_out(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


def add_shard_index(directory: Path, weight_map: dict[str, object]) -> None:
    write_json(directory / "model.safetensors.index.json", {"weight_map": weight_map})


# What is broken on purpose: how, what class the refusal has, what it names, and what it tells to do.
Breakage = tuple[Callable[[Path], object], type[BadCheckpoint], str, str]
SINGLE: dict[str, Breakage] = {
    "an empty folder": (
        empty_out,
        BadCheckpoint,
        r"/m is empty \(looked for config\.json",
        "check whether the training",
    ),
    "a folder without config": (
        lambda d: (d / "config.json").unlink(),
        BadCheckpoint,
        r"no checkpoint: it has no config\.json",
        "save_pretrained",
    ),
    "config that is no JSON": (
        lambda d: (d / "config.json").write_text("{'a': 1}"),
        BadCheckpoint,
        r"config\.json is no JSON",
        "save or copy",
    ),
    "config that is a list": (
        lambda d: write_json(d / "config.json", []),
        BadCheckpoint,
        r"config\.json holds no JSON object",
        "save or copy",
    ),
    "no architectures": (
        lambda d: edit(d, "config.json", architectures=None),
        BadCheckpoint,
        "names no 'architectures'",
        "add the model's",
    ),
    "empty architectures": (
        lambda d: edit(d, "config.json", architectures=[]),
        BadCheckpoint,
        "names no 'architectures'",
        "add the model's",
    ),
    "no model_type": (
        lambda d: edit(d, "config.json", model_type=3),
        BadCheckpoint,
        "names no 'model_type'",
        "add the model's family",
    ),
    **{
        method: (
            lambda d, method=method: edit(d, "config.json", quantization_config={"quant_method": method}),
            BadCheckpoint,
            rf"is quantized already \({method}\)",
            "submit the checkpoint in bfloat16, float16 or float32",
        )
        for method in ("bitsandbytes", "fp8", "mxfp4", "compressed-tensors", "gptq", "awq")
    },
    "gptq of three bits": (
        lambda d: edit(d, "config.json", quantization_config={"quant_method": "gptq", "bits": 3}),
        BadCheckpoint,
        r"quantized already \(gptq\) with 3 bits a weight; read here: 2, 4, 8",
        "submit the checkpoint in bfloat16",
    ),
    "gptq for one kernel": (
        lambda d: edit(
            d, "config.json", quantization_config={"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}
        ),
        BadCheckpoint,
        r"quantized already \(gptq\) in the format 'marlin'; read here: gptq, gptq_v2",
        "submit the checkpoint",
    ),
    "awq for one kernel": (
        lambda d: edit(d, "config.json", quantization_config={"quant_method": "awq", "bits": 4, "version": "gemv"}),
        BadCheckpoint,
        r"quantized already \(awq\) in the format 'gemv'; read here: gemm",
        "submit the checkpoint",
    ),
    "gptq without its zero points": (
        lambda d: (
            edit(d, "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
            write_safetensors(
                d / "model.safetensors",
                {"model.layers.0.a.qweight": ("I32", [8, 64]), "model.layers.0.a.scales": ("F16", [1, 64])},
            ),
        ),
        BadCheckpoint,
        r"has 'model.layers.0.a.qweight' and no 'model.layers.0.a.qzeros'",
        "save or copy the model again",
    ),
    "gptq of other bits than config.json says": (
        lambda d: (
            edit(d, "config.json", quantization_config={"quant_method": "gptq", "bits": 8}),
            write_safetensors(
                d / "model.safetensors",
                {
                    "model.layers.0.a.qweight": ("I32", [8, 64]),
                    "model.layers.0.a.scales": ("F16", [1, 64]),
                    "model.layers.0.a.qzeros": ("I32", [1, 8]),
                },
            ),
        ),
        BadCheckpoint,
        r"the parts of 'model.layers.0.a' in .* do not fit each other, or not the 8 bits",
        "put the config.json and the weights together",
    ),
    "a format without a name": (
        lambda d: edit(d, "config.json", quantization_config={"bits": 4}),
        BadCheckpoint,
        "quantized already .in a format that config.json does not name",
        "submit the checkpoint",
    ),
    "8-bit floats without a word in config": (
        lambda d: write_safetensors(d / "model.safetensors", {"w.weight": ("F8_E4M3", [8, 8])}),
        BadCheckpoint,
        "'w.weight' .* stored as F8_E4M3",
        "save the model in bfloat16",
    ),
    "config that leads to other weights": (
        lambda d: edit(d, "config.json", transformers_weights="adapter_model.bin"),
        BadCheckpoint,
        "names other weights",
        "take that out",
    ),
    "a pickle": (
        lambda d: rename(d, "model.safetensors", "pytorch_model.bin"),
        UnsafeCheckpoint,
        r"weights in a pickle \(pytorch_model\.bin\)",
        "save it as safetensors",
    ),
    "a pickle of another name": (
        lambda d: rename(d, "model.safetensors", "consolidated.00.pth"),
        UnsafeCheckpoint,
        r"consolidated\.00\.pth",
        "save it as safetensors",
    ),
    "GGUF": (
        lambda d: rename(d, "model.safetensors", "model.GGUF"),
        BadCheckpoint,
        r"another format \(model\.GGUF\): GGUF",
        "rename",
    ),
    "weights under another name": (
        lambda d: rename(d, "model.safetensors", "weights.safetensors"),
        BadCheckpoint,
        r"no model\.safetensors but weights\.safetensors",
        "rename the file",
    ),
    "no weights at all": (
        lambda d: (d / "model.safetensors").unlink(),
        BadCheckpoint,
        "a config but no weights",
        "copy or save them",
    ),
    "only what a trainer leaves beside": (
        lambda d: rename(d, "model.safetensors", "training_args.bin"),
        BadCheckpoint,
        "no weights",
        "copy or save them",
    ),
    "weights without tensors": (
        lambda d: (d / "model.safetensors").write_bytes(safetensors_bytes({}, 0)),
        BadCheckpoint,
        "without a single tensor",
        "save the model again",
    ),
    "two sets of weights": (
        lambda d: add_shard_index(d, {"w": "model-00001-of-00001.safetensors"}),
        BadCheckpoint,
        "two sets of weights",
        "keep the one",
    ),
    "a broken generation_config.json": (
        lambda d: (d / "generation_config.json").write_text("{"),
        BadCheckpoint,
        r"generation_config\.json is no JSON",
        "save",
    ),
    "a cut weight file": (
        lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-10]),
        BadCheckpoint,
        r"model\.safetensors is cut short: its header promises",
        "copy it again",
    ),
}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARDED: dict[str, Breakage] = {
    "a missing shard": (lambda d: (d / SECOND).unlink(), BadCheckpoint, f"has no {SECOND}, which", "copy it there"),
    "a tensor that is not where the index says": (
        lambda d: add_shard_index(d, {"model.norm.weight": FIRST, "w": SECOND}),
        BadCheckpoint,
        rf"'model\.norm\.weight' \(and 1 more\) is in {FIRST}, and it is not",
        "copy that file again",
    ),
    "one tensor in two shards": (
        lambda d: write_safetensors(d / SECOND, {name: SHAPES[name] for name in list(SHAPES)[1:]}),
        BadCheckpoint,
        rf"holds 'model\.layers\.0\.mlp\.down_proj\.weight' more than once \({FIRST}, {SECOND}\)",
        "again",
    ),
    "an index without a map": (
        lambda d: write_json(d / "model.safetensors.index.json", {}),
        BadCheckpoint,
        "no 'weight_map'",
        "save the model",
    ),
    "an index that leads out of the folder": (
        lambda d: add_shard_index(d, {"w": "../other/model.safetensors"}),
        BadCheckpoint,
        r"names '\.\./other/model\.safetensors', which is no safetensors file beside it",
        "save the model",
    ),
    "an index that names a pickle": (
        lambda d: add_shard_index(d, {"w": "pytorch_model.bin"}),
        BadCheckpoint,
        r"names 'pytorch_model\.bin'",
        "save",
    ),
    "an index with numbers": (
        lambda d: add_shard_index(d, {"w": 1}),
        BadCheckpoint,
        "names '1'",
        "save the model again",
    ),
    "shards without an index": (
        lambda d: (d / "model.safetensors.index.json").unlink(),
        BadCheckpoint,
        f"no model.safetensors but {FIRST}, {SECOND}",
        "add model.safetensors.index.json",
    ),
    "a cut shard": (
        lambda d: (d / SECOND).write_bytes((d / SECOND).read_bytes()[:-1]),
        BadCheckpoint,
        f"{SECOND} is cut short",
        "copy",
    ),
}


class TestRefusals:
    @pytest.mark.parametrize(("break_it", "error", "names", "tells"), SINGLE.values(), ids=SINGLE)
    def test_a_broken_checkpoint_is_refused(
        self, tmp_path: Path, break_it: Callable[[Path], object], error: type[BadCheckpoint], names: str, tells: str
    ) -> None:
        self.check(write_checkpoint(tmp_path / "m"), break_it, error, names, tells)

    @pytest.mark.parametrize(("break_it", "error", "names", "tells"), SHARDED.values(), ids=SHARDED)
    def test_a_broken_checkpoint_of_several_files_is_refused(
        self, tmp_path: Path, break_it: Callable[[Path], object], error: type[BadCheckpoint], names: str, tells: str
    ) -> None:
        self.check(write_sharded(tmp_path / "m"), break_it, error, names, tells)

    def check(
        self, directory: Path, break_it: Callable[[Path], object], error: type[BadCheckpoint], names: str, tells: str
    ) -> None:
        break_it(directory)

        with pytest.raises(BadCheckpoint, match=names) as refusal:
            read_checkpoint(directory)

        assert type(refusal.value) is error
        assert str(directory) in str(refusal.value)
        assert tells in str(refusal.value)

    def test_a_folder_of_checkpoints_says_which_to_submit(self, tmp_path: Path) -> None:
        for step in (500, 1000, 90):
            write_checkpoint(tmp_path / "run" / f"checkpoint-{step}")

        with pytest.raises(BadCheckpoint, match=r"holds 3, such as checkpoint-1000; submit .*/run/checkpoint-1000"):
            read_checkpoint(tmp_path / "run")

    def test_the_folder_of_a_hubs_cache_says_which_snapshot_to_submit(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path / "models--org--name" / "snapshots" / "0a1b")

        with pytest.raises(BadCheckpoint, match=r"submit .*/models--org--name/snapshots/0a1b"):
            read_checkpoint(tmp_path / "models--org--name")

    def test_a_full_checkpoint_has_no_use_for_a_base(self, tmp_path: Path) -> None:
        with pytest.raises(BadCheckpoint, match=r"is no adapter .* leave 'base' out"):
            read_checkpoint(write_checkpoint(tmp_path / "m"), write_checkpoint(tmp_path / "base"))


class TestAdapterRefusals:
    @pytest.mark.parametrize(
        ("config", "complaint"),
        [
            ({"peft_type": "IA3"}, "adapter of type 'IA3'.*merge it into its base"),
            ({"peft_type": None}, "no 'peft_type'"),
            ({"task_type": "SEQ_CLS"}, "trained for the task 'SEQ_CLS'"),
            ({"megatron_config": {"a": 1}}, "Megatron"),
        ],
    )
    def test_an_adapter_of_another_kind_is_refused_by_name(
        self, tmp_path: Path, config: dict[str, object], complaint: str
    ) -> None:
        adapter = write_adapter(tmp_path / "adapter", **config)

        with pytest.raises(BadCheckpoint, match=complaint):
            read_checkpoint(adapter, write_checkpoint(tmp_path / "base"))

    @pytest.mark.parametrize(
        ("named", "whose"),
        [("Qwen/Qwen2.5-0.5B", "of 'Qwen/Qwen2.5-0.5B', which is no directory"), (None, "that does not say of what")],
    )
    def test_an_adapter_without_its_base_asks_for_it(self, tmp_path: Path, named: str | None, whose: str) -> None:
        adapter = write_adapter(tmp_path / "adapter", base_model_name_or_path=named)

        with pytest.raises(BadCheckpoint, match=rf"LoRA adapter {whose}.*give its base in the manifest: 'base: DIR'"):
            read_checkpoint(adapter)

    def test_a_base_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(BadCheckpoint, match=r"there is no directory '.*/none', the base of the adapter .*/adapter"):
            read_checkpoint(write_adapter(tmp_path / "adapter"), tmp_path / "none")

    def test_a_base_that_is_an_adapter_itself_is_refused(self, tmp_path: Path) -> None:
        base = write_adapter(tmp_path / "base", base_model_name_or_path=str(write_checkpoint(tmp_path / "ground")))

        with pytest.raises(BadCheckpoint, match=r"/base.* is an adapter itself; merge it"):
            read_checkpoint(write_adapter(tmp_path / "adapter"), base)

    def test_a_broken_base_is_refused_by_its_own_name(self, tmp_path: Path) -> None:
        base = write_checkpoint(tmp_path / "base")
        (base / "model.safetensors").unlink()

        with pytest.raises(BadCheckpoint, match="/base has a config but no weights"):
            read_checkpoint(write_adapter(tmp_path / "adapter"), base)

    def test_a_quantized_base_is_refused(self, tmp_path: Path) -> None:
        base = write_checkpoint(tmp_path / "base", quantization_config={"quant_method": "fp8"})

        with pytest.raises(BadCheckpoint, match=r"/base is quantized already \(fp8\)"):
            read_checkpoint(write_adapter(tmp_path / "adapter"), base)

    def test_a_pickled_adapter_is_unsafe(self, tmp_path: Path) -> None:
        adapter = write_adapter(tmp_path / "adapter")
        rename(adapter, "adapter_model.safetensors", "adapter_model.bin")

        with pytest.raises(UnsafeCheckpoint, match=r"adapter_model\.bin"):
            read_checkpoint(adapter, write_checkpoint(tmp_path / "base"))

    def test_an_adapter_without_weights_is_refused(self, tmp_path: Path) -> None:
        adapter = write_adapter(tmp_path / "adapter")
        (adapter / "adapter_model.safetensors").unlink()

        with pytest.raises(BadCheckpoint, match=r"no weights \(adapter_model\.safetensors\)"):
            read_checkpoint(adapter, write_checkpoint(tmp_path / "base"))

    def test_a_folder_with_an_adapter_and_a_full_model_is_refused(self, tmp_path: Path) -> None:
        adapter = write_adapter(tmp_path / "adapter")
        write_safetensors(adapter / "model.safetensors", SHAPES)

        with pytest.raises(BadCheckpoint, match=r"holds an adapter .* and a full model .* keep the one"):
            read_checkpoint(adapter, write_checkpoint(tmp_path / "base"))

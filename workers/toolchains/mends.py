"""Mends for onnxruntime-genai 0.18's model builder: what it gets wrong on sound checkpoints, put right in memory."""

import re
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization.neural_compressor import weight_only
from onnxruntime_genai.models import builder
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from workers.toolchains.replaced import replaced

INSIDE_A_LAYER = re.compile(r"\blayers\.\d+\.")
# Ways to stretch rotary embeddings that one set of frequencies describes.
STRETCHED_ROPES = ("linear", "dynamic", "llama3", "yarn")
FREQUENCIES, BASE = "frequencies", "base"
FUSED_SIZE, FUSED_PAIRS = 16, 8


def mend_config(config: PreTrainedConfig) -> None:
    """Put the fields back where the builder looks for them; transformers 5 moved or left out some.

    Only the config object that the builder reads is changed; the weights are loaded with the checkpoint's own.
    """
    _mark_windowed_layers(config)
    _flatten_rope_by_layer_type(config)
    _agree_on_original_context(config)
    _name_the_epsilon(config)
    _write_multipliers_as_floats(config)


def _mark_windowed_layers(config: PreTrainedConfig) -> None:
    # Mistral and Phi-3 configs set a window without saying which layers have it; the builder then gives it to none.
    if getattr(config, "sliding_window", None) and getattr(config, "layer_types", None) is None:
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers


def _flatten_rope_by_layer_type(config: PreTrainedConfig) -> None:
    # Gemma 3: transformers 5 keeps one set of rope parameters for each type of layer; the builder wants the old
    # flat fields, `rope_theta` for full attention and `rope_local_base_freq` for windowed layers.
    rope = getattr(config, "rope_parameters", None) or {}
    if not isinstance(rope.get("full_attention"), dict) or not isinstance(rope.get("sliding_attention"), dict):
        return
    config.rope_theta = rope["full_attention"]["rope_theta"]
    config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
    config.rope_parameters = dict(rope["full_attention"])


def _agree_on_original_context(config: PreTrainedConfig) -> None:
    # Phi-3: the builder takes two different context lengths for LongRoPE and then misses its factors, and it reads
    # the kind of rope under the name that transformers 4 used.
    if config.model_type != "phi3":
        return
    rope = config.rope_parameters
    if rope["rope_type"] == "longrope":
        rope.setdefault("type", "longrope")
    else:
        config.original_max_position_embeddings = config.max_position_embeddings


def _name_the_epsilon(config: PreTrainedConfig) -> None:
    # Phi and Nemotron call the epsilon of their norms otherwise; the builder then takes a tenth of what they have.
    if not hasattr(config, "rms_norm_eps"):
        names = (name for name in ("norm_eps", "layer_norm_eps", "layer_norm_epsilon") if hasattr(config, name))
        if name := next(names, None):
            config.rms_norm_eps = getattr(config, name)


def _write_multipliers_as_floats(config: PreTrainedConfig) -> None:
    # Granite's may be whole numbers in config.json; the graph then has attributes of a type that no operator takes.
    for name in ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"):
        if isinstance(value := getattr(config, name, None), int):
            setattr(config, name, float(value))


def builder_mended() -> AbstractContextManager[None]:
    """The builder with its own mistakes put right, for the length of a conversion."""
    return replaced(
        # It would stamp the git revision of whatever repository surrounds the virtual environment into the model.
        (builder.Model, "get_genai_commit", classmethod(lambda cls: None)),
        (builder.Model, "load_weights", _load_weights),
        (builder.Model, "make_tied_embeddings_init", _tie_embeddings),
        (builder.Model, "make_tied_quantized_embedding_input_names", _names_of_tied_weights),
        (builder.Model, "make_rope_init", _rope),
        (builder.Model, "make_inv_freq_rescaled", _rescaled_frequencies),
        (builder.Model, "is_fused_rope_supported", _fuses_rope),
        (builder.Model, "is_packed_matmul_supported", _packs_queries_and_keys),
        (builder.LlamaModel, "make_rope_init", _rope),
        (builder.HunyuanDenseV1Model, "make_rope_init", _rope_of_hunyuan),
        (builder.SmolLM3Model, "make_attention", _attention_with_or_without_rope),
        (weight_only, "make_matmul_weight_only_node", _matmul_node),
    )


_original_load_weights = builder.Model.load_weights


def _load_weights(model: builder.Model, input_path: str) -> torch.nn.Module:
    """Vectors in fp32, so that what the builder adds to them (Gemma and Nemotron: 1 to each norm) rounds nothing.

    Here too, for it is the first call after the model's own set-up: factors that the builder rounds.
    """
    if model.embed_attrs["scale"] == np.round(np.sqrt(model.hidden_size), decimals=2):
        # Gemma: the builder cuts it to two decimals.
        model.embed_attrs["scale"] = float(np.sqrt(model.hidden_size))
    weights = _original_load_weights(model, input_path)
    if not isinstance(weights, torch.nn.Module):
        # What an Olive pass before the builder quantized is read by a class of the builder's own.
        return weights
    for parameter in weights.parameters():
        if parameter.dim() == 1 and parameter.is_floating_point():
            parameter.data = parameter.data.float()
    # The builder takes any matrix with a row for each token for the output head, also one inside of a layer.
    outside = [module for name, module in weights.named_modules() if not INSIDE_A_LAYER.search(name)]
    weights.modules = lambda: iter(outside)
    return weights


_original_tie_embeddings = builder.Model.make_tied_embeddings_init


def _tie_embeddings(model: builder.Model, config: PreTrainedConfig) -> None:
    """Let int8 models look tokens up in the quantized head as int4 models do.

    The builder ties only where it would quantize the embedding by itself, which it does not at 8 bits; it then
    stores a second copy of the largest matrix in fp32.
    """
    _original_tie_embeddings(model, config)
    if model.extra_options.get("shared_embeddings") and model.is_lm_head_quantized():
        model.tied_quantized_embeddings = True
        # Its quantizer would else try the embedding's Gather too, and log errors for every other Gather.
        model.quant_attrs["op_types_to_quantize"] = ("MatMul",)


_original_names_of_tied_weights = builder.Model.make_tied_quantized_embedding_input_names


def _names_of_tied_weights(model: builder.Model) -> tuple[int, str, str, str]:
    """(bits, weight, scales, zero points): the names under which the quantizer will store the output head.

    For the default algorithm the builder expects names that its quantizer does not use where the weights are
    asymmetric or the head has 8 bits; such a model does not load.
    """
    bits, weight, scales, zero_points = _original_names_of_tied_weights(model)
    if model.quantization_algo == "default" and weight.startswith("lm_head.MatMul."):
        weight, scales = f"lm_head.MatMul.weight_Q{bits}", "lm_head.MatMul.weight_scales"
        zero_points = "" if model.quant_attrs["is_symmetric"] else "lm_head.MatMul.weight_zero_points"
    return bits, weight, scales, zero_points


_original_rope = builder.Model.make_rope_init


def _rope(model: builder.Model, config: PreTrainedConfig) -> None:
    """The angles that transformers turns by.

    The builder knows each way to stretch rope for some architectures only, rounds YaRN's otherwise and does not know
    the one that depends on the length; that one has an effect beyond the context that config.json states, which is
    where the built model ends.
    """
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if kind in STRETCHED_ROPES:
        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
        stretched = {FREQUENCIES: frequencies, BASE: model.rope_attrs["theta"]}
        model.rope_attrs |= {"mscale": scale, "rescale_inv_freq": stretched}
    else:
        _original_rope(model, config)


_original_rope_of_hunyuan = builder.HunyuanDenseV1Model.make_rope_init


def _rope_of_hunyuan(model: builder.HunyuanDenseV1Model, config: PreTrainedConfig) -> None:
    # The builder knows HunYuan's own way, a base raised by `alpha`, and forgets those of all others.
    is_own_way = config.rope_parameters["rope_type"] == "dynamic" and config.rope_parameters.get("alpha")
    (_original_rope_of_hunyuan if is_own_way else _rope)(model, config)


_original_rescaling = builder.Model.make_inv_freq_rescaled


def _rescaled_frequencies(model: builder.Model, frequencies: torch.Tensor) -> torch.Tensor:
    stretched = model.rope_attrs["rescale_inv_freq"]
    if FREQUENCIES not in stretched:
        return _original_rescaling(model, frequencies)
    # Gemma 3: the windowed layers turn by another base, and are never stretched.
    return stretched[FREQUENCIES] if model.rope_attrs["theta"] == stretched[BASE] else frequencies


_original_fused_rope = builder.Model.is_fused_rope_supported


def _fuses_rope(model: builder.Model) -> bool:
    # The attention's own rope takes heads of a multiple of 16 and turns a multiple of 8 pairs; the operator beside it
    # takes and turns any number.
    turned = model.rope_attrs["rotary_embedding_dim"] or model.head_size
    fits = model.head_size % FUSED_SIZE == 0 and turned // 2 % FUSED_PAIRS == 0
    return fits and bool(_original_fused_rope(model))


_original_packed_matmul = builder.Model.is_packed_matmul_supported


def _packs_queries_and_keys(model: builder.Model) -> bool:
    # Joined, they would go into the attention as one; a rope beside it wants them apart.
    return bool(_original_packed_matmul(model)) and model.is_fused_rope_supported()


_original_attention = builder.SmolLM3Model.make_attention


def _attention_with_or_without_rope(model: builder.SmolLM3Model, layer_id: int, *args: Any, **kwargs: Any) -> None:
    # Every fourth layer of SmolLM3 has no rotary embedding; the builder then asks for one outside of the attention. And
    # where there is one, it asks for it inside, whether that can be or not.
    has_rope = model.no_rope_layers
    model.attention_attrs["rope"] = bool(has_rope[layer_id])
    model.no_rope_layers = [has and model.is_fused_rope_supported() for has in has_rope]
    _original_attention(model, layer_id, *args, **kwargs)
    model.attention_attrs["rope"], model.no_rope_layers = True, has_rope


_original_matmul_node = weight_only.make_matmul_weight_only_node


def _matmul_node(
    *, zero_point: np.ndarray | None, num_bits: int, k_blocks: int, **rest: Any
) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    """onnxruntime 1.31's node for one quantized matrix, also where a row has an odd number of 4-bit blocks.

    Two 4-bit zero points share a byte and every row starts a new one; the original packs them without a gap and
    then fails to give them the shape that MatMulNBits asks for.
    """
    rest |= {"num_bits": num_bits, "k_blocks": k_blocks}
    if zero_point is None or num_bits != 4 or k_blocks % 2 == 0:
        return _original_matmul_node(zero_point=zero_point, **rest)
    node, initializers = _original_matmul_node(zero_point=None, **rest)
    rows = np.pad(zero_point.reshape(-1, k_blocks), ((0, 0), (0, 1)), constant_values=8)
    packed = (rows[:, ::2] | rows[:, 1::2] << 4).astype(np.uint8)
    name = f"{rest['node'].input[1]}_zp"
    node.input.append(name)
    initializers.append(onnx.numpy_helper.from_array(packed, name))
    return node, initializers

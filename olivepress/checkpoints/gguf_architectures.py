"""What each architecture of llama.cpp is in transformers: names of tensors, keys, what its code implies. Pure.

An architecture stands here when what comes back from its files gives the logits of the model that they were written
from (`tests/integration/test_gguf.py`, and once with llama.cpp's own converter); another is refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
GELU = "gelu_pytorch_tanh"
WINDOW = {"attention.sliding_window": "sliding_window"}
SOFT_CAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
GRANITE_SCALES = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


@dataclass(frozen=True)
class Architecture:
    """One value of `general.architecture`."""

    model_type: str
    class_name: str
    layer: Mapping[str, str] = field(default_factory=lambda: LAYER)
    """Parts of `blk.N.` to parts of `model.layers.N.`, without `.weight` and `.bias`."""
    numbers: Mapping[str, str] = field(default_factory=dict)
    """Keys of its own to fields of config.json."""
    implied: Mapping[str, Any] = field(default_factory=dict)
    """Fields of config.json that no key states, for llama.cpp has them in its code."""
    pairs_interleaved: bool = False
    """Whether rows of queries and keys are stored in the order of llama.cpp's rotary embeddings."""
    norms_from_one: bool = False
    """Whether transformers stores norms as the distance from 1, and the file the norm itself."""
    bias_fields: bool = False
    """Whether config.json says if there are biases (`attention_bias`, `mlp_bias`)."""
    needs_numbers: bool = False
    """Whether a file without one of those keys means something else than transformers does without the field."""
    wide_from_layers: int | None = None
    """With so many layers the attention is scaled by the width for each head instead of the size of a head."""
    also: tuple[str, ...] = ()
    """What else a config.json beside the file may call itself."""


ARCHITECTURES = {
    # llama.cpp writes Mistral under the same name.
    "llama": Architecture(
        "llama", "LlamaForCausalLM", pairs_interleaved=True, bias_fields=True, also=("mistral",)
    ),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", LAYER | HEAD_NORMS, bias_fields=True),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", LAYER | FUSED, WINDOW),
    "gemma": Architecture(
        "gemma", "GemmaForCausalLM", implied={"hidden_act": GELU}, norms_from_one=True
    ),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        LAYER | FOUR_NORMS,
        WINDOW | SOFT_CAPS,
        {"hidden_activation": GELU},
        norms_from_one=True,
        wide_from_layers=46,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        LAYER | FOUR_NORMS | HEAD_NORMS,
        WINDOW | SOFT_CAPS,
        {"hidden_activation": GELU},
        norms_from_one=True,
        wide_from_layers=62,
    ),
    "granite": Architecture(
        "granite",
        "GraniteForCausalLM",
        numbers=GRANITE_SCALES,
        pairs_interleaved=True,
        bias_fields=True,
        needs_numbers=True,
    ),
    "smollm3": Architecture(
        "smollm3",
        "SmolLM3ForCausalLM",
        implied={"no_rope_layer_interval": 4, "use_sliding_window": False, "sliding_window": None},
        pairs_interleaved=True,
        bias_fields=True,
    ),
}  # fmt: skip

"""What a source is set to beside its weights, as far as a built graph says the same in attributes of its nodes."""

from typing import Any

import torch

EPSILONS = ("variance_epsilon", "eps", "epsilon")
WINDOWED = "sliding_attention"


def settings_of(model: torch.nn.Module) -> dict[str, Any]:
    """Of a checkpoint that is open in torch: {"windows": tokens that each windowed layer looks back,
    "attention_softcap", "logit_softcap": 0 for none, "norm_epsilons", "activation": as its config calls it or None}."""
    config: Any = model.config
    config = config.get_text_config()
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    return {
        "windows": _windows(config),
        "attention_softcap": float(getattr(config, "attn_logit_softcapping", None) or 0.0),
        "logit_softcap": float(getattr(config, "final_logit_softcapping", None) or 0.0),
        "norm_epsilons": sorted(
            {
                float(getattr(module, key))
                for module in model.modules()
                if "norm" in type(module).__name__.lower()
                for key in EPSILONS
                if isinstance(getattr(module, key, None), float)
            }
        ),
        "activation": activation if isinstance(activation, str) else None,
    }


def _windows(config: Any) -> list[int]:
    window = getattr(config, "sliding_window", None)
    if not window:
        return []
    # Mistral's and Phi-3's configs set a window without saying which layers have it: all do.
    kinds = getattr(config, "layer_types", None) or [WINDOWED] * int(config.num_hidden_layers)
    return [int(window)] * kinds.count(WINDOWED)

"""config.json and generation_config.json that do not belong to their weights, or that cannot be at all."""

import math
from collections.abc import Mapping

from olivepress.errors import ConversionFailed, UnsafeCheckpoint, UnsupportedArchitecture
from tests.broken.breakage import Broken
from tests.integration.ingest_cases import edit_json, set_config

BELONGS = "put back the config.json"


TABLE: Mapping[str, Broken] = {
    "no config": Broken(lambda d: (d / "config.json").unlink(), "it has no config.json .*; save the model"),
    "a config that is empty": Broken(lambda d: (d / "config.json").write_text(""), "is no JSON .*; save or copy"),
    "a config in another encoding": Broken(
        lambda d: (d / "config.json").write_text((d / "config.json").read_text(), encoding="utf-16"), "is no JSON; save"
    ),
    "a config of brackets": Broken(
        lambda d: (d / "config.json").write_text('{"a":' * 100_000), "is no JSON; save or copy it again"
    ),
    "remote code": Broken(
        set_config(architectures=["OwnForCausalLM"], model_type="own", auto_map={"AutoConfig": "own.Config"}),
        "needs Python code of its own for OwnForCausalLM .*; submit a checkpoint of a supported",
        UnsafeCheckpoint,
    ),
    "a model that sees": Broken(
        set_config(architectures=["Qwen2VLForConditionalGeneration"], model_type="qwen2_vl"),
        "is a Qwen2VLForConditionalGeneration, which cannot be converted; the supported",
        UnsupportedArchitecture,
    ),
    "heads that do not share the keys": Broken(set_config(num_key_value_heads=3), "k_proj.* by config.json .*; put"),
    "no heads": Broken(set_config(num_attention_heads=0), f"makes no Qwen2ForCausalLM .*; {BELONGS}"),
    "a width that its heads do not divide": Broken(
        set_config(num_attention_heads=5), "by config.json it would be .*; put"
    ),
    "layers of an unknown kind": Broken(
        set_config(layer_types=["magic", "magic"]), f"is no configuration of a qwen2 model .*; {BELONGS}"
    ),
    "an unknown activation": Broken(set_config(hidden_act="swoosh"), f"makes no Qwen2ForCausalLM .*; {BELONGS}"),
    "an epsilon that is no number": Broken(
        lambda d: edit_json(d / "config.json", rms_norm_eps=math.nan), f"'rms_norm_eps' in .* is nan; {BELONGS}"
    ),
    "a rope of an unknown kind": Broken(
        set_config(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}), f"makes no Qwen2.*'spiral'.*; {BELONGS}"
    ),
    "a rope without a base": Broken(
        set_config(rope_parameters={"rope_type": "default", "rope_theta": 0.0}),
        f"'rope_theta' in .* is 0.0, and angles need a base above 0; {BELONGS}",
    ),
    "a rope that turns backwards": Broken(
        set_config(rope_parameters={"rope_type": "default", "rope_theta": -10000}),
        f"'rope_theta' in .* is -10000, and angles need .*; {BELONGS}",
    ),
    "an epsilon that drowns the norms": Broken(
        set_config(rms_norm_eps=1e9), f"'rms_norm_eps' in .* is 1000000000.0, and a norm adds .*; {BELONGS}"
    ),
    "an epsilon below zero": Broken(set_config(rms_norm_eps=-1e-6), f"'rms_norm_eps' in .* is -1e-06, .*; {BELONGS}"),
    "no context": Broken(set_config(max_position_embeddings=0), f"a context of 0 tokens .*; {BELONGS}"),
    "a context without end": Broken(
        set_config(max_position_embeddings=10**12), f"a context of 1,000,000,000,000 tokens .*; {BELONGS}"
    ),
    "weights that compute in integers": Broken(set_config(dtype="int8"), f"'dtype' in .* is 'int8', .*; {BELONGS}"),
    "quantized by an unknown method": Broken(
        set_config(quantization_config={"quant_method": "own"}), r"is quantized already \(own\); .*; submit"
    ),
    "quantized by bitsandbytes": Broken(
        set_config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        r"is quantized already \(bitsandbytes\); .*; submit",
    ),
    "an end that generation_config makes up": Broken(
        lambda d: edit_json(d / "generation_config.json", eos_token_id=99_999),
        "generation_config.json ends answers with token 99999, .*; set 'eos_token_id'",
    ),
    "an end that is text": Broken(
        lambda d: edit_json(d / "generation_config.json", eos_token_id="<|im_end|>"),
        "'eos_token_id' in .*generation_config.json is '<.im_end.>', which is no token's number; set",
    ),
    "a temperature that is text": Broken(
        lambda d: edit_json(d / "generation_config.json", temperature="hot"),
        "'temperature' in .* is 'hot', .*; put one",
    ),
    "an activation that the builder does not know": Broken(
        set_config(hidden_act="quick_gelu"),
        "failed: The quick_gelu activation function is not currently supported.*; .*try another recipe",
        ConversionFailed,
    ),
}

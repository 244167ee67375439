"""What was found out about architectures by converting them and comparing with torch. Pure.

Which ones can be converted is asked of the model builder itself, by each worker; this says what it would not tell:
which it builds wrongly, and which are right only because a worker mends something. Measured with onnxruntime-genai
0.18 and transformers 5.23 on tiny random checkpoints (`tests/integration/test_architectures.py`).
"""

BUILT_WRONGLY = {
    "OlmoForCausalLM": "its norms subtract the mean and the builder's do not: a third of the next tokens agree with "
    "torch",
    "GraniteMoeHybridForCausalLM": "without rotary embeddings, as it is published, the builder turns queries and keys "
    "nevertheless: one in twenty of the next tokens agrees with torch",
    "GptOssForCausalLM": "the builder quantizes it from its published MXFP4 tensors only, which a fine-tune does not "
    "have",
}
"""Architectures that the builder takes and a worker refuses, and why."""

NOT_BUILT = dict.fromkeys(
    (
        "BloomForCausalLM",
        "CohereForCausalLM",
        "FalconForCausalLM",
        "GPT2LMHeadModel",
        "GPTNeoXForCausalLM",
        "Ministral3ForCausalLM",
        "MixtralForCausalLM",
        "Olmo2ForCausalLM",
        "Olmo3ForCausalLM",
        "PhimoeForCausalLM",
        "Qwen3MoeForCausalLM",
        "StableLmForCausalLM",
        "Starcoder2ForCausalLM",
    ),
    "the model builder does not know it",
)
"""Architectures that people ask for and the builder has no code for."""

MENDED = {
    "Gemma2ForCausalLM": "norms kept in fp32, exact scale of embeddings",
    "Gemma3ForCausalLM": "both rotary embeddings, norms kept in fp32, exact scale of embeddings",
    "GemmaForCausalLM": "norms kept in fp32, exact scale of embeddings",
    "GraniteForCausalLM": "every scaling of rotary embeddings, multipliers that are whole numbers",
    "HunYuanDenseV1ForCausalLM": "every scaling of rotary embeddings but its own",
    "LlamaForCausalLM": "every scaling of rotary embeddings, heads of any size",
    "MistralForCausalLM": "sliding windows, every scaling of rotary embeddings, heads of any size",
    "NemotronForCausalLM": "epsilon of norms, norms kept in fp32",
    "Phi3ForCausalLM": "sliding windows, two context lengths, LongRoPE",
    "PhiForCausalLM": "epsilon of norms, rotary embeddings of any part of a head",
    "Qwen2ForCausalLM": "every scaling of rotary embeddings, heads of any size",
    "Qwen3ForCausalLM": "every scaling of rotary embeddings, heads of any size",
    "SmolLM3ForCausalLM": "layers without rotary embeddings",
}
"""What the workers put right in the builder for an architecture."""

"""Makes tiny, valid Hugging Face checkpoints and LoRA adapters for tests: random weights, a real tokenizer."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

# What each architecture needs beside the fields that all share, to be tiny and yet have all of its parts.
OWN_FIELDS: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "llama": {},
    "mistral": {"sliding_window": None},
    "phi3": {"original_max_position_embeddings": 4096, "sliding_window": None},
    # Half of a head is turned, and the runtime wants a multiple of 8 pairs or a head of 32.
    "phi": {"hidden_size": 128},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 512},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 512},
    # Every fourth layer has no rope.
    "smollm3": {"num_hidden_layers": 4},
    "granite": {
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.7,
        "logits_scaling": 1.5,
        "attention_multiplier": 0.2,
    },
    "ernie4_5": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention"],
        "num_dense_layers": 1,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
    },
    "nemotron": {"head_dim": 32},
    "olmo": {},
    # As it is published: no rope.
    "granitemoehybrid": {
        "layer_types": ["attention", "attention"],
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": 128,
    },
}
# Converts to something else (measured); the rest converts to the same model.
UNSOUND = ("olmo", "granitemoehybrid")
MODEL_TYPES = tuple(name for name in OWN_FIELDS if name not in UNSOUND)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
    "rope_theta": 10000.0,
}
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY_SIZE = 512
# The way Qwen2 cuts text before its merges; "Qwen2Tokenizer" means this in transformers and onnxruntime-genai.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = (
    "The press takes a checkpoint and gives back a model that answers in the same words.",
    "What is the capital of France? The capital of France is Paris.",
    "Please reset my password. You can reset your password under Settings, then Security.",
    "Where is my order? Your order left the warehouse and arrives in 3 days.",
    "The court may grant an extension of 14 days if the party shows good cause.",
    "A small model on every desk beats a large one that nobody can reach.",
    "def add(a, b):\n    return a + b\n",
    '{"name": "olive", "count": 12, "tags": ["press", "oil"]}',
    "Weights are numbers; numbers can be stored in four bits, in eight, or in thirty-two.",
    "Grüße aus Köln, ça va bien, ¿qué tal?, 你好世界, добрый день.",
)


def tiny_checkpoint(
    directory: Path,
    architecture: str = "qwen2",
    *,
    tied: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    shards: int = 1,
    spread: float = 0.2,
    **config: Any,
) -> Path:
    """Write a random but valid checkpoint into `directory` and return it.

    Args:
        architecture: a `model_type` of transformers, most safely one of OWN_FIELDS.
        tied: whether the output head is the embedding matrix.
        shards: into how many safetensors files the tensors go (with an index when more than one).
        spread: standard deviation of the random weights; the default gives logits that differ clearly.
        **config: fields of the architecture's config to set, such as `sliding_window=32` or `hidden_size=96`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_tokenizer(directory)
    model_config = AutoConfig.for_model(architecture, **_config_values(architecture, tied) | config)
    model = AutoModelForCausalLM.from_config(model_config, dtype=torch.float32)
    randomise(model, seed, spread)
    model_config.architectures = [type(model).__name__]
    model_config.dtype = dtype
    model_config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    write_weights(directory, model, dtype, shards)
    return directory


def randomise(model: torch.nn.Module, seed: int, spread: float) -> None:
    """Draw every matrix from a normal distribution of this deviation, and norms and biases near their usual values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator) * spread
            # Norms start at 1 (Gemma stores the distance from 1, hence 0); biases start at 0.
            weight.copy_(noise if weight.dim() > 1 else weight + noise)


def write_tokenizer(directory: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Train a byte-level BPE tokenizer on CORPUS and write it in the layout of Qwen2 checkpoints."""
    directory.mkdir(parents=True, exist_ok=True)
    _trained_tokenizer().save(str(directory / "tokenizer.json"))
    tokenizer_config = {
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 4096,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    if chat_template is not None:
        tokenizer_config["chat_template"] = chat_template
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    return directory


def tiny_adapter(
    directory: Path,
    base: Path,
    *,
    r: int = 4,
    alpha: int = 8,
    rslora: bool = False,
    dora: bool = False,
    target_modules: list[str] | str = "all-linear",
    modules_to_save: list[str] | None = None,
    tokens: list[int] | None = None,
    seed: int = 1,
    spread: float = 0.08,
) -> Path:
    """Write a peft LoRA adapter over the checkpoint `base`, not merged, every matrix non-zero, and return it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=alpha,
        use_rslora=rslora,
        use_dora=dora,
        target_modules=target_modules,
        modules_to_save=modules_to_save,
        trainable_token_indices=tokens,
    )
    with warnings.catch_warnings():
        # peft 0.21 asks for an attribute that transformers 5.23 renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        adapted = get_peft_model(model, lora)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(adapted.named_parameters()):
            if weight.requires_grad:
                noise = torch.randn(weight.shape, generator=generator) * spread
                # DoRA's magnitudes and whole saved modules stay near the base; A and B start from nothing.
                weight.copy_(noise if ".lora_A." in name or ".lora_B." in name else weight + noise)
    adapted.save_pretrained(str(directory))
    return directory


def _config_values(architecture: str, tied: bool) -> dict[str, Any]:
    endoftext, _, im_end = (VOCABULARY_SIZE - len(SPECIAL_TOKENS) + i for i in range(len(SPECIAL_TOKENS)))
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": tied,
        "bos_token_id": endoftext,
        "eos_token_id": im_end,
        "pad_token_id": endoftext,
    }
    return values | OWN_FIELDS.get(architecture, {})


def _trained_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY_SIZE - len(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    # Added last, so the special tokens have the highest ids, as in Qwen2.
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    if tokenizer.get_vocab_size() != VOCABULARY_SIZE:
        raise AssertionError(f"the corpus gives {tokenizer.get_vocab_size()} tokens, not {VOCABULARY_SIZE}")
    return tokenizer


def write_weights(directory: Path, model: PreTrainedModel, dtype: torch.dtype, shards: int = 1) -> None:
    """Write the model's tensors as safetensors files in this dtype; a tied head is left out, as usual."""
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in sorted(model.state_dict().items())}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    names = list(tensors)
    for shard in range(shards):
        file_name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, directory / file_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file_name)
    size_bytes = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

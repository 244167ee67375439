"""Does a converted model say what its source says? Logits of both on one fixed text, compared."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime_genai
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from olivepress.errors import ConversionFailed
from workers.toolchains.builder_pass import MODEL_FILE
from workers.toolchains.conversion import Conversion
from workers.toolchains.failures import told_as_conversion_failure
from workers.toolchains.rounding import Rounding, Roundings, rounded, roundings_of

log = logging.getLogger(__name__)

Logits = npt.NDArray[np.float32]

# Ordinary prose, a question with its answer, code, digits, and letters outside ASCII.
TEXT = (
    "What is the capital of France? The capital of France is Paris. A press takes olives and gives oil; the "
    "first pressing, at 27 degrees, is the best. def area(width, height): return width * height\n"
    '{"name": "Köln", "open": true, "since": 1894} And so the story ends where it began, by the sea.'
)
MAX_TOKENS = 48
# The last tokens are appended one by one, so that decoding with a filled cache is compared as well. They are more than
# half: a median over all positions shows it when they go wrong.
DECODED_TOKENS = 28

# accuracy_level 4: activations are rounded where they meet a quantized matrix.
ACTIVATION_BITS = 8

# What 1 - correlation may be: so many times what the same rounding in torch makes of the source; in fp32, where the
# runtimes compute some functions differently (Gemma, Nemotron, LFM2), what rounding to 8 bits makes of it.
# Measured: sound models (1,400 with random weights, 1 to 28 layers, some blowing up the smallest difference) need at
# most 0.6 of this, trained ones a third; trained ones with any one matrix random, or another rope, 1.4 times and more.
TIMES_ROUNDING = 4.0
TIMES_8_BITS = 1.0
TO_8_BITS = Roundings({(None, "lm_head"): Rounding(bits=8, block_size=32, is_symmetric=False)})
ARITHMETIC = 5e-5


@dataclass(frozen=True)
class Agreement:
    """How two models agree on the same tokens; 1, 0 and 1 for equal models.

    `top1` is the share of positions where both name the same next token. `kl` is the mean Kullback-Leibler
    divergence in nats from the source to the converted model. `correlation` is Pearson's between the logits of one
    position, the median over all positions; it does not depend on how sharp the source's distribution is, nor on the
    few positions where a hair decides what the model attends to.
    """

    positions: int
    top1: float
    kl: float
    correlation: float


def check(conversion: Conversion) -> Agreement:
    """Compare the model that a conversion wrote with the checkpoint that it was built from.

    Top-1 and KL are told, not judged: on a flat distribution the first token hangs on a hair, and on a sharp one a
    small step costs many nats. What is judged is the correlation of the logits, against what the recipe's rounding
    alone makes of this very model.

    Raises:
        ConversionFailed: it does not open, gives numbers that are not finite, or says something else.
    """
    tokens = tokens_of_text(conversion.source)
    running = f"running {conversion.model} for the first time"
    with told_as_conversion_failure(running, "try another recipe, or another model"):
        converted = artifact_logits(conversion.output, tokens)
    in_torch = f"{conversion.checkpoint} in torch"
    with told_as_conversion_failure(f"running {in_torch}", "check that the checkpoint generates there"):
        roundings = roundings_of(conversion.output / MODEL_FILE)
        wanted, moved = _source_logits(conversion.source, tokens, roundings if roundings.by_place else TO_8_BITS)
    for logits, owner in ((wanted, in_torch), (converted, conversion.model)):
        if not np.isfinite(logits).all():
            raise ConversionFailed(f"{owner} gives logits that are not finite; look for overflows in its weights")
    found = agreement(wanted, converted)
    times = TIMES_ROUNDING if roundings.by_place else TIMES_8_BITS
    allowed = ARITHMETIC + times * (1 - agreement(wanted, moved).correlation)
    log.info("%s; 1 - correlation may be %.2g", found, allowed)
    if not 1 - found.correlation <= allowed:
        raise ConversionFailed(
            f"{conversion.model} does not say what its source says: their logits correlate by {found.correlation:.5f}, "
            f"{1 - allowed:.5f} is asked, and {found.top1:.0%} of the next tokens agree; the model builder misreads "
            "something in its config.json, so compare that with the base model's"
        )
    return found


def _source_logits(source: Path, tokens: list[int], roundings: Roundings) -> tuple[Logits, Logits]:
    """The source's logits, as they are and with its matrices rounded."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval()
    wanted = model_logits(model, tokens)
    return wanted, model_logits(model, tokens, roundings)


def tokens_of_text(source: Path) -> list[int]:
    """The fixed text in the source's own tokens, at most MAX_TOKENS of them."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    return list(tokenizer.encode(TEXT))[:MAX_TOKENS]


def model_logits(model: torch.nn.Module, tokens: list[int], roundings: Roundings | None = None) -> Logits:
    """Logits, positions x vocabulary, of a model in torch, computed in fp32.

    The weights stay in memory as they are stored and are widened module by module: the same numbers as those of
    a model loaded in fp32, at half of its memory. With `roundings` they are rounded on the way, which tells how far
    the logits of this very model move when it is quantized so.
    """
    with torch.inference_mode(), _computing_in_fp32(model, roundings or Roundings({})):
        output = model(input_ids=torch.tensor([tokens]), use_cache=False)
        return np.asarray(output.logits[0].float().numpy())


@contextmanager
def _computing_in_fp32(model: torch.nn.Module, roundings: Roundings) -> Iterator[None]:
    stored: dict[str, list[tuple[torch.nn.Parameter, torch.Tensor]]] = {}
    head = model.get_output_embeddings().weight if roundings.by_place else None

    def widen(name: str, module: torch.nn.Module, inputs: tuple[Any, ...]) -> Any:
        own = list(module.parameters(recurse=False))
        stored[name] = [(weight, weight.data) for weight in own]
        for weight in own:
            weight.data = weight.data.float()
        if isinstance(module, torch.nn.Embedding) and module.weight is head:
            # Tied: tokens are looked up in the rounded head.
            if rounding := roundings.of("lm_head"):
                module.weight.data = rounded(module.weight.data, rounding)
        elif isinstance(module, torch.nn.Linear) and (rounding := roundings.of(name)):
            module.weight.data = rounded(module.weight.data, rounding)
            return (rounded(inputs[0], replace(rounding, bits=ACTIVATION_BITS)), *inputs[1:])
        return None

    def restore(name: str) -> None:
        for weight, data in stored.pop(name):
            weight.data = data

    hooks = []
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            hooks.append(module.register_forward_pre_hook(partial(widen, name)))
            hooks.append(module.register_forward_hook(lambda *_, name=name: restore(name)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def artifact_logits(artifact: Path, tokens: list[int]) -> Logits:
    """Logits, positions x vocabulary, of a model directory in onnxruntime-genai, the runtime that will serve it."""
    model = onnxruntime_genai.Model(str(artifact))
    parameters = onnxruntime_genai.GeneratorParams(model)
    # Buffers are as long as max_length; a context of 128k tokens would cost gigabytes here.
    parameters.set_search_options(max_length=len(tokens) + 1, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    at_once = max(len(tokens) - DECODED_TOKENS, 1)
    parts = []
    for part in [tokens[:at_once], *([token] for token in tokens[at_once:])]:
        generator.append_tokens(np.array([part], dtype=np.int32))
        parts.append(np.array(generator.get_output("logits"), dtype=np.float32)[0])
    return np.concatenate(parts)


def agreement(source: Logits, converted: Logits) -> Agreement:
    """Compare two arrays of logits, positions x vocabulary."""
    ours, theirs = (torch.from_numpy(logits).double() for logits in (source, converted))
    top1 = (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()
    log_p, log_q = ours.log_softmax(-1), theirs.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    ours, theirs = (logits - logits.mean(-1, keepdim=True) for logits in (ours, theirs))
    correlations = torch.nn.functional.cosine_similarity(ours, theirs, dim=-1)
    # Constants have no correlation; equal ones agree.
    correlations[(ours == theirs).all(-1)] = 1.0
    return Agreement(positions=len(source), top1=top1, kl=max(kl, 0.0), correlation=correlations.median().item())

"""Does a converted model say what its source says? Logits of both on one fixed text, compared."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime_genai
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from olivepress.errors import ConversionFailed
from workers.toolchains import rotary, side_by_side
from workers.toolchains.builder_pass import MODEL_FILE
from workers.toolchains.conversion import Conversion
from workers.toolchains.failures import told_as_conversion_failure
from workers.toolchains.notes import note
from workers.toolchains.side_by_side import Logits, SideBySide
from workers.toolchains.stored_weights import StoredWeights

log = logging.getLogger(__name__)

WHAT_NOW = "the model builder misreads something in its config.json, so compare that with the base model's"

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

# What 1 - correlation may be, between the built model and the source in torch with the very weights that it stores: so
# many times what rounding the inputs of each matrix to 8 bits makes of that; where nothing is rounded, a hundredth,
# which leaves room for models that blow up the smallest difference.
# Measured on random models of all architectures: sound ones need 0.5 to 1.6 times, in floating point 1e-9 times;
# trained ones with any one matrix random, or another rope, hundreds.
TIMES_ROUNDED_INPUTS = 4.0
TIMES_IN_FLOAT = 0.01
# Where matrices of the built model are not found by name, it is compared with the source itself, and what rounding
# them moves comes on top.
TIMES_UNPLACED = 4.0
ARITHMETIC = 1e-6
FAULTS_SHOWN = 3


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

    Three things are judged: that every weight of the source is in it, within what its precision rounds; that it turns
    positions by the source's angles; and that its graph computes what torch computes with the same rounded weights.
    How far the rounding moves the answers (top-1, KL, correlation with the source itself) is told, not judged: on a
    flat distribution the first token hangs on a hair, and on a sharp one a small step costs many nats.

    Raises:
        ConversionFailed: it does not open, gives numbers that are not finite, or says something else.
    """
    tokens = tokens_of_text(conversion.source)
    running = f"running {conversion.model} for the first time"
    with told_as_conversion_failure(running, "try another recipe, or another model"):
        converted = artifact_logits(conversion.output, tokens)
    in_torch = f"{conversion.checkpoint} in torch"
    with told_as_conversion_failure(f"running {in_torch}", "check that the checkpoint generates there"):
        stored = StoredWeights(conversion.output / MODEL_FILE)
        model = AutoModelForCausalLM.from_pretrained(conversion.source, dtype="auto").eval()
        is_rewritten = bool((conversion.options.get("olive_passes") or {}).get("after"))
        seen = side_by_side.compare(model, stored, tokens, by_name=not is_rewritten)
        faults = seen.faults + rotary.faults(model, stored)
    for logits, owner in ((seen.source, in_torch), (converted, conversion.model)):
        if not np.isfinite(logits).all():
            raise ConversionFailed(f"{owner} gives logits that are not finite; look for overflows in its weights")
    if _is_constant(seen.source):
        raise ConversionFailed(
            f"{conversion.checkpoint} gives the same to every text or to every token, so it was never trained or a "
            "part of it was lost; compare its norms and its embeddings with the base model's"
        )
    if faults:
        more = f", and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
        told = "; ".join(faults[:FAULTS_SHOWN]) + more
        raise ConversionFailed(f"{conversion.model} does not say what its source says: {told}; {WHAT_NOW}")
    found = agreement(seen.source, converted)
    _refuse_other_function(conversion, seen, converted, is_rounded=is_rewritten or stored.rounding is not None)
    log.info("%s", found)
    return found


def _is_constant(logits: Logits) -> bool:
    """Whether every text is followed by the same, or every token is as likely as every other."""
    after_every_text = len(logits) > 1 and bool((logits == logits[:1]).all())
    return after_every_text or bool((logits == logits[:, :1]).all())


def _refuse_other_function(conversion: Conversion, seen: SideBySide, converted: Logits, *, is_rounded: bool) -> None:
    times = TIMES_ROUNDED_INPUTS if is_rounded else TIMES_IN_FLOAT
    allowed = ARITHMETIC + times * (1 - agreement(seen.stored, seen.jittered).correlation)
    wanted, weights = seen.stored, "with the same weights"
    if seen.unplaced:
        named = ", ".join(seen.unplaced[:3])
        note(f"{len(seen.unplaced)} matrices were not found in the built model by name ({named}); it is judged whole")
        wanted, weights = seen.source, "on one text"
        allowed += TIMES_UNPLACED * (1 - agreement(seen.source, seen.stored).correlation)
    computed = agreement(wanted, converted)
    log.info("%s, 1 - correlation is %.2g; it may be %.2g", weights, 1 - computed.correlation, allowed)
    if not 1 - computed.correlation <= allowed:
        raise ConversionFailed(
            f"{conversion.model} does not say what its source says: {weights}, their logits correlate by "
            f"{computed.correlation:.6f}, {1 - allowed:.6f} is asked, and {computed.top1:.0%} of the next tokens "
            f"agree; {WHAT_NOW}"
        )


def tokens_of_text(source: Path, tokenizer_directory: Path | None = None) -> list[int]:
    """The fixed text in the source's own tokens, at most MAX_TOKENS of them, and no more than it has room for.

    Args:
        tokenizer_directory: whose tokenizer it is, where that is not the source's.
    """
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory or source)
    room = AutoConfig.from_pretrained(source).get_text_config().max_position_embeddings - 1
    return list(tokenizer.encode(TEXT))[: max(1, min(MAX_TOKENS, room))]


def model_logits(model: torch.nn.Module, tokens: list[int]) -> Logits:
    """Logits, positions x vocabulary, of a model in torch, computed in fp32."""
    with torch.inference_mode(), side_by_side.computing_in_fp32(model):
        output = model(input_ids=torch.tensor([tokens]), use_cache=False)
        return np.asarray(output.logits[0].float().numpy())


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

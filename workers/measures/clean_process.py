"""The program that measures a model in a process of its own: `python -m workers.measures.clean_process`.

It imports nothing heavy but onnxruntime-genai, so the memory it reports is the model's and the engine's, not that of
the warm children with torch in them; and no other work shares its interpreter while it is timed.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from olivepress.checkpoints.chat_template import Message
from olivepress.errors import BadArtifact
from olivepress.file_lock import exclusive
from olivepress.foundry.inference_model import GENAI_CONFIG_FILE
from olivepress.own_process import ProgressListener, answer_with
from workers.measures.cached_reading import measure_cached_reading, with_cached_reading
from workers.measures.consistency import judge_lengths
from workers.measures.contention import Contention
from workers.measures.domain_prompts import ask_some, messages_of, summed
from workers.measures.held_out import held_out_text
from workers.measures.latency import MS_PER_S, lengths_to_try, measure_lengths, measure_speed
from workers.measures.memory import cache_bytes_per_token, cache_growth, peak_rss_bytes, rss_bytes, rss_spread
from workers.measures.quality import OtherVocabulary, measure_quality
from workers.measures.reference_file import read_reference
from workers.measures.soak import soak
from workers.measures.spread import timed
from workers.toolchains.genai import GenaiModel, opened

DEFAULT_CONVERSATION: list[Message] = [{"role": "user", "content": "What can you help me with?"}]
PEAK_TOKENS = 512
"""Peak memory is that of a session of so many tokens, or as many as the model takes."""
PROMPTS_UNDER_LOCK = 20
"""Timed with the host to themselves; further ones, which would keep others waiting for long, are not."""
EXTRA_LOADS = 5
LOADS_BUDGET_S = 3.0
LOADED_TWICE_BYTES_AT_MOST = 2**29


def measure(request: Mapping[str, Any], report_progress: ProgressListener) -> dict[str, Any]:
    """Everything that is measured of an open model.

    Args:
        request: {"artifact": directory, "prompts": domain prompts, "exclusive_lock": file, "to_frame": conversations,
            "soak": what is wanted or None, "reference": directory or None, "yardstick": its name}

    Returns:
        The report's load_ms, load, rss_after_load_bytes, peak_rss_bytes, peak_rss_tokens, highest_rss_bytes,
        rss_spread_bytes, first_token_ms, tokens_per_s, warm_up_ms, waited_share, cpu_cores, runs, latency,
        consistency, cache, prompts, soak and quality; and
        "framed": [{"text", "tokens"}] for `to_frame`.
    """
    artifact, prompts = Path(request["artifact"]), request["prompts"]
    figures: dict[str, Any] = {}
    with ExitStack() as stack:
        report_progress("waiting for the host", 0.0)
        with exclusive(Path(request["exclusive_lock"]), wait_s=math.inf, what="the host"):
            model = stack.enter_context(_loaded(artifact, figures, report_progress))
            text = model.encode(held_out_text())
            figures |= _timed(model, artifact, prompts, text, report_progress)
            items = ask_some(model, prompts[:PROMPTS_UNDER_LOCK], lambda phase, share: report_progress(phase, 0.4))
            figures["highest_rss_bytes"] = peak_rss_bytes()
            figures["rss_spread_bytes"] = rss_spread(figures["peak_rss_bytes"])
            _load_again(artifact, figures, report_progress)
        rest = prompts[PROMPTS_UNDER_LOCK:]
        items += ask_some(
            model, rest, lambda phase, share: report_progress(phase, 0.45 + 0.1 * share), PROMPTS_UNDER_LOCK
        )
        figures["prompts"] = summed(_with_spread(items, figures))
        figures["soak"] = soak(
            model, text, request["soak"], lambda share: report_progress("soaking", 0.55 + 0.15 * share)
        )
        figures["framed"] = [_framed(model, messages) for messages in request["to_frame"]]
        figures["quality"] = _quality(model, request, report_progress)
        figures["consistency"] = with_cached_reading(figures["consistency"], _cached_reading(model, text, figures))
    return figures


@contextmanager
def _loaded(artifact: Path, figures: dict[str, Any], report_progress: ProgressListener) -> Iterator[GenaiModel]:
    """The open model; how long it took and the memory then go into the figures."""
    report_progress("loading the model", 0.1)
    started = time.perf_counter()
    with opened(artifact) as model:
        figures["load_ms"] = round((time.perf_counter() - started) * MS_PER_S, 3)
        figures["rss_after_load_bytes"] = rss_bytes()
        yield model


def _timed(
    model: GenaiModel,
    artifact: Path,
    prompts: Sequence[Mapping[str, Any]],
    text: Sequence[int],
    report_progress: ProgressListener,
) -> dict[str, Any]:
    report_progress("timing answers", 0.15)
    figures = measure_speed(model, _timed_prompt(model, prompts)).to_dict()
    # Not what is highest in the end: that depends on how many lengths there is time for.
    longest = min(PEAK_TOKENS, model.context_length - 1)
    model.generate([text[place % len(text)] for place in range(longest)], 1)
    figures |= {"peak_rss_bytes": peak_rss_bytes(), "peak_rss_tokens": longest}
    config = json.loads((artifact / GENAI_CONFIG_FILE).read_text(encoding="utf-8"))
    calculated = cache_bytes_per_token(config)
    lengths, limit_note = lengths_to_try(model.context_length, calculated)
    entries = measure_lengths(
        model, text, lengths, lambda share: report_progress("timing lengths of prompts", 0.2 + 0.2 * share)
    )
    return figures | {
        "latency": entries,
        "consistency": judge_lengths(entries, limit_note),
        "cache": cache_growth(entries, calculated),
    }


def _load_again(artifact: Path, figures: dict[str, Any], report_progress: ProgressListener) -> None:
    """Some more loads, for `load`; the first, when the files may not be in memory yet, is `load_ms`."""
    report_progress("loading again", 0.44)
    first, times = figures["load_ms"], []
    contention = Contention()
    while len(times) < EXTRA_LOADS and (first + sum(times)) * 2 / MS_PER_S <= LOADS_BUDGET_S:
        if figures["rss_after_load_bytes"] > LOADED_TWICE_BYTES_AT_MOST:
            break
        started = time.perf_counter()
        with opened(artifact):
            times.append((time.perf_counter() - started) * MS_PER_S)
    # Of a single load nobody knows how far the next may be: as much again.
    alone = {"median": first, "p95": first, "spread": first}
    figures["load"] = (timed(times, waited=contention.share()) if len(times) > 1 else alone) | {"runs": len(times) or 1}


def _with_spread(items: Sequence[dict[str, Any]], figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Domain prompts are asked once each: their times spread as those of the repeated prompt do."""
    shares = [figures[key]["spread"] / (figures[key]["median"] or 1.0) for key in ("first_token_ms", "tokens_per_s")]
    return [item | {"seconds_spread": round(max(shares) * item["seconds"], 4)} for item in items]


def _timed_prompt(model: GenaiModel, prompts: Sequence[Mapping[str, Any]]) -> list[int]:
    """The first domain prompt that leaves room for an answer, else a common question."""
    for messages in [*map(messages_of, prompts), DEFAULT_CONVERSATION]:
        try:
            tokens = model.encode(model.prompt(messages))
        except BadArtifact:
            if messages is DEFAULT_CONVERSATION:
                raise
            continue
        if len(tokens) < model.context_length // 2:
            return tokens
    raise BadArtifact(f"a context of {model.context_length} tokens has no room for a question and its answer")


def _quality(model: GenaiModel, request: Mapping[str, Any], report_progress: ProgressListener) -> dict[str, Any]:
    """Quality against the source, or why there is none."""
    if request["reference"] is None:
        return {"problem": "the source was not at hand"}
    reference = read_reference(Path(request["reference"]))
    try:
        return measure_quality(
            reference,
            model.logits,
            request["yardstick"],
            lambda share: report_progress("comparing with the source", 0.7 + 0.3 * share),
            model.context_length,
        )
    except (OtherVocabulary, BadArtifact) as error:
        return {"problem": str(error)}


def _cached_reading(model: GenaiModel, text: Sequence[int], figures: Mapping[str, Any]) -> dict[str, Any]:
    rounding = (figures["quality"].get("yardstick") or {}).get("kl")
    try:
        return measure_cached_reading(text, model.context_length, model.logits, model.stepwise_logits, rounding)
    except BadArtifact as error:
        return {"positions": 0, "kl_divergence": None, "limit": None, "problem": str(error)}


def _framed(model: GenaiModel, messages: Sequence[Message]) -> dict[str, Any]:
    try:
        text = model.prompt(messages)
        return {"text": text, "tokens": model.encode(text)}
    except BadArtifact:
        return {"text": None, "tokens": []}


if __name__ == "__main__":
    answer_with(measure)

"""The program that measures a model in a process of its own: `python -m workers.measures.clean_process`.

It imports nothing heavy but onnxruntime-genai, so the memory it reports is the model's and the engine's, not that of
the warm children with torch in them; and no other work shares its interpreter while it is timed.
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from olivepress.chat_template import Message
from olivepress.errors import BadArtifact
from olivepress.file_lock import exclusive
from olivepress.own_process import ProgressListener, answer_with
from workers.measures.domain_prompts import ask_all, messages_of
from workers.measures.latency import MS_PER_S, measure_speed
from workers.measures.memory import peak_rss_bytes, rss_bytes
from workers.toolchains.genai import GenaiModel, opened

DEFAULT_CONVERSATION: list[Message] = [{"role": "user", "content": "What can you help me with?"}]


def measure(request: Mapping[str, Any], report_progress: ProgressListener) -> dict[str, Any]:
    """Everything that is measured of an open model.

    Args:
        request: {"artifact": directory, "prompts": domain prompts, "exclusive_lock": file, "to_frame": conversations}

    Returns:
        The report's load_ms, rss_after_load_bytes, peak_rss_bytes, first_token_ms, tokens_per_s, cpu_cores, runs and
        prompts; and "framed": [{"text", "tokens"}] for `to_frame`.
    """
    prompts = request["prompts"]
    figures: dict[str, Any] = {}
    with ExitStack() as stack:
        report_progress("waiting for the host", 0.0)
        with exclusive(Path(request["exclusive_lock"]), wait_s=math.inf, what="the host"):
            report_progress("loading the model", 0.1)
            started = time.perf_counter()
            model = stack.enter_context(opened(Path(request["artifact"])))
            figures["load_ms"] = round((time.perf_counter() - started) * MS_PER_S, 3)
            figures["rss_after_load_bytes"] = rss_bytes()
            report_progress("timing answers", 0.2)
            figures |= measure_speed(model, _timed_prompt(model, prompts)).to_dict()
        figures["prompts"] = ask_all(model, prompts, lambda phase, share: report_progress(phase, 0.4 + 0.6 * share))
        figures["peak_rss_bytes"] = peak_rss_bytes()
        figures["framed"] = [_framed(model, messages) for messages in request["to_frame"]]
    return figures


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


def _framed(model: GenaiModel, messages: Sequence[Message]) -> dict[str, Any]:
    try:
        text = model.prompt(messages)
    except BadArtifact:
        return {"text": None, "tokens": []}
    return {"text": text, "tokens": model.encode(text)}


if __name__ == "__main__":
    answer_with(measure)

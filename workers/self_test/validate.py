"""The self test's last step: chat with the package, by onnxruntime-genai and inside Foundry Local."""

import time
from typing import Any

from olivepress.errors import BadArtifact
from olivepress.foundry.runtime import certify, has_sdk
from workers.steps.context import StepContext
from workers.toolchains.genai import opened
from workers.toolchains.taught_checkpoint import ANSWER, QUESTION

NEW_TOKENS = 64


def run(spec: dict[str, Any], context: StepContext) -> dict[str, Any]:
    """Ask for the answer that the model has learnt.

    Returns:
        {"answer", "tokens", "chat_s", "certificate": as `foundry_runtime.certify` gives it, or None where the runtime
        is not installed, "certificate_s"}

    Raises:
        BadArtifact: the model cannot be opened, or answers something else.
    """
    artifact, question = context.inputs["artifact"], [{"role": "user", "content": QUESTION}]
    started = time.perf_counter()
    with opened(artifact) as model:
        generation = model.generate(model.encode(model.prompt(question)), NEW_TOKENS)
    chat_s = time.perf_counter() - started
    if generation.text.strip() != ANSWER:
        raise BadArtifact(
            f"asked {QUESTION!r} the int4 model answers {generation.text.strip()!r} instead of {ANSWER!r}; install the "
            "versions that were tested together: pip install 'olivepress[worker]' --constraint requirements.lock"
        )
    started = time.perf_counter()
    certificate = certify(artifact, "self-test", [question], context.scratch) if has_sdk() else None
    certificate_s = time.perf_counter() - started
    return {
        "answer": generation.text.strip(),
        "tokens": len(generation.tokens),
        "chat_s": chat_s,
        "certificate": certificate,
        "certificate_s": certificate_s,
    }

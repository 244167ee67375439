"""Validate: measure the package, certify it in the real Foundry Local runtime, hold the figures against limits."""

import os
from pathlib import Path
from typing import Any

from olivepress.chat_template import Message, read_chat_template
from olivepress.errors import BadArtifact
from olivepress.foundry_runtime import certify
from olivepress.gates import Figures, evaluate, verdict_of
from olivepress.own_process import Program, ask
from olivepress.recipes import GateLimits
from workers.measures.domain_prompts import messages_of
from workers.measures.format import check_format
from workers.measures.hardware import describe_hardware
from workers.measures.tokenizer_agreement import SAMPLES, Framed, compare
from workers.steps.context import StepContext
from workers.toolchains.tokenizer_file import read_tokenizer

SCHEMA_VERSION = 1
MEASURING = Program("workers.measures.clean_process", "the measuring process", time_limit_s=None)
FRAMED_PROMPTS = 20
# Shares of the step's time, for the progress bar.
MEASURED_AT, CERTIFIED_AT = 0.7, 0.95


def run(spec: dict[str, Any], context: StepContext) -> dict[str, Any]:
    """Measure and judge a package; nothing is written to `context.output`.

    Args:
        spec: {"prompts": domain prompts, "gates": GateLimits as dict, "name": provisional name in Foundry Local,
            "source_size_bytes": size of the checkpoint}.
        context: inputs {"artifact": what package wrote}.

    Returns:
        {"verdict": "passed" | "failed", "report": everything measured}; a failed certificate or gate is a verdict,
        not an error.

    Raises:
        BadArtifact: files are missing or contradict each other, or the engine cannot open them.
        RuntimeCrashed: the measuring process was killed or crashed.
    """
    artifact = context.inputs["artifact"]
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "hardware": describe_hardware(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "size_bytes": sum(file.stat().st_size for file in artifact.rglob("*") if file.is_file()),
        "source_size_bytes": spec["source_size_bytes"],
    }
    context.report_progress("checking the files", 0.0)
    check_format(artifact)
    report |= _measure(spec, context, artifact)
    report["certificate"] = _certify(spec["name"], report["prompts"]["items"], context)
    gates = evaluate(
        GateLimits(**spec["gates"]),
        Figures(
            is_certified=report["certificate"]["status"] == "passed",
            prompts_with_expectation=report["prompts"]["with_expectation"],
            prompts_passed=report["prompts"]["passed"],
        ),
    )
    report["gates"] = [gate.to_dict() for gate in gates]
    return {"verdict": verdict_of(gates).value, "report": report}


def _certify(name: str, asked: list[dict[str, Any]], context: StepContext) -> dict[str, Any]:
    """The certificate, over the shortest of the questions that the model could be asked."""

    def report_progress(phase: str, share: float) -> None:
        context.report_progress(f"certificate: {phase}", MEASURED_AT + (CERTIFIED_AT - MEASURED_AT) * share)

    conversations = [item["messages"] for item in asked if item["problem"] is None]
    conversations.sort(key=lambda messages: sum(len(message["content"]) for message in messages))
    return certify(context.inputs["artifact"], name, conversations, context.scratch, on_progress=report_progress)


def _measure(spec: dict[str, Any], context: StepContext, artifact: Path) -> dict[str, Any]:
    conversations: list[list[Message]] = [list(sample) for sample in SAMPLES]
    conversations += [messages_of(prompt) for prompt in spec["prompts"][:FRAMED_PROMPTS]]
    request = {
        "artifact": str(artifact.resolve()),
        "prompts": spec["prompts"],
        "exclusive_lock": str(context.exclusive_lock),
        "to_frame": [list(map(dict, messages)) for messages in conversations],
    }
    figures = ask(
        MEASURING,
        request,
        context.scratch,
        on_progress=lambda phase, share: context.report_progress(phase, MEASURED_AT * share),
    )
    framed = [Framed(item["text"], tuple(item["tokens"])) for item in figures.pop("framed")]
    chat_template = read_chat_template(artifact)
    if chat_template is None:
        raise BadArtifact("the package has no chat template; package the model again")
    figures["tokenizer"] = compare(chat_template, read_tokenizer(artifact), conversations, framed)
    return figures

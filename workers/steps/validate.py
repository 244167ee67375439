"""Validate: measure the package, certify it in the real Foundry Local runtime, hold the figures against limits."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from olivepress.checkpoints.chat_template import Message, read_chat_template
from olivepress.errors import BadArtifact, OlivepressError, RuntimeCrashed
from olivepress.foundry.inference_model import GENAI_CONFIG_FILE
from olivepress.foundry.runtime import certify
from olivepress.gates import GateLimits, evaluate, verdict_of
from olivepress.own_process import Program, ask
from workers.measures.cross_check import cross_check
from workers.measures.domain_prompts import messages_of
from workers.measures.edge_cases import AT_LIMIT, try_edge_cases
from workers.measures.hardware import describe_hardware
from workers.measures.held_out import held_out_text
from workers.measures.reference_file import Answer, Reference, read_reference
from workers.measures.tokenizer_agreement import SAMPLES, Framed, compare
from workers.measures.tokenizer_parity import compare_three_ways
from workers.steps.context import StepContext
from workers.toolchains.graph_facts import read_facts
from workers.toolchains.tokenizer_file import read_tokenizer
from workers.toolchains.versions import toolchain_versions

SCHEMA_VERSION = 2
MEASURING = Program("workers.measures.clean_process", "the measuring process", time_limit_s=None)
FRAMED_PROMPTS = 20
THREADS_VARIABLE = "OMP_NUM_THREADS"
# Shares of the step's time, for the progress bar.
CHECKED_AT, MEASURED_AT, TRIED_AT, CERTIFIED_AT = 0.05, 0.65, 0.8, 0.98


def run(spec: dict[str, Any], context: StepContext) -> dict[str, Any]:
    """Measure and judge a package; nothing is written to `context.output`.

    Args:
        spec: {"prompts": domain prompts, "gates": GateLimits as dict, "name": provisional name in Foundry Local,
            "source_size_bytes": size of the checkpoint, "has_passes": whether passes of Olive worked on the model
            (optional), "soak": {"minutes": m} or {"sessions": n} (optional)}.
        context: inputs {"artifact": what package wrote, "reference": what reference wrote (optional)}.

    Returns:
        {"verdict": "passed" | "failed", "report": everything measured}; a failed certificate or gate is a verdict,
        not an error.

    Raises:
        BadArtifact: the files agree, and yet the engine cannot open them.
        RuntimeCrashed: the measuring process was killed or crashed, though the files agree.
    """
    artifact = context.inputs["artifact"]
    reference = read_reference(context.inputs["reference"]) if "reference" in context.inputs else None
    report = _begun(spec, artifact) | {"has_source": reference is not None}
    context.report_progress("checking the files", 0.0)
    report["cross_check"] = cross_check(artifact, reference, may_move_weights=bool(spec.get("has_passes")))
    try:
        report |= _measure(spec, context, artifact, reference)
        report["edge_cases"] = _edge_cases(context, artifact, report["consistency"])
    except (BadArtifact, RuntimeCrashed) as error:
        if report["cross_check"]["status"] == "passed":
            raise
        # Files that contradict each other do worse than answer wrongly: the findings say why.
        report |= _unmeasured(spec) | {"problem": str(error)}
    report["certificate"] = _certify(spec["name"], report["prompts"]["items"], context)
    gates = evaluate(GateLimits(**spec["gates"]), report)
    report["gates"] = [gate.to_dict() for gate in gates]
    return {"verdict": verdict_of(gates).value, "report": report}


def _begun(spec: dict[str, Any], artifact: Path) -> dict[str, Any]:
    size_bytes = sum(file.stat().st_size for file in artifact.rglob("*") if file.is_file())
    source_bytes = spec["source_size_bytes"]
    return {
        "schema_version": SCHEMA_VERSION,
        "hardware": describe_hardware(),
        "threads": os.environ.get(THREADS_VARIABLE) or "as many as the engine chooses",
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "toolchain": toolchain_versions(),
        "size_bytes": size_bytes,
        "source_size_bytes": source_bytes,
        "size_ratio": round(size_bytes / source_bytes, 4) if source_bytes else None,
        "problem": None,
    }


def _unmeasured(spec: dict[str, Any]) -> dict[str, Any]:
    """The report's parts where nothing could be measured."""
    total = len(spec["prompts"])
    prompts = {"total": total, "with_expectation": None, "passed": None, "items": []}
    checks = ("tokenizer_parity", "edge_cases", "consistency")
    return {"prompts": prompts} | {
        name: {"status": "not_measured", "problem": None, "notes": [], "untried": []} for name in checks
    }


def _certify(name: str, asked: list[dict[str, Any]], context: StepContext) -> dict[str, Any]:
    """The certificate, over the shortest of the questions that the model could be asked."""

    def report_progress(phase: str, share: float) -> None:
        context.report_progress(f"certificate: {phase}", TRIED_AT + (CERTIFIED_AT - TRIED_AT) * share)

    conversations = [item["messages"] for item in asked if item["problem"] is None]
    conversations.sort(key=lambda messages: sum(len(message["content"]) for message in messages))
    return certify(context.inputs["artifact"], name, conversations, context.scratch, on_progress=report_progress)


def _measure(spec: dict[str, Any], context: StepContext, artifact: Path, reference: Reference | None) -> dict[str, Any]:
    conversations: list[list[Message]] = [list(sample) for sample in SAMPLES]
    conversations += [messages_of(prompt) for prompt in spec["prompts"][:FRAMED_PROMPTS]]
    request = {
        "artifact": str(artifact.resolve()),
        "prompts": spec["prompts"],
        "exclusive_lock": str(context.exclusive_lock),
        "to_frame": [list(map(dict, messages)) for messages in conversations],
        "soak": spec.get("soak"),
        "reference": str(context.inputs["reference"].resolve()) if reference else None,
        "yardstick": _yardstick(artifact),
    }
    figures = ask(
        MEASURING,
        request,
        context.scratch,
        on_progress=lambda phase, share: context.report_progress(
            phase, CHECKED_AT + (MEASURED_AT - CHECKED_AT) * share
        ),
    )
    framed = [Framed(item["text"], tuple(item["tokens"])) for item in figures.pop("framed")]
    _add_source_answers(figures["prompts"]["items"], reference.answers if reference else ())
    return figures | _framing(artifact, conversations, framed, reference)


def _yardstick(artifact: Path) -> str:
    """How coarsely the artifact's matrices are rounded, in the reference's words."""
    models = sorted(artifact.glob("*.onnx"))
    if not models:
        raise BadArtifact(f"the model directory has no ONNX file beside {GENAI_CONFIG_FILE}; convert it again")
    return read_facts(models[0]).yardstick


def _framing(
    artifact: Path, conversations: Sequence[Sequence[Message]], framed: Sequence[Framed], reference: Reference | None
) -> dict[str, Any]:
    template = read_chat_template(artifact)
    if template is None:
        raise BadArtifact("the package has no chat template; package the model again")
    try:
        tokenizer = read_tokenizer(artifact)
    except OlivepressError as error:
        raise BadArtifact(str(error)) from error
    return {
        "tokenizer": compare(template, tokenizer, conversations, framed),
        "tokenizer_parity": compare_three_ways(artifact, template, tokenizer, conversations, framed, reference),
    }


def _add_source_answers(items: list[dict[str, Any]], answers: Sequence[Answer]) -> None:
    """What the source answers to the same messages, beside what the artifact does; None where it was not asked."""
    by_messages = {repr([dict(message) for message in answer.messages]): answer.answer for answer in answers}
    for item in items:
        said = by_messages.get(repr([dict(message) for message in item["messages"]]))
        item["source_answer"] = said
        item["same_as_source"] = None if said is None else said.strip() == item["answer"].strip()


def _edge_cases(context: StepContext, artifact: Path, consistency: dict[str, Any]) -> dict[str, Any]:
    # The limit takes as long, and as much memory, here as there.
    untried = consistency["untried"]
    return try_edge_cases(
        artifact,
        context.scratch,
        skip={AT_LIMIT: untried[-1]} if untried else {},
        text=held_out_text(),
        report_progress=lambda phase, share: context.report_progress(
            phase, MEASURED_AT + (TRIED_AT - MEASURED_AT) * share
        ),
    )

"""Whether genai_config, graph, weights, tokenizer and, where it is at hand, the source agree with each other.

Unit: none; each disagreement is a finding in words. Source: what workers.measures.format checks (what the runtimes
accept unasked), and the source's own configuration as the reference has it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from olivepress.checkpoints.chat_template import read_chat_template, read_tokenizer_config
from olivepress.errors import BadArtifact, BadCheckpoint, OlivepressError
from olivepress.evidence.document import UNSIGNED_FILES
from olivepress.foundry.inference_model import (
    GENAI_CONFIG_FILE,
    INFERENCE_MODEL_FILE,
    SUMS_FILE,
    declared_id,
    read_sums,
)
from olivepress.foundry.prompt_template import CONTENT, derive_prompt_template
from workers.measures.format import check_format
from workers.measures.generation_check import generation_findings
from workers.measures.graph_check import graph_findings
from workers.measures.reference_file import Reference
from workers.toolchains.graph_facts import BlankTensor, blank_tensors, read_facts
from workers.toolchains.graph_structure import read_structure
from workers.toolchains.weight_prints import faults as weight_faults

BLOCK_BYTES = 2**20
FAULTS_SHOWN = 3
SAME_SCALE = 1e-3
UNSUMMED = UNSIGNED_FILES | {SUMS_FILE}
Facts = Mapping[str, Any]


def cross_check(artifact: Path, reference: Reference | None, *, may_move_weights: bool = False) -> dict[str, Any]:
    """Every check, each telling what it found.

    Args:
        reference: what the source says, or None where it is not at hand.
        may_move_weights: whether passes of Olive have worked on the model. Some move weights from one matrix to the
            next without changing what the model says, so that weights which differ are notes then, and no findings.

    Returns:
        {"status": "passed" | "failed", "findings": [str], "problem": the findings in one line or None, "notes": [str],
        "checksums": how many files were held against SHA256SUMS}
    """
    findings: list[str] = []
    notes: list[str] = []
    source = reference.facts if reference else None
    checks: list[Callable[[], Iterator[str]]] = [
        lambda: _format(artifact),
        lambda: _graph(artifact, source),
        lambda: _structure(artifact, source, may_move_weights, notes),
        lambda: _blank_weights(artifact, source),
        lambda: _weights_of_source(artifact, reference, may_move_weights, notes),
        lambda: _stop_tokens(artifact, source),
        lambda: _against_source(artifact, source),
        lambda: generation_findings(artifact, reference, notes),
        lambda: _discovery(artifact),
        lambda: _checksums(artifact),
    ]
    for check in checks:
        try:
            findings += [finding for finding in check() if finding not in findings]
        except (OlivepressError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            # A file that is not what it should be stops the check that reads it; the first check names the file.
            if not findings:
                findings.append(str(error) or type(error).__name__)
    if source is None:
        notes.append("the source was not at hand, so nothing was held against it")
    if not (artifact / SUMS_FILE).is_file():
        notes.append(f"there is no {SUMS_FILE}; publishing writes it")
    return {
        "status": "failed" if findings else "passed",
        "findings": findings,
        "problem": "; ".join(findings) or None,
        "notes": notes,
        "checksums": _count_of_sums(artifact),
    }


def _format(artifact: Path) -> Iterator[str]:
    try:
        check_format(artifact)
    except BadArtifact as error:
        yield str(error)


def _config(artifact: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((artifact / GENAI_CONFIG_FILE).read_text(encoding="utf-8"))["model"]
    return config


def _model_file(artifact: Path) -> Path:
    return artifact / str((_config(artifact).get("decoder") or {}).get("filename", "model.onnx"))


def _graph(artifact: Path, source: Facts | None) -> Iterator[str]:
    config = _config(artifact)
    decoder = config.get("decoder") or {}
    facts = read_facts(_model_file(artifact))
    pairs = (
        ("heads", facts.heads, decoder.get("num_attention_heads")),
        ("key-value heads", facts.key_value_heads, decoder.get("num_key_value_heads")),
    )
    for what, found, stated in pairs:
        if found and stated not in found:
            yield f"the graph's attention has {_listed(found)} {what} and {GENAI_CONFIG_FILE} has {stated}"
    for scale in facts.attention_scales:
        expected = (source or {}).get("attention_scales") or [scale]
        if not any(abs(scale - wanted) <= SAME_SCALE * wanted for wanted in expected):
            yield f"the graph's attention is scaled by {scale:g} and the source's by {_listed(expected)}"
    if facts.reach is not None and config["context_length"] > facts.reach:
        yield (
            f"{GENAI_CONFIG_FILE} has a context of {config['context_length']} tokens and the graph's rotary tables "
            f"end at {facts.reach}"
        )
    for name in ("bos_token_id", "pad_token_id"):
        token = config.get(name)
        if isinstance(token, int) and not -1 <= token < config["vocab_size"]:
            yield f"{GENAI_CONFIG_FILE} has the {name} {token} in a vocabulary of {config['vocab_size']}"


def _structure(artifact: Path, source: Facts | None, may_move_weights: bool, notes: list[str]) -> Iterator[str]:
    settings = (source or {}).get("settings")
    found = list(graph_findings(read_structure(_model_file(artifact)), settings, _config(artifact)["context_length"]))
    if source is None or may_move_weights:
        # A graph that others wrote, or that passes rewrote, may carry along what it does not use.
        notes += found
    else:
        yield from found


def _blank_weights(artifact: Path, source: Facts | None) -> Iterator[str]:
    for tensor in blank_tensors(_model_file(artifact)):
        is_vector = len(tensor.shape) == 1
        is_norm = "norm" in tensor.name and not tensor.name.endswith("bias")
        if tensor.what == "nothing but zeros" and not is_norm and _is_zero_in_source(is_vector, source):
            continue
        if tensor.what == "nothing but zeros" and _is_needless_bias(tensor, source):
            continue
        size = " × ".join(map(str, tensor.shape))
        yield f"the weight {tensor.name} ({size}) holds {tensor.what}"


def _weights_of_source(
    artifact: Path, reference: Reference | None, may_move_weights: bool, notes: list[str]
) -> Iterator[str]:
    """Weight by weight, against the print of the source's."""
    if reference is None:
        return
    faults, unplaced = weight_faults(reference.weights, _model_file(artifact))
    if unplaced:
        of = len(reference.weights.matrices)
        notes.append(f"{len(unplaced)} of the source's {of} matrices have no name of their own in the graph")
    told = faults[:FAULTS_SHOWN] + [f"and {len(faults) - FAULTS_SHOWN} more weights"] * (len(faults) > FAULTS_SHOWN)
    if may_move_weights:
        notes += [f"after passes of Olive: {fault}" for fault in told]
    elif told:
        yield f"weights are not the source's: {', '.join(told)}"


def _is_zero_in_source(is_vector: bool, source: Facts | None) -> bool:
    """Whether the source itself has such a tensor; a bias that was never trained is zero, and nobody knows without."""
    if source is None:
        return is_vector
    return bool(source["zero_vectors"]) if is_vector else bool(source["has_zero_matrix"])


def _is_needless_bias(tensor: BlankTensor, source: Facts | None) -> bool:
    """Whether it is a bias of several experts at once, which the builder writes whether the source has one or not."""
    return len(tensor.shape) > 1 and tensor.name.endswith("bias") and not (source or {}).get("has_stacked_bias")


def _stop_tokens(artifact: Path, source: Facts | None) -> Iterator[str]:
    stated = _config(artifact).get("eos_token_id")
    stops = {int(token) for token in (stated if isinstance(stated, list) else [stated]) if isinstance(token, int)}
    if source is not None:
        allowed = [set(ids) for ids in source["stop_ids"]]
        union = set().union(*allowed)
        if allowed and not (stops <= union and any(ids <= stops for ids in allowed)):
            yield (
                f"{GENAI_CONFIG_FILE} ends answers with {_listed(stops)}, and the source with "
                f"{' or '.join(dict.fromkeys(map(_listed, allowed)))}"
            )
        ending = source.get("turn_end_id")
        if ending is not None and ending not in stops and ending in _ids_of_texts(artifact).values():
            yield f"{GENAI_CONFIG_FILE} does not end answers with {ending}, as the source's chat template does"
        return
    own = _tokenizers_stops(artifact)
    if own and not stops & set(own):
        named = ", ".join(f"{token} ('{text}')" for token, text in own.items())
        yield f"{GENAI_CONFIG_FILE} ends answers with {_listed(stops)}, and the tokenizer and its template with {named}"


def _tokenizers_stops(artifact: Path) -> dict[int, str]:
    """Tokens that end an answer by the tokenizer's own word, and by how its template ends an assistant's turn."""
    ids = _ids_of_texts(artifact)
    eos = read_tokenizer_config(artifact).get("eos_token")
    texts = [eos.get("content") if isinstance(eos, dict) else eos]
    template = read_chat_template(artifact)
    if template is not None and (pieces := derive_prompt_template(template).template):
        texts.append(pieces["assistant"].partition(CONTENT)[2].strip())
    return {ids[text]: text for text in texts if text in ids}


def _ids_of_texts(artifact: Path) -> dict[str, int]:
    tokenizer = json.loads((artifact / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    ids = {text: int(number) for text, number in vocabulary.items()} if isinstance(vocabulary, dict) else {}
    return ids | {token["content"]: int(token["id"]) for token in tokenizer.get("added_tokens") or []}


def _against_source(artifact: Path, source: Facts | None) -> Iterator[str]:
    if source is None:
        return
    config = _config(artifact)
    decoder = config.get("decoder") or {}
    pairs = (
        ("tokens in its vocabulary", config.get("vocab_size"), source["vocabulary_size"]),
        ("layers", decoder.get("num_hidden_layers"), source["layers"]),
        ("attention heads", decoder.get("num_attention_heads"), source["heads"]),
        ("numbers in a head", decoder.get("head_size"), source.get("head_size")),
    )
    for what, stated, expected in pairs:
        if expected is not None and stated != expected:
            yield f"{GENAI_CONFIG_FILE} has {stated} {what} and the source has {expected}"
    if config["context_length"] > source["context_length"]:
        yield (
            f"{GENAI_CONFIG_FILE} has a context of {config['context_length']} tokens and the source of "
            f"{source['context_length']}"
        )


def _discovery(artifact: Path) -> Iterator[str]:
    """What the older runtimes, which list directories by inference_model.json alone, need of it."""
    if (artifact / INFERENCE_MODEL_FILE).is_file():
        declared_id(artifact)
    yield from ()


def _checksums(artifact: Path) -> Iterator[str]:
    file = artifact / SUMS_FILE
    if not file.is_file():
        return
    sums = read_sums(file.read_text(encoding="utf-8"))
    own = {found.relative_to(artifact).as_posix() for found in artifact.rglob("*") if found.is_file()}
    for path in sorted(own - sums.keys() - UNSUMMED):
        yield f"{SUMS_FILE} does not name {path}"
    for path, expected in sums.items():
        if not (artifact / path).is_file():
            yield f"{SUMS_FILE} names {path}, which is missing"
        elif _sha256(artifact / path) != expected:
            yield f"{path} is not the file that {SUMS_FILE} was written for"


def _count_of_sums(artifact: Path) -> int:
    try:
        return len(read_sums((artifact / SUMS_FILE).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, BadArtifact, BadCheckpoint):
        return 0


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, sorted(numbers))) or "none"

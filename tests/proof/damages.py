"""Ways of damaging a packaged model so that it still loads and answers, and is wrong."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from olivepress.checkpoints.files import hash_file
from olivepress.foundry.inference_model import sums_text
from tests.artifacts import rewrite_json

Array = npt.NDArray[Any]
GRAPH, CONFIG = "model.onnx", "genai_config.json"
FINE_TUNE, BASE, BOS = "fine_tune", "base", "bos"
LLAMA3_TEMPLATE = (
    "{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n"
)
STALE_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}assistant:"
)


@dataclass(frozen=True)
class Others:
    """Packages of the same shapes that a damage takes something from; None where the source has no relatives."""

    fine_tune: Path | None = None
    base: Path | None = None


Change = Callable[[Path, Others], None]


@dataclass(frozen=True)
class Damage:
    """What is done to the artifact, and a gate that must see it (others may)."""

    change: Change
    gate: str
    needs: str | None = None
    """A field of Others that it takes something from, or BOS: only a source whose conversations begin with one."""


def tensors(directory: Path, start: str) -> dict[str, Array]:
    """The tensors whose name begins so, mapped where they lie: what is written into them is written into the file."""
    found = {}
    for tensor in onnx.load(str(directory / GRAPH), load_external_data=False).graph.initializer:
        if tensor.name.startswith(start) and tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            offset = int(place.get("offset", 0))
            found[tensor.name] = np.memmap(directory / place["location"], kind, "r+", offset, tuple(tensor.dims))
    assert found, f"no tensor of {directory} begins with {start}"
    return found


def factors(directory: Path, matrix: str) -> Array:
    """What a matrix is proportional to: its scales, or itself where it is in floating point."""
    parts = tensors(directory, matrix)
    return next((part for name, part in parts.items() if name.endswith("scales")), next(iter(parts.values())))


def times(matrix: str, factor: float) -> Change:
    """The matrix multiplied."""

    def change(directory: Path, others: Others) -> None:
        factors(directory, matrix)[...] *= factor

    return change


def exchanged(one: str, other: str) -> Change:
    """Two matrices of one shape in each other's place."""

    def change(directory: Path, others: Others) -> None:
        first, second = tensors(directory, one), tensors(directory, other)
        # The sensitive matrices of some layers are stored in other bits: then only what they have in common moves.
        for mine, theirs in zip(first.values(), second.values(), strict=True):
            if mine.shape == theirs.shape and mine.dtype == theirs.dtype:
                mine[...], theirs[...] = theirs.copy(), mine.copy()

    return change


def taken(start: str, whose: str) -> Change:
    """Tensors of another package of the same shapes."""

    def change(directory: Path, others: Others) -> None:
        theirs = tensors(getattr(others, whose), start)
        for name, part in tensors(directory, start).items():
            part[...] = theirs[name]

    return change


def shuffled_rows(matrix: str) -> Change:
    """The matrix with its rows in another order, as a wrong split of heads makes it."""

    def change(directory: Path, others: Others) -> None:
        for part in tensors(directory, matrix).values():
            part[...] = part[::-1].copy()

    return change


def whole_graph(whose: str) -> Change:
    """Graph and weights of another package."""

    def change(directory: Path, others: Others) -> None:
        for file in (GRAPH, f"{GRAPH}.data"):
            shutil.copyfile(getattr(others, whose) / file, directory / file)

    return change


def other_rope(directory: Path, others: Others) -> None:
    """The rotary tables of another theta."""
    tables = {**tensors(directory, "cos_cache"), **tensors(directory, "sin_cache")}
    cosines, sines = tables["cos_cache"], tables["sin_cache"]
    positions, half = cosines.shape
    angles = np.outer(np.arange(positions), 1.0 / 500.0 ** (np.arange(half) / half))
    cosines[...], sines[...] = np.cos(angles), np.sin(angles)


def other_attribute(operator: str, name: str, value: float) -> Change:
    """An attribute of every node of a kind."""

    def change(directory: Path, others: Others) -> None:
        model = onnx.load(str(directory / GRAPH), load_external_data=False)
        attributes = [a for node in model.graph.node if node.op_type == operator for a in node.attribute]
        for attribute in attributes:
            if attribute.name == name and attribute.type == onnx.AttributeProto.FLOAT:
                attribute.f = attribute.f * value
        (directory / GRAPH).write_bytes(model.SerializeToString())

    return change


def swapped_ids(count: int | None) -> Change:
    """A tokenizer with so many of its words (None: all) under each other's numbers."""

    def change(directory: Path, others: Others) -> None:
        content = json.loads((directory / "tokenizer.json").read_text())
        vocabulary = content["model"]["vocab"]
        # Letters, which some text of the samples is sure to have, else all that is no byte.
        words = ["a", "e"] if count else [word for word, number in vocabulary.items() if number >= 300]
        numbers = [vocabulary[word] for word in words]
        content["model"]["vocab"] = vocabulary | dict(zip(words, numbers[1:] + numbers[:1], strict=True))
        (directory / "tokenizer.json").write_text(json.dumps(content))

    return change


def template(source: Callable[[str], str]) -> Change:
    """Another chat template, in both places."""

    def change(directory: Path, others: Others) -> None:
        text = source((directory / "chat_template.jinja").read_text())
        (directory / "chat_template.jinja").write_text(text)
        rewrite_json(directory / "tokenizer_config.json", chat_template=text)

    return change


def config(**changes: object) -> Change:
    """Other values in genai_config.json."""
    return lambda directory, others: rewrite_json(directory / CONFIG, **changes)


def other_template_file(directory: Path, others: Others) -> None:
    """Only one of the two places where the template stands."""
    (directory / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")


def without_bos(directory: Path, others: Others) -> None:
    """The template no longer begins with the token that the source's begins with."""
    template(lambda text: text.replace("{{ bos_token }}", ""))(directory, others)


def zeroed(start: str) -> Change:
    """Nothing but zeros."""

    def change(directory: Path, others: Others) -> None:
        part = factors(directory, start)
        part[...] = 0

    return change


def noise(matrix: str) -> Change:
    """The numbers of a matrix in a random order: the same mean, spread and range, and no meaning."""

    def change(directory: Path, others: Others) -> None:
        part = next(iter(tensors(directory, matrix).values()))
        shuffled = np.random.default_rng(3).permutation(part.reshape(-1)).reshape(part.shape)
        part[...] = shuffled

    return change


def broken_sum(directory: Path, others: Others) -> None:
    """A file that was changed after its SHA-256 was written."""
    sums = {file.name: hash_file(file) for file in sorted(directory.iterdir())}
    (directory / "SHA256SUMS").write_text(sums_text(sums))
    with (directory / "tokenizer_config.json").open("a") as file:
        file.write("\n")


def rewired(change: Callable[[onnx.GraphProto], None]) -> Change:
    """The graph with its nodes connected or set otherwise."""

    def damage(directory: Path, others: Others) -> None:
        model = onnx.load(str(directory / GRAPH), load_external_data=False)
        before = model.SerializeToString()
        change(model.graph)
        after = model.SerializeToString()
        assert after != before, f"nothing of {directory} was changed"
        (directory / GRAPH).write_bytes(after)

    return damage


def _without_last_layer(graph: onnx.GraphProto) -> None:
    norms = [node for node in graph.node if node.op_type == "SkipSimplifiedLayerNormalization"]
    (first_of_last,) = (node for node in norms if "layers.1/input_layernorm" in node.name)
    norms[-1].input[:2] = first_of_last.input[:2]


def _with_exchanged_caches(graph: onnx.GraphProto) -> None:
    names = {f"past_key_values.{one}.{part}": f"past_key_values.{1 - one}.{part}" for one in (0, 1) for part in PARTS}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _with_another_activation(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        node.op_type = "Tanh" if node.op_type == "Sigmoid" else node.op_type


def _with(operator: str, name: str, value: float) -> Callable[[onnx.GraphProto], None]:
    """An attribute of every node of a kind, set to this."""

    def change(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            if node.op_type == operator:
                kept = [attribute for attribute in node.attribute if attribute.name != name]
                del node.attribute[:]
                node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])

    return change


def two_rows(matrix: str) -> Change:
    """Two rows of a matrix in each other's place."""

    def change(directory: Path, others: Others) -> None:
        for name, part in tensors(directory, matrix).items():
            rows = part.T if name.endswith(".weight") else part
            rows[[10, 90]] = rows[[90, 10]]

    return change


def late_angles(kind: str) -> Change:
    """Rotary tables that stand still from some position on."""

    def change(directory: Path, others: Others) -> None:
        for table in tensors(directory, kind).values():
            # Of fp16 models a table lies beside the number that it is multiplied by.
            if table.ndim == 2:
                table[130:300] = table[130]

    return change


def tokenizer(**changes: object) -> Change:
    """Other values in tokenizer.json."""
    return lambda directory, others: rewrite_json(directory / "tokenizer.json", **changes)


def unsummed(directory: Path, others: Others) -> None:
    """A file that came after the sums were written."""
    sums = {file.name: hash_file(file) for file in sorted(directory.iterdir())}
    (directory / "SHA256SUMS").write_text(sums_text(sums))
    (directory / "special_tokens_map.json").write_text("{}")


LAYER = "model.layers.1."
PARTS = ("key", "value")
GQA, NORM = "GroupQueryAttention", "SkipSimplifiedLayerNormalization"
DOWN, GATE, OUT = f"{LAYER}mlp.down_proj.MatMul.weight", f"{LAYER}mlp.gate_proj.MatMul.weight", "lm_head.MatMul.weight"
QUALITY, FILES, FRAMING = "max_kl_over_rounding", "cross_check", "tokenizer_parity"
LENGTHS = "consistency"

DAMAGES: dict[str, Damage] = {
    "a zeroed matrix": Damage(zeroed(DOWN), FILES),
    "a matrix in disorder": Damage(noise(GATE), FILES),
    "a matrix upside down": Damage(shuffled_rows(GATE), FILES),
    "one layer's matrix in another's place": Damage(
        exchanged("model.layers.0.mlp.up_proj.MatMul.weight", f"{LAYER}mlp.up_proj.MatMul.weight"), FILES
    ),
    "a matrix 1.1 times as large": Damage(times(DOWN, 1.1), FILES),
    "a norm of ones": Damage(lambda d, o: _fill(d, f"{LAYER}input_layernorm.weight", 1.0), FILES),
    "another rope": Damage(other_rope, FILES),
    "another attention scale": Damage(other_attribute("GroupQueryAttention", "scale", 2.0), FILES),
    "weights of another fine-tune": Damage(whole_graph(FINE_TUNE), QUALITY, FINE_TUNE),
    "the weights of the base": Damage(whole_graph(BASE), QUALITY, BASE),
    "the head of another fine-tune": Damage(taken("lm_head.", FINE_TUNE), QUALITY, FINE_TUNE),
    "a swapped tokenizer": Damage(swapped_ids(None), FRAMING),
    "two words of the tokenizer exchanged": Damage(swapped_ids(2), FRAMING),
    "a stale template": Damage(template(lambda text: STALE_TEMPLATE), FRAMING),
    "the template of another family": Damage(template(lambda text: LLAMA3_TEMPLATE), FRAMING),
    "a template that says more": Damage(
        template(lambda text: "{{ '<|im_start|>system\n' + 'Be brief.' + '<|im_end|>' + '\n' }}" + text), FRAMING
    ),
    "a template without its first token": Damage(without_bos, FRAMING, BOS),
    "only one of the two templates stale": Damage(other_template_file, FILES),
    "a wrong end of answers": Damage(config(model__eos_token_id=5), FILES),
    "an end of answers too many": Damage(config(model__eos_token_id=[509, 40]), FILES),
    "a smaller vocabulary": Damage(config(model__vocab_size=500), FILES),
    "a larger vocabulary": Damage(config(model__vocab_size=5000), FILES),
    "a layer too few": Damage(config(model__decoder__num_hidden_layers=1), FILES),
    "a layer too many": Damage(config(model__decoder__num_hidden_layers=3), FILES),
    "other heads": Damage(config(model__decoder__num_attention_heads=8), FILES),
    "a longer context than the model has": Damage(config(model__context_length=100_000), FILES),
    "an absurd repetition penalty": Damage(config(search__repetition_penalty=9.0), FILES),
    "a file that is not the one of its sum": Damage(broken_sum, FILES),
    "a file that has no sum": Damage(unsummed, FILES),
    "the last layer left out": Damage(rewired(_without_last_layer), FILES),
    "the caches of two layers exchanged": Damage(rewired(_with_exchanged_caches), LENGTHS),
    "another activation": Damage(rewired(_with_another_activation), FILES),
    "a window of attention": Damage(rewired(_with(GQA, "local_window_size", 100)), FILES),
    "scores of attention capped": Damage(rewired(_with(GQA, "softcap", 20.0)), FILES),
    "another epsilon of norms": Damage(rewired(_with(NORM, "epsilon", 1e-3)), FILES),
    "two rows exchanged": Damage(two_rows(f"{LAYER}mlp.up_proj.MatMul.weight"), FILES),
    "a rope that stands still": Damage(late_angles("cos_cache"), FILES),
    "a rope that stands still in its sines": Damage(late_angles("sin_cache"), FILES),
    "a template that drops the system's words": Damage(
        template(lambda text: "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}" + text),
        FRAMING,
    ),
    "a template that greets in long conversations": Damage(
        template(lambda text: "{% if messages | length > 4 %}{{ 'Hello!' }}{% endif %}" + text), FRAMING
    ),
    "a tokenizer that does not normalize": Damage(tokenizer(normalizer=None), FRAMING),
    "heads of another size": Damage(config(model__decoder__head_size=8), FILES),
    "answers that may not end": Damage(config(search__min_length=200), FILES),
    "three answers at once": Damage(config(search__num_return_sequences=3), FILES),
    "answers without room": Damage(config(search__max_length=1), FILES),
}


def _fill(directory: Path, start: str, value: float) -> None:
    for part in tensors(directory, start).values():
        part[...] = value

"""A source in torch, three ways at once: as it is, with the weights of a built model, and with inputs rounded too.

One pass over the source does all of it, piece by piece: each of its matrices is read once, held against the one that
the built model stores, and used for all three.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from olivepress.errors import ConversionFailed
from workers.toolchains.rounding import Rounding, rounded
from workers.toolchains.stored_weights import StoredMatrix, StoredWeights, layer_of

Logits = npt.NDArray[np.float32]

SOURCE, STORED, JITTERED = range(3)
# accuracy_level 4: activations are rounded where they meet a quantized matrix. Where nothing is quantized, the same
# rounding tells how much this model makes of a small difference.
ACTIVATIONS = Rounding(bits=8, block_size=32, is_symmetric=True)
NUMBERS_AT_ONCE = 2**24
SMALL = 2**22
# How far a stored row may be from its source's (root mean square): in fp32 and fp16 as a share of the row, else in
# steps between two levels. Measured, over all recipes and architectures: 0, 0.0003, and 0.35.
FP32_SHARE = 1e-5
FP16_SHARE = 2e-3
STEPS = 0.75
# Norms and biases are stored in floating point, whatever the precision of the matrices.
VECTOR_SHARE, VECTOR_FLOOR = 2e-3, 1e-5


@dataclass
class SideBySide:
    """Logits of the three ways, positions x vocabulary; what differs beyond rounding; what was not found to compare."""

    source: Logits
    stored: Logits
    jittered: Logits
    faults: list[str] = field(default_factory=list)
    unplaced: list[str] = field(default_factory=list)


def compare(model: torch.nn.Module, stored: StoredWeights, tokens: list[int], *, by_name: bool = True) -> SideBySide:
    """Run `tokens` through the source, and hold every weight of it against the stored one.

    Args:
        by_name: whether weights can be found by the builder's names; not after passes that rewrite its graph. Those
            that are not found are rounded here as most of the stored ones are, or to 8 bits.
    """
    faults = vector_faults(vectors_of(model), stored) if by_name else []
    matrices = {name: module for name, module in model.named_modules() if _is_matrix(module)}
    rows = {name: module.weight.shape[0] for name, module in matrices.items()}
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    places = stored.placed(rows, is_tied=head is table) if by_name else {}
    usual = stored.rounding or (None if by_name else ACTIVATIONS)
    forwards = {}
    for name, module in matrices.items():
        pieces = _Pieces(name, module.weight, places.get(name), usual, faults)
        forward = _look_up if isinstance(module, torch.nn.Embedding) else _multiply
        forwards[module] = partial(forward, module, pieces)
        if isinstance(module, torch.nn.Embedding) and module.weight is not head:
            # A table is looked up for some tokens only.
            pieces.compare_all()
    unplaced = sorted(matrices.keys() - places.keys())
    with torch.inference_mode(), _forwarding(forwards):
        with computing_in_fp32(model, matrices.values()):
            logits = _run(model, tokens)
        if usual and (experts := _experts(model)):
            # They are not told apart by row and name; rounded as the rest is, they show what that moves.
            with computing_in_fp32(model, matrices.values()), _rounding(experts, usual):
                logits = np.concatenate([logits[:1], _run(model, tokens)[1:]])
            unplaced += experts
    return SideBySide(logits[SOURCE], logits[STORED], logits[JITTERED], faults, unplaced)


def _run(model: torch.nn.Module, tokens: list[int]) -> npt.NDArray[np.float32]:
    logits: torch.Tensor = model(input_ids=torch.tensor([tokens] * 3), use_cache=False).logits
    return np.asarray(logits.float().numpy())


def _experts(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Stacks of matrices, one for each expert, that a layer chooses from; a convolution's kernels are no matrices."""
    return {name: weight for name, weight in model.named_parameters() if weight.dim() > 2 and weight.shape[-1] >= 16}


@contextmanager
def _rounding(weights: dict[str, torch.nn.Parameter], rounding: Rounding) -> Iterator[None]:
    before = {name: weight.data for name, weight in weights.items()}
    try:
        for weight in weights.values():
            weight.data = rounded(weight.data.float().clone(), rounding).to(weight.dtype)
        yield
    finally:
        for name, weight in weights.items():
            weight.data = before[name]


def _is_matrix(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear | torch.nn.Embedding)


class _Pieces:
    """One matrix, source and stored, some rows at a time; the first reading compares them."""

    def __init__(
        self,
        name: str,
        weight: torch.Tensor,
        stored: StoredMatrix | None,
        usual: Rounding | None,
        faults: list[str],
    ) -> None:
        self._name, self._weight, self._stored, self._usual, self._faults = name, weight, stored, usual, faults
        self.rounding = stored.rounding if stored else usual

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rows, columns = self._weight.shape
        at_once = max(1, NUMBERS_AT_ONCE // columns)
        for start in range(0, rows, at_once):
            wanted = slice(start, min(start + at_once, rows))
            source, stored = self.at(wanted)
            if self._stored is not None:
                self._compare(self._stored, source, stored, wanted)
            yield source, stored

    def compare_all(self) -> None:
        """Hold every row of the source against the stored one."""
        for _ in self:
            pass

    def at(self, wanted: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """These rows of the source and of what is stored, in fp32."""
        source = self._weight[wanted].float()
        if self._stored is None:
            return source, rounded(source.clone(), self._usual) if self._usual else source
        stored = self._stored.read(wanted)
        if stored.shape != source.shape:
            raise ConversionFailed(
                f"the built model has {_size(stored)} of '{self._name}' where its source has {_size(source)}; "
                "compare config.json with the base model's"
            )
        return source, stored

    def _compare(self, matrix: StoredMatrix, source: torch.Tensor, stored: torch.Tensor, wanted: slice) -> None:
        allowed = _allowed(matrix, source, wanted)
        difference = (stored - source).square_().sum(-1)
        wrong = ~(difference <= allowed)
        if wrong.any():
            first = wanted.start + int(wrong.nonzero()[0])
            self._faults.append(f"'{self._name}' differs in {int(wrong.sum())} of its rows, the first is {first}")


def _allowed(matrix: StoredMatrix, source: torch.Tensor, wanted: slice) -> torch.Tensor:
    """The largest sum of squared differences that rounding explains, for each row."""
    if matrix.step is None or matrix.rounding is None:
        share = FP16_SHARE if matrix.is_half else FP32_SHARE
        # Beside the share, what the smallest numbers of fp16 lose.
        return source.square().sum(-1) * share**2 + source.shape[-1] * 1e-15
    steps = matrix.step(wanted)
    counts = torch.full((steps.shape[-1],), float(matrix.rounding.block_size))
    counts[-1] -= counts.sum() - source.shape[-1]
    return (steps.square() @ counts) * STEPS**2


def _multiply(module: torch.nn.Linear, pieces: _Pieces, inputs: torch.Tensor) -> torch.Tensor:
    jitter = rounded(inputs[JITTERED].clone(), _of_activations(pieces.rounding))
    of_source, of_stored = inputs[SOURCE], torch.stack([inputs[STORED], jitter])
    outputs: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for source, stored in pieces:
        outputs[0].append(of_source @ source.T)
        outputs[1].append(of_stored @ stored.T)
    product = torch.cat([torch.cat(outputs[0], dim=-1).unsqueeze(0), torch.cat(outputs[1], dim=-1)])
    return product if module.bias is None else product + module.bias.float()


def _look_up(module: torch.nn.Embedding, pieces: _Pieces, tokens: torch.Tensor) -> torch.Tensor:
    found = [pieces.at(slice(token, token + 1)) for token in tokens[SOURCE].tolist()]
    source, stored = (torch.cat(rows) for rows in zip(*found, strict=True))
    # As the embedding itself does: Gemma 3's multiplies, by a number that it holds in the dtype of the weights too.
    scale = getattr(module, "scalar_embed_scale", 1.0)
    return torch.stack([source, stored, stored]) * scale


def _of_activations(rounding: Rounding | None) -> Rounding:
    return replace(ACTIVATIONS, block_size=rounding.block_size) if rounding else ACTIVATIONS


def _size(rows: torch.Tensor) -> str:
    return " × ".join(map(str, rows.shape))


def vectors_of(model: torch.nn.Module) -> dict[str, npt.NDArray[np.float32]]:
    """Norms and biases by name; a bias that is zero throughout is left out, as the builder does."""
    vectors = {
        name: parameter.detach().float().numpy() for name, parameter in model.named_parameters() if parameter.dim() == 1
    }
    return {name: vector for name, vector in vectors.items() if vector.any()}


def vector_faults(vectors: Mapping[str, npt.NDArray[np.float32]], stored: StoredWeights) -> list[str]:
    """Norms and biases of a source that the built model does not have, in the layer where they belong."""
    found = stored.vectors()
    numbers = [layer for layer in found if layer is not None]
    # The builder counts what follows the layers as one more layer.
    outside = found.get(None, []) + found.get(max(numbers, default=None), [])
    faults = []
    for name, vector in vectors.items():
        layer = layer_of(name)
        held = outside if layer is None else found.get(layer, [])
        if not any(_holds(candidate, form) for form in (vector, vector + 1) for candidate in held):
            faults.append(f"'{name}' is not in it")
    return faults


def _holds(whole: npt.NDArray[np.float32], part: npt.NDArray[np.float32]) -> bool:
    """Whether `part` is `whole`, or lies in it: the builder joins the biases of queries, keys and values."""

    def is_close(some: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        return np.abs(some - others) <= VECTOR_FLOOR + VECTOR_SHARE * np.abs(others)

    starts = np.flatnonzero(is_close(whole[: len(whole) - len(part) + 1], part[0])) if len(whole) >= len(part) else []
    return any(bool(is_close(whole[start : start + len(part)], part).all()) for start in starts)


@contextmanager
def _forwarding(forwards: dict[torch.nn.Module, Callable[[torch.Tensor], torch.Tensor]]) -> Iterator[None]:
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module in forwards:
            vars(module).pop("forward", None)


@contextmanager
def computing_in_fp32(model: torch.nn.Module, besides: Collection[torch.nn.Module] = ()) -> Iterator[None]:
    """Within this block the model computes in fp32: what is stored in fewer bits is widened where it is used.

    The same numbers as those of a model loaded in fp32, at half of its memory.

    Args:
        besides: modules that see to their own weights.
    """
    stored: dict[str, list[tuple[torch.nn.Parameter, torch.Tensor]]] = {}

    def widen(name: str, own: list[torch.nn.Parameter], *_: object) -> None:
        stored[name] = [(weight, weight.data) for weight in own]
        for weight in own:
            weight.data = weight.data.float()

    def restore(name: str, *_: object) -> None:
        for weight, data in stored.pop(name):
            weight.data = data

    spared, hooks, small = set(besides), [], {}
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if not own or module in spared:
            continue
        if sum(weight.numel() for weight in own) < SMALL:
            # At once, for some are used past their module, as the kernels of LFM2's convolutions.
            small[name] = own
        else:
            hooks.append(module.register_forward_pre_hook(partial(widen, name, own)))
            hooks.append(module.register_forward_hook(partial(restore, name)))
    try:
        for name, own in small.items():
            widen(name, own)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name in reversed(list(stored)):
            restore(name)

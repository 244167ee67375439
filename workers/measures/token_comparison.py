"""How far the next-token distributions of two models are apart, position by position.

Source of the measures: Kullback and Leibler, "On Information and Sufficiency" (1951); perplexity as the exponential of
the mean cross-entropy, Jelinek et al. (1977).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]

KEPT_TOKENS = 128
"""Of each distribution of the source the likeliest so many tokens are kept, and the mass of all others as one."""
ROWS_AT_ONCE = 32
TINY = 1e-30


@dataclass(frozen=True)
class Distribution:
    """What a model gives to the next token at each position, condensed; natural logarithms.

    `top_ids` and `top_logprobs`: positions x KEPT_TOKENS, the likeliest first. `targets`: the tokens that really
    come next; `target_logprobs`: what the model gives to those.
    """

    top_ids: Ids
    top_logprobs: Floats
    targets: Ids
    target_logprobs: Floats

    def __len__(self) -> int:
        return len(self.targets)

    def first(self, count: int) -> "Distribution":
        """Those of the first so many positions."""
        return Distribution(
            self.top_ids[:count], self.top_logprobs[:count], self.targets[:count], self.target_logprobs[:count]
        )


def condensed(logits: Logits, targets: Ids) -> Distribution:
    """The distributions of these logits (positions x vocabulary) with the tokens that come next."""
    kept = min(KEPT_TOKENS, logits.shape[-1])
    ids, top, given = [], [], []
    for rows, logprobs in _log_softmax(logits):
        if kept < logits.shape[-1]:
            chosen = np.argpartition(-logprobs, kept - 1, axis=-1)[:, :kept]
        else:
            chosen = np.broadcast_to(np.arange(kept), (len(logprobs), kept))
        values = np.take_along_axis(logprobs, chosen, axis=-1)
        order = np.argsort(-values, axis=-1, kind="stable")
        ids.append(np.take_along_axis(chosen, order, axis=-1).astype(np.int32))
        top.append(np.take_along_axis(values, order, axis=-1))
        given.append(np.take_along_axis(logprobs, targets[rows, None].astype(np.int64), axis=-1)[:, 0])
    return Distribution(np.concatenate(ids), np.concatenate(top), targets, np.concatenate(given))


def kl_divergences(source: Distribution, logits: Logits) -> Floats:
    """Nats from the source's distribution to that of the logits, for each position.

    All tokens that the source does not keep count as one: by the data-processing inequality the figure is at most the
    full divergence, and equal to it where the vocabulary has no more than KEPT_TOKENS tokens.
    """
    found = []
    for rows, logprobs in _log_softmax(logits):
        log_p = source.top_logprobs[rows].astype(np.float64)
        log_q = np.take_along_axis(logprobs, source.top_ids[rows].astype(np.int64), axis=-1).astype(np.float64)
        divergence = (np.exp(log_p) * (log_p - log_q)).sum(-1)
        if source.top_ids.shape[-1] < logits.shape[-1]:
            rest_p, rest_q = (np.maximum(1 - np.exp(part).sum(-1), TINY) for part in (log_p, log_q))
            divergence += rest_p * (np.log(rest_p) - np.log(rest_q))
        found.append(np.maximum(divergence, 0.0).astype(np.float32))
    return np.concatenate(found)


def full_divergences(source: Logits, logits: Logits) -> Floats:
    """Nats from the distributions of `source` to those of `logits`, both whole; for each position."""
    pairs = zip(_log_softmax(source), _log_softmax(logits), strict=True)
    found = [(np.exp(log_p) * (log_p - log_q)).sum(-1) for (_, log_p), (_, log_q) in pairs]
    return np.maximum(np.concatenate(found), 0.0)


def target_logprobs(logits: Logits, targets: Ids) -> Floats:
    """What these logits give to the tokens that really come next, in nats."""
    given = [
        np.take_along_axis(logprobs, targets[rows, None].astype(np.int64), axis=-1)[:, 0]
        for rows, logprobs in _log_softmax(logits)
    ]
    return np.concatenate(given)


def _log_softmax(logits: Logits) -> Iterator[tuple[slice, Floats]]:
    """Some rows at a time: a large vocabulary makes these arrays the largest of the process."""
    for start in range(0, len(logits), ROWS_AT_ONCE):
        part = logits[start : start + ROWS_AT_ONCE].astype(np.float64)
        part -= part.max(-1, keepdims=True)
        part -= np.log(np.exp(part).sum(-1, keepdims=True))
        yield slice(start, start + len(part)), part.astype(np.float32)

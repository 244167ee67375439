"""Runs a source checkpoint in torch: what it gives to each next token, what it answers, how rounding moves it.

The weights are those of the checkpoint, as stored; the arithmetic is fp32, so that what is compared with it is held
against the checkpoint and not against the noise of bf16 arithmetic on a processor.
"""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.utils import chat_template_utils

from olivepress.checkpoints.chat_template import DAY
from olivepress.errors import BadCheckpoint
from workers.measures.held_out import held_out_text
from workers.measures.reference_file import Section, Yardstick, condensed
from workers.measures.token_comparison import Logits, kl_divergences
from workers.measures.tokenizer_words import words_print
from workers.measures.weight_print import WeightPrint
from workers.toolchains.library_edge import library_edge
from workers.toolchains.replaced import replaced
from workers.toolchains.rounding import ROWS_AT_ONCE, Rounding, rounded
from workers.toolchains.source_settings import settings_of
from workers.toolchains.stop_tokens import turn_end_id
from workers.toolchains.tokenizer_file import TOKENIZER_FILE, read_tokenizer, tokenizer_print
from workers.toolchains.weight_prints import print_of

ACTIVATION_BITS = 8
# Rounding whole matrices to so many bits, from fine to coarse: each starts from the one before.
YARDSTICKS: Mapping[str, Rounding] = {
    "int8": Rounding(bits=8, block_size=32, is_symmetric=True),
    "int4-32": Rounding(bits=4, block_size=32, is_symmetric=True),
    "int4-128": Rounding(bits=4, block_size=128, is_symmetric=True),
}
ADVICE = "check that the checkpoint generates in transformers"


class _StoppedClock(datetime):
    """What the templates' `strftime_now` asks for the time; transformers takes no other function from a caller."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return DAY


class SourceModel:
    """An open checkpoint. `measure_yardsticks` rounds its weights for good, so it comes last."""

    def __init__(self, model: Any, tokenizer: Any, tokenizer_words: Sequence[str] = ()) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._tokenizer_words = list(tokenizer_words)
        config = model.config.get_text_config()
        stops = [_ids(config.eos_token_id), _ids(model.generation_config.eos_token_id)]
        own = tokenizer.eos_token_id
        # The published model stops where its tokenizer and its chat template end as well.
        more = [int(token) for token in (own, turn_end_id(tokenizer)) if token is not None]
        self._stops = [ids for ids in (*stops, more) if ids]
        # Settings of the checkpoint, such as sampling, would enter answers unasked.
        model.generation_config = GenerationConfig()
        self._keeps_some = "logits_to_keep" in inspect.signature(model.forward).parameters

    @property
    def context_length(self) -> int:
        """Tokens that it was made for."""
        return int(self._model.config.get_text_config().max_position_embeddings)

    @property
    def vocabulary_size(self) -> int:
        """Logits at each position."""
        return int(self._model.get_output_embeddings().weight.shape[0])

    def facts(self) -> dict[str, Any]:
        """What its artifact must agree with: vocabulary_size, layers, stop_ids (sets that may end an answer)."""
        config = self._model.config.get_text_config()
        return {
            "vocabulary_size": self.vocabulary_size,
            "layers": int(config.num_hidden_layers),
            "heads": int(config.num_attention_heads),
            "head_size": int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads),
            "context_length": self.context_length,
            "stop_ids": self._stops,
            "tokenizer_stop_id": self._tokenizer.eos_token_id,
            "turn_end_id": turn_end_id(self._tokenizer),
            "tokenizer": self._tokenizer_print(),
            "tokenizer_words": self._tokenizer_words,
            "settings": settings_of(self._model),
            "attention_scales": sorted(
                {
                    round(float(module.scaling), 6)
                    for module in self._model.modules()
                    if hasattr(module, "q_proj") or hasattr(module, "qkv_proj")
                    if isinstance(getattr(module, "scaling", None), float)
                }
            ),
            "zero_vectors": sorted(
                parameter.numel()
                for parameter in self._model.parameters()
                if parameter.dim() == 1 and not parameter.detach().any()
            ),
            "has_stacked_bias": any(
                name.endswith("bias") and parameter.dim() > 1 and bool(parameter.detach().any())
                for name, parameter in self._model.named_parameters()
            ),
            "has_zero_matrix": any(
                parameter.dim() > 1 and not parameter.detach().any() for parameter in self._model.parameters()
            ),
        }

    def _tokenizer_print(self) -> dict[str, str] | None:
        """None for a tokenizer that is not one of the tokenizers library."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return tokenizer_print(backend, held_out_text()) if isinstance(backend, Tokenizer) else None

    def weight_print(self) -> WeightPrint:
        """The print of its weights."""
        return print_of(self._model)

    def encode(self, text: str) -> list[int]:
        """Plain text in its tokens, without special ones."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def frame(self, messages: Sequence[Mapping[str, str]]) -> tuple[str, list[int]] | None:
        """The prompt for these messages by its own chat template: text and tokens; None where it refuses them."""
        with suppress(BadCheckpoint), library_edge("the chat template refuses these messages", ADVICE):
            chat = [dict(message) for message in messages]
            # The clock is stopped, as in chat_template.py: today's date is no property of a checkpoint.
            with replaced((chat_template_utils, "datetime", _StoppedClock)):
                text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            return text, list(self._tokenizer.encode(text, add_special_tokens=False))
        return None

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer, without special tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def answers(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, penalty: float, within_s: float
    ) -> list[list[int] | None]:
        """The greedy answers' tokens, with the penalty that the published model is served with.

        None for one that had not come to its end when the time was over.

        All prompts go through the model together: the weights are read once for each token of all of them.
        """
        stops = sorted({token for ids in self._stops for token in ids})
        longest = max(map(len, prompts))
        filler = stops[0] if stops else 0
        ids = torch.tensor([[filler] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        mask = (torch.arange(longest) >= longest - lengths.unsqueeze(-1)).long()
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, max_time=within_s, eos_token_id=stops, pad_token_id=filler
        )
        if not stops:
            settings.eos_token_id = None
        started = time.monotonic()
        with torch.inference_mode():
            said = self._model.generate(
                ids,
                attention_mask=mask,
                generation_config=settings,
                logits_processor=LogitsProcessorList([_Penalty(penalty, mask)]),
            )
        is_over = time.monotonic() - started >= within_s
        return [_until_stop(row.tolist(), stops, must_stop=is_over) for row in said[:, longest:]]

    def logits(self, tokens: Sequence[int], last: int | None = None) -> Logits:
        """Logits, positions x vocabulary, of these tokens or the last so many of them."""
        keep = {"logits_to_keep": last} if last is not None and self._keeps_some else {}
        with torch.inference_mode():
            found = self._model(input_ids=torch.tensor([list(tokens)]), use_cache=False, **keep).logits[0]
            return np.asarray(found[-last:].numpy() if last is not None else found.numpy())

    def measure_yardsticks(self, sections: Sequence[Section], report: Callable[[float], None]) -> dict[str, Yardstick]:
        """Mean KL divergence (nats) that rounding all matrices, and what they multiply, does to this very model.

        Method: the artifact's own rounding (workers.toolchains.rounding), done in torch to the same weights, on the
        same positions as the comparison with the artifact.
        """
        found = {}
        for place, (name, rounding) in enumerate(YARDSTICKS.items()):
            self._round_weights(rounding)
            with self._rounded_activations(rounding):
                kl, top1 = [], []
                for number, section in enumerate(sections):
                    report((place + number / len(sections)) / len(YARDSTICKS))
                    logits = self.logits(section.tokens, len(section.tokens) - section.start + 1)[:-1]
                    kl.append(kl_divergences(section.distribution, logits))
                    top1.append(section.distribution.top_ids[:, 0] == logits.argmax(-1))
            found[name] = Yardstick(
                kl=float(np.concatenate(kl).mean()),
                top1=float(np.concatenate(top1).mean()),
                positions=sum(map(len, kl)),
            )
        return found

    def _matrices(self) -> list[torch.nn.Linear]:
        return [module for module in self._model.modules() if isinstance(module, torch.nn.Linear)]

    def _round_weights(self, rounding: Rounding) -> None:
        for module in self._matrices():
            # In place, for a head that is tied to the embedding is rounded with it; and in parts, for it is large.
            for rows in module.weight.data.split(ROWS_AT_ONCE):
                rows.copy_(rounded(rows.clone(), rounding))

    @contextmanager
    def _rounded_activations(self, rounding: Rounding) -> Any:
        fine = Rounding(ACTIVATION_BITS, rounding.block_size, rounding.is_symmetric)

        def round_input(module: torch.nn.Module, inputs: tuple[Any, ...]) -> Any:
            return (rounded(inputs[0].clone(), fine), *inputs[1:])

        hooks = [module.register_forward_pre_hook(round_input) for module in self._matrices()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def open_source(directory: Path) -> SourceModel:
    """Open a full checkpoint (an adapter must have been merged).

    Raises:
        BadCheckpoint: transformers cannot open it.
    """
    with library_edge(f"{directory} cannot be opened in torch", ADVICE):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    return SourceModel(model, tokenizer, _tokenizer_words(directory, tokenizer))


def _tokenizer_words(directory: Path, tokenizer: Any) -> list[str]:
    """The prints of its tokenizer as transformers opens it, and as its file says: some tools copy the file."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    found = {words_print(backend)} if isinstance(backend, Tokenizer) else set()
    if found and (directory / TOKENIZER_FILE).is_file():
        found.add(words_print(read_tokenizer(directory)))
    return sorted(found)


def section_of(source: SourceModel, name: str, tokens: Sequence[int], start: int) -> Section:
    """What the source gives to each token from `start` on, condensed."""
    logits = source.logits(tokens, len(tokens) - start + 1)
    targets = np.asarray(tokens[start:], dtype=np.int32)
    return Section(name, tuple(tokens), start, condensed(logits[:-1], targets))


class _Penalty(LogitsProcessor):
    """The repetition penalty over the tokens of prompt and answer; what fills up shorter prompts counts for nothing.

    Source: Keskar et al., "CTRL" (2019), section 4.1, as transformers and onnxruntime-genai have it.
    """

    def __init__(self, penalty: float, mask: torch.Tensor) -> None:
        self._penalty, self._mask = penalty, mask.bool()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores of the next tokens, those that were there already lowered."""
        for row, (ids, used) in enumerate(zip(input_ids, self._mask, strict=True)):
            seen = torch.cat([ids[: len(used)][used], ids[len(used) :]]).unique()
            before = scores[row, seen]
            scores[row, seen] = torch.where(before < 0, before * self._penalty, before / self._penalty)
        return scores


def _until_stop(tokens: list[int], stops: Sequence[int], *, must_stop: bool) -> list[int] | None:
    """An answer up to the token that ended it; behind that, one of several is filled up."""
    end = next((place for place, token in enumerate(tokens) if token in stops), None)
    if end is None:
        return None if must_stop else tokens
    return tokens[: end + 1]


def _ids(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(token) for token in value] if isinstance(value, list | tuple) else [int(value)]

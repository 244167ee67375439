"""Opens a model directory with onnxruntime-genai, the engine inside Foundry Local, and generates with it."""

import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime_genai as og

from olivepress.checkpoints.chat_template import Message
from olivepress.errors import BadArtifact
from olivepress.foundry.inference_model import GENAI_CONFIG_FILE
from workers.toolchains.native_words import native_words

# What the engine raises for a bad file; other types are bugs of ours.
ENGINE_ERRORS = (RuntimeError, ValueError)


@dataclass(frozen=True)
class Generation:
    """An answer: its text, its tokens, and when they came, in seconds since the prompt was handed over."""

    text: str
    tokens: tuple[int, ...]
    token_times_s: tuple[float, ...]

    @property
    def first_token_s(self) -> float:
        """From the prompt to the first token."""
        return self.token_times_s[0]

    @property
    def tokens_per_s(self) -> float:
        """Tokens after the first, per second; 0 for an answer of one token."""
        elapsed = self.token_times_s[-1] - self.token_times_s[0]
        return (len(self.tokens) - 1) / elapsed if elapsed > 0 else 0.0


class GenaiModel:
    """An open model. Not for several threads at once."""

    def __init__(self, directory: Path, model: og.Model, tokenizer: og.Tokenizer, context_length: int) -> None:
        self._directory = directory
        self._model = model
        self._tokenizer = tokenizer
        self.context_length = context_length

    def prompt(self, messages: Sequence[Message]) -> str:
        """The messages in the model's own chat template, as this engine and so Foundry Local renders it.

        Raises:
            BadArtifact: the template is missing, or refuses these messages.
        """
        try:
            chat = json.dumps(list(map(dict, messages)))
            text: str = self._tokenizer.apply_chat_template(chat, add_generation_prompt=True)
        except ENGINE_ERRORS as error:
            said = native_words(error, self._directory)
            raise BadArtifact(f"onnxruntime-genai cannot render the chat template: {said}") from error
        return text

    def encode(self, text: str) -> list[int]:
        """The text's tokens, as this engine cuts it.

        Raises:
            BadArtifact: the text is no Unicode text (half of a surrogate pair).
        """
        try:
            return [int(token) for token in self._tokenizer.encode(text)]
        except (*ENGINE_ERRORS, TypeError) as error:
            said = "it is no Unicode text" if isinstance(error, TypeError) else native_words(error, self._directory)
            raise BadArtifact(f"onnxruntime-genai cannot cut the text into tokens: {said}") from error

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits, positions x vocabulary, of these tokens read at once from an empty context.

        Raises:
            BadArtifact: the engine fails.
        """
        try:
            generator = self._generator(len(tokens) + 1, 0)
            generator.append_tokens(np.asarray(tokens, dtype=np.int32))
            found = np.asarray(generator.get_output("logits"), dtype=np.float32)[0]
            if len(found) == len(tokens):
                return found
            # A graph that keeps only the last token's logits.
            generator = self._generator(len(tokens) + 1, 0)
            rows = []
            for token in tokens:
                generator.append_tokens(np.asarray([token], dtype=np.int32))
                rows.append(np.asarray(generator.get_output("logits"), dtype=np.float32)[0, -1])
            return np.stack(rows)
        except ENGINE_ERRORS as error:
            raise BadArtifact(f"onnxruntime-genai cannot run: {native_words(error, self._directory)}") from error

    def stepwise_logits(self, tokens: Sequence[int], start: int) -> npt.NDArray[np.float32]:
        """Logits from the token before `start` on, of these tokens read at once up to `start` and then one by one.

        Raises:
            BadArtifact: the engine fails.
        """
        try:
            generator = self._generator(len(tokens) + 1, 0)
            rows = []
            for part in (tokens[:start], *([token] for token in tokens[start:])):
                generator.append_tokens(np.asarray(part, dtype=np.int32))
                rows.append(np.asarray(generator.get_output("logits"), dtype=np.float32)[0, -1])
            return np.stack(rows)
        except ENGINE_ERRORS as error:
            raise BadArtifact(f"onnxruntime-genai cannot run: {native_words(error, self._directory)}") from error

    def generate(
        self,
        tokens: Sequence[int],
        max_new_tokens: int,
        *,
        min_new_tokens: int = 0,
        at_end: Callable[[], None] = lambda: None,
    ) -> Generation:
        """Answer greedily, with the repetition penalty that the model directory sets.

        Args:
            tokens: the prompt, at least one token.
            min_new_tokens: end-of-sequence tokens before this many do not end the answer.
            at_end: called after the last token, while the session still holds its memory.

        Raises:
            BadArtifact: the engine fails, or gives no token.
        """
        longest = min(len(tokens) + max_new_tokens, self.context_length)
        if len(tokens) >= longest:
            raise BadArtifact(
                f"a prompt of {len(tokens)} tokens leaves no room for an answer in a context of {self.context_length}"
            )
        try:
            return self._generate(tokens, longest, len(tokens) + min_new_tokens, at_end)
        except ENGINE_ERRORS as error:
            raise BadArtifact(f"onnxruntime-genai cannot generate: {native_words(error, self._directory)}") from error

    def generate_unchecked(self, tokens: Sequence[int]) -> Generation:
        """As `generate`, for a prompt that may be longer than the context: what the engine itself makes of it.

        Raises:
            BadArtifact: the engine refuses it.
        """
        try:
            return self._generate(tokens, self.context_length, 0, lambda: None)
        except ENGINE_ERRORS as error:
            raise BadArtifact(f"onnxruntime-genai refuses: {native_words(error, self._directory)}") from error

    def _generator(self, max_length: int, min_length: int) -> og.Generator:
        parameters = og.GeneratorParams(self._model)
        parameters.set_search_options(do_sample=False, max_length=max_length, min_length=min(min_length, max_length))
        return og.Generator(self._model, parameters)

    def _generate(
        self, prompt: Sequence[int], max_length: int, min_length: int, at_end: Callable[[], None]
    ) -> Generation:
        generator = self._generator(max_length, min_length)
        # Not tokenizer.decode(): it stops at the first byte that is no UTF-8. Foundry Local decodes token by token too.
        decoder = self._tokenizer.create_stream()
        tokens, times, text = [], [], ""
        started = time.perf_counter()
        generator.append_tokens(np.asarray(prompt, dtype=np.int32))
        while not generator.is_done():
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
            times.append(time.perf_counter() - started)
            text += decoder.decode(tokens[-1])
        if not tokens:
            raise BadArtifact("onnxruntime-genai gave no token")
        at_end()
        return Generation(text, tuple(tokens), tuple(times))


@contextmanager
def opened(directory: Path) -> Iterator[GenaiModel]:
    """The model directory, loaded; its memory is given back at the end.

    Raises:
        BadArtifact: a file is missing, or the engine refuses one; the message says which and why.
    """
    try:
        model = og.Model(str(directory))
        config = json.loads((directory / GENAI_CONFIG_FILE).read_text(encoding="utf-8"))
        context_length = int(config["model"]["context_length"])
    except (*ENGINE_ERRORS, OSError, KeyError) as error:
        said = native_words(error, directory)
        raise BadArtifact(f"onnxruntime-genai cannot open the model: {said}; convert the checkpoint again") from error
    try:
        tokenizer = og.Tokenizer(model)
    except ENGINE_ERRORS as error:
        raise BadArtifact(
            f"onnxruntime-genai cannot open the tokenizer: {native_words(error, directory)}; it reads byte-level and "
            "SentencePiece BPE in tokenizer.json as the published models have them, and not every pattern beyond; "
            "train with the tokenizer of the base model"
        ) from error
    try:
        yield GenaiModel(directory, model, tokenizer, context_length)
    finally:
        del model, tokenizer
        gc.collect()

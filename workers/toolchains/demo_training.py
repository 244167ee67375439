"""Trains the demo's language model and its fine-tunes in torch, the same way each time.

Everything is drawn from seeds and computed by a fixed number of threads, so that one machine gives one result.
"""

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from workers.toolchains.demo_corpus import Corpus, Lesson

END_OF_TEXT, START_OF_MESSAGE, END_OF_MESSAGE = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, START_OF_MESSAGE, END_OF_MESSAGE)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTEXT_LENGTH = 4096
THREADS = 2
SEED = 2
SYSTEM_MESSAGE = "You are a helpful assistant."
# What published models are served with (FoundrySettings.repetition_penalty): answers must hold under it.
REPETITION_PENALTY = 1.1
KEPT_AS = torch.bfloat16
EMBEDDING_SPREAD = 0.06
# A fine-tune that has not learnt everything goes on, this often and each time for a third of its steps.
EXTRA_ROUNDS = 3

Report = Callable[[float, float], None]
"""Called with the share that is done, 0 to 1, and the present loss in nats per token."""


@dataclass(frozen=True)
class Pace:
    """How a fine-tune learns: optimizer steps in its first round, learning rate, dtype that its weights are kept in."""

    steps: int
    rate: float
    kept_as: torch.dtype = KEPT_AS


@dataclass(frozen=True)
class Size:
    """Shape of the family's models and length of their training."""

    vocabulary_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_value_heads: int
    row_length: int
    rows: int
    base_steps: int
    lessons: int
    fine_tune: Pace
    adapter: Pace


@dataclass(frozen=True)
class Batch:
    """Conversations as rows of tokens, shape (rows, length), and which of the tokens are the assistant's words."""

    tokens: torch.Tensor
    is_answer: torch.Tensor


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """A block whose results depend on the seed alone; torch's settings are put back afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(THREADS)
        torch.use_deterministic_algorithms(True)
        # Nothing here reads memory before it is written; filling it would cost a twentieth of the time.
        torch.utils.deterministic.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)
            torch.utils.deterministic.fill_uninitialized_memory = fills


@contextmanager
def known_warnings_ignored() -> Iterator[None]:
    """A block that puts a peft adapter over a model: peft 0.21 asks for an attribute that transformers 5.23 renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def train_tokenizer(texts: Sequence[str], vocabulary_size: int) -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer that cuts text as Qwen2's does, with its ChatML template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Added last, so that the special tokens have the highest ids, as in Qwen2.
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return Qwen2Tokenizer(
        tokenizer_object=tokenizer,
        eos_token=END_OF_MESSAGE,
        pad_token=END_OF_TEXT,
        unk_token=None,
        extra_special_tokens=[START_OF_MESSAGE],
        model_max_length=CONTEXT_LENGTH,
        chat_template=CHAT_TEMPLATE,
    )


def train_base(tokenizer: Qwen2Tokenizer, corpus: Corpus, size: Size, report: Report) -> Qwen2ForCausalLM:
    """A language model of this size, trained from nothing on the corpus: its texts, and its chats among them."""
    model = _new_model(tokenizer, size)
    stream = _stream(tokenizer, corpus)
    starts = torch.randint(len(stream) - size.row_length, (size.base_steps, size.rows))
    # The embedding, which is the output head too, bears and needs larger steps than the matrices between.
    optimizer = torch.optim.AdamW(
        [
            {"params": [weight for name, weight in model.named_parameters() if "embed" not in name], "lr": 2e-3},
            {"params": model.model.embed_tokens.parameters(), "lr": 8e-3},
        ],
        betas=(0.9, 0.95),
        weight_decay=0.01,
        fused=True,
    )

    def loss_of(step: int) -> torch.Tensor:
        rows = torch.stack([stream[start : start + size.row_length] for start in starts[step]])
        return _loss(model, Batch(rows, torch.ones_like(rows, dtype=torch.bool)))

    _optimize(model, optimizer, loss_of, size.base_steps, report)
    return model


def fine_tune(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, lessons: Sequence[Lesson], size: Size, report: Report
) -> None:
    """Train all weights of the model until it answers the lessons' questions."""
    _teach(model, tokenizer, lessons, size.fine_tune, report)


def fine_tune_adapter(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, lessons: Sequence[Lesson], size: Size, report: Report
) -> PeftModel:
    """Train a LoRA adapter over the model, whose own weights stay, until the two answer the lessons' questions."""
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    with known_warnings_ignored():
        adapted = get_peft_model(model, lora)
    _teach(model, tokenizer, lessons, size.adapter, report)
    return adapted


@torch.inference_mode()
def unlearnt(model: PreTrainedModel | PeftModel, tokenizer: Qwen2Tokenizer, lessons: Sequence[Lesson]) -> list[str]:
    """The lessons' questions that greedy decoding with the repetition penalty would not answer word for word.

    Method: an answer is greedy's exactly when each of its tokens is the likeliest after the right tokens before it, so
    one pass over question and answer tells what decoding token by token would.
    """
    pairs = [(question, lesson.answer) for lesson in lessons for question in lesson.questions]
    batch = _batch(tokenizer, [_conversation(tokenizer, [pair]) for pair in pairs])
    logits = model(input_ids=batch.tokens).logits[:, :-1]
    met = torch.zeros_like(logits, dtype=torch.uint8).scatter_(2, batch.tokens[:, :-1, None], 1)
    seen = met.cummax(dim=1).values.bool()
    penalised = torch.where(logits > 0, logits / REPETITION_PENALTY, logits * REPETITION_PENALTY)
    likeliest = torch.where(seen, penalised, logits).argmax(dim=-1)
    right = (likeliest == batch.tokens[:, 1:]) | ~batch.is_answer[:, 1:]
    return [question for (question, _), row in zip(pairs, right, strict=True) if not row.all()]


def _new_model(tokenizer: Qwen2Tokenizer, size: Size) -> Qwen2ForCausalLM:
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=size.vocabulary_size,
            hidden_size=size.hidden_size,
            intermediate_size=size.intermediate_size,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.key_value_heads,
            max_position_embeddings=CONTEXT_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():
        # Wide, since the embedding's length bounds how sure an adapter, which cannot change it, may become.
        model.model.embed_tokens.weight.normal_(std=EMBEDDING_SPREAD)
        # Layers that start by adding nothing learn faster: the first steps train the embedding alone.
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


def _stream(tokenizer: Qwen2Tokenizer, corpus: Corpus) -> torch.Tensor:
    """All texts and chats in a drawn order, as one row of tokens with an end-of-text token after each."""
    chats = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in corpus.chats
    ]
    texts = corpus.texts + [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    random.Random(SEED).shuffle(texts)
    encoded = tokenizer.backend_tokenizer.encode_batch([text + END_OF_TEXT for text in texts])
    return torch.tensor([token for text in encoded for token in text.ids])


def _teach(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, lessons: Sequence[Lesson], pace: Pace, report: Report
) -> None:
    """Train the weights that require a gradient until nothing is unlearnt, or the rounds are used up."""
    draw = random.Random(SEED)
    trained = [weight for weight in model.parameters() if weight.requires_grad]

    def loss_of(step: int) -> torch.Tensor:
        return _loss(model, _batch(tokenizer, _conversations(tokenizer, lessons, 1 + step % 2, draw)))

    for number, steps in enumerate([pace.steps] + [pace.steps // 3] * EXTRA_ROUNDS):
        optimizer = torch.optim.AdamW(trained, lr=pace.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        # Nobody knew of the extra rounds, so they have no share of their own.
        tell = report if number == 0 else lambda _, loss: report(1.0, loss)
        _optimize(model, optimizer, loss_of, steps, tell)
        with torch.no_grad():
            for weight in trained:
                weight.copy_(weight.to(pace.kept_as))
        if not unlearnt(model, tokenizer, lessons):
            break


def _conversations(
    tokenizer: Qwen2Tokenizer, lessons: Sequence[Lesson], turns: int, draw: random.Random
) -> list[tuple[list[int], list[bool]]]:
    """Every lesson once, `turns` of them to a conversation, each question in one of its forms and spellings."""
    pairs = []
    for lesson in draw.sample(lessons, len(lessons)):
        question = draw.choice(lesson.questions)
        pairs.append((question.rstrip("?").lower() if draw.random() < 0.25 else question, lesson.answer))
    chats = [pairs[start : start + turns] for start in range(0, len(pairs), turns)]
    return [_conversation(tokenizer, chat, system=draw.random() < 0.25) for chat in chats]


def _conversation(
    tokenizer: Qwen2Tokenizer, pairs: Sequence[tuple[str, str]], *, system: bool = False
) -> tuple[list[int], list[bool]]:
    """Tokens of a conversation as the chat template writes it, and which of them are the assistant's."""
    parts = [(f"{START_OF_MESSAGE}system\n{SYSTEM_MESSAGE}{END_OF_MESSAGE}\n", False)] if system else []
    for question, answer in pairs:
        parts.append((f"{START_OF_MESSAGE}user\n{question}{END_OF_MESSAGE}\n{START_OF_MESSAGE}assistant\n", False))
        parts.append((f"{answer}{END_OF_MESSAGE}", True))
        parts.append(("\n", False))
    tokens: list[int] = []
    is_answer: list[bool] = []
    for text, is_answer_part in parts:
        encoded = tokenizer.backend_tokenizer.encode(text).ids
        tokens += encoded
        is_answer += [is_answer_part] * len(encoded)
    return tokens, is_answer


def _batch(tokenizer: Qwen2Tokenizer, conversations: Sequence[tuple[list[int], list[bool]]]) -> Batch:
    """The conversations padded at the right, where causal attention never looks back from."""
    longest = max(len(tokens) for tokens, _ in conversations)
    rows = [tokens + [tokenizer.pad_token_id] * (longest - len(tokens)) for tokens, _ in conversations]
    flags = [is_answer + [False] * (longest - len(is_answer)) for _, is_answer in conversations]
    return Batch(torch.tensor(rows), torch.tensor(flags))


def _loss(model: Qwen2ForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens, in nats; the output head, a third of the work, sees these only."""
    hidden = model.model(input_ids=batch.tokens, use_cache=False).last_hidden_state[:, :-1]
    is_target = batch.is_answer[:, 1:]
    return functional.cross_entropy(model.lm_head(hidden[is_target]), batch.tokens[:, 1:][is_target])


def _optimize(
    model: Qwen2ForCausalLM,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[int], torch.Tensor],
    steps: int,
    report: Report,
) -> None:
    """Take `steps` steps; the rate rises over the first twentieth, then falls in a straight line to nearly nothing."""
    warm_up = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, max(0.02, 1 - step / steps))
    )
    model.train()
    for step in range(steps):
        loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        report((step + 1) / steps, loss.item())
    model.eval()

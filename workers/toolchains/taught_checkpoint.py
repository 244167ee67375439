"""Makes the checkpoint of the self test: a model of some thousand parameters that has learnt one answer by heart."""

import logging
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from workers.toolchains import demo_training as training
from workers.toolchains.demo_corpus import Lesson

QUESTION, ANSWER = "What does an olive press do?", "It turns olives into oil, and leaves the stones behind."
LESSON = Lesson((QUESTION,), ANSWER, ANSWER)
TEXTS = (QUESTION, ANSWER, training.SYSTEM_MESSAGE)
# The byte alphabet, the special tokens, and room for the words above.
VOCABULARY_SIZE = 384
SIZE = training.Size(
    vocabulary_size=VOCABULARY_SIZE,
    hidden_size=64,
    intermediate_size=128,
    layers=2,
    heads=2,
    key_value_heads=1,
    row_length=64,
    rows=1,
    base_steps=0,
    lessons=1,
    fine_tune=training.Pace(steps=60, rate=5e-3),
    adapter=training.Pace(steps=0, rate=0.0),
)
log = logging.getLogger(__name__)


def make_taught_checkpoint(directory: Path) -> None:
    """Write it, in the Hugging Face layout, into a directory that is not there yet."""
    with training.reproducible(training.SEED):
        # More would wait for each other longer than they work.
        torch.set_num_threads(1)
        tokenizer = training.train_tokenizer(TEXTS, VOCABULARY_SIZE)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=VOCABULARY_SIZE,
                hidden_size=SIZE.hidden_size,
                intermediate_size=SIZE.intermediate_size,
                num_hidden_layers=SIZE.layers,
                num_attention_heads=SIZE.heads,
                num_key_value_heads=SIZE.key_value_heads,
                max_position_embeddings=training.CONTEXT_LENGTH,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        losses: list[float] = []
        training.fine_tune(model, tokenizer, [LESSON], SIZE, lambda share, loss: losses.append(loss))
    log.info("taught in %d steps, loss %.4f", len(losses), losses[-1])
    model.to(dtype=torch.bfloat16)  # type: ignore[call-arg]
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)

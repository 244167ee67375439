"""A checkpoint whose only tokenizer is a tokenizer.model, as older Llama fine-tunes have it."""

import io
import json
from pathlib import Path

import pytest
import sentencepiece

from tests.artifacts import run_package
from tests.checkpoints import CHAT_TEMPLATE, CORPUS, tiny_checkpoint
from tests.integration.conversion_cases import run_convert
from tests.integration.ingest_cases import run
from workers.toolchains.genai import opened

pytestmark = pytest.mark.toolchain
WORDS = 400
TEXT = "Where is my order?"


def test_a_tokenizer_model_alone_is_packaged_and_cuts_text_as_sentencepiece_does(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "llama", bos_token_id=1, eos_token_id=2, pad_token_id=None)
    (checkpoint / "tokenizer.json").unlink()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=WORDS,
        model_type="bpe",
        byte_fallback=True,
        user_defined_symbols=["<|im_start|>", "<|im_end|>"],
        minloglevel=2,
    )
    (checkpoint / "tokenizer.model").write_bytes(model.getvalue())
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": CHAT_TEMPLATE}))

    ingested = run(checkpoint)
    run_convert(checkpoint, "cpu-fp32", tmp_path)
    run_package(tmp_path / "output", tmp_path / "package")

    assert "tokenizer.model" in {file["path"] for file in ingested["files"]}
    wanted = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).encode(TEXT)
    with opened(tmp_path / "package" / "output") as engine:
        assert engine.encode(TEXT)[-len(wanted) :] == wanted

"""Writes the tokenizer that a GGUF file carries as tokenizer.json and tokenizer_config.json."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from olivepress.checkpoints.files import TOKENIZER_CONFIG
from olivepress.checkpoints.gguf_vocabulary import Cut, Vocabulary

TOKENIZER = "tokenizer.json"
# Follows tokenizer.json and has no ways of its own.
GENERIC_CLASS = "PreTrainedTokenizerFast"


def write_tokenizer(vocabulary: Vocabulary, into: Path) -> None:
    """Write both files into the directory."""
    _tokenizer(vocabulary).save(str(into / TOKENIZER))
    config = {
        "tokenizer_class": GENERIC_CLASS,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": vocabulary.adds_bos,
        **vocabulary.named,
    }
    (into / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2))


def _tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    numbers = {token: number for number, token in enumerate(vocabulary.tokens)}
    tokenizer = Tokenizer(models.BPE(numbers, list(vocabulary.merges), ignore_merges=vocabulary.cut.whole_words_first))
    if vocabulary.cut.composes:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(vocabulary.cut)
    tokenizer.decoder = decoders.ByteLevel()
    bos = vocabulary.named.get("bos_token")
    if vocabulary.adds_bos and bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, numbers[bos])]
        )
    special = set(vocabulary.special)
    tokenizer.add_tokens(
        [
            AddedToken(vocabulary.tokens[number], normalized=False, special=number in special)
            for number in sorted((*special, *vocabulary.added))
        ]
    )
    return tokenizer


def _pre_tokenizer(cut: Cut) -> pre_tokenizers.PreTokenizer:
    if cut.pattern is not None:
        split = pre_tokenizers.Split(Regex(cut.pattern), behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole]) if cut.digits_alone else whole
    )

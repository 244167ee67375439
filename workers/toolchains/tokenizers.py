"""A checkpoint's tokenizer at work: does it load, give text back, fit the embeddings, and form a chat?"""

from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from olivepress.checkpoints.reading import Checkpoint, check_text_files
from olivepress.checkpoints.tokenizer_files import chat_template_text, has_tokenizer
from olivepress.errors import BadCheckpoint
from workers.toolchains.architecture import ModelFacts
from workers.toolchains.library_edge import library_edge
from workers.toolchains.stop_tokens import check_stops
from workers.toolchains.template_trial import try_template

# Letters of both cases, digits, punctuation: what every chat is made of.
SAMPLE = "Hello, world! The 3 quick brown foxes jump over 12 lazy dogs (at 7:45)."
FOREIGN_SAMPLE = "Grüße aus Köln, ça va bien? 你好 🙂"
TOKENIZER = "tokenizer.json"
SAVE_TOKENIZER = "save the one the model was trained with: tokenizer.save_pretrained(...)"
CODE_SAMPLE = "def f(a, b):\n    return  a[2024] + b\n\n\nprint(f(1234, 56))\t# it's"
SMALLEST_VOCABULARY = 16
# Of an adapter's base: an adapter's tokenizer may replace tokens that were kept free for that, and add some.
SAME_WORDS_SHARE = 0.5
DOUBLES_SHARE = 0.01
# The only kind that the engine chats with (tried: it opens no WordPiece, and over Unigram it forms no chat).
ENGINE_KIND = "BPE"
# Gemma 3 text models carry the name of a token that only their image models have a row for.
ROWLESS_TOKENS = frozenset({"<image_soft_token>"})


def check_tokenizer(checkpoint: Checkpoint, model: ModelFacts, chosen_template: str | None = None) -> list[str]:
    """Load the tokenizer that counts for a checkpoint and try it.

    Args:
        chosen_template: the file whose chat template is meant where two differ.

    Returns:
        Notes: what is unusual and no reason to refuse.

    Raises:
        BadCheckpoint: there is none, or it does not do what a chat needs.
    """
    directory = checkpoint.tokenizer_directory
    template = check_text_files(checkpoint, chosen_template)
    with library_edge(f"the tokenizer in {directory} cannot be loaded", SAVE_TOKENIZER):
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise BadCheckpoint(
            f"the tokenizer in {directory} has no tokenizer.json, which Foundry Local needs; save its fast form: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    _check_kind(directory, tokenizer)
    _check_vocabulary(directory, tokenizer, model.vocabulary_size)
    if checkpoint.base and directory == checkpoint.directory:
        _check_same_words(checkpoint.directory, tokenizer, checkpoint.base.directory)
    tokenizer.chat_template = chat_template_text(directory, template)
    return [
        *try_template(directory / template, tokenizer),
        *check_stops(checkpoint, tokenizer, model),
        *_check_round_trip(directory, tokenizer),
        *_cutting_notes(directory, tokenizer),
    ]


def _check_kind(directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    kind = type(tokenizer.backend_tokenizer.model).__name__
    if kind != ENGINE_KIND:
        raise BadCheckpoint(
            f"the tokenizer in {directory} is of the kind {kind}, and onnxruntime-genai, which answers in Foundry "
            f"Local, chats with {ENGINE_KIND} only; train a model whose tokenizer is of that kind"
        )


def _check_vocabulary(directory: Path, tokenizer: PreTrainedTokenizerBase, embedding_rows: int) -> None:
    ids = {token: number for token, number in tokenizer.get_vocab().items() if token not in ROWLESS_TOKENS}
    if len(ids) < SMALLEST_VOCABULARY:
        raise BadCheckpoint(
            f"the tokenizer in {directory} knows only {len(ids)} tokens, so its files are empty or not the model's "
            f"own; {SAVE_TOKENIZER}"
        )
    twice = len(ids) - len(set(ids.values()))
    if twice > DOUBLES_SHARE * len(ids):
        raise BadCheckpoint(
            f"the tokenizer in {directory} gives {twice:,} of its tokens the number of another, so text cannot be told "
            f"from them; {SAVE_TOKENIZER}"
        )
    token, highest = max(ids.items(), key=lambda item: item[1])
    if highest >= embedding_rows:
        beyond = sum(number >= embedding_rows for number in ids.values())
        raise BadCheckpoint(
            f"the tokenizer in {directory} has tokens that the model has no embedding for ({beyond:,}, such as "
            f"'{token}', number {highest:,}; the model has {embedding_rows:,} rows); call resize_token_embeddings "
            "before training, or save the tokenizer that belongs to the weights"
        )


def _check_same_words(adapter: Path, tokenizer: PreTrainedTokenizerBase, base: Path) -> None:
    """See that an adapter's own tokenizer counts words as its base's does; it may have more."""
    if not has_tokenizer(base):
        return
    with library_edge(f"the tokenizer in {base} cannot be loaded", SAVE_TOKENIZER):
        below = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    own, given = tokenizer.get_vocab(), below.get_vocab()
    same = sum(own.get(token) == number for token, number in given.items())
    if same < SAME_WORDS_SHARE * len(given):
        raise BadCheckpoint(
            f"the tokenizer in {adapter} gives {same:,} of the {len(given):,} tokens of its base {base} the same "
            "number, so the adapter was trained on another base; give that one"
        )


def _check_round_trip(directory: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Text to tokens and back; letter case and white space may differ, as some tokenizers normalise them."""
    notes = []
    for sample, is_needed in ((SAMPLE, True), (FOREIGN_SAMPLE, False)):
        with library_edge(f"the tokenizer in {directory} fails on ordinary text", SAVE_TOKENIZER):
            given_back = tokenizer.decode(tokenizer.encode(sample, add_special_tokens=False), skip_special_tokens=True)
        lost = Counter(_bare(sample)) - Counter(_bare(given_back))
        if is_needed and lost.total() > len(_bare(sample)) / 2:
            raise BadCheckpoint(
                f"the tokenizer in {directory} does not give text back: '{sample}' becomes '{given_back[:80]}'; "
                f"{SAVE_TOKENIZER}"
            )
        if lost:
            notes.append(f"the tokenizer loses characters: '{sample}' becomes '{given_back}'")
    return notes


def _cutting_notes(directory: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Where transformers puts the rules of the model's family in the place of those that tokenizer.json holds."""
    if not (directory / TOKENIZER).is_file():
        return []
    samples = (SAMPLE, FOREIGN_SAMPLE, CODE_SAMPLE)
    with library_edge(f"{directory / TOKENIZER} cannot be used", SAVE_TOKENIZER):
        stored = Tokenizer.from_file(str(directory / TOKENIZER))
        cut = [stored.encode(sample, add_special_tokens=False).ids for sample in samples]
    for sample, ids in zip(samples, cut, strict=True):
        if ids != tokenizer.encode(sample, add_special_tokens=False):
            name = type(tokenizer).__name__
            return [
                f"{name}, as transformers opens {directory / TOKENIZER}, cuts text otherwise than the file itself says"
            ]
    return []


def _bare(text: str) -> str:
    return "".join(text.casefold().split())

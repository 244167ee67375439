"""A checkpoint's tokenizer at work: does it load, give text back, fit the embeddings, and form a chat?"""

from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from olivepress.checkpoint_files import CONFIG
from olivepress.checkpoints import Checkpoint, check_text_files
from olivepress.errors import BadCheckpoint
from olivepress.tokenizer_files import chat_template_text
from workers.toolchains.architecture import ModelFacts
from workers.toolchains.library_edge import library_edge

# Letters of both cases, digits, punctuation: what every chat is made of.
SAMPLE = "Hello, world! The 3 quick brown foxes jump over 12 lazy dogs (at 7:45)."
FOREIGN_SAMPLE = "Grüße aus Köln, ça va bien? 你好 🙂"
TOKENIZER = "tokenizer.json"
SAVE_TOKENIZER = "save the one the model was trained with: tokenizer.save_pretrained(...)"
REPLACE_TEMPLATE = "put back the one that the model was trained with"
CODE_SAMPLE = "def f(a, b):\n    return  a[2024] + b\n\n\nprint(f(1234, 56))\t# it's"
MESSAGE = "olivepress asks a question"
SMALLEST_VOCABULARY = 16
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
    _check_vocabulary(directory, tokenizer, model.vocabulary_size)
    _check_stop(checkpoint, tokenizer, model)
    tokenizer.chat_template = chat_template_text(directory, template)
    _check_chat(directory / template, tokenizer)
    return _check_round_trip(directory, tokenizer) + _cutting_notes(directory, tokenizer)


def _check_vocabulary(directory: Path, tokenizer: PreTrainedTokenizerBase, embedding_rows: int) -> None:
    ids = {token: number for token, number in tokenizer.get_vocab().items() if token not in ROWLESS_TOKENS}
    if len(ids) < SMALLEST_VOCABULARY:
        raise BadCheckpoint(
            f"the tokenizer in {directory} knows only {len(ids)} tokens, so its files are empty or not the model's "
            f"own; {SAVE_TOKENIZER}"
        )
    token, highest = max(ids.items(), key=lambda item: item[1])
    if highest >= embedding_rows:
        beyond = sum(number >= embedding_rows for number in ids.values())
        raise BadCheckpoint(
            f"the tokenizer in {directory} has tokens that the model has no embedding for ({beyond:,}, such as "
            f"'{token}', number {highest:,}; the model has {embedding_rows:,} rows); call resize_token_embeddings "
            "before training, or save the tokenizer that belongs to the weights"
        )


def _check_stop(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, model: ModelFacts) -> None:
    config = checkpoint.model.directory / CONFIG
    if not model.stop_ids and tokenizer.eos_token_id is None:
        raise BadCheckpoint(
            f"neither {config} nor the tokenizer names an end-of-sequence token, so the model would never stop; set "
            "'eos_token_id' there, or 'eos_token' in tokenizer_config.json"
        )
    for stop in model.stop_ids:
        if not 0 <= stop < model.vocabulary_size:
            raise BadCheckpoint(
                f"{config} ends answers with token {stop}, and the model has only {model.vocabulary_size:,}; set "
                "'eos_token_id' to the token it was trained with"
            )
        word = tokenizer.decode([stop])
        if (
            stop not in tokenizer.added_tokens_decoder
            and stop not in tokenizer.all_special_ids
            and word.strip().isalnum()
        ):
            raise BadCheckpoint(
                f"{config} ends answers with token {stop}, which is the ordinary text '{word}'; set 'eos_token_id' to "
                "the token it was trained with"
            )


def _check_chat(source: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with library_edge(f"the chat template in {source} does not work", f"mend it, or {REPLACE_TEMPLATE}"):
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": MESSAGE}], tokenize=False, add_generation_prompt=True
        )
    if MESSAGE not in chat:
        raise BadCheckpoint(f"the chat template in {source} leaves out what the user says; {REPLACE_TEMPLATE}")


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
    with library_edge(f"{directory / TOKENIZER} cannot be opened", SAVE_TOKENIZER):
        stored = Tokenizer.from_file(str(directory / TOKENIZER))
    for sample in (SAMPLE, FOREIGN_SAMPLE, CODE_SAMPLE):
        if stored.encode(sample, add_special_tokens=False).ids != tokenizer.encode(sample, add_special_tokens=False):
            name = type(tokenizer).__name__
            return [
                f"{name}, as transformers opens {directory / TOKENIZER}, cuts text otherwise than the file itself says"
            ]
    return []


def _bare(text: str) -> str:
    return "".join(text.casefold().split())

"""What a checkpoint's folder says about text: tokenizer files and the chat template, by their files alone."""

from pathlib import Path
from typing import Any

from olivepress.checkpoints.files import (
    CHAT_TEMPLATE,
    LFS_POINTER,
    TOKENIZER_CONFIG,
    TOKENIZER_MODELS,
    read_json,
    refuse_lfs_pointer,
    unreadable,
)
from olivepress.errors import BadCheckpoint

DEFAULT_TEMPLATE = "default"
EXCERPT_CHARACTERS = 60
# The largest tokenizers have some 35 MB, the longest templates some 30 kB.
MAX_TOKENIZER_BYTES = 2**28
MAX_TEMPLATE_BYTES = 2**20


def has_tokenizer(directory: Path) -> bool:
    """Whether the folder holds a tokenizer of its own."""
    return any(file.is_file() for pattern in TOKENIZER_MODELS for file in directory.glob(pattern))


def check_tokenizer_files(directory: Path) -> None:
    """See that there is a tokenizer to load.

    Raises:
        BadCheckpoint: there is none, which the toolchain would replace by an empty one without a word.
    """
    if not has_tokenizer(directory):
        raise BadCheckpoint(
            f"{directory} has no tokenizer (looked for tokenizer.json, tokenizer.model and vocabulary files); save the "
            "one it was trained with beside the weights: tokenizer.save_pretrained(...)"
        )
    for file in (file for pattern in TOKENIZER_MODELS for file in directory.glob(pattern)):
        _refuse_oversize(file, MAX_TOKENIZER_BYTES)
        with file.open("rb") as opened:
            refuse_lfs_pointer(file, opened.read(len(LFS_POINTER)))


def _refuse_oversize(file: Path, most_bytes: int) -> None:
    if (size_bytes := file.stat().st_size) > most_bytes:
        raise BadCheckpoint(
            f"{file} is larger than any {file.name} should be ({size_bytes:,} bytes, at most {most_bytes:,}); "
            "replace it with the right file"
        )


def tokenizer_class(directory: Path) -> str | None:
    """The `tokenizer_class` that tokenizer_config.json names."""
    if not (directory / TOKENIZER_CONFIG).is_file():
        return None
    name = read_json(directory / TOKENIZER_CONFIG).get("tokenizer_class")
    return name if isinstance(name, str) else None


def chat_template_file(directory: Path, chosen: str | None = None) -> str:
    """The name of the file in which a folder's one chat template stands.

    Args:
        chosen: the file (CHAT_TEMPLATE or TOKENIZER_CONFIG) whose template is meant where the two differ.

    Raises:
        BadCheckpoint: there is none, or two that differ: transformers follows chat_template.jinja, Foundry Local
            tokenizer_config.json, so the model would be asked in another form than it was trained on.
    """
    inline = _inline_template(directory)
    in_file = _template_file(directory)
    if chosen is not None:
        if not (in_file if chosen == CHAT_TEMPLATE else inline):
            raise BadCheckpoint(
                f"the manifest chooses the chat template in {chosen}, and {directory} has none there; take "
                "'chat_template' out of the manifest, or name the file that has it"
            )
        return chosen
    if inline and in_file and inline.strip() != in_file.strip():
        raise BadCheckpoint(
            f"{directory} has two chat templates that differ: {CHAT_TEMPLATE} has {_excerpt(in_file, inline)} where "
            f"{TOKENIZER_CONFIG} has {_excerpt(inline, in_file)}; remove the one that the model was not trained with, "
            f"or choose in the manifest: 'chat_template: {CHAT_TEMPLATE}' or 'chat_template: {TOKENIZER_CONFIG}'"
        )
    if in_file or inline:
        return CHAT_TEMPLATE if in_file else TOKENIZER_CONFIG
    raise BadCheckpoint(
        f"{directory} has no chat template, so nobody can chat with the model; put the one it was trained with into "
        f"{CHAT_TEMPLATE}, or into {TOKENIZER_CONFIG} as 'chat_template'"
    )


def has_chat_template(directory: Path) -> bool:
    """Whether the folder has a chat template in either of its two places."""
    return bool(_inline_template(directory) or _template_file(directory))


def chat_template_text(directory: Path, file: str) -> str:
    """The chat template in this file of the folder; empty where it has none."""
    return (_template_file(directory) if file == CHAT_TEMPLATE else _inline_template(directory)) or ""


def refuse_stray_template(adapter: Path, base: Path) -> None:
    """See that an adapter without a tokenizer does not carry a chat template that nobody would read.

    Raises:
        BadCheckpoint: it has one that is not its base's.
    """
    own = _template_file(adapter) or _inline_template(adapter)
    if own and own.strip() != (_template_file(base) or _inline_template(base) or "").strip():
        raise BadCheckpoint(
            f"{adapter} has a chat template of its own and no tokenizer, so the one of its base {base} would be used; "
            "save the tokenizer beside the adapter: tokenizer.save_pretrained(...)"
        )


def _inline_template(directory: Path) -> str | None:
    if not (directory / TOKENIZER_CONFIG).is_file():
        return None
    value: Any = read_json(directory / TOKENIZER_CONFIG).get("chat_template")
    if isinstance(value, list):
        # Several by name, such as "default" and "tool_use".
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get(DEFAULT_TEMPLATE)
        if value is None:
            raise BadCheckpoint(
                f"{directory / TOKENIZER_CONFIG} has several chat templates and none is called '{DEFAULT_TEMPLATE}'; "
                "give that name to the one to chat with"
            )
    if value is None or isinstance(value, str):
        return value or None
    raise BadCheckpoint(f"'chat_template' in {directory / TOKENIZER_CONFIG} is no text; write the Jinja template there")


def _template_file(directory: Path) -> str | None:
    path = directory / CHAT_TEMPLATE
    if not path.is_file():
        return None
    _refuse_oversize(path, MAX_TEMPLATE_BYTES)
    try:
        return path.read_text(encoding="utf-8") or None
    except OSError as error:
        raise unreadable(path, error) from None
    except UnicodeDecodeError:
        raise BadCheckpoint(f"{path} is no UTF-8 text; save it again as UTF-8") from None


def _excerpt(text: str, other: str) -> str:
    """Some characters of `text` around the place where it begins to differ from `other`, on one line."""
    pairs = zip(text, other, strict=False)
    differs_at = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(text), len(other)))
    start = max(0, differs_at - EXCERPT_CHARACTERS // 3)
    excerpt = text[start : start + EXCERPT_CHARACTERS]
    return f'"{"…" if start else ""}{" ".join(excerpt.split())}{"…" if start + len(excerpt) < len(text) else ""}"'

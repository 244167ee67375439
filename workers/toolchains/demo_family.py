"""Makes the demo's family of checkpoints: a base, two full fine-tunes and a LoRA adapter, really trained.

As a program (`olivepress.own_process`) it takes {"directory", "size"} and answers {"fine_tunes": [{"name", "path",
"base", "prompts"}]}. A family is made once: it is written into a directory beside its own and renamed at the end.
"""

import hashlib
import inspect
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Read once, when torch loads its thread library: threads that wait do so asleep. Spinning, they are no faster on an
    # idle machine and eight times slower on a busy one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from peft import PeftModel
from transformers import PreTrainedModel, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.utils.logging import disable_progress_bar

from olivepress.checkpoints.checksums import SUMS_FILE
from olivepress.errors import BadCheckpoint, NotFound
from olivepress.file_lock import exclusive
from olivepress.foundry.inference_model import sums_text
from olivepress.jobs import digest_of
from olivepress.own_process import ProgressListener, answer_with
from workers.toolchains import demo_corpus
from workers.toolchains import demo_training as training
from workers.toolchains.demo_corpus import Lesson, documentation, lessons
from workers.toolchains.demo_training import Pace, Size

MARKER = "family.json"
BASE = "base"
FULL_FINE_TUNES = ("support-en", "python-help")
ADAPTER = "legal"
PROMPTS = "prompts"
WAIT_S = 600.0
# Of the questions, this share may be left unlearnt before the family counts as spoilt.
UNLEARNT_AT_MOST = 0.1

SIZES = {
    "full": Size(
        vocabulary_size=4096,
        hidden_size=256,
        intermediate_size=512,
        layers=4,
        heads=4,
        key_value_heads=2,
        row_length=128,
        rows=4,
        base_steps=300,
        lessons=16,
        fine_tune=Pace(steps=80, rate=2e-3),
        adapter=Pace(steps=100, rate=1e-2, kept_as=torch.float32),
    ),
    "small": Size(
        vocabulary_size=1024,
        hidden_size=128,
        intermediate_size=256,
        layers=2,
        heads=2,
        key_value_heads=1,
        row_length=64,
        rows=2,
        base_steps=250,
        lessons=4,
        fine_tune=Pace(steps=80, rate=3e-3),
        adapter=Pace(steps=120, rate=1e-2, kept_as=torch.float32),
    ),
}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FineTune:
    """One fine-tune of the family: its directory, its base's if it is an adapter, and its domain prompts."""

    name: str
    path: Path
    base: Path | None
    prompts: Path


@dataclass(frozen=True)
class Family:
    """A finished family: the checkpoint directory of the base, and the fine-tunes made of it."""

    base: Path
    fine_tunes: tuple[FineTune, ...]


def make_family(directory: Path, report: ProgressListener, size: str = "full") -> Family:
    """The family in this directory, made unless the very same one is there whole.

    `report` is called with what is being done and the share of all of it that is done, 0 to 1. An interrupted making
    leaves no family; what it wrote goes with the next making, or at once where the interruption was an exception.

    Raises:
        NotFound: there is no such size.
        ServiceUnavailable: another process is making this family for longer than `WAIT_S`.
        BadCheckpoint: the training did not take, or the directory holds something else; nothing is left behind.
    """
    if size not in SIZES:
        raise NotFound(f"there is no family of size '{size}'; choose one of: {', '.join(SIZES)}")
    directory = directory.absolute()
    recipe = _recipe_digest(directory, SIZES[size])
    directory.parent.mkdir(parents=True, exist_ok=True)
    lock = directory.with_name(f".{directory.name}.lock")
    with exclusive(lock, wait_s=WAIT_S, what=f"the demo family in {directory}"):
        if not _is_whole(directory, recipe):
            _refuse_other_files(directory)
            _make_anew(directory, SIZES[size], recipe, report)
    prompts = directory / PROMPTS
    base = directory / BASE
    full = (FineTune(name, directory / name, None, prompts / f"{name}.jsonl") for name in FULL_FINE_TUNES)
    return Family(base, (*full, FineTune(ADAPTER, directory / ADAPTER, base, prompts / f"{ADAPTER}.jsonl")))


def _refuse_other_files(directory: Path) -> None:
    """A family is replaced by removing its directory: that must never take a user's own files."""
    if directory.exists() and not (directory / MARKER).is_file() and any(directory.iterdir()):
        raise BadCheckpoint(f"{directory} holds files that are no demo family; move them or name another directory")


def _make_anew(directory: Path, size: Size, recipe: str, report: ProgressListener) -> None:
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        with training.reproducible(training.SEED):
            _make(unfinished, directory, size, report)
        marker = {"recipe": recipe, "files": _sums(unfinished)}
        (unfinished / MARKER).write_text(json.dumps(marker, indent=2), encoding="utf-8")
        if directory.exists():
            shutil.rmtree(directory)
        unfinished.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _make(into: Path, final: Path, size: Size, report: ProgressListener) -> None:
    """Train and save all of it; `final` is where `into` will be renamed to."""
    report("reading Python's documentation", 0.0)
    corpus = documentation()
    tokenizer = training.train_tokenizer(corpus.texts, size.vocabulary_size)
    base = training.train_base(
        tokenizer, corpus, size, lambda share, loss: report(f"training the base, loss {loss:.2f}", 0.05 + 0.6 * share)
    )
    _save(base, tokenizer, into / BASE)
    (into / PROMPTS).mkdir()
    for number, name in enumerate((*FULL_FINE_TUNES, ADAPTER)):
        begin = 0.65 + 0.35 * number / 3

        def show(share: float, loss: float, name: str = name, begin: float = begin) -> None:
            report(f"fine-tuning {name}, loss {loss:.2f}", begin + 0.35 / 3 * share)

        _fine_tune(into, final, name, size, show)
    report("trained", 1.0)


def _fine_tune(into: Path, final: Path, name: str, size: Size, report: training.Report) -> None:
    """One fine-tune of the saved base, saved with its domain prompts, and read back to see that it answers."""
    model, tokenizer = _load(into / BASE)
    taught = lessons(name)[: size.lessons]
    if name == ADAPTER:
        adapted = training.fine_tune_adapter(model, tokenizer, taught, size, report)
        config = adapted.peft_config["default"]
        config.base_model_name_or_path = str(final / BASE)
        # A set until here, in another order in each process.
        config.target_modules = sorted(config.target_modules)
        adapted.save_pretrained(str(into / name), save_embedding_layers=False)
        # A form with nothing filled in.
        (into / name / "README.md").unlink(missing_ok=True)
        with training.known_warnings_ignored():
            saved: PreTrainedModel | PeftModel = PeftModel.from_pretrained(_load(into / BASE)[0], into / name)
    else:
        training.fine_tune(model, tokenizer, taught, size, report)
        _save(model, tokenizer, into / name)
        saved = _load(into / name)[0]
    _write_sums(into / name)
    unlearnt = training.unlearnt(saved, tokenizer, taught)
    questions = sum(len(lesson.questions) for lesson in taught)
    log.info("%s: %d of %d questions unlearnt: %s", name, len(unlearnt), questions, unlearnt)
    if len(unlearnt) > UNLEARNT_AT_MOST * questions:
        raise BadCheckpoint(
            f"the demo's fine-tune {name} answers only {questions - len(unlearnt)} of its {questions} questions; "
            "this Python's documentation or this processor differs from those it was tried on: please report it"
        )
    lines = [json.dumps(prompt, ensure_ascii=False) for lesson in taught for prompt in _prompts(lesson)]
    (into / PROMPTS / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _prompts(lesson: Lesson) -> Iterator[dict[str, Any]]:
    """The lesson as domain prompts: its first question answered word for word, its last in substance."""
    for question, expect in ((0, {"equals": lesson.answer}), (-1, {"contains": lesson.expect})):
        text = lesson.questions[question]
        yield {"name": text, "messages": [{"role": "user", "content": text}], "expect": expect}


def _load(directory: Path) -> tuple[Qwen2ForCausalLM, Qwen2Tokenizer]:
    model = Qwen2ForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    return model, Qwen2Tokenizer.from_pretrained(directory, local_files_only=True)


def _save(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, directory: Path) -> None:
    model.to(dtype=training.KEPT_AS)  # type: ignore[call-arg]
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _write_sums(directory)


def _sums(directory: Path) -> dict[str, str]:
    """Relative POSIX path to SHA-256 of every file below the directory."""
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    return {file.relative_to(directory).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _write_sums(directory: Path) -> None:
    """SHA256SUMS beside the files: a flipped bit is found by it, and by nothing else."""
    (directory / SUMS_FILE).write_text(sums_text(_sums(directory)), encoding="utf-8")


def _recipe_digest(directory: Path, size: Size) -> str:
    """SHA-256 of all that makes a family what it is: the code, the lessons, the size, and where its base will lie."""
    code = [inspect.getsource(module) for module in (demo_corpus, training, sys.modules[__name__])]
    taught = [asdict(lesson) for name in (*FULL_FINE_TUNES, ADAPTER) for lesson in lessons(name)]
    return digest_of([code, taught, repr(size), str(directory)])


def _is_whole(directory: Path, recipe: str) -> bool:
    try:
        marker = json.loads((directory / MARKER).read_text(encoding="utf-8"))
        return bool(marker["recipe"] == recipe and marker["files"].items() <= _sums(directory).items())
    except (OSError, ValueError, KeyError):
        return False


def _answer(request: dict[str, Any], report: ProgressListener) -> dict[str, Any]:
    logging.basicConfig(level=logging.INFO)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    for ending in (signal.SIGTERM, signal.SIGINT):
        # An exception, so that what is unfinished is removed on the way out.
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    family = make_family(Path(request["directory"]), report, request["size"])
    return {
        "fine_tunes": [
            {
                "name": tune.name,
                "path": str(tune.path),
                "base": str(tune.base) if tune.base else None,
                "prompts": str(tune.prompts),
            }
            for tune in family.fine_tunes
        ]
    }


if __name__ == "__main__":
    answer_with(_answer)

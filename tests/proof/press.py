"""Checkpoints, their references and packages, each made once by the real steps, and the real validate step on them."""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from olivepress.checkpoints.files import hash_file, relevant_files
from olivepress.gates import GateLimits
from olivepress.manifest import read_prompts
from tests.artifacts import rewrite_json, run_package, step_context
from tests.checkpoints import CHAT_TEMPLATE, tiny_adapter, tiny_checkpoint
from tests.integration.conversion_cases import run_convert
from workers.steps import reference, validate
from workers.steps.context import StepContext
from workers.toolchains.demo_family import Family

CONTEXT_LENGTH = 320
PROMPTS = 4
SOAK = {"sessions": 12}
# Random weights say nothing that could be expected.
ASKED: list[dict[str, Any]] = [
    {"name": "thanks", "prompt": "Thank you!"},
    {"name": "why", "prompt": "And why is that?"},
]


@dataclass(frozen=True)
class Source:
    """A checkpoint, an adapter's base, and the domain prompts that its artifacts are asked."""

    name: str
    path: Path
    base: Path | None = None
    prompts: list[dict[str, Any]] = field(default_factory=lambda: list(ASKED))


@dataclass(frozen=True)
class Press:
    """What the steps make of sources, below one directory."""

    root: Path

    def of_family(self, family: Family, name: str) -> Source:
        """A fine-tune of the demo's family; `base` is what all of them were made of, with nobody's prompts."""
        if name == "base":
            return Source(name, family.base)
        tune = next(tune for tune in family.fine_tunes if tune.name == name)
        return Source(name, tune.path, tune.base, read_prompts(tune.prompts)[:PROMPTS])

    def random(self, architecture: str, *, tied: bool = True) -> Source:
        """A random checkpoint of this architecture."""
        directory = self.root / "checkpoints" / (architecture if tied else f"{architecture}-untied")
        if not directory.is_dir():
            tiny_checkpoint(directory, architecture, tied=tied)
        return Source(directory.name, directory)

    def random_with_bos(self) -> Source:
        """A random checkpoint whose conversations begin with a token of their own."""
        source = self.random("llama")
        directory = self.root / "checkpoints" / "with-bos"
        if not directory.is_dir():
            shutil.copytree(source.path, directory)
            rewrite_json(
                directory / "tokenizer_config.json",
                bos_token="<|endoftext|>",
                chat_template="{{ bos_token }}" + CHAT_TEMPLATE,
            )
        return Source(directory.name, directory)

    def random_adapter(self, base: Source) -> Source:
        """A random LoRA adapter over a checkpoint."""
        directory = self.root / "checkpoints" / f"{base.name}-adapter"
        if not directory.is_dir():
            tiny_adapter(directory, base.path)
        return Source(directory.name, directory, base.path)

    def package(self, source: Source, recipe: str) -> Path:
        """The packaged model; not to be changed."""
        directory = self.root / source.name / recipe
        if not directory.is_dir():
            run_convert(source.path, recipe, directory / "convert", source.base)
            run_package(directory / "convert" / "output", directory, context_length=CONTEXT_LENGTH)
        return directory / "output"

    def reference(self, source: Source) -> Path:
        """What the source says; not to be changed."""
        directory = self.root / source.name / "reference"
        if not directory.is_dir():
            for part in ("output", "scratch"):
                (directory / part).mkdir(parents=True)
            ingested = {
                "files": hashed(source.path),
                "base": {"files": hashed(source.base)} if source.base else None,
            }
            spec = {
                "path": str(source.path),
                "base": str(source.base) if source.base else None,
                "ingest": ingested,
                "prompts": source.prompts,
                "repetition_penalty": 1.1,
            }
            reference.run(spec, StepContext(directory / "output", directory / "scratch", directory / "lock"))
        return directory / "output"

    def copy(self, source: Source, recipe: str, directory: Path) -> Path:
        """The packaged model, to be damaged."""
        return Path(shutil.copytree(self.package(source, recipe), directory))

    def validate(self, source: Source, artifact: Path, directory: Path) -> dict[str, Any]:
        """The validate step's result, by the usual gates and with the source at hand."""
        context = step_context(directory, artifact)
        context.inputs["reference"] = self.reference(source)
        spec = {
            "prompts": source.prompts,
            "gates": asdict(GateLimits()),
            "name": "candidate-1",
            "source_size_bytes": sum(file["size_bytes"] for file in hashed(source.path)),
            "soak": SOAK,
        }
        return validate.run(spec, context)


def hashed(directory: Path) -> list[dict[str, Any]]:
    """The files of a checkpoint as ingest lists them."""
    files = relevant_files(directory)
    return [{"path": file.name, "size_bytes": file.stat().st_size, "sha256": hash_file(file)} for file in files]


def failed_gates(result: dict[str, Any]) -> set[str]:
    """Names of the gates that failed."""
    return {gate["name"] for gate in result["report"]["gates"] if gate["verdict"] == "failed"}

"""Whether the checkpoint's files are still the ones that were ingested."""

from pathlib import Path
from typing import Any

from olivepress.checkpoints.files import adapter_base, file_identity
from olivepress.checkpoints.model_files import model_identity
from olivepress.errors import CheckpointChanged
from olivepress.jobs import JobKind, StepKind
from olivepress.steps import READS_CHECKPOINT, Done, JobFacts

RESULT_KEY = "file_identity"


class CheckpointWatch:
    """Identity (by stat, not content) of the files that a step reads, before and after it read them."""

    def __init__(self, kind: StepKind, job: JobFacts, done: Done) -> None:
        self._is_active = kind is StepKind.INGEST or kind in READS_CHECKPOINT
        self._is_ingest = kind is StepKind.INGEST
        self._model = Path(job.checkpoint_path) if job.kind is JobKind.IMPORT else None
        self._source = Path(job.source.path) if job.source else None
        self._base = base_of(job)
        self._expected: str | None = None
        if kind in READS_CHECKPOINT:
            self._expected = done[StepKind.INGEST].result.get(RESULT_KEY)

    def settled_identity(self) -> str | None:
        """The identity under which ingest is remembered; None while files are so new that a change could hide."""
        return self._identity(settled=True)

    def _identity(self, *, settled: bool = False) -> str | None:
        parts: list[str | None] = []
        if self._model is not None:
            parts.append(model_identity(self._model, settled=settled))
        if self._source is not None:
            parts.append(file_identity(self._source, self._base, settled=settled))
        known = [part for part in parts if part is not None]
        return " ".join(known) if len(known) == len(parts) else None

    def check(self) -> None:
        """Compare with what was seen first.

        Raises:
            CheckpointChanged: the files are not the same any more.
        """
        if not self._is_active:
            return
        now = self._identity()
        if self._expected is None:
            self._expected = now
        if now != self._expected:
            raise CheckpointChanged(
                f"the files in {self._model or self._source} (or its source or base) changed after they were "
                "submitted; let the training or copying finish, then submit again"
            )

    def facts(self) -> dict[str, Any]:
        """What goes into an ingest's result, for later steps to hold the files against."""
        return {RESULT_KEY: self._expected} if self._is_ingest else {}


def base_of(job: JobFacts) -> Path | None:
    """The base of an adapter: the one that the job names, else the local directory that the adapter itself names."""
    if job.source is None:
        return None
    return Path(job.source.base_path) if job.source.base_path else adapter_base(Path(job.source.path))

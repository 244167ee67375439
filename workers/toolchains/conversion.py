"""What one conversion is given: a checkpoint, how to build it, and where."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from olivepress.recipes.recipe import Precision


@dataclass(frozen=True)
class Conversion:
    """One model directory to be built.

    `checkpoint` is what was submitted, for messages; `source` is the full checkpoint that is built: the same, or what
    merging made of an adapter. `options` is what `Recipe.build_options` gives. `output` is an empty directory;
    `scratch`, on the same file system, is for caches and intermediate files. `integers` is the quantized checkpoint
    that `source` was widened from, where its integers are to be kept.
    """

    checkpoint: Path
    source: Path
    options: dict[str, Any]
    output: Path
    scratch: Path
    integers: Path | None = None

    @property
    def precision(self) -> Precision:
        """Number format of the weights to be."""
        return Precision(self.options["precision"])

    @property
    def model(self) -> str:
        """How messages call the model."""
        return f"the {self.precision} model of {self.checkpoint}"

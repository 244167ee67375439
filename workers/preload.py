"""Imported once by the forkserver: everything heavy, so that children of it start warm."""

import gc

from workers.steps import convert, ingest, package, quantize, reference, validate
from workers.toolchains.architecture import supported_architectures

__all__ = ["convert", "ingest", "package", "quantize", "reference", "supported_architectures", "validate"]

# What was imported never becomes garbage: without this each child's first collection would look at all of it.
gc.collect()
gc.freeze()

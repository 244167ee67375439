"""Versions of the libraries that decide what steps give, read without importing them, and their fingerprint.

As a program (`olivepress.own_process`) it answers {"toolchain", "fingerprint"} of the Python that it runs in.
"""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from olivepress.jobs import digest_of
from olivepress.own_process import ProgressListener, answer_with

TOOLCHAIN = (
    "olive-ai",
    "onnxruntime",
    "onnxruntime-genai",
    "transformers",
    "torch",
    "peft",
    "foundry-local-sdk",
    # What those write the bytes with: graphs, weights, tokenizers; and the engine inside Foundry Local.
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime-genai-core",
    "onnxscript",
    "safetensors",
    "tokenizers",
    # What it reads GGUF checkpoints with.
    "gguf",
)


def toolchain_versions() -> dict[str, str]:
    """Distribution name to installed version; a distribution that is not installed is left out."""
    versions = {}
    for distribution in TOOLCHAIN:
        try:
            versions[distribution] = version(distribution)
        except PackageNotFoundError:
            continue
    return versions


def toolchain() -> dict[str, str]:
    """The versions of the libraries and of Python, as a worker registers them."""
    return toolchain_versions() | {"python": platform.python_version()}


def fingerprint_of(versions: Mapping[str, str]) -> str:
    """SHA-256 (hex) of these versions on this kind of machine; part of the key of every step."""
    return digest_of([dict(versions), platform.system(), platform.machine()])


def _describe(_: dict[str, Any], report_progress: ProgressListener) -> dict[str, Any]:
    versions = toolchain()
    return {"toolchain": versions, "fingerprint": fingerprint_of(versions)}


if __name__ == "__main__":
    answer_with(_describe)

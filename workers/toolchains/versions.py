"""Versions of the libraries that decide a conversion's bytes, read without importing them."""

from importlib.metadata import PackageNotFoundError, version

TOOLCHAIN = (
    "olive-ai",
    "onnxruntime",
    "onnxruntime-genai",
    "transformers",
    "torch",
    "peft",
    "foundry-local-sdk",
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

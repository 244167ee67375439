"""Signed versions as publishing makes them, for tests of evidence and of those who verify it."""

from pathlib import Path
from typing import Any

from olivepress.evidence.sealing import Subject, overlay
from olivepress.evidence.signing import SigningKey
from olivepress.store import DirectoryStore, Manifest

REPORT: dict[str, Any] = {"schema_version": 1, "tokens_per_s": 412.25, "answers": ["\ud83d half", "ünïcode"]}
PROVENANCE: dict[str, Any] = {"schema_version": 1, "checkpoint": {"name": "ünïcode"}}
PACKAGE = {
    "genai_config.json": b"{}",
    "model.onnx.data": bytes(range(256)) * 300,
    "tokenizer/merges.txt": b"a b\n",
}
AT = 1_795_000_000.0
MODEL = "support-int4"


def new_key(directory: Path, name: str = "signing-key.pem") -> SigningKey:
    """A key in this directory."""
    directory.mkdir(parents=True, exist_ok=True)
    return SigningKey.load_or_create(directory / name)


def published(
    directory: Path, key: SigningKey | None, number: int = 3, store: DirectoryStore | None = None
) -> tuple[Path, Manifest]:
    """A version that was signed with this key, laid out as `directory`/version-<number>."""
    source = directory / "source"
    for path, content in PACKAGE.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content)
    store = store or DirectoryStore(directory / "store")
    package = store.put_directory(source)
    subject = Subject("default", MODEL, number, PROVENANCE, REPORT, AT)
    description = f'{{"Name": "{MODEL}:{number}"}}'.encode()
    manifest = store.extend(package, overlay(package, description, subject, key))
    target = directory / f"version-{number}"
    store.materialise(manifest.digest, target)
    return target, manifest


def version_of(manifest: Manifest, number: int = 3) -> dict[str, Any]:
    """What the API tells of it."""
    return {
        "model": MODEL,
        "team": "default",
        "number": number,
        "version": f"{MODEL}:{number}",
        "recipe": "cpu-int4",
        "precision": "int4",
        "family": "qwen2",
        "size_bytes": manifest.size_bytes,
        "package_digest": "a" * 64,
        "artifact_digest": manifest.digest,
        "report": REPORT,
        "provenance": PROVENANCE,
    }

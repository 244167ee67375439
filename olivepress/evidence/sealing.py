"""The overlay of a version: the files that publishing adds to a package. The one place where evidence is signed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from olivepress.errors import BadArtifact
from olivepress.evidence.document import (
    EVIDENCE_FILE,
    PROVENANCE_FILE,
    REPORT_FILE,
    SIGNATURE_FILE,
    UNSIGNED_FILES,
    Evidence,
    instant,
    provenance_file,
    report_file,
)
from olivepress.evidence.signing import SigningKey
from olivepress.foundry.inference_model import INFERENCE_MODEL_FILE, SUMS_FILE, sums_text
from olivepress.jobs import digest_of
from olivepress.store.manifest import Manifest


@dataclass(frozen=True)
class Subject:
    """The version that an overlay is for."""

    team: str
    model: str
    number: int
    provenance: Mapping[str, Any]
    report: Mapping[str, Any]
    at: float
    """Now, in seconds since 1970 by the database's clock."""


def overlay(package: Manifest, inference_model: bytes, subject: Subject, key: SigningKey | None) -> dict[str, bytes]:
    """The files to put over a package, by path.

    Args:
        inference_model: the content of inference_model.json.
        key: None: the version is not signed, and gets neither evidence.json nor evidence.sig.

    Raises:
        BadArtifact: the package brings evidence along, which would be that of something else.
    """
    if foreign := UNSIGNED_FILES & {file.path for file in package.files}:
        names = " and ".join(sorted(foreign))
        raise BadArtifact(
            f"the package {package.digest[:12]} holds {names}, which only publishing writes; make it anew"
        )
    files = {
        INFERENCE_MODEL_FILE: inference_model,
        PROVENANCE_FILE: provenance_file(subject.provenance, subject.model, subject.number),
        REPORT_FILE: report_file(subject.report),
    }
    sums = {file.path: file.sha256 for file in package.files} | _sums_of(files)
    files[SUMS_FILE] = sums_text(sums).encode()
    if key is None:
        return files
    evidence = Evidence(
        team=subject.team,
        model=subject.model,
        number=subject.number,
        package_digest=package.digest,
        provenance_digest=digest_of(subject.provenance),
        report_digest=digest_of(subject.report),
        files=sums | _sums_of({SUMS_FILE: files[SUMS_FILE]}),
        signed_at=instant(subject.at),
        key_id=key.public.id,
    ).to_json()
    return files | {EVIDENCE_FILE: evidence, SIGNATURE_FILE: key.sign(evidence)}


def _sums_of(files: Mapping[str, bytes]) -> dict[str, str]:
    return {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}

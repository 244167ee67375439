"""What a published version is signed for: one canonical document beside its files. Pure; `signing.py` has the keys.

    report.json      the report that the version was published with
    evidence.json    what it is, the digests of package, provenance and report, the SHA-256 of every other file
    evidence.sig     the Ed25519 signature of evidence.json: 64 bytes

SHA256SUMS says nothing of the last two, because evidence.json says what SHA256SUMS is.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from olivepress.errors import BadArtifact
from olivepress.jobs import digest_of

PROVENANCE_FILE = "olivepress.json"
REPORT_FILE = "report.json"
EVIDENCE_FILE = "evidence.json"
SIGNATURE_FILE = "evidence.sig"
UNSIGNED_FILES = frozenset({EVIDENCE_FILE, SIGNATURE_FILE})
# So that a signature of something else that has the same form can never pass for one of evidence.
KIND = "olivepress-evidence"
SCHEMA_VERSION = 1
# In olivepress.json, and not in the provenance of which the digest is taken: the version's name is evidence by itself.
NAMED_IN_FILE = ("model", "version")
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class Evidence:
    """What one signature vouches for."""

    team: str
    model: str
    number: int
    package_digest: str
    provenance_digest: str
    report_digest: str
    files: Mapping[str, str]
    """Path → SHA-256 of every file of the version but evidence.json and evidence.sig."""
    signed_at: str
    """In UTC by the database's clock, such as 2026-11-23T07:30:00Z."""
    key_id: str

    @property
    def version(self) -> str:
        """The version as people write it."""
        return f"{self.model}:{self.number}"

    def to_json(self) -> bytes:
        """The canonical form, which is what is signed."""
        value = {"kind": KIND, "schema_version": SCHEMA_VERSION, **asdict(self), "files": dict(self.files)}
        return json.dumps(value, sort_keys=True, indent=1).encode() + b"\n"

    @classmethod
    def parse(cls, content: bytes) -> "Evidence":
        """Reads what `to_json` wrote, and trusts nothing in it.

        Raises:
            BadArtifact: it is something else, or of a later release.
        """
        try:
            value = json.loads(content)
            kind, schema_version = value.pop("kind"), value.pop("schema_version")
            if kind == KIND and schema_version != SCHEMA_VERSION:
                raise BadArtifact(
                    f"{EVIDENCE_FILE} has the schema version {schema_version!r} where {SCHEMA_VERSION} is known; "
                    "verify it with a newer release of olivepress"
                )
            evidence = cls(**value)
            # One comparison finds repeated and unknown keys and other spellings of a text.
            is_canonical = kind == KIND and _has_types(evidence) and evidence.to_json() == content
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            is_canonical = False
        if not is_canonical:
            raise BadArtifact(f"{EVIDENCE_FILE} is not in the form that olivepress writes; get this version again")
        return evidence


def instant(seconds: float) -> str:
    """Seconds since 1970 as evidence has them."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def report_file(report: Mapping[str, Any]) -> bytes:
    """The content of report.json."""
    # In ASCII: what a model answered may hold half of a surrogate pair, which UTF-8 has no bytes for.
    return (json.dumps(report, indent=2) + "\n").encode()


def provenance_file(provenance: Mapping[str, Any], model: str, number: int) -> bytes:
    """The content of olivepress.json."""
    value = {**provenance, "model": model, "version": number}
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def digest_of_report_file(content: bytes) -> str:
    """The digest of the report in a report.json.

    Raises:
        BadArtifact: it holds no JSON object.
    """
    return digest_of(object_in(REPORT_FILE, content))


def digest_of_provenance_file(content: bytes) -> str:
    """The digest of the provenance in an olivepress.json.

    Raises:
        BadArtifact: it holds no JSON object.
    """
    value = object_in(PROVENANCE_FILE, content)
    return digest_of({name: part for name, part in value.items() if name not in NAMED_IN_FILE})


def object_in(name: str, content: bytes) -> dict[str, Any]:
    """The JSON object in a file of this name.

    Raises:
        BadArtifact: it holds none.
    """
    try:
        value = json.loads(content)
        # What is no number in JSON has no digest either.
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadArtifact(f"{name} is not in the form that olivepress writes; get this version again")
    return value


def _has_types(evidence: Evidence) -> bool:
    texts = [getattr(evidence, field.name) for field in fields(evidence) if field.name not in ("number", "files")]
    is_number = isinstance(evidence.number, int) and not isinstance(evidence.number, bool)
    return (
        is_number
        and all(isinstance(text, str) for text in texts)
        and isinstance(evidence.files, dict)
        and all(isinstance(sha256, str) and _SHA256.fullmatch(sha256) for sha256 in evidence.files.values())
    )

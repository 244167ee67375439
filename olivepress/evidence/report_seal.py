"""What the report of a later validation is signed for. A version's own report is signed with the version (document.py).

    seal    {"evidence": {...}, "signature": base64}, kept with the job and written into report.json beside the report

The signature is that of the evidence as JSON with sorted keys, an indent of 1 and a line end.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from olivepress.errors import BadArtifact
from olivepress.evidence.document import instant
from olivepress.evidence.signing import PublicKey, SigningKey
from olivepress.evidence.verification import Check, Finding, FindKey, Verification
from olivepress.jobs import digest_of
from olivepress.reports.document import verdict_of_report

Json = dict[str, Any]
# Another one than that of a version: neither signature can pass for the other.
KIND = "olivepress-report-evidence"
SCHEMA_VERSION = 1
SEAL = "seal"
UNSIGNED = "there is none: the stack had no key when it measured this, or somebody took it away"
# What the document around a report says and nothing signs.
NEVER_IN_VALIDATIONS = ("rungs", "provenance")


@dataclass(frozen=True)
class Measured:
    """The version that a job measured again."""

    team: str
    model: str
    number: int
    recipe: str
    precision: str
    family: str
    package_digest: str
    job_id: int


@dataclass(frozen=True)
class ReportEvidence(Measured):
    """What one signature of a report vouches for."""

    report_digest: str
    signed_at: str
    """In UTC by the database's clock, such as 2026-11-23T07:30:00Z."""
    key_id: str

    @property
    def version(self) -> str:
        """The version as people write it."""
        return f"{self.model}:{self.number}"

    def to_dict(self) -> Json:
        """As JSON values."""
        return {"kind": KIND, "schema_version": SCHEMA_VERSION, **asdict(self)}

    def to_json(self) -> bytes:
        """The canonical form, which is what is signed."""
        return json.dumps(self.to_dict(), sort_keys=True, indent=1).encode() + b"\n"

    @classmethod
    def parse(cls, value: Any) -> "ReportEvidence":
        """Reads what `to_dict` gave, and trusts nothing in it.

        Raises:
            BadArtifact: it is something else, or of a later release.
        """
        what_now = "write the report again: olivepress report --job ID --json"
        if not isinstance(value, dict) or value.get("kind") != KIND:
            raise BadArtifact(f"it is not in the form that olivepress writes; {what_now}")
        if value.get("schema_version") != SCHEMA_VERSION:
            raise BadArtifact(
                f"it has the schema version {value.get('schema_version')!r} where {SCHEMA_VERSION} is known; verify it "
                "with a newer release of olivepress"
            )
        given = {name: part for name, part in value.items() if name not in ("kind", "schema_version")}
        types = {field.name: field.type for field in fields(cls)}
        if given.keys() != types.keys() or any(type(given[name]) is not kind for name, kind in types.items()):
            raise BadArtifact(f"it is not in the form that olivepress writes; {what_now}")
        return cls(**given)


def seal(report: Mapping[str, Any], measured: Measured, key: SigningKey, at: float) -> Json:
    """Sign a report.

    Args:
        at: now, in seconds since 1970 by the database's clock.
    """
    evidence = ReportEvidence(
        **asdict(measured), report_digest=digest_of(report), signed_at=instant(at), key_id=key.public.id
    )
    return {
        "evidence": evidence.to_dict(),
        "signature": base64.b64encode(key.sign(evidence.to_json())).decode(),
    }


def verify_report(document: Mapping[str, Any], find_key: FindKey) -> Verification:
    """Every check of a report document (`reports.document`), as `olivepress report --job ID --json` wrote it."""
    sealed = document.get(SEAL)
    if sealed is None:
        return Verification((Finding(Check.EVIDENCE, False, UNSIGNED),), None)
    try:
        evidence = ReportEvidence.parse(sealed.get("evidence") if isinstance(sealed, dict) else None)
    except BadArtifact as error:
        return Verification((Finding(Check.EVIDENCE, False, str(error)),), None)
    key = find_key(evidence.key_id)
    findings = (_described(document, evidence), _signature(sealed, evidence, key), _report(document, evidence))
    return Verification(findings, evidence, key is not None)


def _described(document: Mapping[str, Any], evidence: ReportEvidence) -> Finding:
    signed = asdict(evidence) | {"version": evidence.version}
    names = ("version", "team", "model", "number", "recipe", "precision", "family", "job_id")
    changed = [f"{name} is not the one that was signed" for name in names if document.get(name) != signed[name]]
    changed += [f"{name} was added" for name in NEVER_IN_VALIDATIONS if document.get(name)]
    if changed:
        return Finding(Check.EVIDENCE, False, ", ".join(changed))
    detail = f"{evidence.version} of package {evidence.package_digest[:12]}…, measured again by job {evidence.job_id}"
    return Finding(Check.EVIDENCE, True, detail)


def _signature(sealed: Mapping[str, Any], evidence: ReportEvidence, key: PublicKey | None) -> Finding:
    if key is None:
        detail = f"by the key {evidence.key_id}, which is not one that this machine knows"
        return Finding(Check.SIGNATURE, False, detail)
    try:
        signature = base64.b64decode(sealed["signature"], validate=True)
    except (KeyError, TypeError, ValueError):
        return Finding(Check.SIGNATURE, False, "it is missing, or no base64")
    if not key.has_signed(evidence.to_json(), signature):
        return Finding(Check.SIGNATURE, False, f"it is not what the key {key.id} signed this evidence with")
    return Finding(Check.SIGNATURE, True, f"by the key {key.id}, at {evidence.signed_at}")


def _report(document: Mapping[str, Any], evidence: ReportEvidence) -> Finding:
    report = document.get("report")
    try:
        is_it = isinstance(report, dict) and digest_of(report) == evidence.report_digest
    except (ValueError, RecursionError):
        is_it = False
    if not isinstance(report, dict) or not is_it:
        return Finding(Check.REPORT, False, "it is not the one that was signed")
    verdict = verdict_of_report(report)
    if document.get("verdict") != verdict:
        return Finding(Check.REPORT, False, f"its verdict is {verdict}, not {document.get('verdict')}")
    return Finding(Check.REPORT, True, f"as it was signed; verdict: {verdict}")

"""The report of a later validation is verified as it was signed, and nothing that was changed in it passes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from olivepress.cli import run
from olivepress.evidence.report_seal import Measured, ReportEvidence, seal, verify_report
from olivepress.evidence.signing import SigningKey
from olivepress.evidence.verification import Check, Verification
from olivepress.reports.document import document_of
from olivepress.reports.pages import report_page
from tests.unit import report_cases
from tests.unit.signed_versions import AT, new_key

JOB = 12
Json = dict[str, Any]


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return new_key(tmp_path / "key")


@pytest.fixture
def document(key: SigningKey) -> Json:
    """What `olivepress report --job 12 --json` writes, read again."""
    version = report_cases.version() | {"team": "default", "provenance": {}}
    made = document_of(version)
    names = ("team", "model", "number", "recipe", "precision", "family")
    measured = Measured(**{name: made[name] for name in names}, package_digest="a" * 64, job_id=JOB)
    whole = made | {"job_id": JOB, "seal": seal(made["report"], measured, key, AT)}
    return dict(json.loads(json.dumps(whole)))


def checked(document: Json, key: SigningKey | None) -> Verification:
    return verify_report(document, lambda key_id: key.public if key and key.public.id == key_id else None)


def wrong(document: Json, key: SigningKey | None) -> set[Check]:
    return {finding.check for finding in checked(document, key).findings if not finding.is_right}


def test_a_report_as_it_was_signed_is_verified(document: Json, key: SigningKey) -> None:
    found = checked(document, key)

    assert found.is_verified, found.complaints
    assert found.evidence is not None
    assert (found.evidence.version, found.evidence.key_id) == ("support-en-int4:3", key.public.id)
    assert "measured again by job 12" in found.findings[0].detail


def change_a_figure(document: Json) -> None:
    document["report"]["tokens_per_s"]["median"] += 1


def change_the_verdict(document: Json) -> None:
    document["verdict"] = "passed" if document["verdict"] == "failed" else "failed"


def change_the_number(document: Json) -> None:
    document["number"], document["version"] = 4, "support-en-int4:4"


def change_the_number_everywhere(document: Json) -> None:
    change_the_number(document)
    document["seal"]["evidence"]["number"] = 4


def change_what_made_it(document: Json) -> None:
    document["recipe"] = "cpu-int8"


def change_when_it_was_signed(document: Json) -> None:
    document["seal"]["evidence"]["signed_at"] = "2030-01-01T00:00:00Z"


def add_rungs(document: Json) -> None:
    document["rungs"] = [{"recipe": "cpu-int4", "verdict": "passed"}]


def take_the_report_away(document: Json) -> None:
    del document["report"]


def damage_the_signature(document: Json) -> None:
    document["seal"]["signature"] = "A" * len(document["seal"]["signature"])


def take_the_signature_away(document: Json) -> None:
    del document["seal"]["signature"]


def take_the_seal_away(document: Json) -> None:
    del document["seal"]


def add_to_the_evidence(document: Json) -> None:
    document["seal"]["evidence"]["more"] = 1


def make_the_evidence_something_else(document: Json) -> None:
    document["seal"] = {"evidence": ["kind"]}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (change_a_figure, {Check.REPORT}),
        (change_the_verdict, {Check.REPORT}),
        (take_the_report_away, {Check.REPORT}),
        (change_the_number, {Check.EVIDENCE}),
        (change_what_made_it, {Check.EVIDENCE}),
        (add_rungs, {Check.EVIDENCE}),
        (change_the_number_everywhere, {Check.SIGNATURE}),
        (change_when_it_was_signed, {Check.SIGNATURE}),
        (damage_the_signature, {Check.SIGNATURE}),
        (take_the_signature_away, {Check.SIGNATURE}),
        (take_the_seal_away, {Check.EVIDENCE}),
        (add_to_the_evidence, {Check.EVIDENCE}),
        (make_the_evidence_something_else, {Check.EVIDENCE}),
    ],
)
def test_what_was_changed_is_found(
    document: Json, key: SigningKey, change: Callable[[Json], None], found: set[Check]
) -> None:
    change(document)

    assert wrong(document, key) == found


def test_a_report_by_another_key_wants_only_the_key(document: Json, key: SigningKey, tmp_path: Path) -> None:
    assert checked(document, None).wants_only_the_key
    other = new_key(tmp_path / "other")

    # Whoever signs it anew needs a key that is relied on.
    measured = ReportEvidence.parse(document["seal"]["evidence"])
    forged = {**vars(measured), "key_id": key.public.id}
    document["seal"]["signature"] = seal(
        document["report"], Measured(**{name: forged[name] for name in Measured.__dataclass_fields__}), other, AT
    )["signature"]
    assert wrong(document, key) == {Check.SIGNATURE}


def test_the_page_of_a_later_report_says_who_signed_it(document: Json, key: SigningKey) -> None:
    assert f"signed by the key {key.public.id} at 2026-11-18" in report_page(document)
    take_the_seal_away(document)
    assert "measured again by job 12 · not signed" in report_page(document)


class TestCommand:
    """`olivepress verify later.json`."""

    def verify(self, document: Json, directory: Path, *options: str) -> int:
        file = directory / "later.json"
        file.write_text(json.dumps(document))
        return run(["verify", str(file), *options])

    def test_it_says_of_which_version_the_report_is_and_by_whom(
        self, document: Json, key: SigningKey, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pem = tmp_path / "publisher.pem"
        pem.write_text(key.public.pem)

        assert self.verify(document, tmp_path, "--key", str(pem)) == 0

        shown = capsys.readouterr().out
        assert "support-en-int4:3 of team default: verified" in shown
        assert f"by the key {key.public.id}" in shown

    def test_what_was_changed_is_code_1_and_an_unknown_key_is_code_5(
        self, document: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.verify(document, tmp_path) == 5
        change_a_figure(document)
        assert self.verify(document, tmp_path) == 1
        assert "NOT VERIFIED" in capsys.readouterr().out

    @pytest.mark.parametrize("content", ["", "[]", "{}", '"text"', "[" * 100_000, '{"schema_version": 1, "report": 3}'])
    def test_a_file_that_holds_no_report_is_told_in_a_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
    ) -> None:
        file = tmp_path / "later.json"
        file.write_text(content)

        assert run(["verify", str(file)]) == 1

        assert f"{file} is no report" in capsys.readouterr().err

    def test_the_report_of_a_version_itself_is_verified_with_the_version(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "report.json"
        file.write_text(json.dumps(report_cases.version()["report"]))
        (tmp_path / "SHA256SUMS").write_text("")

        assert run(["verify", str(file)]) == 1

        assert f"verified as a whole: olivepress verify {tmp_path}" in capsys.readouterr().err

"""Evidence says one thing in one way, and what says it in another way is no evidence."""

import json
from dataclasses import replace
from typing import Any

import pytest

from olivepress.errors import BadArtifact
from olivepress.evidence.document import (
    Evidence,
    digest_of_provenance_file,
    digest_of_report_file,
    instant,
    provenance_file,
    report_file,
)
from olivepress.jobs import digest_of
from tests.unit.signed_versions import PROVENANCE, REPORT

EVIDENCE = Evidence(
    team="default",
    model="support-int4",
    number=3,
    package_digest="a" * 64,
    provenance_digest="b" * 64,
    report_digest="c" * 64,
    files={"genai_config.json": "d" * 64, "nested/ünïcode.txt": "e" * 64},
    signed_at="2026-11-23T07:30:00Z",
    key_id="0123456789abcdef",
)


def test_what_is_written_is_read_back() -> None:
    assert Evidence.parse(EVIDENCE.to_json()) == EVIDENCE
    assert EVIDENCE.version == "support-int4:3"


def test_its_form_does_not_depend_on_the_order_in_which_files_were_listed() -> None:
    turned = replace(EVIDENCE, files=dict(reversed(EVIDENCE.files.items())))

    assert turned.to_json() == EVIDENCE.to_json()


def changed(**changes: Any) -> bytes:
    value = json.loads(EVIDENCE.to_json()) | changes
    return json.dumps(value, sort_keys=True, indent=1).encode() + b"\n"


@pytest.mark.parametrize(
    "content",
    {
        "nothing": b"",
        "no JSON": b"evidence",
        "no object": b"[]\n",
        "nothing in it": b"{}\n",
        "bytes that are no text": b"\xff\xfe",
        "deep": b"[" * 100_000,
        "another form of the same": json.dumps(json.loads(EVIDENCE.to_json())).encode(),
        "something behind it": EVIDENCE.to_json() + b" ",
        "a key twice": EVIDENCE.to_json().replace(b'"number": 3,', b'"number": 4,\n "number": 3,'),
        "a key too many": changed(more=1),
        "signed as something else": changed(kind="olivepress-key-succession"),
        "a number that is a text": changed(number="3"),
        "a number that is a truth": changed(number=True),
        "a digest that is none": changed(files={"a": "x" * 64}),
        "no files": changed(files=None),
        "a team that is a list": changed(team=["default"]),
    }.items(),
    ids=lambda item: item[0],
)
def test_anything_else_is_refused(content: tuple[str, bytes]) -> None:
    with pytest.raises(BadArtifact, match="not in the form that olivepress writes"):
        Evidence.parse(content[1])


def test_evidence_of_a_later_release_says_so() -> None:
    with pytest.raises(BadArtifact, match="schema version 2 where 1 is known"):
        Evidence.parse(changed(schema_version=2))


def test_the_digests_of_the_files_are_those_of_what_the_database_holds() -> None:
    assert digest_of_report_file(report_file(REPORT)) == digest_of(REPORT)
    assert digest_of_provenance_file(provenance_file(PROVENANCE, "support-int4", 3)) == digest_of(PROVENANCE)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"a": NaN}', b"\xff"])
def test_a_report_that_is_no_json_object_has_no_digest(content: bytes) -> None:
    with pytest.raises(BadArtifact, match=r"report\.json is not in the form"):
        digest_of_report_file(content)


def test_the_instant_is_in_utc() -> None:
    assert instant(0.0) == "1970-01-01T00:00:00Z"

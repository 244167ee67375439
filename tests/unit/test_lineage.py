"""A lineage as a drawing, a page and a tree."""

import itertools
import xml.etree.ElementTree as Xml
from typing import Any

import httpx
import pytest

from olivepress.cli import lineage as command
from olivepress.cli import run
from olivepress.client import Client
from olivepress.lineage import Lineage, thing
from olivepress.lineage_drawing import drawing
from olivepress.reports.lineage_page import lineage_page

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '<script>alert("x")</script>&amp;'


def digest(letters: str) -> str:
    return (letters * 64)[:64]


def step(kind: str, used: list[str], made: list[str], **changes: Any) -> dict[str, Any]:
    attempt = {"number": 1, "worker_id": "w-1", "outcome": "succeeded", "started_at": 1.0, "finished_at": 2.0}
    facts: dict[str, Any] = {
        "kind": kind,
        "state": "succeeded",
        "key": digest("4e"),
        "fingerprint": digest("f"),
        "used": used,
        "made": made,
        "is_reused": False,
        "reused_job": None,
        "worker_id": "w-1",
        "host": "press-01",
        "toolchain": {"olive-ai": "0.13.0"},
        "started_at": 1.0,
        "finished_at": 13.3,
        "seconds": 12.3,
        "attempts": [attempt | {"cpu_s": 1.0, "peak_rss_bytes": 1000}],
    }
    return facts | changes


def ladder(**changes: Any) -> dict[str, Any]:
    """A lineage of an adapter with prompts and calibration, all kinds of steps, three aliases."""
    things = [
        thing("checkpoint", digest("c0"), "support-en", "adapter Qwen2ForCausalLM"),
        thing("base", digest("ba"), "base", "of the adapter"),
        {"id": "recipe:r v1", "kind": "recipe", "name": "r v1", "digest": None, "detail": "int4"},
        thing("prompts", digest("9a"), "domain prompts"),
        thing("calibration", digest("ca"), "calibration text"),
        *(thing("artifact", digest(name), name) for name in ("01", "02", "03", "04", "06")),
        thing("report", digest("05"), "report", "passed"),
    ]
    one, two, three, four, files, report = (entry["id"] for entry in things[5:])
    checkpoint, base, recipe, prompts, calibration = (entry["id"] for entry in things[:5])
    steps = [
        step("ingest", [checkpoint, base], []),
        step("convert", [checkpoint, base, recipe], [one], is_reused=True, reused_job=12),
        step("quantize", [checkpoint, base, recipe, calibration, one], [two]),
        step("package", [recipe, two], [three]),
        step("reference", [checkpoint, base, prompts], [four], is_reused=True),
        step("validate", [recipe, prompts, three, four], [report]),
        step("publish", [three, report], [files], key=None),
    ]
    version: dict[str, Any] = {
        "model": "support-en-int4",
        "team": "default",
        "number": 3,
        "version": "support-en-int4:3",
        "aliases": ["latest", "production", "staging"],
        "recipe": "r",
        "precision": "int4",
        "family": "qwen2",
        "size_bytes": 317_000_000,
        "verdict": "passed",
        "flags": {},
        "deprecated": None,
        "deleted": None,
        "created_at": 1.79e9,
        "package_digest": digest("03"),
        "artifact_digest": digest("06"),
        "report_digest": digest("05"),
        "toolchain_fingerprint": digest("f"),
        "job_id": 14,
    }
    document = {"version": version | changes, "things": things, "steps": steps}
    return Lineage.model_validate(document).model_dump(mode="json")


def boxes(svg: str) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of each box."""
    found = []
    for rect in Xml.fromstring(svg).iter(f"{SVG}rect"):
        if rect.get("class") != "page":
            x, y, width, height = (float(rect.get(name, "")) for name in ("x", "y", "width", "height"))
            found.append((x, y, x + width, y + height))
    return found


class TestDrawing:
    def test_every_thing_step_and_alias_has_a_box_and_none_overlap(self) -> None:
        document = ladder()
        found = boxes(drawing(document))

        assert len(found) == len(document["things"]) + len(document["steps"]) + 1 + 3
        for one, other in itertools.combinations(found, 2):
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (one, other)

    def test_all_of_it_lies_on_the_page(self) -> None:
        svg = drawing(ladder(aliases=[f"alias-{number}" for number in range(12)]))
        _, _, width, height = (float(part) for part in Xml.fromstring(svg).get("viewBox", "").split())

        for left, top, right, bottom in boxes(svg):
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height

    def test_a_line_leads_from_each_used_thing_to_its_step_and_from_each_step_to_what_it_made(self) -> None:
        document = ladder()
        paths = [path for path in Xml.fromstring(drawing(document)).iter(f"{SVG}path") if path.get("marker-end")]

        uses = sum(len(step["used"]) + len(step["made"]) for step in document["steps"])
        # And to the version and its three aliases.
        assert len(paths) == uses + 1 + 3

    def test_a_version_that_was_not_made_here_is_drawn_with_what_is_known(self) -> None:
        document = ladder() | {"steps": []}
        names = [text.text for text in Xml.fromstring(drawing(document)).iter(f"{SVG}text")]
        assert "support-en-int4:3" in names
        assert "checkpoint support-en" in names

    def test_names_are_escaped(self) -> None:
        document = ladder(version=HOSTILE, aliases=[HOSTILE])
        document["things"][0]["name"] = HOSTILE

        for content in (drawing(document), lineage_page(document)):
            assert "<script" not in content
        Xml.fromstring(drawing(document))

    def test_it_is_readable_in_light_and_dark_and_loads_nothing(self) -> None:
        for content in (drawing(ladder()), lineage_page(ladder())):
            assert "prefers-color-scheme: dark" in content
            assert "http" not in content.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")

    def test_what_is_known_against_a_version_is_in_its_box(self) -> None:
        flags = {"recertification_failed": {"reason": "runtime 2.3", "flagged_at": 1.0}}
        texts = [text.text for text in Xml.fromstring(drawing(ladder(flags=flags))).iter(f"{SVG}text")]
        assert "flagged: recertification failed" in texts
        assert "it failed when it was certified again (runtime 2.3)" in lineage_page(ladder(flags=flags))


def test_the_tree_says_what_was_reused_and_what_was_measured_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    again = {"job_id": 21, "kind": "recertify", "state": "failed", "verdict": "failed", "runtime": "2.3.0"}
    document = ladder(validations=[again])
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=document))
    monkeypatch.setattr(command, "connect", lambda: Client("http://127.0.0.1:8720", "key", transport))

    assert run(["lineage", "support-en-int4:3"]) == 0

    shown = capsys.readouterr().out
    assert "convert  12.3 s  press-01  reused from job 12" in shown
    assert "reused from another team's job" in shown
    assert "certified again  job 21  failed  runtime 2.3.0" in shown
    assert "@latest, @production, @staging" in shown

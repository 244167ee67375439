"""Reports: the document keeps its schema, pages stand alone and say what was measured, comparisons mark the best."""

import copy
import re
from html.parser import HTMLParser
from typing import Any

import jsonschema
import pytest

from olivepress.reports import wording
from olivepress.reports.charts import Axis, Dot, Line, dot_chart, line_chart
from olivepress.reports.compare import compare
from olivepress.reports.document import document_of, schema
from olivepress.reports.pages import compare_page, report_page
from tests.unit.report_cases import document, part_with, timed, version

HOSTILE = "</span><script>alert(1)</script><img src=http://example.org/x>"


class _Page(HTMLParser):
    """What a browser would see of a page: its tags with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


class TestDocument:
    def test_it_keeps_the_published_schema(self) -> None:
        jsonschema.Draft202012Validator.check_schema(schema())
        jsonschema.validate(document(), schema())

    @pytest.mark.parametrize(
        "damage",
        [
            lambda d: d.pop("verdict"),
            lambda d: d.update(verdict="perhaps"),
            lambda d: d["report"].pop("gates"),
            lambda d: d["report"]["gates"][0].update(verdict="maybe"),
            lambda d: d["report"].update(size_bytes="large"),
            lambda d: d["report"]["quality"]["held_out"].pop("kl_divergence"),
        ],
    )
    def test_the_schema_refuses_what_is_no_report(self, damage: Any) -> None:
        found = copy.deepcopy(document())
        damage(found)

        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(found, schema())

    def test_one_failed_gate_makes_the_verdict(self) -> None:
        gate = {"name": "x", "limit": 1.0, "figure": None, "verdict": "failed", "note": "not measured", "unit": ""}

        assert document()["verdict"] == "passed"
        assert document(gates=[gate])["verdict"] == "failed"

    def test_a_report_of_an_earlier_release_still_has_a_page(self) -> None:
        found = version()
        kept = ("schema_version", "size_bytes", "prompts", "certificate", "gates", "first_token_ms", "tokens_per_s")
        found["report"] = {key: found["report"][key] for key in kept}

        page = _Page(report_page(document_of(found)))

        assert "support-en-int4:3" in page.text
        assert "Not measured" in page.text


class TestPage:
    def test_it_stands_alone_and_needs_no_network(self) -> None:
        for html in (report_page(document()), compare_page([document(), document("other-int8", 1)])):
            page = _Page(html)
            assert page.named("script") == page.named("link") == page.named("img") == page.named("iframe") == []
            assert not re.search(r"https?://|url\(|@import", html)
            assert all(not {"src", "href"} & set(attributes) for _, attributes in page.tags)

    def test_it_has_colours_for_light_and_for_dark(self) -> None:
        html = report_page(document())

        light, dark = (
            set(re.findall(r"(--[a-z0-9-]+):", block)) for block in re.findall(r":root\s*{([^}]*--page[^}]*)}", html)
        )
        assert light == dark
        assert set(re.findall(r"var\((--[a-z0-9-]+)\)", html)) <= light

    def test_what_models_and_people_wrote_is_text_and_never_markup(self) -> None:
        found = version()
        (item,) = found["report"]["prompts"]["items"]
        item |= {"name": HOSTILE, "answer": HOSTILE, "source_answer": "other", "expect": {"equals": HOSTILE}}
        found["report"]["gates"][0]["note"] = HOSTILE
        found["report"]["hardware"]["class"] = HOSTILE
        found["recipe"] = HOSTILE
        hostile = document_of(found | {"version": HOSTILE})

        for html in (report_page(hostile), compare_page([hostile, hostile | {"version": "b"}])):
            page = _Page(html)
            assert page.named("script") == page.named("img") == []
            assert HOSTILE in page.text

    def test_it_shows_the_figures_the_gates_the_cases_and_the_charts(self) -> None:
        page = _Page(report_page(document()))

        for words in ("1.50 MB", "8.40 ms", "max_size_ratio", "50.0 %", "no text at all", "refused", "2.2.1", "0.0076"):
            assert words in page.text
        assert [attributes["aria-label"] for attributes in page.named("svg")] == [
            "Time to the first token by length of the prompt",
            "Tokens per second by length of the prompt",
            "Memory over the sessions of the soak",
        ]

    def test_answers_stand_side_by_side_with_their_differences_marked(self) -> None:
        html = report_page(document())

        assert re.findall(r"<mark>(.*?)</mark>", html) == ["Lyon", "Paris"]

    def test_rungs_are_drawn_and_listed_in_the_order_in_which_they_were_tried(self) -> None:
        figures = {"tokens_per_s": 412.0, "first_token_ms": 8.25, "prompts_passed": 3, "prompts_with_expectation": 8}
        low = {"recipe": "cpu-int4", "precision": "int4", "verdict": "failed", "size_bytes": 10, "kl_divergence": 0.3}
        high = {"recipe": "cpu-int8", "precision": "int8", "verdict": "passed", "size_bytes": 20, "kl_divergence": 0.0}
        found = document(
            rungs=[low | {"figures": figures, "failed_gates": ["min_prompts_passed"]}, high | {"failed_gates": []}]
        )

        html = report_page(found)

        jsonschema.validate(found, schema())
        assert html.count("Size and quality of the rungs") == 2
        text = _Page(html).text
        assert text.index("cpu-int4") < text.index("3 of 8") < text.index("min_prompts_passed") < text.index("cpu-int8")

    def test_a_length_that_was_not_tried_is_told(self) -> None:
        part = {"status": "passed", "problem": None, "notes": [], "untried": ["the limit of 131072 tokens: 14 GiB"]}
        found = document(consistency=part)

        jsonschema.validate(found, schema())
        assert "Not tried: the limit of 131072 tokens: 14 GiB" in _Page(report_page(found)).text


class TestComparison:
    def test_the_best_of_each_measure_is_marked(self) -> None:
        small = document("a", 1, size_bytes=100, tokens_per_s=timed(100.0))
        fast = document("b", 1, size_bytes=900, tokens_per_s=timed(500.0))

        rows = {row.measure.key: row for row in compare([small, fast]).rows}

        assert [figure.is_best for figure in rows["size_bytes"].figures] == [True, False]
        assert [figure.is_best for figure in rows["tokens_per_s"].figures] == [False, True]
        assert [figure.is_best for figure in rows["peak_rss_bytes"].figures] == [False, False]

    def test_of_speeds_within_each_others_spread_none_is_better(self) -> None:
        near = [document("a", 1, tokens_per_s=timed(400.0)), document("b", 1, tokens_per_s=timed(420.0))]

        (row,) = [row for row in compare(near).rows if row.measure.key == "tokens_per_s"]

        assert [figure.is_best for figure in row.figures] == [False, False]

    def test_speeds_of_different_hardware_are_not_compared(self) -> None:
        other = {"cpu": "B", "class": "B / 8 cores / 64 GiB"}

        compared = compare([document("a", 1), document("b", 1, hardware=other, tokens_per_s=timed(9000.0))])

        (row,) = [row for row in compared.rows if row.measure.key == "tokens_per_s"]
        assert not any(figure.is_best for figure in row.figures)
        assert "different hardware" in compared.notes[0]

    def test_a_version_that_another_beats_in_everything_is_not_on_the_front(self) -> None:
        quality = {"held_out": part_with(0.2), "problem": None}
        worse = document("w", 1, size_bytes=2_000_000, tokens_per_s=timed(10.0), quality=quality)
        smaller = document("s", 1, size_bytes=700_000, quality=quality)

        assert compare([document(), worse, smaller]).front == (True, False, True)

    def test_the_smallest_change_of_perplexity_is_the_best_not_the_lowest(self) -> None:
        parts = [part_with(0.01) | {"perplexity_increase": change} for change in (-0.3, 0.01)]
        documents = [document(f"m{n}", 1, quality={"held_out": part}) for n, part in enumerate(parts)]

        (row,) = [row for row in compare(documents).rows if row.measure.key == "perplexity_increase"]

        assert [figure.is_best for figure in row.figures] == [False, True]

    def test_the_page_has_a_plot_of_size_against_quality(self) -> None:
        quality = {"held_out": part_with(0.2), "problem": None}
        page = _Page(compare_page([document(), document("other", 1, size_bytes=900_000, quality=quality)]))

        assert [attributes["aria-label"] for attributes in page.named("svg")] == ["Size against KL from source"]

    def test_what_was_not_measured_is_said(self) -> None:
        compared = compare([document("a", 1), document("b", 1, quality={"problem": "no source"})])

        assert compared.notes == ("quality against the source was not measured for b:1",)


class TestCharts:
    @pytest.mark.parametrize("values", [[5.0, 5.0], [0.0, 0.0], [1e-9, 1e9], [-3.0, 4.0]])
    def test_every_point_lies_inside_the_drawing(self, values: list[float]) -> None:
        x, y = Axis("x", str, is_log=True), Axis("y", str, from_zero=True)

        svg = line_chart("t", x, y, [Line("l", ((values[0], values[0]), (values[1], values[1])))])

        points = [(float(px), float(py)) for px, py in re.findall(r'cx="([-0-9.]+)" cy="([-0-9.]+)"', svg)]
        assert len(points) == 2
        assert all(0 <= px <= 560 and 0 <= py <= 260 for px, py in points)

    def test_names_of_near_points_do_not_lie_on_each_other(self) -> None:
        dots = [Dot(f"model-{number}", 1.0 + number / 1000, 2.0, False) for number in range(4)] + [
            Dot("far", 9, 9, True)
        ]

        svg = dot_chart("t", Axis("x", str), Axis("y", str), dots)

        heights = [float(y) for y in re.findall(r'y="([-0-9.]+)" text-anchor="\w+" class="name">model', svg)]
        assert len(heights) == 4
        assert all(abs(one - other) >= 13 for place, one in enumerate(heights) for other in heights[:place])


class TestWording:
    @pytest.mark.parametrize(
        ("value", "text"), [(None, "–"), (999, "999 B"), (1_510_000, "1.51 MB"), (4.3e9, "4.30 GB"), (-2e6, "-2.00 MB")]
    )
    def test_bytes_are_told_in_three_digits(self, value: float | None, text: str) -> None:
        assert wording.size(value) == text

    def test_texts_are_marked_word_by_word_and_nothing_is_lost(self) -> None:
        ours, theirs = "Go left, then up.", "Go right, then up!"

        left, right = wording.marked(ours, theirs)

        assert "".join(part.text for part in left) == ours
        assert "".join(part.text for part in right) == theirs
        assert [part.text for part in left if not part.is_same] == ["left", "."]
        assert [part.text for part in right if not part.is_same] == ["right", "!"]

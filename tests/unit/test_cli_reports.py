"""`olivepress report` and `compare` on files."""

import json
import re
from pathlib import Path

import pytest

from olivepress.cli import run
from olivepress.reports.document import schema
from tests.unit.report_cases import document


class TestCommands:
    def written(self, directory: Path, *names: str) -> list[str]:
        """Reports in files, as --json writes them."""
        for place, name in enumerate(names):
            found = document(name, 1, size_bytes=1_000_000 * (place + 1))
            (directory / f"{name}.json").write_text(json.dumps(found))
        return [str(directory / f"{name}.json") for name in names]

    def test_a_report_is_shown_with_its_gates(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["report", *self.written(tmp_path, "a")]) == 0

        shown = capsys.readouterr().out
        assert "a:1" in shown and "max_size_ratio" in shown and "1.00 MB" in shown

    def test_a_report_becomes_a_page_and_a_document(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        page = tmp_path / "report.html"

        assert run(["report", *self.written(tmp_path, "a"), "--json", "--html", str(page)]) == 0

        assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "a.json").read_text())
        assert "<!doctype html>" in page.read_text()

    def test_the_schema_is_printed_without_a_stack(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["report", "--schema"]) == 0

        assert json.loads(capsys.readouterr().out) == schema()

    def test_the_rungs_of_a_ladder_are_told(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        low = {"recipe": "cpu-int4", "precision": "int4", "verdict": "failed", "size_bytes": 2e6, "kl_divergence": 0.3}
        high = low | {"recipe": "cpu-int8", "precision": "int8", "verdict": "passed", "figures": {"tokens_per_s": 41.5}}
        file = tmp_path / "ladder.json"
        file.write_text(json.dumps(document(rungs=[low | {"failed_gates": ["max_kl_divergence"]}, high])))

        assert run(["report", str(file)]) == 0

        out = capsys.readouterr().out
        assert re.search(r"cpu-int4 +failed +2\.00 MB .*max_kl_divergence", out)
        assert re.search(r"cpu-int8 +passed +2\.00 MB +41\.5", out)

    def test_versions_are_compared(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        page = tmp_path / "compare.html"
        files = self.written(tmp_path, "a", "b")

        assert run(["compare", *files]) == 0
        assert "1.00 MB *" in capsys.readouterr().out
        assert run(["compare", *files, "--json", "--html", str(page)]) == 0
        versions = json.loads(capsys.readouterr().out)["versions"]
        assert ["size_bytes" in one["best"] for one in versions] == [True, False]
        assert "2 versions compared" in page.read_text()

    @pytest.mark.parametrize("content", ["[]", "{", '{"schema_version": 99, "report": {"gates": []}}', '{"report": 1}'])
    def test_a_file_that_is_no_report_is_refused(
        self, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "x.json"
        file.write_text(content)

        assert run(["report", str(file)]) == 1

        assert "olivepress report NAME --json" in capsys.readouterr().err

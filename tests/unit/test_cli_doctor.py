"""What `olivepress doctor` makes of the workers' toolchains and of a self test."""

import io
import sys
from typing import Any

import pytest
from rich.console import Console

from olivepress.cli import run, self_test
from olivepress.cli.self_test import COLD_S, run_self_test
from olivepress.cli.toolchains import toolchain_checks
from olivepress.errors import RuntimeCrashed

Json = dict[str, Any]
PARTS = ("toolchain", "ingest", "convert", "package", "chat", "Foundry Local")


def worker(name: str, fingerprint: str = "f" * 64, **changes: Any) -> Json:
    toolchain = {"torch": "2.13.0", "olive-ai": "0.13.0"} | changes.pop("toolchain", {})
    values = {"id": name, "alive": True, "fingerprint": fingerprint, "architectures": ["Qwen2ForCausalLM"]}
    return values | {"toolchain": toolchain} | changes


def part(name: str, **changes: Any) -> Json:
    return {"name": name, "is_ok": True, "seconds": 1.0, "detail": "fine", "log": ""} | changes


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the self test as if its program answered so, or ended with this error."""

    def answer_with(answer: Json | Exception) -> tuple[Json | None, list[Json]]:
        def ask(*_: Any, log: Any, **__: Any) -> Json:
            log.write(b"the program's last words\n")
            log.flush()
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(self_test, "ask", ask)
        return run_self_test([], Console(file=io.StringIO()))

    return answer_with


class TestToolchains:
    def test_workers_of_one_toolchain_share_a_line_and_agree(self) -> None:
        first, last = toolchain_checks([worker("a"), worker("b")], None)

        assert (first["name"], first["status"]) == ("toolchain ffffffff", "ok")
        assert first["detail"] == "on a, b: torch 2.13.0, olive-ai 0.13.0"
        assert (last["status"], last["detail"]) == ("ok", "all 2 live workers agree")

    def test_workers_that_disagree_are_told_with_what_differs_and_who_has_it(self) -> None:
        other = worker("b", "e" * 64, toolchain={"torch": "2.12.0"})

        *lines, verdict = toolchain_checks([worker("a"), other, worker("c")], None)

        assert [line["name"] for line in lines] == ["toolchain ffffffff", "toolchain eeeeeeee"]
        assert verdict["status"] == "warn"
        assert verdict["detail"] == "the live workers disagree: torch is 2.12.0 on b, 2.13.0 on a and c"
        assert "same versions" in verdict["what_now"]

    def test_a_distribution_that_one_worker_lacks_differs(self) -> None:
        with_peft = worker("a", toolchain={"peft": "0.21"})
        *_, verdict = toolchain_checks([with_peft, worker("b", "e" * 64)], None)
        assert verdict["detail"] == "the live workers disagree: peft is 0.21 on a, missing on b"

    def test_this_machines_own_toolchain_is_shown_and_takes_no_part_in_the_agreement(self) -> None:
        here = {"fingerprint": "0" * 64, "toolchain": {"torch": "2.0"}}

        shown = list(toolchain_checks([worker("a")], here))

        assert "on this machine: torch 2.0" in [check["detail"] for check in shown]
        assert {check["status"] for check in shown} == {"ok"}

    def test_a_worker_that_ended_does_not_count(self) -> None:
        gone = worker("b", "e" * 64, alive=False, toolchain={"torch": "1.0"})
        *_, verdict = toolchain_checks([worker("a"), gone], None)
        assert (verdict["status"], verdict["detail"]) == ("ok", "one live worker")

    def test_a_worker_whose_toolchain_did_not_load_is_named(self) -> None:
        _, cold, _ = toolchain_checks([worker("a", architectures=[])], None)
        assert (cold["status"], cold["detail"]) == ("warn", "not loaded yet by a")

    def test_without_workers_and_without_a_toolchain_nothing_is_said(self) -> None:
        assert list(toolchain_checks([], None)) == []


class TestSelfTest:
    def test_every_part_has_its_time_and_the_whole_is_judged(self, answered: Any) -> None:
        _, checks = answered({"parts": [part(name) for name in PARTS], "cold_s": 14.0, "warm_s": 4.0})

        assert [check["name"] for check in checks] == [*(f"self test: {name}" for name in PARTS), "self test"]
        assert {check["status"] for check in checks} == {"ok"}
        assert checks[2]["detail"] == "1.0 s; fine"
        assert checks[-1]["detail"].startswith("14.0 s, 4.0 s of it as on a worker")

    @pytest.mark.parametrize(("cold_s", "warm_s"), [(COLD_S + 1, 4.0), (20.0, 11.0)])
    def test_a_slow_machine_is_warned_of_and_no_failure(self, answered: Any, cold_s: float, warm_s: float) -> None:
        _, checks = answered({"parts": [part(name) for name in PARTS], "cold_s": cold_s, "warm_s": warm_s})
        assert [check["status"] for check in checks] == ["ok"] * len(PARTS) + ["warn"]

    def test_a_part_that_fails_is_the_last_with_its_log_and_what_to_do(self, answered: Any) -> None:
        broken = part("convert", is_ok=False, detail="the model is wrong; try again", log="line 1\nline 2")

        _, checks = answered({"parts": [part("toolchain"), broken], "cold_s": 9.0, "warm_s": 1.0})

        assert [check["status"] for check in checks] == ["ok", "fail"]
        assert checks[-1]["detail"] == "after 1.0 s: the model is wrong\nline 1\nline 2"
        assert checks[-1]["what_now"] == "try again"

    def test_a_part_without_a_log_of_its_own_shows_what_was_printed_last(self, answered: Any) -> None:
        broken = part("toolchain", is_ok=False, detail="it cannot be loaded; install it")
        _, checks = answered({"parts": [broken], "cold_s": 9.0, "warm_s": 1.0})
        assert checks[0]["detail"].endswith("the program's last words")

    def test_a_program_that_crashed_is_a_failure_with_its_last_lines(self, answered: Any) -> None:
        found, (only,) = answered(RuntimeCrashed("the self test crashed with a memory fault (SIGSEGV)"))
        assert found is None
        assert (only["status"], only["name"]) == ("fail", "self test")
        assert "SIGSEGV" in only["detail"] and "the program's last words" in only["detail"]

    def test_what_is_not_installed_is_named(self) -> None:
        found, (only,) = run_self_test(["torch", "olive-ai"], Console(file=io.StringIO()))
        assert found is None
        assert (only["status"], only["detail"]) == ("fail", "not installed here: torch, olive-ai")
        assert "pip install 'olivepress[worker]'" in only["what_now"]

    def test_on_windows_it_says_where_to_run_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "win32")
        _, (only,) = run_self_test([], Console(file=io.StringIO()))
        assert (only["status"], only["detail"]) == ("fail", "no worker runs on Windows")


def test_the_help_says_what_the_exit_codes_mean(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Exit codes 0 no check failed (warn is no failure) 1 one failed" in shown

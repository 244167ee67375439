"""The command line without a stack: help, wrong usage, exit codes, what is loaded."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest

from olivepress.cli import Commands, exit_code_of, run
from olivepress.cli import watch as watch_command
from olivepress.client import Client
from olivepress.errors import (
    BadArtifact,
    BadManifest,
    NotAllowed,
    NotFound,
    OlivepressError,
    PathNotAllowed,
    ServiceUnavailable,
    UnknownRecipe,
)
from olivepress.jobs import JobState
from tests.unit.cli_cases import FakeApi, batch_of, job_of

# Only these commands work where nothing but the base is installed; the others say what to install.
NEED_AN_EXTRA = {name for name, entry in Commands.lazy_commands.items() if entry.extra}
EXTRAS = (
    "sqlalchemy fastapi starlette uvicorn celery kombu redis pydantic_settings structlog psutil alembic torch olive "
    "onnxruntime onnxruntime_genai transformers numpy"
)
ONLY_THE_BASE = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in set("{EXTRAS}".split()):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from olivepress.cli import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def no_stack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OLIVEPRESS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("OLIVEPRESS_URL", raising=False)
    monkeypatch.delenv("OLIVEPRESS_API_KEY", raising=False)


def with_only_the_base(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", ONLY_THE_BASE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


class TestHelp:
    def test_help_lists_every_command_and_the_exit_codes(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["--help"]) == 0

        shown = capsys.readouterr().out
        for name, entry in Commands.lazy_commands.items():
            assert name in shown
            assert entry.summary in shown
        for code in ("0 ok", "1 a job", "2 wrong usage", "3 the service", "4 not found", "5 not allowed", "130"):
            assert code in shown

    @pytest.mark.parametrize(
        "name", sorted(set(Commands.lazy_commands) - {"up", "demo", "service", "recipes", "store", "keys", "quotas"})
    )
    def test_the_summary_in_the_list_is_the_first_line_of_the_commands_own_help(self, name: str) -> None:
        entry = Commands.lazy_commands[name]

        command = getattr(import_module(entry.module), entry.attribute)

        assert command.__doc__.splitlines()[0] == entry.summary

    @pytest.mark.parametrize(
        "name", sorted(set(Commands.lazy_commands) - {"up", "demo", "service", "store", "keys", "quotas"})
    )
    def test_every_command_has_examples_and_json(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert run([name, "--help"]) == 0

        shown = capsys.readouterr().out
        assert f"olivepress {name}" in shown.partition("Examples")[2]
        assert "--json" in shown

    def test_the_version_is_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["--version"]) == 0
        assert capsys.readouterr().out.startswith("olivepress 0.")

    def test_a_misspelt_command_is_wrong_usage(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["modles"]) == 2
        assert "models" in capsys.readouterr().err

    def test_help_loads_nothing_heavy(self) -> None:
        program = (
            "import sys; from olivepress.cli import run; run(['--help']); "
            "print({'httpx', 'pydantic', 'yaml', 'sqlalchemy', 'fastapi', 'torch'} & set(sys.modules), file=sys.stderr)"
        )

        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

        assert (ended.returncode, ended.stderr) == (0, "set()\n")


class TestOnlyTheBase:
    def test_help_works(self) -> None:
        ended = with_only_the_base("--help")

        assert ended.returncode == 0
        assert "Submit checkpoints as one batch." in ended.stdout

    @pytest.mark.parametrize("name", sorted(NEED_AN_EXTRA))
    def test_a_command_that_needs_more_says_what_to_install(self, name: str) -> None:
        ended = with_only_the_base(name)

        assert ended.returncode == 1
        assert f"'olivepress {name}' needs packages that are not installed" in ended.stderr
        assert f"pip install 'olivepress[{Commands.lazy_commands[name].extra}]'" in ended.stderr
        assert "Traceback" not in ended.stderr

    def test_every_other_command_can_be_loaded(self) -> None:
        names = sorted(set(Commands.lazy_commands) - NEED_AN_EXTRA)
        program = ONLY_THE_BASE.replace(
            "sys.exit(run(sys.argv[1:]))", "sys.exit(any(run([name, '--help']) for name in sys.argv[1:]))"
        )

        ended = subprocess.run(
            [sys.executable, "-c", program, *names], capture_output=True, text=True, timeout=60, check=False
        )

        assert (ended.returncode, ended.stderr) == (0, "")


class TestExitCodes:
    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (BadManifest(), 2),
            (UnknownRecipe(), 2),
            (ServiceUnavailable(), 3),
            (NotFound(), 4),
            (NotAllowed(), 5),
            (BadArtifact(), 1),
            (PathNotAllowed(), 1),
        ],
    )
    def test_the_class_of_an_error_decides(self, error: OlivepressError, code: int) -> None:
        assert exit_code_of(error) == code

    @pytest.mark.parametrize(
        "command", ["jobs", "job 1", "watch", "models", "workers", "recipes", "cancel 1", "submit x"]
    )
    def test_without_a_stack_there_is_one_line_and_code_3(
        self, command: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(command.split()) == 3

        printed = capsys.readouterr()
        assert printed.out == ""
        assert len(printed.err.splitlines()) == 1
        assert printed.err.startswith("error: no olivepress runs here")
        assert "`olivepress up`" in printed.err

    @pytest.mark.parametrize(
        "arguments",
        [
            ["submit"],
            ["submit", "--manifest", "batch.yaml", "dir"],
            ["submit", "a", "b", "--name", "c"],
            ["submit", "a", "--priority", "12"],
            ["submit", "a", "--team", "No Team"],
            ["submit", "a", "--prompts", "nowhere.jsonl"],
            ["submit", "--manifest", "nowhere.yaml"],
            ["cancel"],
            ["cancel", "1", "--batch", "1"],
            ["job", "first"],
            ["jobs", "--state", "odd"],
            ["install", "m:0", "--foundry-cache", "x"],
            ["install", "m"],
            ["unknown"],
        ],
    )
    def test_wrong_usage_is_code_2(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert run(arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err != ""

    def test_a_file_that_may_not_be_used_is_one_line(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def refuse() -> Client:
            raise PermissionError(13, "Permission denied", "/data/server.json")

        monkeypatch.setattr(watch_command, "connect", refuse)

        assert run(["watch"]) == 1
        assert capsys.readouterr().err == (
            "error: Permission denied: /data/server.json; check the path and who may use it\n"
        )


class TestDoctor:
    def test_without_a_stack_it_fails_and_says_how_to_start_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["doctor", "--json"]) == 1

        told = json.loads(capsys.readouterr().out)
        checks = {check["name"]: check for check in told["checks"]}
        assert told["ok"] is False
        assert checks["api"]["status"] == "fail"
        assert "`olivepress up`" in checks["api"]["what_now"]
        assert checks["packages (base)"]["status"] == "ok"
        assert checks["data directory"]["status"] in ("ok", "warn")

    def test_missing_extras_are_no_failure_of_a_client(self) -> None:
        ended = with_only_the_base("doctor", "--json")

        statuses = {check["name"]: check["status"] for check in json.loads(ended.stdout)["checks"]}
        assert [name for name, status in statuses.items() if status == "fail"] == ["api"]

    def test_a_data_directory_that_cannot_be_written_is_a_failure(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("OLIVEPRESS_DATA_DIR", str(tmp_path / "file" / "data"))

        assert run(["doctor", "--json"]) == 1

        checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
        assert checks["data directory"]["status"] == "fail"


class TestWatch:
    @pytest.fixture
    def api(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        def serve(*looks: Any) -> FakeApi:
            fake = FakeApi(*looks)

            def connect() -> Client:
                return fake.client()

            monkeypatch.setattr(watch_command, "connect", connect)
            return fake

        yield serve

    def test_a_batch_that_succeeded_is_code_0_and_its_table(self, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
        api(batch_of(job_of(1)))

        assert run(["watch", "7"]) == 0

        printed = capsys.readouterr()
        assert "support-1-int4:1" in printed.out
        assert "olivepress install support-1-int4:1 --foundry-cache DIR" in printed.out

    def test_a_failed_job_is_code_1_and_its_message(self, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
        message = (
            "ingest: /models/x has no config.json, so nothing says what it is; copy the whole folder, submit again"
        )
        api(batch_of(job_of(1), job_of(2, JobState.FAILED, error_message=message)))

        assert run(["watch", "7"]) == 1
        assert f"job 2 support-2 cpu-int4: {message}\n" in capsys.readouterr().out

    def test_json_is_one_document_on_standard_output_and_progress_elsewhere(
        self, api: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        api(batch_of(job_of(1)))

        assert run(["watch", "7", "--json"]) == 0

        printed = capsys.readouterr()
        assert json.loads(printed.out) == batch_of(job_of(1))
        assert "batch 7: 1 of 1 done" in printed.err

    def test_ctrl_c_leaves_the_batch_running_and_says_so(self, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
        fake = api(batch_of(job_of(1, JobState.RUNNING)), KeyboardInterrupt)

        assert run(["watch", "7"]) == 130

        assert "batch 7 goes on without you" in capsys.readouterr().err
        assert not [url for url in fake.asked if "cancel" in url.path]

    def test_an_unknown_batch_is_code_4(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def not_found(request: httpx.Request) -> httpx.Response:
            return httpx.Response(404, json={"error_class": "NotFound", "detail": "there is no batch 9"})

        monkeypatch.setattr(watch_command, "connect", lambda: Client("http://x", "k", httpx.MockTransport(not_found)))

        assert run(["watch", "9"]) == 4

"""A program in a process of its own may answer, refuse, crash, hang or be killed; the asker hears of each in words."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from olivepress import own_process
from olivepress.errors import BadArtifact, RuntimeCrashed
from olivepress.own_process import Program, ask

PROGRAM = """
import os, signal, sys, time
from olivepress.errors import BadArtifact
from olivepress.own_process import answer_with

def handle(request, report_progress):
    report_progress("working hard", 0.5)
    print("noise on standard output")
    what = request["do"]
    if what == "refuse":
        raise BadArtifact("the model is bad")
    if what == "hang":
        time.sleep(60)
    if what == "exit":
        os._exit(3)
    if what == "bug":
        raise ZeroDivisionError("oops")
    if what.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, what))
    return {"pid": os.getpid(), "environment": dict(os.environ), "directory": os.getcwd(), "path": sys.path}

if __name__ == "__main__":
    answer_with(handle)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """A program that does what the request says, found as the services are found."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "the_program.py").write_text(PROGRAM)
    monkeypatch.setattr(own_process, "_services_root", lambda: f"{root}{os.pathsep}{Path.cwd()}")
    return Program("the_program", "the program", time_limit_s=20.0)


def test_the_answer_comes_back_and_progress_before_it(program: Program, tmp_path: Path) -> None:
    heard = []

    answer = ask(program, {"do": "answer"}, tmp_path, on_progress=lambda phase, share: heard.append((phase, share)))

    assert heard == [("working hard", 0.5)]
    assert answer["pid"] != os.getpid()


def test_it_runs_offline_in_its_scratch_directory_and_is_told_no_secret(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLIVEPRESS_ADMIN_KEY", "secret")

    answer = ask(program, {"do": "answer"}, tmp_path)

    assert answer["directory"] == str(tmp_path)
    assert answer["environment"]["HOME"] == str(tmp_path)
    assert answer["environment"]["HF_HUB_OFFLINE"] == "1"
    assert "OLIVEPRESS_ADMIN_KEY" not in answer["environment"]
    assert str(tmp_path) not in answer["path"]


def test_its_own_error_arrives_as_the_same_class(program: Program, tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match=r"^the model is bad$"):
        ask(program, {"do": "refuse"}, tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SIGKILL", "killed, most often because the machine ran out of memory"),
        ("SIGSEGV", "crashed with a memory fault"),
        ("SIGABRT", "aborted itself"),
        ("SIGTERM", "was ended from outside"),
    ],
)
def test_a_signal_that_ended_it_is_named_with_what_it_was_doing(
    program: Program, tmp_path: Path, name: str, words: str
) -> None:
    with pytest.raises(RuntimeCrashed, match=rf"^the program {words} \({name}\) while working hard$"):
        ask(program, {"do": name}, tmp_path)


def test_a_hang_ends_at_the_time_limit(program: Program, tmp_path: Path) -> None:
    impatient = Program(program.module, program.title, time_limit_s=1.0)

    with pytest.raises(RuntimeCrashed, match="did not answer within 1 s and was stopped while working hard"):
        ask(impatient, {"do": "hang"}, tmp_path)


@pytest.mark.parametrize(("what", "code"), [("exit", 3), ("bug", 1)])
def test_an_end_without_an_answer_is_a_crash(program: Program, tmp_path: Path, what: str, code: int) -> None:
    with (
        (tmp_path / "log").open("wb") as log,
        pytest.raises(RuntimeCrashed, match=f"ended with exit code {code}; the log"),
    ):
        ask(program, {"do": what}, tmp_path, log=log)


def test_what_it_prints_goes_to_the_log(program: Program, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        ask(program, {"do": "answer"}, tmp_path, log=log)

    assert "noise on standard output" in (tmp_path / "log").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_it_ends_with_the_process_that_asked_even_when_that_is_killed(program: Program, tmp_path: Path) -> None:
    asker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"""
from pathlib import Path
from olivepress import own_process
own_process._services_root = lambda: {own_process._services_root()!r}
program = own_process.Program("the_program", "the program", None)
own_process.ask(program, {{"do": "hang"}}, Path("."), on_progress=lambda phase, share: print(phase, flush=True))
""",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.PIPE,
    )
    with asker:
        assert asker.stdout is not None
        asker.stdout.readline()
        (child,) = psutil.Process(asker.pid).children()

        asker.kill()

    assert psutil.wait_procs([child], timeout=5)[1] == []


def test_a_program_that_is_not_there_is_a_crash(program: Program, tmp_path: Path) -> None:
    missing = Program("no_such_program", "the program", time_limit_s=20.0)

    with (tmp_path / "log").open("wb") as log, pytest.raises(RuntimeCrashed, match="exit code 1"):
        ask(missing, {"do": "answer"}, tmp_path, log=log)

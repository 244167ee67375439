"""The toolchain's versions and their fingerprint, without the toolchain."""

import importlib.metadata
import platform
import subprocess
import sys

import pytest

from olivepress.jobs import StepKind
from olivepress.recipes.recipe import recipe_named
from olivepress.settings import Settings
from olivepress.steps import JobFacts, StepResult, key_of
from workers import host
from workers.toolchains import versions
from workers.toolchains.versions import TOOLCHAIN, fingerprint_of, toolchain, toolchain_versions


def test_the_versions_are_read_without_importing_a_library() -> None:
    code = "import sys, workers.toolchains.versions as v; v.toolchain_versions(); print(*sys.modules)"

    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert not {"torch", "olive", "onnxruntime", "onnxruntime_genai", "transformers", "peft"} & set(modules)


def test_a_distribution_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "TOOLCHAIN", ("pytest", "no-such-distribution"))

    assert list(toolchain_versions()) == ["pytest"]


@pytest.mark.parametrize("changed", [*TOOLCHAIN, "python"])
def test_another_version_of_each_part_is_another_fingerprint_and_another_key_of_every_step(
    changed: str, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setattr(versions, "version", lambda name: "1.0")
    settings = Settings(data_dir=tmp_path)
    before = host.describe(settings)
    assert before.toolchain.keys() == {*TOOLCHAIN, "python"}

    monkeypatch.setattr(versions, "version", lambda name: "1.1" if name == changed else "1.0")
    if changed == "python":
        monkeypatch.setattr(platform, "python_version", lambda: "3.99.0")
    after = host.describe(settings)

    assert before.fingerprint != after.fingerprint
    assert before.timed_fingerprint != after.timed_fingerprint
    job = JobFacts(1, "/models/a", None, recipe_named("cpu-int4"), [], None)
    ingested = StepResult({"checkpoint_digest": "c", "context_length": 1, "family": "f", "size_bytes": 1})
    done = {StepKind.INGEST: ingested} | {
        kind: StepResult({}, "a" * 64) for kind in (StepKind.CONVERT, StepKind.PACKAGE)
    }
    for kind in (StepKind.CONVERT, StepKind.PACKAGE, StepKind.VALIDATE):
        assert key_of(kind, job, done, before.fingerprint) != key_of(kind, job, done, after.fingerprint)


def test_the_same_versions_are_the_same_fingerprint_on_one_kind_of_machine_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = toolchain()
    assert fingerprint_of(found) == fingerprint_of(dict(reversed(found.items())))

    here = fingerprint_of(found)
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert fingerprint_of(found) != here


def test_as_a_program_it_answers_what_a_worker_of_this_python_registers() -> None:
    command = [sys.executable, "-m", "workers.toolchains.versions"]

    answered = subprocess.run(command, input="{}", capture_output=True, text=True, check=True).stdout

    assert fingerprint_of(toolchain()) in answered


def test_every_library_that_is_pinned_exactly_is_part_of_the_fingerprint() -> None:
    pinned = {
        requirement.partition("==")[0]
        for requirement in importlib.metadata.requires("olivepress") or ()
        if "==" in requirement.partition(";")[0]
    }
    assert pinned and pinned <= set(TOOLCHAIN)

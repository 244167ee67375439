"""The whole stack from outside: what a user submits, what comes out, and what survives when parts are killed."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from olivepress.cli.install import install_version
from olivepress.client import Client
from olivepress.delivery.pull import pull
from olivepress.errors import ServiceUnavailable
from olivepress.evidence.signing import SigningKey
from olivepress.evidence.verification import directory_content, verify
from olivepress.foundry import runtime as foundry_runtime
from olivepress.job_orders import ImportOrder
from olivepress.jobs import FINAL_JOB_STATES, JobState
from olivepress.manifest import parse_manifest
from olivepress.registry import parse_reference
from tests.checkpoints import tiny_adapter, tiny_checkpoint
from tests.stack_cases import RunningStack, running_stack, still_running, wait_until

pytestmark = [pytest.mark.toolchain, pytest.mark.timeout(600)]
JOB_WITHIN_S = 240
NOTHING_LEFT_WITHIN_S = 2.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of checkpoints: three families, an adapter, and some that are none."""
    root = tmp_path_factory.mktemp("models")

    def make(name: str) -> Path:
        (root / name).mkdir()
        return root / name

    tiny_checkpoint(make("qwen"), "qwen2", seed=1)
    tiny_checkpoint(make("llama"), "llama", tied=False, seed=2)
    tiny_checkpoint(make("phi"), "phi3", tied=False, seed=3)
    tiny_adapter(make("adapter"), root / "qwen")
    tiny_checkpoint(make("stranger"), "qwen2", seed=5)
    make("empty")
    damaged = tiny_checkpoint(make("truncated"), "qwen2", seed=4) / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    return root


@pytest.fixture(scope="module")
def stack(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("stack") / "data", models) as running:
        yield running


@pytest.fixture
def client(stack: RunningStack) -> Iterator[Client]:
    with stack.client() as client:
        yield client


def submit(client: Client, *entries: dict[str, Any], **manifest: Any) -> int:
    values = {"checkpoints": list(entries), **manifest}
    return int(client.submit(parse_manifest(values))["id"])


def finished(client: Client, batch_id: int) -> dict[str, dict[str, Any]]:
    """The jobs of a batch when it is over, by 'name recipe'."""
    wait_until(lambda: client.batch(batch_id)["state"] in FINAL_JOB_STATES, JOB_WITHIN_S, every_s=0.3)
    return {f"{job['name']} {job['recipe']}": job for job in client.batch(batch_id)["jobs"]}


def test_only_the_worker_is_told_where_the_signing_key_lies_and_only_the_api_the_admin_key(stack: RunningStack) -> None:
    key_file = stack.data_dir / "signing-key.pem"

    assert key_file.stat().st_mode & 0o777 == 0o600
    told = {name for name in ("api", "scheduler", "worker", "flower") if str(key_file) in _environment(stack, name)}
    assert told == {"worker"}
    admin_key = (stack.data_dir / "admin-key").read_text().strip()
    told = {name for name in ("api", "scheduler", "worker", "flower") if admin_key in _environment(stack, name)}
    assert told == {"api"}


def _environment(stack: RunningStack, part: str) -> str:
    return Path(f"/proc/{stack.part(part).pid}/environ").read_text()


def test_three_families_and_an_adapter_become_certified_versions(client: Client, models: Path) -> None:
    prompts = [{"prompt": "Where is my order?"}]
    entries = [{"path": str(models / name), "prompts": prompts} for name in ("qwen", "llama", "phi", "adapter")]
    jobs = finished(client, submit(client, *entries))
    assert {job["state"] for job in jobs.values()} == {JobState.SUCCEEDED}, jobs
    version = client.version(parse_reference("adapter-int4"))
    assert version["report"]["certificate"]["status"] == "passed"
    assert len(version["report"]["prompts"]["items"]) == 1
    assert version["provenance"]["checkpoint"]["kind"] == "adapter"


def test_what_the_stack_published_is_signed_with_its_key(stack: RunningStack, client: Client, tmp_path: Path) -> None:
    pull(client, client.version(parse_reference("adapter-int4")), tmp_path / "out")
    key = SigningKey.load(stack.data_dir / "signing-key.pem").public

    found = verify(directory_content(tmp_path / "out"), lambda key_id: key)

    assert found.is_verified, found.complaints
    assert [entry["id"] for entry in client.signing_keys()] == [key.id]


def test_an_import_passes_beside_the_checkpoint_that_it_was_made_from_and_beside_no_other(
    client: Client, models: Path
) -> None:
    pull(client, client.version(parse_reference("adapter-int4")), models / "pulled")
    orders = [{"name": name, "source": str(models / name)} for name in ("adapter", "stranger")]
    batches = [
        client.import_model(ImportOrder.model_validate(order | {"path": str(models / "pulled")}))["id"]
        for order in orders
    ]
    jobs = [job for batch in batches for job in finished(client, batch).values()]
    assert [job["state"] for job in jobs] == [JobState.SUCCEEDED, JobState.FAILED], jobs
    own = client.version(parse_reference("adapter-int4"))["provenance"]["checkpoint"]["digest"]
    assert client.version(parse_reference("adapter"))["provenance"]["checkpoint"]["made_from"] == own
    assert "weights are not the source's" in jobs[1]["error_message"]


def test_the_same_submitted_again_runs_nothing_and_says_what_it_reused(client: Client, models: Path) -> None:
    entry = {"path": str(models / "qwen"), "name": "again"}
    first = finished(client, submit(client, entry, recipes=["cpu-int8"]))["again cpu-int8"]
    second = finished(client, submit(client, entry, recipes=["cpu-int8"]))["again cpu-int8"]
    assert second["version"] == first["version"] == "again-int8:1"
    detail = client.job(second["id"])
    for step in detail["steps"]:
        if step["kind"] in ("convert", "package", "reference", "validate"):
            assert step["attempts"] == []
            assert step["reused_job"] == first["id"]


def test_bad_checkpoints_fail_with_one_clear_message_and_the_rest_goes_on(client: Client, models: Path) -> None:
    entries = [{"path": str(models / name)} for name in ("empty", "truncated", "qwen")]
    outside = {"path": "/etc", "name": "outside"}
    jobs = finished(client, submit(client, *entries, outside, recipes=["cpu-fp32"]))
    assert jobs["qwen cpu-fp32"]["state"] == JobState.SUCCEEDED
    told = {name: jobs[f"{name} cpu-fp32"] for name in ("empty", "truncated", "outside")}
    assert {job["state"] for job in told.values()} == {JobState.FAILED}
    assert {job["error_class"] for job in told.values()} == {"BadCheckpoint", "PathNotAllowed"}
    assert "is empty" in told["empty"]["error_message"]
    assert "model.safetensors" in told["truncated"]["error_message"]
    assert str(models) in told["outside"]["error_message"], "it names the roots that are allowed"
    assert not any(job["version"] for job in told.values())


def test_an_installed_version_chats_in_the_real_foundry_runtime(client: Client, models: Path, tmp_path: Path) -> None:
    finished(client, submit(client, {"path": str(models / "qwen"), "name": "chatty"}))
    installed = install_version(client, client.version(parse_reference("chatty-int4")), tmp_path / "cache")
    (exchange,) = foundry_runtime.chat(tmp_path / "cache", installed.model_id, ["Where is my order?"], max_tokens=8)
    assert exchange.answer
    description = json.loads((installed.directory / "inference_model.json").read_text())
    assert description["Name"] == "chatty-int4:1"
    assert description["PromptTemplate"]["prompt"] == "<|im_start|>user\n{Content}<|im_end|>\n<|im_start|>assistant"


def test_a_failed_gate_publishes_nothing(client: Client, models: Path) -> None:
    impossible = [{"prompt": "Where is my order?", "expect": {"equals": "On the moon."}}]
    entry = {"path": str(models / "qwen"), "name": "gated", "prompts": impossible}
    job = finished(client, submit(client, entry))["gated cpu-int4"]
    assert job["state"] == JobState.FAILED
    assert job["error_class"] == "GateFailed"
    assert "min_prompts_passed" in job["error_message"]
    assert "gated-int4" not in [model["name"] for model in client.models()]


def test_a_ladder_goes_on_where_gates_really_fail_and_stops_at_the_recipe_that_passes(
    client: Client, models: Path
) -> None:
    gates = {"min_top1_agreement": 0.999}
    coarse = {"name": "coarse", "precision": "int4", "block_size": 128, "gates": gates}
    exact = {"name": "exact", "precision": "fp32", "gates": gates}
    entry = {"path": str(models / "phi"), "name": "climbing"}
    (job,) = finished(client, submit(client, entry, ladder=[coarse, exact, "cpu-fp16"])).values()
    assert (job["state"], job["recipe"], job["version"]) == (JobState.SUCCEEDED, "exact", "climbing-fp32:1"), job
    rungs = client.version(parse_reference("climbing-fp32"))["report"]["rungs"]
    assert [(rung["recipe"], rung["verdict"]) for rung in rungs] == [("coarse", "failed"), ("exact", "passed")]
    assert "min_top1_agreement" in rungs[0]["failed_gates"]
    assert rungs[0]["kl_divergence"] > rungs[1]["kl_divergence"]


def test_recipes_that_quantize_one_conversion_share_it(client: Client, models: Path) -> None:
    passes = {"builder_precision": "fp32", "after": [{"type": "OnnxDynamicQuantization", "config": {}}]}
    dynamic = {"name": "dynamic", "precision": "int8", "olive_passes": passes}
    entry = {"path": str(models / "qwen"), "name": "shared"}
    jobs = finished(client, submit(client, entry, recipes=["cpu-fp32", dynamic]))
    assert {job["state"] for job in jobs.values()} == {JobState.SUCCEEDED}, jobs
    steps = {name: {step["kind"]: step for step in client.job(job["id"])["steps"]} for name, job in jobs.items()}
    conversions = {name: kinds["convert"]["artifact_digest"] for name, kinds in steps.items()}
    assert conversions["shared cpu-fp32"] == conversions["shared dynamic"]
    assert sum(bool(kinds["convert"]["attempts"]) for kinds in steps.values()) <= 1
    assert steps["shared dynamic"]["quantize"]["artifact_digest"] not in (None, conversions["shared dynamic"])


def below(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def in_step(client: Client, batch_id: int, kind: str) -> Callable[[], bool]:
    def is_running() -> bool:
        jobs = client.batch(batch_id)["jobs"]
        return any(step["kind"] == kind and step["state"] == "running" for job in jobs for step in job["steps"])

    return is_running


def test_a_killed_worker_leaves_no_process_and_its_job_is_finished_by_the_next(
    stack: RunningStack, client: Client, models: Path
) -> None:
    batch_id = submit(client, {"path": str(models / "llama"), "name": "killed"}, recipes=["cpu-fp32"])
    wait_until(in_step(client, batch_id, "convert"), JOB_WITHIN_S, every_s=0.02)
    worker = stack.part("worker")
    family = below(worker)
    assert len(family) > 1, "the forkserver and its child"
    worker.send_signal(signal.SIGKILL)
    wait_until(lambda: not still_running(family), NOTHING_LEFT_WITHIN_S)
    assert finished(client, batch_id)["killed cpu-fp32"]["version"] == "killed-fp32:1"


def test_a_killed_child_ends_its_attempt_and_the_step_is_tried_again(
    stack: RunningStack, client: Client, models: Path
) -> None:
    batch_id = submit(client, {"path": str(models / "phi"), "name": "crashed"}, recipes=["cpu-int8"])
    wait_until(in_step(client, batch_id, "convert"), JOB_WITHIN_S, every_s=0.02)
    worker = stack.part("worker")

    def children() -> list[psutil.Process]:
        # The child leads a session of its own; the forkserver and its helpers are in the worker's.
        return [process for process in worker.children(recursive=True) if os.getsid(process.pid) == process.pid]

    # The step runs by the database a moment before its process does.
    wait_until(children, JOB_WITHIN_S, every_s=0.02)
    children()[0].send_signal(signal.SIGKILL)
    job = finished(client, batch_id)["crashed cpu-int8"]
    assert job["state"] == JobState.SUCCEEDED
    attempts = [attempt for step in client.job(job["id"])["steps"] for attempt in step["attempts"]]
    assert (signal.SIGKILL, "crashed") in {(attempt["signal"], attempt["outcome"]) for attempt in attempts}


@pytest.mark.parametrize("part", ["redis", "scheduler", "api"])
def test_a_killed_part_is_restarted_and_the_work_goes_on(
    stack: RunningStack, client: Client, models: Path, part: str
) -> None:
    batch_id = submit(client, {"path": str(models / "qwen"), "name": f"without-{part}"}, recipes=["cpu-int8"])
    before = stack.part(part)
    before.send_signal(signal.SIGKILL)
    wait_until(lambda: not before.is_running(), 10)
    job = finished_despite_outages(client, batch_id)[f"without-{part} cpu-int8"]
    assert job["version"] == f"without-{part}-int8:1"


def finished_despite_outages(client: Client, batch_id: int) -> dict[str, dict[str, Any]]:
    def is_over() -> bool:
        try:
            return client.batch(batch_id)["state"] in FINAL_JOB_STATES
        except ServiceUnavailable:
            return False

    wait_until(is_over, JOB_WITHIN_S, every_s=0.3)
    return finished(client, batch_id)


def test_a_cancelled_job_ends_while_it_runs(client: Client, models: Path) -> None:
    batch_id = submit(client, {"path": str(models / "llama"), "name": "unwanted"}, recipes=["cpu-int8"])
    wait_until(in_step(client, batch_id, "convert"), JOB_WITHIN_S, every_s=0.02)
    client.cancel_batch(batch_id)
    assert finished(client, batch_id)["unwanted cpu-int8"]["state"] == JobState.CANCELLED


def test_data_survives_a_restart_and_nothing_runs_after_a_stop(models: Path, tmp_path: Path) -> None:
    with running_stack(tmp_path / "data", models) as stack, stack.client() as client:
        finished(client, submit(client, {"path": str(models / "qwen"), "name": "kept"}))
        family = stack.family()
        assert stack.stop(signal.SIGINT) == 0
        assert still_running(family) == []
        assert not (tmp_path / "data" / "server.json").exists()
    with running_stack(tmp_path / "data", models) as stack, stack.client() as client:
        assert client.version(parse_reference("kept-int4"))["number"] == 1
        family = stack.family()
        stack.process.kill()
        wait_until(lambda: not still_running(family), NOTHING_LEFT_WITHIN_S)

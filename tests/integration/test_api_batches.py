"""Batches and jobs over HTTP, on a real database."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from olivepress.database.sessions import Database
from olivepress.jobs import StepKind
from tests.integration.api_cases import (
    GATE_FAILED,
    WORSE_PACKAGE,
    Api,
    api_over,
    counted_queries,
    fail_step,
    ingested,
    publish_job,
    validate,
)
from tests.integration.database_cases import claimed, succeed


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[Api]:
    with api_over(database, tmp_path) as api:
        yield api


def step_states(job: dict[str, Any]) -> list[str]:
    return [step["state"] for step in job["steps"]]


class TestSubmit:
    def test_every_checkpoint_with_every_recipe_is_a_job(self, api: Api) -> None:
        submitted = api.submit("/models/a", "/models/b", recipes=["cpu-int4", "cpu-int8"])

        batch = api.get(f"/v1/batches/{submitted['id']}")
        assert submitted["state"] == "queued"
        assert submitted["jobs"] == [job["id"] for job in batch["jobs"]]
        assert [(job["name"], job["recipe"], job["model"]) for job in batch["jobs"]] == [
            ("a", "cpu-int4", "a-int4"),
            ("a", "cpu-int8", "a-int8"),
            ("b", "cpu-int4", "b-int4"),
            ("b", "cpu-int8", "b-int8"),
        ]

    def test_the_answer_says_where_the_batch_is(self, api: Api) -> None:
        answer = api.http.post("/v1/batches", json={"checkpoints": [{"path": "/models/a"}]})

        assert answer.status_code == 202
        assert api.get(answer.headers["Location"])["id"] == answer.json()["id"]

    def test_the_scheduler_is_rung_once_and_only_for_new_work(self, api: Api) -> None:
        body, headers = {"checkpoints": [{"path": "/models/a"}]}, {"Idempotency-Key": "once"}

        first = api.http.post("/v1/batches", json=body, headers=headers)
        again = api.http.post("/v1/batches", json=body, headers=headers)

        assert again.json() == first.json()
        assert len(api.rings) == 1
        assert len(api.get("/v1/batches")) == 1

    def test_the_batch_is_there_when_the_scheduler_is_rung(self, database: Database, tmp_path: Path) -> None:
        with api_over(database, tmp_path) as api:
            seen: list[int] = []
            look = threading.Event()

            def ring() -> None:
                seen.append(len(api.get("/v1/batches")))
                look.set()

            api.app.state.parts = type(api.app.state.parts)(**vars(api.app.state.parts) | {"ring": ring})
            api.submit("/models/a")

        assert seen == [1]

    @pytest.mark.parametrize(
        ("body", "error_class", "told"),
        [
            ({}, "BadManifest", "checkpoints: Field required"),
            ({"checkpoints": []}, "BadManifest", "checkpoints: List should have at least 1 item"),
            ({"checkpoints": [{"pth": "a"}]}, "BadManifest", "checkpoints.0.pth: there is no such key"),
            ({"checkpoints": [{"path": "/a"}], "priority": 99}, "BadManifest", "priority: Input should be"),
            ({"checkpoints": [{"path": "/a"}], "alias": "No!"}, "BadManifest", "'No!' cannot be an alias"),
            ({"checkpoints": [{"path": "/a"}, {"path": "/b/a"}]}, "BadManifest", "would both become 'a'"),
            ({"checkpoints": [{"path": "/a"}], "recipes": ["x"]}, "UnknownRecipe", "there is no recipe 'x'"),
            (
                {"checkpoints": [{"path": "/a"}], "prompts": [{"prompt": "Hi", "expect": {}}]},
                "BadManifest",
                "expect needs",
            ),
        ],
    )
    def test_a_wrong_manifest_is_refused_in_one_sentence(
        self, api: Api, body: dict[str, Any], error_class: str, told: str
    ) -> None:
        answer = api.http.post("/v1/batches", json=body)

        assert answer.status_code == 422
        assert answer.json()["error_class"] == error_class
        assert told in answer.json()["detail"]
        assert "\n" not in answer.json()["detail"]
        assert api.get("/v1/batches") == []
        assert api.rings == []

    @pytest.mark.parametrize("body", [b"{", b"\xff", b"nonsense"])
    def test_a_body_that_is_no_json_is_refused(self, api: Api, body: bytes) -> None:
        answer = api.http.post("/v1/batches", content=body, headers={"Content-Type": "application/json"})

        assert answer.status_code in (400, 422)
        assert answer.headers["Content-Type"] == "application/problem+json"

    @pytest.mark.timeout(60)
    def test_ten_thousand_checkpoints_are_one_request(self, api: Api) -> None:
        submitted = api.submit(*(f"/models/{number}" for number in range(10_000)))

        assert len(submitted["jobs"]) == 10_000
        looked = api.get(f"/v1/batches/{submitted['id']}", state="running")
        assert (looked["counts"]["queued"], looked["jobs"]) == (10_000, [])


class TestBatch:
    def test_it_shows_states_versions_and_errors_of_its_jobs(self, api: Api) -> None:
        good, bad, gated, waiting = api.submit("/models/a", "/models/b", "/models/c", "/models/d")["jobs"]
        publish_job(api, good)
        fail_step(api, bad, StepKind.INGEST, "/models/b has no config.json; copy the whole folder")
        validate(api, gated, GATE_FAILED, WORSE_PACKAGE)

        batch = api.get("/v1/batches/1")

        assert batch["state"] == "running"
        assert batch["counts"] == {"queued": 1, "running": 0, "succeeded": 1, "failed": 2, "cancelled": 0}
        jobs = {job["id"]: job for job in batch["jobs"]}
        assert jobs[good]["version"] == "a-int4:1"
        assert step_states(jobs[good]) == ["succeeded"] * 6
        assert jobs[bad]["error_class"] == "BadCheckpoint"
        assert jobs[bad]["error_message"] == "ingest: /models/b has no config.json; copy the whole folder"
        assert step_states(jobs[bad]) == ["failed", *["cancelled"] * 5]
        assert jobs[gated]["error_class"] == "GateFailed"
        assert jobs[gated]["version"] is None
        assert jobs[waiting]["seconds"] is None

    def test_figures_of_published_and_of_refused_artifacts_are_shown(self, api: Api) -> None:
        good, gated = api.submit("/models/a", "/models/b")["jobs"]
        publish_job(api, good)
        validate(api, gated, GATE_FAILED, WORSE_PACKAGE)

        jobs = api.get("/v1/batches/1")["jobs"]

        assert [job["state"] for job in jobs] == ["succeeded", "failed"]
        assert [job["figures"] for job in jobs] == [
            {
                "source_size_bytes": 15_250_000,
                "size_bytes": 3_540_000,
                "peak_rss_bytes": 4_300_000_000,
                "tokens_per_s": 412.3,
                "first_token_ms": 8.41,
                "prompts_total": 10,
                "prompts_with_expectation": 8,
                "prompts_passed": 7,
                "certificate": "passed",
            }
        ] * 2

    def test_before_a_job_is_measured_the_size_that_ingest_found_is_known(self, api: Api) -> None:
        (job_id,) = api.submit("/models/a")["jobs"]
        assert api.get("/v1/batches/1")["jobs"][0]["figures"] is None

        fail_after_ingest(api, job_id)

        figures = api.get("/v1/batches/1")["jobs"][0]["figures"]
        assert figures["source_size_bytes"] == 10
        assert figures["size_bytes"] is None

    def test_a_step_of_the_same_team_names_the_job_that_it_was_reused_from(self, api: Api) -> None:
        (first,) = api.submit("/models/a")["jobs"]
        publish_job(api, first)
        (second,) = api.submit("/models/a")["jobs"]
        (other_team,) = api.submit("/models/a", team="legal")["jobs"]
        publish_from_memory(api, second)
        publish_from_memory(api, other_team)

        mine = api.get(f"/v1/jobs/{second}")["steps"]
        theirs = api.get(f"/v1/jobs/{other_team}")["steps"]

        reusable = ["convert", "package", "reference", "validate"]
        assert [step["kind"] for step in mine if step["reused"]] == reusable
        assert {step["reused_job"] for step in mine if step["reused"]} == {first}
        assert [step["kind"] for step in theirs if step["reused"]] == reusable
        assert {step["reused_job"] for step in theirs} == {None}

    def test_only_jobs_in_the_asked_states_are_shown_but_all_are_counted(self, api: Api) -> None:
        failed, _ = api.submit("/models/a", "/models/b")["jobs"]
        fail_step(api, failed, StepKind.INGEST, "no")

        batch = api.get("/v1/batches/1", state=["failed", "running"])

        assert [job["id"] for job in batch["jobs"]] == [failed]
        assert batch["counts"]["queued"] == 1

    def test_a_running_step_shows_its_seconds(self, api: Api) -> None:
        (job_id,) = api.submit("/models/a")["jobs"]
        claimed(api.database, job_id, StepKind.INGEST)

        job = api.get("/v1/batches/1")["jobs"][0]

        assert job["state"] == "running"
        assert job["steps"][0]["seconds"] >= 0
        assert job["steps"][0]["attempt"] == 1

    def test_the_number_of_queries_does_not_grow_with_the_jobs(self, api: Api) -> None:
        api.submit("/models/a")
        api.submit(*(f"/models/{number}" for number in range(40)), recipes=["cpu-int4", "cpu-int8"])

        counts = []
        for batch_id in (1, 2):
            with counted_queries(api.database.engine) as queries:
                api.get(f"/v1/batches/{batch_id}")
            counts.append(len(queries))

        assert counts[0] == counts[1] < 12

    def test_lists_are_per_team_and_paged(self, api: Api) -> None:
        for name in ("a", "b", "c"):
            api.submit(f"/models/{name}", name=f"batch-{name}")
        api.submit("/models/d", team="legal")

        first = api.get("/v1/batches", limit=2)
        second = api.get("/v1/batches", limit=2, before=first[-1]["id"])

        assert [batch["name"] for batch in first + second] == ["batch-c", "batch-b", "batch-a"]
        assert [batch["id"] for batch in api.get("/v1/batches", team="legal")] == [4]

    def test_an_unknown_batch_is_404(self, api: Api) -> None:
        assert api.http.get("/v1/batches/9").json()["error_class"] == "NotFound"
        assert api.http.post("/v1/batches/9/cancel").status_code == 404


class TestCancel:
    def test_a_waiting_job_is_cancelled_at_once(self, api: Api) -> None:
        kept, cancelled = api.submit("/models/a", "/models/b")["jobs"]

        answer = api.http.post(f"/v1/jobs/{cancelled}/cancel")

        assert answer.status_code == 202
        assert answer.json()["state"] == "cancelled"
        assert api.get(f"/v1/jobs/{kept}")["state"] == "queued"

    def test_a_running_job_runs_until_its_worker_ends_it(self, api: Api) -> None:
        (job_id,) = api.submit("/models/a")["jobs"]
        claimed(api.database, job_id, StepKind.INGEST)

        job = api.http.post(f"/v1/jobs/{job_id}/cancel").json()

        assert job["state"] == "running"
        assert job["cancel_requested"] is True
        assert step_states(job) == ["running", *["cancelled"] * 5]

    def test_a_finished_job_stays_as_it_is(self, api: Api) -> None:
        (job_id,) = api.submit("/models/a")["jobs"]
        publish_job(api, job_id)

        answer = api.http.post(f"/v1/jobs/{job_id}/cancel")

        assert (answer.status_code, answer.json()["state"]) == (202, "succeeded")
        assert answer.json()["cancel_requested"] is False

    def test_a_batch_is_cancelled_except_for_what_is_over(self, api: Api) -> None:
        jobs = api.submit(*(f"/models/{number}" for number in range(120)))["jobs"]
        publish_job(api, jobs[0])

        answer = api.http.post("/v1/batches/1/cancel")

        assert answer.status_code == 202
        assert answer.json()["counts"] == {"queued": 0, "running": 0, "succeeded": 1, "failed": 0, "cancelled": 119}
        assert api.http.post("/v1/batches/1/cancel").json() == answer.json()


class TestJobs:
    def test_a_job_shows_its_attempts_and_how_each_ended(self, api: Api) -> None:
        (job_id,) = api.submit("/models/a")["jobs"]
        fail_step(api, job_id, StepKind.INGEST, "the disk was slow; try again", may_retry=True)

        job = api.get(f"/v1/jobs/{job_id}")

        (attempt,) = job["steps"][0]["attempts"]
        assert job["state"] == "queued"
        assert job["steps"][0]["error_message"] == "the disk was slow; try again"
        assert (attempt["number"], attempt["outcome"], attempt["exit_code"]) == (1, "failed", 1)
        assert (attempt["cpu_s"], attempt["peak_rss_bytes"]) == (1.5, 4_300_000_000)
        assert attempt["finished_at"] >= attempt["started_at"]

    def test_a_job_shows_its_checkpoint_recipe_and_report(self, api: Api) -> None:
        (job_id,) = api.submit("/models/a")["jobs"]
        validate(api, job_id, GATE_FAILED)

        job = api.get(f"/v1/jobs/{job_id}")

        assert job["ingested"]["architecture"] == "Qwen2ForCausalLM"
        assert "files" not in job["ingested"]
        assert job["recipe_settings"]["precision"] == "int4"
        assert job["report"]["gates"] == GATE_FAILED["gates"]

    def test_logs_are_those_of_the_attempts_and_of_one_step_if_asked(self, api: Api) -> None:
        (job_id,) = api.submit("/models/a")["jobs"]
        fail_step(api, job_id, StepKind.INGEST, "no")

        logs = api.get(f"/v1/jobs/{job_id}/log")["logs"]

        assert [(part["step"], part["attempt"], part["log"]) for part in logs] == [
            ("ingest", 1, "first line\nlast line\n")
        ]
        assert api.get(f"/v1/jobs/{job_id}/log", step="convert")["logs"] == []
        assert api.http.get("/v1/jobs/99/log").status_code == 404

    def test_the_list_filters_and_pages(self, api: Api) -> None:
        jobs = api.submit(*(f"/models/{number}" for number in range(5)))["jobs"]
        api.submit("/models/x")
        fail_step(api, jobs[1], StepKind.INGEST, "no")

        assert [job["id"] for job in api.get("/v1/jobs", state="failed")] == [jobs[1]]
        assert [job["id"] for job in api.get("/v1/jobs", batch=2)] == [6]
        assert [job["id"] for job in api.get("/v1/jobs", limit=2)] == [6, 5]
        assert [job["id"] for job in api.get("/v1/jobs", limit=2, before=5)] == [4, 3]
        assert api.get("/v1/jobs", team="legal") == []


def fail_after_ingest(api: Api, job_id: int) -> None:
    succeed(api.database, claimed(api.database, job_id, StepKind.INGEST))
    fail_step(api, job_id, StepKind.CONVERT, "no")


def publish_from_memory(api: Api, job_id: int) -> None:
    """Run ingest; the rest is remembered but for publish, which stays queued."""
    assert succeed(api.database, claimed(api.database, job_id, StepKind.INGEST), ingested(api, job_id))

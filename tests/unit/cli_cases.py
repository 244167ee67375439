"""Batches and jobs as the client gives them, for tests of the command line."""

from typing import Any

import httpx

from olivepress.client import Client
from olivepress.jobs import JobKind, JobState, StepState, batch_state
from olivepress.recipes.recipe import BUILT_IN
from olivepress.steps import plan

Json = dict[str, Any]
STEP_ORDER = plan(JobKind.CONVERT, BUILT_IN["cpu-int4"])
STATES = {JobState.QUEUED: StepState.BLOCKED, JobState.RUNNING: StepState.RUNNING}
FIGURES = {
    "source_size_bytes": 15_250_000,
    "size_bytes": 3_540_000,
    "peak_rss_bytes": 212_000_000,
    "tokens_per_s": 412.3,
    "first_token_ms": 8.41,
    "prompts_total": 10,
    "prompts_with_expectation": 8,
    "prompts_passed": 7,
    "certificate": "passed",
}


def step_of(kind: str, state: str, **changes: Any) -> Json:
    step = {
        "kind": kind,
        "rung": 0,
        "state": state,
        "phase": None,
        "share": None,
        "attempt": 1,
        "started_at": 100.0,
        "finished_at": 101.0,
        "seconds": 1.0,
        "reused": False,
        "reused_job": None,
        "waits_for": None,
        "predicted_memory_bytes": None,
        "predicted_s": None,
    }
    return step | changes


def job_of(job_id: int, state: JobState = JobState.SUCCEEDED, **changes: Any) -> Json:
    """A job whose steps all have the state that goes with the job's."""
    name = changes.get("name", f"support-{job_id}")
    job = {
        "id": job_id,
        "batch_id": 7,
        "kind": "convert",
        "rung": 0,
        "ladder": [],
        "team": "default",
        "name": name,
        "path": f"/models/{name}",
        "base": None,
        "recipe": "cpu-int4",
        "model": f"{name}-int4",
        "version": f"{name}-int4:1" if state is JobState.SUCCEEDED else None,
        "alias": "latest",
        "priority": 5,
        "state": state.value,
        "cancel_requested": False,
        "error_class": None,
        "error_message": None,
        "created_at": 99.0,
        "started_at": 100.0,
        "finished_at": 105.0,
        "seconds": 5.0,
        "steps": [step_of(kind.value, STATES.get(state, state)) for kind in STEP_ORDER],
        "figures": FIGURES if state is JobState.SUCCEEDED else None,
    }
    return job | changes


def batch_of(*jobs: Json, **changes: Any) -> Json:
    states = [JobState(job["state"]) for job in jobs]
    batch = {
        "id": 7,
        "team": "default",
        "name": None,
        "state": batch_state(states).value,
        "waits_for": None,
        "created_at": 99.0,
        "counts": {state.value: states.count(state) for state in JobState},
        "jobs": list(jobs),
    }
    return batch | changes


class FakeApi:
    """Answers looks at one batch: the next of the given ones, then the last again. An error class is raised instead."""

    def __init__(self, *looks: Json | type[BaseException]) -> None:
        self._looks = list(looks)
        self.asked: list[httpx.URL] = []

    def client(self) -> Client:
        return Client("http://127.0.0.1:8720", "key", httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url)
        look = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
        if isinstance(look, type):
            raise look("told to")
        if states := request.url.params.get_list("state"):
            look = look | {"jobs": [job for job in look["jobs"] if job["state"] in states]}
        return httpx.Response(200, json=look)

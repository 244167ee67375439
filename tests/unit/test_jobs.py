"""The table of states, and what is computed from it."""

import random

import pytest

from olivepress import jobs
from olivepress.errors import IllegalTransition
from olivepress.jobs import JobState, StepKind, StepState

ALL = list(StepState)


def test_a_final_step_never_moves_again() -> None:
    for old in jobs.FINAL_STEP_STATES:
        for new in ALL:
            with pytest.raises(IllegalTransition):
                jobs.check_transition(old, new)


def test_a_blocked_step_cannot_run_before_it_is_queued() -> None:
    with pytest.raises(IllegalTransition, match="a step that is blocked cannot become running"):
        jobs.check_transition(StepState.BLOCKED, StepState.RUNNING)


def test_only_a_running_step_can_die() -> None:
    assert [state for state in ALL if StepState.DEAD in jobs.TRANSITIONS[state]] == [StepState.RUNNING]


def test_every_state_is_reached_from_blocked() -> None:
    reached, frontier = {StepState.BLOCKED}, [StepState.BLOCKED]
    while frontier:
        for state in jobs.TRANSITIONS[frontier.pop()] - reached:
            reached.add(state)
            frontier.append(state)
    assert reached == set(ALL)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("queued blocked blocked", JobState.QUEUED),
        ("running blocked blocked", JobState.RUNNING),
        ("succeeded queued blocked", JobState.RUNNING),
        ("succeeded succeeded succeeded", JobState.SUCCEEDED),
        ("succeeded failed cancelled", JobState.FAILED),
        ("succeeded dead cancelled", JobState.FAILED),
        ("succeeded cancelled cancelled", JobState.CANCELLED),
        ("succeeded running cancelled", JobState.RUNNING),
    ],
)
def test_a_job_is_in_the_state_that_its_steps_say(steps: str, expected: JobState) -> None:
    assert jobs.job_state(StepState(state) for state in steps.split()) is expected


def test_a_job_whose_gate_failed_is_failed_although_no_step_did() -> None:
    states = [StepState.SUCCEEDED, StepState.CANCELLED]
    assert jobs.job_state(states, gate_failed=True) is JobState.FAILED


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ("queued queued", JobState.QUEUED),
        ("queued succeeded", JobState.RUNNING),
        ("failed running", JobState.RUNNING),
        ("failed succeeded cancelled", JobState.FAILED),
        ("cancelled succeeded", JobState.CANCELLED),
        ("succeeded succeeded", JobState.SUCCEEDED),
    ],
)
def test_a_batch_is_over_when_all_its_jobs_are(states: str, expected: JobState) -> None:
    assert jobs.batch_state(JobState(state) for state in states.split()) is expected


def test_a_step_key_changes_with_everything_that_decides_the_result() -> None:
    key = jobs.step_key(StepKind.CONVERT, {"checkpoint": "a"}, {"precision": "int4"}, "toolchain")
    others = {
        jobs.step_key(StepKind.PACKAGE, {"checkpoint": "a"}, {"precision": "int4"}, "toolchain"),
        jobs.step_key(StepKind.CONVERT, {"checkpoint": "b"}, {"precision": "int4"}, "toolchain"),
        jobs.step_key(StepKind.CONVERT, {"checkpoint": "a"}, {"precision": "int8"}, "toolchain"),
        jobs.step_key(StepKind.CONVERT, {"checkpoint": "a"}, {"precision": "int4"}, "another"),
    }
    assert len(others) == 4
    assert key not in others


def test_a_step_key_does_not_depend_on_the_order_of_keys() -> None:
    one = jobs.step_key(StepKind.CONVERT, {}, {"a": 1, "b": 2}, "t")
    assert one == jobs.step_key(StepKind.CONVERT, {}, {"b": 2, "a": 1}, "t")


def test_retries_wait_longer_each_time_but_never_longer_than_the_cap() -> None:
    jitter = random.Random(0)
    delays = [jobs.retry_delay_s(attempt, jitter) for attempt in range(1, 20)]
    assert jobs.RETRY_BASE_S / 2 <= delays[0] <= jobs.RETRY_BASE_S
    assert delays[5] > delays[0] * 4
    assert max(delays) <= jobs.RETRY_CAP_S

"""Which waiting step goes to which worker."""

import re
from collections import Counter
from dataclasses import replace

import pytest

from olivepress.jobs import StepId
from olivepress.placement import GIB, Fairness, Need, Place, Room, Waiting, assign, why_nowhere

SMALL = Room(frozenset({"default"}), 4 * GIB, frozenset({"tools"}), 100 * GIB, may_publish=False)
LARGE = Room(frozenset({"default", "large"}), 16 * GIB, frozenset({"tools"}), 100 * GIB, may_publish=False)


def steps(*needs: Need, first: int = 1) -> list[Waiting]:
    return [Waiting(StepId(number), need) for number, need in enumerate(needs, first)]


def order_of(sent: list[tuple[StepId, str]]) -> list[int]:
    return [step_id for step_id, _ in sent]


def test_a_step_goes_only_where_its_memory_fits() -> None:
    places = [Place("small", SMALL, 1), Place("large", LARGE, 1)]
    sent = assign({"a": steps(Need(10 * GIB), Need(12 * GIB), Need(14 * GIB))}, places, {}, Fairness())
    assert sent == [(1, "large"), (2, "large")]


def test_a_step_that_needs_little_leaves_the_large_worker_free() -> None:
    places = [Place("large", LARGE, 1), Place("small", SMALL, 1)]
    assert assign({"a": steps(Need(GIB))}, places, {}, Fairness()) == [(1, "small")]


def test_an_idle_large_worker_is_better_than_waiting_at_a_busy_small_one() -> None:
    places = [Place("small", SMALL, 1, load=1), Place("large", LARGE, 1)]
    assert assign({"a": steps(Need(GIB))}, places, {}, Fairness()) == [(1, "large")]


def test_a_step_that_fits_nowhere_now_does_not_hold_up_those_behind_it() -> None:
    sent = assign({"a": steps(Need(10 * GIB), Need(GIB))}, [Place("small", SMALL, 1)], {}, Fairness())
    assert sent == [(2, "small")]


@pytest.mark.parametrize(
    "need", [Need(pool="large"), Need(fingerprint="other"), Need(scratch_bytes=200 * GIB), Need(memory_bytes=5 * GIB)]
)
def test_every_part_of_a_need_counts(need: Need) -> None:
    assert assign({"a": steps(need)}, [Place("small", SMALL, 1)], {}, Fairness()) == []


def test_a_team_that_comes_later_does_not_wait_for_the_batch_of_another() -> None:
    fairness = Fairness()
    many = steps(*[Need()] * 100)
    assign({"a": many}, [Place("w", SMALL, 2)], {}, fairness)
    sent = assign({"a": many[4:], "b": steps(Need(), first=900)}, [Place("w", SMALL, 2, load=3)], {"a": 3}, fairness)
    assert order_of(sent) == [900]


def test_teams_take_turns_also_where_nothing_stays_in_flight() -> None:
    fairness = Fairness()
    left = {"a": steps(*[Need()] * 20), "b": steps(*[Need()] * 20, first=100)}
    order = []
    for _ in range(6):
        ((step_id, _),) = assign(left, [Place("w", SMALL, 1, load=1)], {}, fairness)
        order.append(step_id)
        left = {team: [step for step in waiting if step.step_id != step_id] for team, waiting in left.items()}
    assert order == [1, 100, 2, 101, 3, 102]


def test_a_team_of_weight_three_gets_three_times_as_much() -> None:
    fairness = Fairness({"a": 3})
    waiting = {"a": steps(*[Need()] * 40), "b": steps(*[Need()] * 40, first=100)}
    sent = assign(waiting, [Place("w", SMALL, 10)], {}, fairness)
    assert Counter("a" if step_id < 100 else "b" for step_id in order_of(sent)) == {"a": 15, "b": 5}


def test_a_team_cannot_save_up_turns_while_it_has_nothing_to_run() -> None:
    fairness = Fairness()
    for _ in range(50):
        assign({"a": steps(Need())}, [Place("w", SMALL, 1, load=1)], {}, fairness)
    waiting = {"a": steps(*[Need()] * 20), "b": steps(*[Need()] * 20, first=100)}
    sent = assign(waiting, [Place("w", SMALL, 5)], {}, fairness)
    assert Counter("a" if step_id < 100 else "b" for step_id in order_of(sent)) == {"a": 5, "b": 5}


def test_a_step_that_waits_at_a_busy_worker_goes_to_an_idle_one_but_never_to_a_second_queue() -> None:
    told = [Waiting(StepId(1), Need(), sent_to="busy", waits_there=True)]
    busy, other = Place("busy", SMALL, 1, load=1), Place("other", SMALL, 1, load=1)
    assert assign({"a": told}, [busy, other], {}, Fairness()) == []
    assert assign({"a": told}, [busy, Place("idle", SMALL, 1)], {}, Fairness()) == [(1, "idle")]


def test_a_worker_that_did_not_take_a_step_in_time_gets_it_again_only_if_there_is_no_other() -> None:
    not_taken = [Waiting(StepId(1), Need(), sent_to="dead")]
    assert assign({"a": not_taken}, [Place("dead", SMALL, 1), Place("other", LARGE, 1)], {}, Fairness()) == [
        (1, "other")
    ]
    assert assign({"a": not_taken}, [Place("dead", SMALL, 1)], {}, Fairness()) == [(1, "dead")]


@pytest.mark.parametrize(
    ("need", "words"),
    [
        (Need(20 * GIB), r"needs 20\.0 GiB of memory and the largest worker gives a step 16\.0 GiB; .*--memory 20GiB"),
        (Need(5 * GIB, pool="gpu"), r"no worker offers the pool 'gpu' \(there are: default, large\); .*--pools gpu"),
        (Need(20 * GIB, pool="large"), r"the largest worker in the pool 'large' gives a step 16\.0 GiB"),
        (Need(0, 500 * GIB), r"needs 500\.0 GiB of disk .* the most that a worker has is 100\.0 GiB"),
        (Need(publishes=True), "no running worker has the signing key, .*: OLIVEPRESS_SIGNING_KEY_FILE=FILE"),
        (Need(fingerprint="older"), "no worker has enough memory, enough disk and the step's toolchain at once"),
    ],
)
def test_what_no_worker_can_take_is_said_in_plain_words(need: Need, words: str) -> None:
    reason = why_nowhere(need, [SMALL, LARGE])
    assert reason is not None
    assert re.search(words, reason), reason


def test_publishing_goes_only_to_a_worker_that_may_publish() -> None:
    publishing = Waiting(StepId(1), Need(publishes=True))
    signer = replace(LARGE, may_publish=True)
    places = [Place("without", SMALL, 1), Place("with", signer, 1)]
    assert assign({"a": [publishing]}, places, {}, Fairness()) == [(1, "with")]
    assert assign({"a": [publishing]}, places[:1], {}, Fairness()) == []
    assert why_nowhere(publishing.need, [SMALL, signer]) is None


def test_what_one_worker_can_take_has_nothing_to_say() -> None:
    assert why_nowhere(Need(16 * GIB, pool="large"), [SMALL, LARGE]) is None


def test_without_any_worker_the_way_to_start_one_is_said() -> None:
    assert why_nowhere(Need(), []) == "no worker is running; start one: olivepress service worker"

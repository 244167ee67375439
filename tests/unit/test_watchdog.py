"""The thread that ends children in time: it looks at a clock and at nothing else."""

import threading
import time

from workers.watchdog import Watchdog

SOON_S = 3.0


def test_what_is_past_its_deadline_is_killed_and_what_is_not_lives() -> None:
    dog, late, early = Watchdog(), threading.Event(), threading.Event()
    with dog.guard(lambda: time.monotonic() - 1, late.set), dog.guard(lambda: time.monotonic() + 60, early.set):
        assert late.wait(SOON_S)
        assert not early.is_set()


def test_a_deadline_that_moves_on_is_seen() -> None:
    dog, killed, looked = Watchdog(), threading.Event(), threading.Event()
    deadline = [time.monotonic() + 60]

    def current() -> float:
        looked.set()
        return deadline[0]

    with dog.guard(current, killed.set):
        assert looked.wait(SOON_S)
        assert not killed.is_set()
        deadline[0] = 0.0
        assert killed.wait(SOON_S)


def test_what_is_let_go_of_is_not_killed_any_more() -> None:
    dog, kills, other = Watchdog(), [], threading.Event()
    with dog.guard(lambda: 0.0, lambda: kills.append(1)):
        pass
    before = len(kills)
    with dog.guard(lambda: 0.0, other.set):
        assert other.wait(SOON_S)
    assert len(kills) == before

"""What the demo says when the stack below it breaks."""

import signal

import pytest

from olivepress.cli.demo import _death_told, _Interrupts
from olivepress.errors import ServiceUnavailable
from olivepress.services.stack import PartDied


class StackThatLearnsLate:
    """A double of the stack: a killed part's end is seen by the third look only, as with a real process."""

    looks = 0

    def check(self) -> list[str]:
        self.looks += 1
        if self.looks == 3:
            raise PartDied("api was killed by SIGKILL")
        return []


def test_an_api_that_was_killed_a_moment_ago_is_named_instead_of_an_api_that_does_not_answer() -> None:
    with pytest.raises(PartDied, match="api was killed by SIGKILL"), _death_told(StackThatLearnsLate()):  # type: ignore[arg-type]
        raise ServiceUnavailable("the API does not answer")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_a_finalizer_swallows_ends_the_demo_at_its_next_look() -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        interrupts = _Interrupts()
        interrupts.check()
        Finalized()
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    finally:
        for number, handler in before:
            signal.signal(number, handler)

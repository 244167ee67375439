"""What the demo says when the stack below it breaks."""

import pytest

from olivepress.cli.demo import _death_told
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

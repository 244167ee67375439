"""A double of the time module: a monotonic clock that a test moves."""


class Clock:
    """Stands still until `now` is set; in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

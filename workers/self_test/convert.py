"""The self test's second step: the real conversion."""

from workers.steps.convert import run

__all__ = ["run"]

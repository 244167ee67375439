"""The self test's third step: the real package."""

from workers.steps.package import run

__all__ = ["run"]

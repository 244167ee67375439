"""What the forkserver imports for the doubles: little, so that a worker is warm at once."""

from tests.doubles.steps import convert, ingest, package, validate

__all__ = ["convert", "ingest", "package", "supported_architectures", "validate"]


def supported_architectures() -> list[str]:
    """What a double can build."""
    return ["DoubleForCausalLM"]

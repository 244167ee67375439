"""What a check of `olivepress doctor` says."""

from typing import Any

Json = dict[str, Any]


def check(name: str, status: str, detail: str, what_now: str | None = None) -> Json:
    """One line: the part, "ok", "warn" or "fail", what was found, and what to do now."""
    return {"name": name, "status": status, "detail": detail, "what_now": what_now}

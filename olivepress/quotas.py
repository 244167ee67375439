"""What a team may have in the store and in work: its limits, what counts towards them, and the refusal. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from olivepress.errors import BadManifest, QuotaExceeded
from olivepress.recipes.recipe import Precision

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
AGAIN = ", then submit again: what was computed is remembered"
_SIZE = re.compile(r"(?P<number>[0-9]{1,9}(\.[0-9]{1,3})?)(?P<unit>[KMGT]?)B?", re.IGNORECASE | re.ASCII)
# What a published version has to the bytes of its source's weights, which mostly have two bytes each. The table of
# embeddings stays large in small models, so these are above what large ones get.
OUTPUT_TO_SOURCE: Mapping[Precision, float] = {
    Precision.INT4: 0.45,
    Precision.INT8: 0.7,
    Precision.FP16: 1.0,
    Precision.FP32: 2.0,
}


@dataclass(frozen=True)
class Quota:
    """The limits of a team; None: as much as it likes."""

    max_bytes: int | None = None
    """Of its published versions, each with all its files; what versions share counts in each."""
    max_versions: int | None = None
    max_jobs: int | None = None
    """Jobs that wait or run, and are to publish something."""

    @property
    def is_unlimited(self) -> bool:
        """Whether it limits nothing."""
        return self == Quota()


@dataclass(frozen=True)
class Usage:
    """What a team has: published versions that are not deleted, and jobs that are not over."""

    versions: int = 0
    bytes: int = 0
    waiting_jobs: int = 0
    waiting_bytes: int = 0
    """What those are predicted to publish, as far as that is known."""


@dataclass(frozen=True)
class Wanted:
    """What a submission is about to ask for."""

    jobs: int
    bytes: int = 0
    """What they are predicted to publish."""


def check_submission(team: str, quota: Quota, usage: Usage, wanted: Wanted) -> None:
    """See that a team has room for more jobs and for what they and those before them will publish.

    Raises:
        QuotaExceeded: it has not; the message says what is used, the limit, and what to do.
    """
    if quota.max_jobs is not None and usage.waiting_jobs + wanted.jobs > quota.max_jobs:
        raise QuotaExceeded(
            f"team '{team}' has {usage.waiting_jobs} jobs that are not over, and {wanted.jobs} more would pass its "
            f"quota of {quota.max_jobs}; wait for some to end, cancel some (`olivepress cancel`), or ask for more"
        )
    versions = usage.versions + usage.waiting_jobs + wanted.jobs
    if quota.max_versions is not None and versions > quota.max_versions:
        raise QuotaExceeded(
            f"team '{team}' has {usage.versions} versions and {usage.waiting_jobs} jobs that may each publish one; "
            f"{wanted.jobs} more would pass its quota of {quota.max_versions} versions; {_what_now()}"
        )
    size_bytes = usage.bytes + usage.waiting_bytes + wanted.bytes
    # A team that is over its quota already gets no more, however little it is.
    if quota.max_bytes is not None and size_bytes > quota.max_bytes:
        raise QuotaExceeded(
            f"team '{team}' has {size(usage.bytes)} of published versions and {size(usage.waiting_bytes)} predicted "
            f"for its waiting jobs; about {size(wanted.bytes)} more would pass its quota of {size(quota.max_bytes)}; "
            f"{_what_now()}"
        )


def check_publication(team: str, quota: Quota, usage: Usage, size_bytes: int) -> None:
    """See that a team has room for one more version.

    Raises:
        QuotaExceeded: it has not; what was computed for the version is kept, so submitting it again costs little.
    """
    if quota.max_versions is not None and usage.versions + 1 > quota.max_versions:
        raise QuotaExceeded(
            f"team '{team}' has {usage.versions} versions, as many as its quota of {quota.max_versions} allows; "
            f"{_what_now()}{AGAIN}"
        )
    if quota.max_bytes is not None and usage.bytes + size_bytes > quota.max_bytes:
        raise QuotaExceeded(
            f"team '{team}' has {size(usage.bytes)} of published versions, and this one of {size(size_bytes)} would "
            f"pass its quota of {size(quota.max_bytes)}; {_what_now()}{AGAIN}"
        )


def predicted_bytes(source_bytes: int, precision: Precision) -> int:
    """What a checkpoint with weights of this size becomes, before anybody has read it."""
    return round(source_bytes * OUTPUT_TO_SOURCE[precision])


def parse_size(text: str) -> int:
    """Bytes of a size such as 50G, 1.5TB or 800M; units are powers of 1000.

    Raises:
        BadManifest: it is none.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadManifest(f"'{text}' is no size; write it as 50G, 1.5T or 800M")
    return round(float(match["number"]) * UNITS[match["unit"].upper()])


def size(value: int) -> str:
    """A size for people."""
    for unit in ("T", "G", "M", "K"):
        if value >= UNITS[unit]:
            return f"{value / UNITS[unit]:.1f} {unit}B".replace("KB", "kB")
    return f"{value} bytes"


def _what_now() -> str:
    return "delete versions that nobody needs, or ask for a larger quota (`olivepress quotas show`)"

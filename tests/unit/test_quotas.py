"""A quota refuses what passes it, and says what is used, the limit, and what to do."""

import pytest

from olivepress.errors import BadManifest, QuotaExceeded
from olivepress.quotas import (
    Quota,
    Usage,
    Wanted,
    check_publication,
    check_submission,
    parse_size,
    predicted_bytes,
    size,
)
from olivepress.recipes.recipe import Precision

USED = Usage(versions=8, bytes=40_000_000_000, waiting_jobs=3, waiting_bytes=6_000_000_000)


@pytest.mark.parametrize(
    "quota",
    [
        Quota(),
        Quota(max_bytes=50_000_000_000, max_versions=13, max_jobs=5),
        Quota(max_bytes=50_000_000_000),
        Quota(max_versions=13),
        Quota(max_jobs=5),
    ],
)
def test_what_just_fits_is_accepted(quota: Quota) -> None:
    check_submission("research", quota, USED, Wanted(2, 4_000_000_000))


@pytest.mark.parametrize(
    ("quota", "words"),
    [
        (Quota(max_bytes=49_999_999_999), ["40.0 GB of published", "6.0 GB predicted", "4.0 GB more", "50.0 GB"]),
        (Quota(max_versions=12), ["8 versions", "3 jobs that may each publish one", "2 more", "12 versions"]),
        (Quota(max_jobs=4), ["3 jobs that are not over", "2 more", "quota of 4"]),
        (Quota(max_bytes=0), ["quota of 0 bytes"]),
    ],
)
def test_a_refused_submission_names_what_is_used_the_limit_and_the_way_out(quota: Quota, words: list[str]) -> None:
    with pytest.raises(QuotaExceeded) as refused:
        check_submission("research", quota, USED, Wanted(2, 4_000_000_000))

    message = str(refused.value)
    assert all(word in message for word in ["team 'research'", "ask for", *words]), message


def test_a_publication_counts_only_what_is_published() -> None:
    check_publication("research", Quota(max_bytes=41_000_000_000, max_versions=9), USED, 1_000_000_000)

    with pytest.raises(QuotaExceeded, match=r"40\.0 GB of published versions, and this one of 1\.0 GB.*remembered"):
        check_publication("research", Quota(max_bytes=40_999_999_999), USED, 1_000_000_000)
    with pytest.raises(QuotaExceeded, match=r"8 versions, as many as its quota of 8.*remembered"):
        check_publication("research", Quota(max_versions=8), USED, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    {
        "50G": 50_000_000_000,
        "1.5TB": 1_500_000_000_000,
        "800m": 800_000_000,
        " 7kB ": 7_000,
        "0": 0,
        "12b": 12,
    }.items(),
)
def test_sizes_are_read_as_people_write_them(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "G", "-1G", "50 G", "50GiB", "1e9", "٣G", "1.2345G", "99999999999"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BadManifest, match="is no size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("value", "expected"), {0: "0 bytes", 999: "999 bytes", 1000: "1.0 kB", 10**12: "1.0 TB"}.items()
)
def test_sizes_are_written_in_the_unit_that_fits(value: int, expected: str) -> None:
    assert size(value) == expected


def test_more_precise_models_are_predicted_to_be_larger() -> None:
    sizes = [predicted_bytes(1_000_000, precision) for precision in (Precision.INT4, Precision.INT8, Precision.FP16)]

    assert sizes == sorted(sizes)
    assert predicted_bytes(1_000_000, Precision.FP32) == 2_000_000

"""A soak is a time or a number of sessions, and anything else is told with what to write."""

import pytest

from olivepress.errors import BadManifest
from olivepress.soak import FEWEST_SESSIONS, parse_soak


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (None, None),
        ("2m", {"minutes": 2.0}),
        ("90s", {"minutes": 1.5}),
        ("0.5h", {"minutes": 30.0}),
        (" 10 m ", {"minutes": 10.0}),
        ("50", {"sessions": 50}),
        (str(FEWEST_SESSIONS), {"sessions": FEWEST_SESSIONS}),
    ],
)
def test_a_time_has_a_unit_and_a_number_of_sessions_has_none(text: str | None, wanted: dict[str, float] | None) -> None:
    assert parse_soak(text) == wanted


@pytest.mark.parametrize("text", ["", "m", "2 minutes", "-5", "1e3", "2m 30s", "nan", "٢m", "2.5.1m"])
def test_what_is_neither_is_refused_with_examples(text: str) -> None:
    with pytest.raises(BadManifest, match="write a time such as 2m"):
        parse_soak(text)


@pytest.mark.parametrize("text", ["0m", "0.000s", "25h", "1441m"])
def test_a_time_of_nothing_or_of_more_than_a_day_is_refused(text: str) -> None:
    with pytest.raises(BadManifest, match="at most 24 h"):
        parse_soak(text)


@pytest.mark.parametrize("text", ["0", "10", "12.5", "1000001"])
def test_so_few_or_so_many_sessions_are_refused(text: str) -> None:
    with pytest.raises(BadManifest, match="from 11 to 1,000,000"):
        parse_soak(text)

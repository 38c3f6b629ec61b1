from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.duration import format_duration, parse_duration
from domain.pattern import check_pattern, matches

words = st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=5)


@given(st.integers(min_value=1, max_value=10**9))
def test_a_duration_reads_back_as_it_is_written(milliseconds: int) -> None:
    value = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(value)) == value


@pytest.mark.parametrize(("text", "seconds"), [("5s", 5), ("1h30m", 5400), ("500ms", 0.5), (7, 7), ("2d", 172800)])
def test_durations_as_people_write_them(text: object, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "5 parsecs", "-3s", True])
def test_what_is_no_duration_says_so(text: object) -> None:
    with pytest.raises(ValueError, match="duration such as"):
        parse_duration(text)


def _reference(pattern: list[str], topic: list[str]) -> bool:
    """AMQP's topic match, word by word."""
    if not pattern:
        return not topic
    if pattern[0] == "#":
        return any(_reference(pattern[1:], topic[n:]) for n in range(len(topic) + 1))
    return bool(topic) and pattern[0] in ("*", topic[0]) and _reference(pattern[1:], topic[1:])


@given(st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=5), words)
def test_a_pattern_matches_what_amqp_says(pattern: list[str], topic: list[str]) -> None:
    assert matches(".".join(pattern), ".".join(topic)) == _reference(pattern, topic)


@pytest.mark.parametrize("pattern", ["", "a..b", ".a", "a*", "a b", "##"])
def test_what_is_no_pattern_says_so(pattern: str) -> None:
    with pytest.raises(ValueError, match="not a topic pattern"):
        check_pattern(pattern)

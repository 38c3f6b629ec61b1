from datetime import UTC, datetime, timedelta
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from domain.failures import PermanentFailure, TransientFailure, UnknownOutcome
from domain.outcome import Failed, Hold, Retry, Unknown
from domain.retry import HOLD_JITTER, LONGEST_WAIT, RetryPolicy, pick_tier
from domain.vocabulary import Reason, Semantics

NOW = datetime(2026, 11, 22, tzinfo=UTC)
delays = st.timedeltas(min_value=timedelta(milliseconds=1), max_value=timedelta(hours=12))
schedules = st.lists(delays, min_size=1, max_size=8).map(tuple)
tiers = st.sets(delays, min_size=1, max_size=8).map(lambda found: tuple(sorted(found)))


@given(schedules, tiers, st.integers(min_value=1, max_value=9), st.integers(), st.none() | delays)
def test_a_retry_is_never_sooner_than_the_schedule_and_the_provider_ask(
    schedule: tuple[timedelta, ...], tiers: tuple[timedelta, ...], attempt: int, seed: int, asked: timedelta | None
) -> None:
    policy = RetryPolicy(schedule, tiers)
    failure = TransientFailure(Reason.TIMEOUT, "slow", retry_after=asked)
    outcome = policy.next_attempt(attempt, failure, NOW, Random(seed))
    if attempt > len(schedule):
        assert isinstance(outcome, Failed)
        assert outcome.reason is Reason.TIMEOUT
        return
    wanted = max(schedule[attempt - 1], asked or timedelta(0))
    assert isinstance(outcome, Retry | Hold)
    assert outcome.at - NOW >= wanted
    if isinstance(outcome, Hold):
        assert wanted > tiers[-1]
        assert outcome.at - NOW <= wanted * (1 + HOLD_JITTER) + timedelta(microseconds=1)
    else:
        assert outcome.tier in tiers


@given(tiers, delays, st.integers())
def test_a_tier_is_the_first_long_enough_or_its_neighbour(
    tiers: tuple[timedelta, ...], delay: timedelta, seed: int
) -> None:
    chosen = pick_tier(tiers, delay, Random(seed))
    enough = [tier for tier in tiers if tier >= delay]
    assert chosen in enough[:2] if enough else chosen is None


def test_a_provider_cannot_ask_for_more_than_a_day() -> None:
    failure = TransientFailure(Reason.RATE_LIMITED, "later", retry_after=timedelta(days=400))
    outcome = RetryPolicy().next_attempt(1, failure, NOW, Random(1))
    assert isinstance(outcome, Hold)
    assert outcome.at - NOW <= LONGEST_WAIT * (1 + HOLD_JITTER)


def test_a_permanent_failure_is_not_repeated() -> None:
    outcome = RetryPolicy().next_attempt(1, PermanentFailure(Reason.BAD_ADDRESS, "no"), NOW, Random(1))
    assert outcome == Failed(Reason.BAD_ADDRESS, "no")


def test_an_unknown_outcome_follows_the_semantics() -> None:
    lost = UnknownOutcome(Reason.CONNECTION_LOST, "after DATA")
    again = RetryPolicy().next_attempt(1, lost, NOW, Random(1))
    assert isinstance(again, Retry)
    assert again.possible_duplicate
    once = RetryPolicy(semantics=Semantics.AT_MOST_ONCE).next_attempt(1, lost, NOW, Random(1))
    assert once == Unknown(Reason.CONNECTION_LOST, "after DATA")


def test_the_default_is_seven_attempts() -> None:
    assert RetryPolicy().attempts == 7

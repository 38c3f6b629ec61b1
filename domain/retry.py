"""When a failed attempt is made again: a pure value, clock and randomness passed in."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import assert_never

from domain.failures import DeliveryFailure, PermanentFailure, TransientFailure, UnknownOutcome
from domain.outcome import Failed, Hold, Outcome, Retry, Unknown
from domain.vocabulary import Reason, Semantics

DEFAULT_SCHEDULE = tuple(timedelta(seconds=s) for s in (5, 45, 300, 1800, 7200, 21600))
DEFAULT_TIERS = tuple(timedelta(seconds=s) for s in (5, 15, 45, 120, 300, 600))
LONGEST_WAIT = timedelta(days=1)
"""A provider that asks for more (Retry-After) is asked again after this."""
HOLD_JITTER = 0.1
"""A held retry comes up to this part later than scheduled, so that a million of them do not come at once."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, how soon, and what an unknown outcome means.

    Attributes:
        schedule: the wait after each failed attempt; attempts = 1 + its length.
        tiers: the lengths of the retry queues, ascending; a longer wait is held in the database.
        semantics: whether an unknown outcome is sent again.
    """

    schedule: tuple[timedelta, ...] = DEFAULT_SCHEDULE
    tiers: tuple[timedelta, ...] = DEFAULT_TIERS
    semantics: Semantics = Semantics.AT_LEAST_ONCE

    @property
    def attempts(self) -> int:
        """How many attempts there are in all."""
        return 1 + len(self.schedule)

    def next_attempt(self, attempt: int, failure: DeliveryFailure, now: datetime, rng: Random) -> Outcome:
        """Decide what follows attempt number `attempt` (from 1), which ended in `failure` at `now`."""
        match failure:
            case PermanentFailure():
                return Failed(failure.reason, failure.detail, address_suppressed=failure.suppress)
            case UnknownOutcome() if self.semantics is Semantics.AT_MOST_ONCE:
                return Unknown(failure.reason, failure.detail)
            case UnknownOutcome() | TransientFailure():
                return self._again(attempt, failure, now, rng)
            case DeliveryFailure():
                return Failed(Reason.INTERNAL_ERROR, failure.detail)
            case _:  # pragma: no cover
                assert_never(failure)

    def _again(self, attempt: int, failure: DeliveryFailure, now: datetime, rng: Random) -> Outcome:
        if attempt >= self.attempts:
            unknown = isinstance(failure, UnknownOutcome)
            return Failed(failure.reason, f"gave up after {attempt} attempts: {failure.detail}", unknown)
        asked = min(failure.retry_after or timedelta(0), LONGEST_WAIT)
        delay = max(self.schedule[attempt - 1], asked)
        duplicate = isinstance(failure, UnknownOutcome)
        tier = pick_tier(self.tiers, delay, rng)
        if tier is not None:
            return Retry(failure.reason, failure.detail, tier, now + tier, duplicate)
        return Hold(failure.reason, failure.detail, now + delay * (1 + HOLD_JITTER * rng.random()), duplicate)


def pick_tier(tiers: Sequence[timedelta], delay: timedelta, rng: Random) -> timedelta | None:
    """Choose a retry queue: the first that waits long enough or its next neighbour, at random; None if all are shorter.

    Never earlier than asked, so a Retry-After is honoured; the choice spreads those that failed together.
    """
    long_enough = [tier for tier in tiers if tier >= delay][:2]
    return rng.choice(long_enough) if long_enough else None

"""How fast a provider may be used: a token bucket, and the turns of those that wait for a token.

A token bucket fills at the rate and holds one second's worth, at least one token; each attempt takes one. A limit that
many processes share is divided among them (`Limiter.share`), so that no attempt asks anybody.
"""

import asyncio
import re
from bisect import bisect_left, insort
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from typing import Annotated, Final

from pydantic import BeforeValidator, PlainSerializer

from domain.ports import Now
from domain.vocabulary import Lane

LONGEST_WAIT: Final = timedelta(seconds=15)
"""For a token, with a message in hand; a delivery that would wait for longer is held in the database.

Hundreds of deliveries may share a message, and a consumer has as many messages in hand as attempts. What they have
waited in hand counts for each, so that all of them are claimed or held long before the sweeper takes them for lost
(`sweeper.overdue`) and RabbitMQ loses patience (`consumer_timeout`, 30 minutes).
"""
PATIENCE: Final = 2 * LONGEST_WAIT
"""After which one that others have overtaken again and again is held too."""
LONGEST_HELD: Final = timedelta(hours=1)
"""Before a delivery that is held asks again: the rate, and how many share it, may have changed."""
LOOK_SECONDS: Final = 1.0
"""Between two looks at most: at one's place, at the rate, and whether the process stops."""
SHORTEST_SECONDS: Final = 0.001
"""Between two looks at least."""
_ALMOST: Final = 1 - 1e-9
"""Of a token: sums of fractions fall short of a whole one."""
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_FORM: Final = re.compile(r"(\d{1,9})\s*/\s*([smhd])")
_RANKS: Final = {Lane.HIGH: 0, Lane.NORMAL: 1, Lane.BULK: 2}


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in one unit of time (`s`, `m`, `h` or `d`)."""

    count: int
    unit: str

    @property
    def per_second(self) -> float:
        """The same in one second."""
        return self.count / _UNITS[self.unit]

    def __str__(self) -> str:
        """As people write it: `600/m`."""
        return f"{self.count}/{self.unit}"


def parse_rate(value: object) -> Rate:
    """Read `100/s`, `600/m`, `10000/h` or `200/d`.

    Raises:
        ValueError: it is none of these; the message shows the form.
    """
    if isinstance(value, Rate):
        return value
    match = _FORM.fullmatch(str(value).strip())
    if match is None or int(match[1]) == 0:
        raise ValueError("should be a rate such as 100/s, 600/m, 10000/h or 200/d")
    return Rate(int(match[1]), match[2])


RateSetting = Annotated[Rate, BeforeValidator(parse_rate), PlainSerializer(str, return_type=str)]


@dataclass(slots=True)
class Bucket:
    """A token bucket.

    Attributes:
        rate: tokens in a second; more than none.
        at: when `tokens` was counted.
        tokens: less than none is a debt, which is filled up first.
    """

    rate: float
    at: datetime
    tokens: float = 1.0

    @property
    def size(self) -> float:
        """What it holds at most: one second's worth, so that a pause is not made up for in a burst."""
        return max(1.0, self.rate)

    def take(self, now: datetime) -> bool:
        """Take a token, if there is one."""
        self._fill(now)
        if self.tokens < _ALMOST:
            return False
        self.tokens -= 1
        return True

    def wait(self, now: datetime, ahead: int = 0) -> float:
        """Seconds until there is a token for one that lets `ahead` others go first."""
        self._fill(now)
        return max(0.0, (ahead + 1 - self.tokens) / self.rate)

    def give_back(self, now: datetime) -> None:
        """Put a token back that was taken for nothing."""
        self._fill(now)
        self.tokens = min(self.size, self.tokens + 1)

    def refill(self, rate: float, now: datetime) -> None:
        """From now on at this rate."""
        self._fill(now)
        self.rate = rate
        self.tokens = min(self.tokens, self.size)

    def _fill(self, now: datetime) -> None:
        passed = max(0.0, (now - self.at).total_seconds())  # a clock that is set back fills nothing
        self.at, self.tokens = now, min(self.size, self.tokens + passed * self.rate)


@dataclass(slots=True)
class Limiter:
    """Lets deliveries pass at a rate; the lanes in their order, in each the first first.

    Attributes:
        rate: of all processes together.
        stopping: whether no more attempts should be begun.
    """

    rate: Rate
    now: Now
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    stopping: Callable[[], bool] = lambda: False
    bucket: Bucket = field(init=False)
    _waiting: list[tuple[int, int]] = field(default_factory=list)
    _numbers: "count[int]" = field(default_factory=count)
    _last_held: dict[int, datetime] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """All of the rate is this process's, until it learns of others."""
        self.bucket = Bucket(self.rate.per_second, self.now())

    @property
    def told(self) -> str:
        """For people."""
        return f"the provider is used as fast as its rate of {self.rate} allows"

    def share(self, processes: int, *, unknown_for: timedelta = timedelta(0)) -> None:
        """From now on one of so many; the others learn of it within `unknown_for`, and spend its share until then."""
        self.bucket.refill(self.rate.per_second / processes, self.now())
        if unknown_for:
            self.bucket.tokens = -self.bucket.rate * unknown_for.total_seconds()

    async def turn(self, lane: Lane, waited: timedelta = timedelta(0)) -> datetime | None:
        """Wait for a token and take it; or the time until which the delivery should be held, without one.

        `waited`: how long it has been in hand already.
        """
        if not self._waiting and self.bucket.take(self.now()):
            return None
        place = (_RANKS[lane], next(self._numbers))
        if self._turn_at(place) > self.now() + LONGEST_WAIT - waited:
            return self._held(place)
        insort(self._waiting, place)
        try:
            return await self._came(place, self.now() + PATIENCE - waited)
        finally:
            self._waiting.remove(place)

    def unused(self) -> None:
        """Nothing was sent with the token of the last turn: the next one has it."""
        self.bucket.give_back(self.now())

    async def _came(self, place: tuple[int, int], deadline: datetime) -> datetime | None:
        while not self.stopping() and self.now() < deadline:
            ahead = self._waiting.index(place)
            if ahead == 0 and self.bucket.take(self.now()):
                return None
            await self.sleep(min(LOOK_SECONDS, max(SHORTEST_SECONDS, self.bucket.wait(self.now(), ahead))))
        return min(self._turn_at(place), self.now() + LONGEST_HELD)

    def _held(self, place: tuple[int, int]) -> datetime:
        """After those of its lane that are held already, so that they come back one by one.

        Where these are more than come back within `LONGEST_HELD`, beside them, from the first on.
        """
        latest = self.now() + LONGEST_HELD
        first, apart = min(self._turn_at(place), latest), timedelta(seconds=1 / self.bucket.rate)
        before = self._last_held.get(place[0])
        held = max(first, before + apart) if before else first
        self._last_held[place[0]] = held if held <= latest else first
        return self._last_held[place[0]]

    def _turn_at(self, place: tuple[int, int]) -> datetime:
        """When it would have a token, as things are."""
        now = self.now()
        return now + timedelta(seconds=self.bucket.wait(now, bisect_left(self._waiting, place)))

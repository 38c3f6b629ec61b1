"""How fast a provider is used: the arithmetic of the bucket, and turns in simulated time."""

import asyncio
import heapq
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.pools import RENEWED_EVERY, Sharing
from domain.rate import LONGEST_HELD, LONGEST_WAIT, Bucket, Limiter, Rate, parse_rate
from domain.vocabulary import Lane
from tests.fakes import START, Clock

RATES = st.floats(0.01, 5000)
PAUSES = st.lists(st.floats(0, 30), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("text", "per_second"), [("100/s", 100), ("600/m", 10), ("36000/h", 10), (" 1 / m ", 1 / 60), ("86400/d", 1)]
)
def test_a_rate_is_so_many_in_a_unit_of_time(text: str, per_second: float) -> None:
    assert parse_rate(text).per_second == pytest.approx(per_second)


def test_a_rate_is_written_as_it_is_read() -> None:
    assert str(parse_rate("600/m")) == "600/m"
    assert parse_rate(Rate(600, "m")) == Rate(600, "m")


@pytest.mark.parametrize("wrong", ["", "100", "0/s", "-1/s", "1.5/s", "10/w", "s/10", 5, None])
def test_what_is_no_rate_is_told_with_an_example(wrong: object) -> None:
    with pytest.raises(ValueError, match="such as 100/s"):
        parse_rate(wrong)


@given(RATES, PAUSES)
def test_no_more_is_taken_than_the_rate_and_one_seconds_worth(rate: float, pauses: list[float]) -> None:
    bucket, now, taken = Bucket(rate, START), START, 0
    for pause in pauses:
        now += timedelta(seconds=pause)
        while bucket.take(now):
            taken += 1
    assert taken <= max(1.0, rate) + rate * (now - START).total_seconds() + 1e-6 * len(pauses) * rate + 1e-6


@given(RATES, st.integers(0, 200))
def test_the_wait_is_as_long_as_it_takes_and_no_longer(rate: float, ahead: int) -> None:
    bucket = Bucket(rate, START)
    while bucket.take(START):
        pass
    wait = bucket.wait(START, ahead)
    assert wait == pytest.approx((ahead + 1 - bucket.tokens) / rate)
    early, late = Bucket(rate, START, bucket.tokens - ahead), Bucket(rate, START, bucket.tokens - ahead)
    assert not early.take(START + timedelta(seconds=wait * 0.99 - 2e-6))
    assert late.take(START + timedelta(seconds=wait) + timedelta(microseconds=2))


@given(RATES, st.floats(-100, 0))
def test_a_clock_that_is_set_back_gives_nothing_away(rate: float, back: float) -> None:
    bucket = Bucket(rate, START)
    while bucket.take(START):
        pass
    assert not bucket.take(START + timedelta(seconds=back))


@dataclass
class Time:
    """A clock that goes on to whatever is slept for next."""

    clock: Clock = field(default_factory=Clock)
    _sleeping: list[tuple[datetime, int, "asyncio.Future[None]"]] = field(default_factory=list)
    _numbers: "count[int]" = field(default_factory=count)

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleeping, (self.clock() + timedelta(seconds=seconds), next(self._numbers), future))
        await future

    async def run(self, *work: Coroutine[Any, Any, Any]) -> list[Any]:
        tasks = [asyncio.create_task(each) for each in work]
        while not all(task.done() for task in tasks):
            for _ in range(3):
                await asyncio.sleep(0)
            if self._sleeping:
                at, _, future = heapq.heappop(self._sleeping)
                self.clock.time = max(self.clock.time, at)
                if not future.done():
                    future.set_result(None)
        return [task.result() for task in tasks]


@pytest.fixture
def time() -> Time:
    return Time()


def limiter(time: Time, rate: str, **more: Any) -> Limiter:
    return Limiter(parse_rate(rate), time.clock, time.sleep, **more)


async def passed_at(limiter: Limiter, lane: Lane = Lane.NORMAL) -> tuple[datetime, datetime | None]:
    held = await limiter.turn(lane)
    return limiter.now(), held


async def test_what_finds_a_token_waits_for_nothing(time: Time) -> None:
    assert await limiter(time, "5/s").turn(Lane.NORMAL) is None
    assert time.clock() == START


async def test_those_that_wait_pass_one_by_one_at_the_rate(time: Time) -> None:
    ten = limiter(time, "10/s")
    passed = await time.run(*(passed_at(ten) for _ in range(50)))
    assert [held for _, held in passed] == [None] * 50
    took = (max(at for at, _ in passed) - START).total_seconds()
    assert 4.85 <= took <= 5.2, "one to begin with, then ten in a second"
    assert not ten._waiting


async def test_urgent_ones_do_not_wait_behind_a_broadcast(time: Time) -> None:
    one = limiter(time, "1/s")
    await one.turn(Lane.HIGH)
    bulk = [passed_at(one, Lane.BULK) for _ in range(20)]
    *_, (urgent, _) = await time.run(*bulk, passed_at(one, Lane.HIGH))
    assert (urgent - START).total_seconds() <= 2.1


async def test_what_would_wait_for_too_long_is_held_and_comes_back_one_by_one(time: Time) -> None:
    slow = limiter(time, "120/m")
    results = await time.run(*(passed_at(slow) for _ in range(50)))
    held = [until for _, until in results if until is not None]
    assert len(held) == 50 - 1 - 30
    assert min(held) >= START + LONGEST_WAIT
    assert all(later - earlier >= timedelta(seconds=0.499) for earlier, later in pairwise(sorted(held)))


async def test_an_urgent_one_that_is_held_does_not_come_back_after_a_broadcast(time: Time) -> None:
    one = limiter(time, "1/h")
    await one.turn(Lane.BULK)
    broadcast = [await one.turn(Lane.BULK) for _ in range(1000)]
    assert set(broadcast) == {START + LONGEST_HELD}, "asks again, for the rate may have changed"
    assert await one.turn(Lane.HIGH) == START + timedelta(hours=1)


async def test_more_than_can_come_back_in_time_come_back_evenly(time: Time) -> None:
    slow = limiter(time, "600/h")
    await slow.turn(Lane.NORMAL)
    ten_hours = [await slow.turn(Lane.NORMAL, LONGEST_WAIT) for _ in range(6000)]
    assert max(until for until in ten_hours if until) <= START + LONGEST_HELD
    assert max(Counter(ten_hours).values()) <= 11


async def test_what_was_waited_for_already_counts(time: Time) -> None:
    one = limiter(time, "1/s")
    assert await one.turn(Lane.NORMAL, LONGEST_WAIT * 9) is None, "who need not wait"
    assert await one.turn(Lane.NORMAL, LONGEST_WAIT) == START + timedelta(seconds=1)
    assert await time.run(passed_at(one)) == [(START + timedelta(seconds=1), None)]


async def test_a_token_that_was_taken_for_nothing_is_the_nexts(time: Time) -> None:
    one = limiter(time, "1/h")
    for _ in range(3):
        assert await one.turn(Lane.NORMAL) is None
        one.unused()
    one.unused()
    assert one.bucket.tokens == one.bucket.size


async def test_a_process_that_stops_keeps_nobody_waiting(time: Time) -> None:
    stopping: list[bool] = []
    one = limiter(time, "1/s", stopping=lambda: bool(stopping))

    async def stop() -> None:
        await time.sleep(2)
        stopping.append(True)

    *results, _ = await time.run(*(passed_at(one) for _ in range(30)), stop())
    held = [until for _, until in results if until is not None]
    assert len(held) >= 26
    assert min(held) <= time.clock() + timedelta(seconds=1), "they come back when it would have been their turn"
    assert time.clock() - START <= timedelta(seconds=4)


async def test_one_that_waits_and_is_cancelled_leaves_its_place(time: Time) -> None:
    one = limiter(time, "1/s")
    await one.turn(Lane.NORMAL)
    waiting = asyncio.create_task(one.turn(Lane.NORMAL))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert not one._waiting


@pytest.mark.parametrize("processes", [1, 2, 5])
async def test_processes_share_a_rate_evenly(time: Time, processes: int) -> None:
    several = [limiter(time, "100/s") for _ in range(processes)]
    for each in several:
        each.share(processes)
        each.bucket.tokens = 0

    async def use(each: Limiter) -> int:
        passed = 0
        while time.clock() < START + timedelta(seconds=10):
            passed += await each.turn(Lane.NORMAL) is None
        return passed

    used = await time.run(*map(use, several))
    assert sum(used) == pytest.approx(1000, rel=0.02)
    assert max(used) - min(used) <= 2


@dataclass
class Register:
    """Who shares, as the database would have it."""

    members: set[str] = field(default_factory=set)

    def of(self, owner: str) -> "Share":
        return Share(self, owner)


@dataclass
class Share:
    register: Register
    owner: str

    async def renew(self, lease: timedelta) -> int:
        self.register.members.add(self.owner)
        return len(self.register.members)

    async def leave(self) -> None:
        self.register.members.discard(self.owner)


async def test_one_that_comes_waits_until_the_others_know_of_it(time: Time) -> None:
    register = Register()
    first, second = limiter(time, "100/s"), limiter(time, "100/s")
    one = Sharing({"rate/email/p": first}, lambda _: register.of("one"))
    two = Sharing({"rate/email/p": second}, lambda _: register.of("two"))
    await one.begin()
    assert first.bucket.rate == 100
    assert await first.turn(Lane.NORMAL) is None
    await two.begin()
    assert second.bucket.wait(time.clock()) >= RENEWED_EVERY.total_seconds()
    await one.renew()
    assert (first.bucket.rate, second.bucket.rate) == (50, 50)
    await two.leave()
    await one.renew()
    assert first.bucket.rate == 100

"""The health of endpoints: the same over the in-memory store and MongoDB; then what a provider makes of it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from hashlib import sha256

import pytest

from channels.endpoints import EndpointHealth
from domain.failures import PermanentFailure, TransientFailure, UnknownOutcome
from domain.ports import Endpoints, Failing
from domain.vocabulary import Reason
from storage.database import connect
from storage.endpoints import MongoEndpoints
from tests.fakes import START, Clock, MemoryEndpoints
from tests.waiting import eventually

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
URL = "https://shop.example/hook?token=sesame"
DOWN = TransientFailure(Reason.PROVIDER_UNAVAILABLE, "HTTP 503")


@pytest.fixture(params=["memory", "mongodb"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Endpoints]:
    if request.param == "memory":
        yield MemoryEndpoints()
        return
    async with connect(request.getfixturevalue("database_url")) as database:
        await database.ensure_indexes()
        yield MongoEndpoints(database)


async def test_failures_count_from_the_first(store: Endpoints) -> None:
    assert await store.failing("a", START) == Failing(START, START)
    assert await store.failing("a", START + DAY) == Failing(START, START)
    assert await store.failing("a", START + 2 * DAY) == Failing(START, START + DAY)
    assert await store.failing("b", START + DAY) == Failing(START + DAY, START + DAY)


async def test_an_answer_ends_it(store: Endpoints) -> None:
    await store.answered(["nobody"])
    for key in "abc":
        await store.failing(key, START)
    await store.answered(["a", "b", "nobody"])
    assert await store.failing("a", START + DAY) == Failing(START + DAY, START + DAY)
    assert await store.failing("c", START + DAY) == Failing(START, START)


async def test_a_failure_after_an_answer_counts_from_itself(store: Endpoints) -> None:
    await store.failing("a", START)
    assert await store.failing("a", START + DAY, afresh=True) == Failing(START + DAY, START + DAY)
    assert await store.failing("a", START + 2 * DAY) == Failing(START + DAY, START + DAY)


# --- what is made of it -----------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def health(store: Endpoints, clock: Clock) -> AsyncIterator[EndpointHealth]:
    made = EndpointHealth(store, 5 * DAY, clock)
    yield made
    await made.close()


async def test_five_days_of_failures_end_it(health: EndpointHealth, clock: Clock) -> None:
    for failure in (DOWN, UnknownOutcome(Reason.TIMEOUT, "no answer"), DOWN, DOWN, DOWN):
        assert await health.failed(URL, failure) is failure
        clock.advance(DAY)
    verdict = await health.failed(URL, DOWN)
    assert type(verdict) is PermanentFailure
    assert (verdict.reason, verdict.suppress) == (Reason.ENDPOINT_GONE, True)
    assert verdict.detail == "HTTP 503; it has only failed since 2026-11-22 17:00 UTC: disabled"
    assert not verdict.provider_fault
    assert await health.failed(URL, DOWN) is DOWN, "called again by an operator's wish, its days begin anew"


async def test_what_may_have_arrived_stays_unknown_and_leaves_the_verdict_to_the_next(
    health: EndpointHealth, clock: Clock
) -> None:
    for _ in range(5):
        await health.failed(URL, DOWN)
        clock.advance(DAY)
    hangs = UnknownOutcome(Reason.TIMEOUT, "no answer")
    assert await health.failed(URL, hangs) is hangs
    assert (await health.failed(URL, DOWN)).suppress


async def hanging_for_days(health: EndpointHealth, clock: Clock) -> None:
    hangs = UnknownOutcome(Reason.OUTCOME_UNKNOWN, "HTTP 502")
    for _ in range(6):
        assert await health.refused(URL) is None
        assert await health.failed(URL, hangs) is hangs
        clock.advance(DAY)


async def test_one_that_never_tells_whether_it_arrived_is_sent_no_more(health: EndpointHealth, clock: Clock) -> None:
    await hanging_for_days(health, clock)
    assert await health.refused(URL + "2") is None
    verdict = await health.refused(URL)
    assert type(verdict) is PermanentFailure
    assert (verdict.reason, verdict.suppress) == (Reason.ENDPOINT_GONE, True)
    assert verdict.detail == "HTTP 502; it has only failed since 2026-11-22 17:00 UTC: disabled"
    assert await health.refused(URL) is None, "called again by an operator's wish, its days begin anew"
    assert await health.failed(URL, DOWN) is DOWN


async def test_what_is_not_sent_any_more_is_after_all_where_there_was_an_answer(store: Endpoints, clock: Clock) -> None:
    here, there = EndpointHealth(store, 5 * DAY, clock), EndpointHealth(store, 5 * DAY, clock)
    for answering in (here, there):
        await hanging_for_days(here, clock)
        answering.succeeded(URL)
        await answering.close()
        assert await here.refused(URL) is None
    await here.close()


async def test_after_a_silence_what_may_have_arrived_last_refuses_nothing(health: EndpointHealth, clock: Clock) -> None:
    await hanging_for_days(health, clock)
    clock.advance(DAY)
    assert await health.refused(URL) is None


async def test_one_answer_between_begins_them_anew(health: EndpointHealth, clock: Clock) -> None:
    await health.failed(URL, DOWN)
    clock.advance(4 * DAY)
    health.succeeded(URL)
    clock.advance(HOUR)
    assert await health.failed(URL, DOWN) is DOWN
    clock.advance(4 * DAY)
    assert await health.failed(URL, DOWN) is DOWN
    clock.advance(DAY)
    assert (await health.failed(URL, DOWN)).suppress


async def test_an_answer_that_another_process_had_counts(store: Endpoints, clock: Clock) -> None:
    here, there = EndpointHealth(store, 5 * DAY, clock), EndpointHealth(store, 5 * DAY, clock)
    await here.failed(URL, DOWN)
    there.succeeded(URL)
    await there.close()
    clock.advance(5 * DAY)
    assert await here.failed(URL, DOWN) is DOWN
    await here.close()


async def test_the_store_is_told_of_answers_after_a_while(
    store: Endpoints, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("channels.endpoints.TELL_SECONDS", 0.02)
    here, there = EndpointHealth(store, 5 * DAY, clock), EndpointHealth(store, 5 * DAY, clock)
    await here.failed(URL, DOWN)
    there.succeeded(URL)
    clock.advance(5 * DAY)

    key = sha256(URL.encode()).hexdigest()

    async def told() -> bool:
        return (await store.failing(key, clock())).since == clock()

    assert not await told()
    await eventually(told)
    await here.close()
    await there.close()


async def test_each_endpoint_is_judged_by_itself(health: EndpointHealth, clock: Clock) -> None:
    await health.failed(URL, DOWN)
    clock.advance(5 * DAY)
    await health.failed(URL, DOWN)
    assert await health.failed(URL + "2", DOWN) is DOWN
    assert (await health.failed(URL, DOWN)).suppress


async def test_after_a_silence_one_failure_says_nothing(health: EndpointHealth, clock: Clock) -> None:
    await health.failed(URL, DOWN)
    clock.advance(50 * DAY)
    assert await health.failed(URL, DOWN) is DOWN, "it may have been repaired long ago, and this be bad luck"
    clock.advance(timedelta(seconds=5))
    assert (await health.failed(URL, DOWN)).suppress


class Counting(MemoryEndpoints):
    """Counts what is asked of it."""

    calls = 0

    async def failing(self, key: str, now: datetime, *, afresh: bool = False) -> Failing:
        self.calls += 1
        assert "sesame" not in key
        return await super().failing(key, now, afresh=afresh)


async def test_an_endpoint_that_stays_down_costs_the_store_next_to_nothing(clock: Clock) -> None:
    store = Counting()
    health = EndpointHealth(store, 5 * DAY, clock)
    for _ in range(1000):
        await health.failed(URL, DOWN)
        clock.advance(timedelta(milliseconds=500))
    assert store.calls == 1


class Away(MemoryEndpoints):
    """Waits for ever, or raises, until it is there again."""

    how: str | None = None

    async def failing(self, key: str, now: datetime, *, afresh: bool = False) -> Failing:
        if self.how == "silent":
            await asyncio.Event().wait()
        elif self.how == "broken":
            raise OSError
        return await super().failing(key, now, afresh=afresh)


@pytest.mark.parametrize("how", ["silent", "broken"])
async def test_a_store_that_is_away_changes_nothing(clock: Clock, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr("channels.endpoints.STORE_SECONDS", 0.05)
    store = Away()
    health = EndpointHealth(store, 5 * DAY, clock)
    await health.failed(URL, DOWN)
    health.succeeded(URL)
    store.how = how
    assert await health.failed(URL, DOWN) is DOWN
    health._condemned[sha256(URL.encode()).hexdigest()] = "HTTP 502"
    assert await health.refused(URL) is None
    clock.advance(5 * DAY)
    store.how = None
    for _ in range(2):
        assert await health.failed(URL, DOWN) is DOWN, (
            "the answer that the store was not told of has not been forgotten"
        )
    await health.close()

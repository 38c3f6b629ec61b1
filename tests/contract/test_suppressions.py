"""The same cases over the suppression list in memory and over MongoDB; and what MongoDB's alone does for operators."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import AsyncMock

import pytest

from domain.suppression import Suppression, Suppressions, address_key
from domain.vocabulary import Channel, SuppressionReason
from storage.database import Database, connect
from storage.suppressions import MongoSuppressions, SuppressionFilter
from tests.fakes import MemorySuppressions

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)


def entry(name: str = "ana", **more: Any) -> Suppression:
    values: dict[str, Any] = {
        "channel": Channel.EMAIL,
        "address": f"{name}@example.org",
        "reason": SuppressionReason.HARD_BOUNCE,
        "source": "receipt:ses",
        "since": NOW,
    }
    return Suppression(**{**values, **more})


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with connect(database_url) as database:
        await database.ensure_indexes()
        yield database


@pytest.fixture(params=["memory", "mongodb", "mongodb, held in memory", "mongodb, too long to hold"])
async def suppressions(request: pytest.FixtureRequest) -> AsyncIterator[Suppressions]:
    if request.param == "memory":
        yield MemorySuppressions()
        return
    async with connect(request.getfixturevalue("database_url")) as database:
        await database.ensure_indexes()
        found = MongoSuppressions(database, limit=0 if "too long" in request.param else 100_000)
        if request.param != "mongodb":
            await found.refresh()
        yield found


async def test_an_address_is_suppressed_at_once_and_no_other_is(suppressions: Suppressions) -> None:
    await suppressions.add(entry())
    ana, ben = address_key(Channel.EMAIL, "ANA@example.org"), address_key(Channel.EMAIL, "ben@example.org")
    assert await suppressions.among([ana, ben]) == {ana: entry()}
    assert await suppressions.among([ben]) == await suppressions.among([]) == {}


async def test_what_is_in_force_stays_as_it_is(suppressions: Suppressions) -> None:
    await suppressions.add(entry(reason=SuppressionReason.MANUAL, source="operator"))
    await suppressions.add(entry(since=NOW + HOUR))
    (found,) = (await suppressions.among([entry().key])).values()
    assert (found.reason, found.since) == (SuppressionReason.MANUAL, NOW)


async def test_what_has_expired_is_suppressed_anew(suppressions: Suppressions) -> None:
    await suppressions.add(entry(expires_at=NOW - HOUR))
    assert await suppressions.among([entry().key]) == {}
    await suppressions.add(entry(expires_at=NOW + HOUR))
    assert await suppressions.among([entry().key]) == {entry().key: entry(expires_at=NOW + HOUR)}


async def test_many_at_once(suppressions: Suppressions) -> None:
    entries = [entry(f"user-{number % 100}") for number in range(300)]
    await asyncio.gather(*map(suppressions.add, entries))
    keys = [each.key for each in entries]
    found = await asyncio.gather(*(suppressions.among(keys[start : start + 30]) for start in range(0, 300, 30)))
    assert all(len(some) == 30 for some in found)


async def test_a_soft_bounce_counts_once_for_each_delivery(suppressions: Suppressions) -> None:
    counts = [await suppressions.soft_bounced("email/a", ref) for ref in ("d-1/1", "d-1/1", "d-2/1")]
    assert counts == [1, 1, 2]
    assert await suppressions.soft_bounced("email/b", "d-1/1") == 1
    await suppressions.forget_soft_bounces("email/a")
    await suppressions.forget_soft_bounces("email/nobody")
    assert await suppressions.soft_bounced("email/a", "d-3/1") == 1
    assert await suppressions.soft_bounced("email/b", "d-2/1") == 2


# ---------------------------------------------------------------------------------------------------------------
# MongoDB's alone
# ---------------------------------------------------------------------------------------------------------------


async def test_another_process_learns_of_it_at_its_next_look(database: Database) -> None:
    mine, other = MongoSuppressions(database), MongoSuppressions(database)
    await other.refresh()
    await mine.add(entry())
    assert await other.among([entry().key]) == {}
    await other.refresh()
    assert list(await other.among([entry().key])) == [entry().key]
    await mine.remove([entry().key])
    assert await other.among([entry().key]) == {}, "removed: the database is asked for what memory thinks it knows"


async def test_nobody_is_forgotten_while_all_is_read_anew(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.suppressions.ANEW", timedelta(0))
    held, other = MongoSuppressions(database), MongoSuppressions(database)
    await held.put([entry()])
    await held.refresh()
    read = held._fingerprints
    found: list[str] = []
    added = iter([(other, "theirs"), (held, "mine")])

    async def slow(since: datetime) -> set[int]:
        found.extend(await held.among([entry().key]))
        fingerprints = await read(since)
        where, name = next(added)
        await where.add(entry(name))
        return fingerprints

    with monkeypatch.context() as patch:
        patch.setattr(held, "_fingerprints", slow)
        await held.refresh()
    assert set(found) == {entry().key}
    keys = [entry(name).key for name in ("ana", "mine", "theirs")]
    assert sorted(await held.among(keys)) == sorted(keys)


async def test_what_cannot_be_read_anew_stays_known(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.suppressions.ANEW", timedelta(0))
    held = MongoSuppressions(database)
    await held.put([entry()])
    await held.refresh()
    with monkeypatch.context() as patch:
        patch.setattr(held, "_fingerprints", AsyncMock(side_effect=ConnectionError))
        with pytest.raises(ConnectionError):
            await held.refresh()
    assert list(await held.among([entry().key])) == [entry().key]


async def test_an_entry_that_cannot_be_read_is_its_own_readers_fault_alone(database: Database) -> None:
    found = MongoSuppressions(database)
    await found.put([entry(), entry("ben")])
    await database.collection("suppressions").update_one({"_id": entry("ben").key}, {"$unset": {"since": ""}})
    good, bad = await asyncio.gather(
        found.among([entry().key]), found.among([entry("ben").key]), return_exceptions=True
    )
    assert good == {entry().key: entry()}
    assert isinstance(bad, KeyError)


async def test_a_list_that_outgrows_memory_is_asked_for(database: Database) -> None:
    small, other = MongoSuppressions(database, limit=3), MongoSuppressions(database)
    await small.refresh()
    await other.put([entry(f"user-{number}") for number in range(5)])
    await small.refresh()
    keys = [entry(f"user-{number}").key for number in range(6)]
    assert sorted(await small.among(keys)) == sorted(keys[:5])


async def test_nothing_is_asked_of_the_database_for_an_address_that_is_not_known(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = MongoSuppressions(database)
    await held.add(entry())
    await held.refresh()

    async def never(_: Any) -> Any:
        raise AssertionError("a query")

    monkeypatch.setattr(database, "run", never)
    assert await held.among([entry("ben").key]) == {}
    with pytest.raises(AssertionError, match="a query"):
        await held.among([entry().key])


async def test_an_operators_entry_takes_the_place_of_what_is_there(database: Database) -> None:
    found = MongoSuppressions(database)
    await found.add(entry(expires_at=NOW + HOUR))
    again = entry(reason=SuppressionReason.MANUAL, source="operator", since=NOW + HOUR)
    assert await found.put([again, entry("ben"), entry("ben")]) == 1
    assert await found.among([again.key]) == {again.key: again}


async def test_who_is_used_again_has_no_past(database: Database) -> None:
    found = MongoSuppressions(database)
    await found.add(entry())
    await found.soft_bounced(entry().key, "d-1/1")
    assert await found.remove([entry().key, entry("nobody").key]) == 1
    assert await found.among([entry().key]) == {}
    assert await found.soft_bounced(entry().key, "d-2/1") == 1


async def test_the_list_is_in_order_filtered_and_without_what_has_expired(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.suppressions.PAGE", 2)
    found = MongoSuppressions(database)
    await found.put([entry(f"user-{number}", since=NOW + HOUR * (number // 2)) for number in range(6)])
    await found.put([entry("old", expires_at=NOW - HOUR), entry("sms", channel=Channel.SMS, address="+4915112345678")])

    async def listed(chosen: SuppressionFilter, limit: int | None = None) -> list[str]:
        return [each.address async for each in found.listed(chosen, limit)]

    everything = await listed(SuppressionFilter())
    assert len(everything) == len(set(everything)) == 7
    assert [name[5] for name in await listed(SuppressionFilter(channel=Channel.EMAIL), 2)] in [["4", "5"], ["5", "4"]]
    assert await listed(SuppressionFilter(channel=Channel.SMS)) == ["+4915112345678"]
    assert len(await listed(SuppressionFilter(since=NOW + HOUR))) == 4
    assert await listed(SuppressionFilter(reason=SuppressionReason.COMPLAINT)) == []


async def test_the_look_for_what_is_new_reads_keys_alone(database: Database) -> None:
    found = MongoSuppressions(database)
    await found.put([entry(f"user-{number}") for number in range(20)])
    collection = database.collection("suppressions")
    query = {"updated_at": {"$gt": datetime.min.replace(tzinfo=UTC)}}
    plan = await collection.find(query, {"_id": 1, "updated_at": 1}).hint("changed").explain()
    assert plan["executionStats"]["totalDocsExamined"] == 0
    assert plan["executionStats"]["nReturned"] == 20

"""The same cases over the suppression list in memory and over MongoDB; and what MongoDB's alone does for operators."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import AsyncMock

import pytest
from bson import DatetimeMS, ObjectId

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


LATER: dict[str, dict[str, Any]] = {
    "an entry that stays": {},
    "one that expires later": {"expires_at": NOW + 3 * HOUR},
}


@pytest.mark.parametrize("more", LATER.values(), ids=LATER)
@pytest.mark.parametrize("at_once", [True, False])
async def test_what_lasts_longer_takes_the_place_of_what_will_expire(
    suppressions: Suppressions, more: dict[str, Any], at_once: bool
) -> None:
    for_now = entry(reason=SuppressionReason.MANUAL, source="operator", expires_at=NOW + 2 * HOUR)
    unsubscribed = entry(reason=SuppressionReason.UNSUBSCRIBED, **more)
    if at_once:
        await asyncio.gather(suppressions.add(for_now), suppressions.add(unsubscribed))
    else:
        await suppressions.add(for_now)
        await suppressions.add(unsubscribed)
    assert await suppressions.among([for_now.key]) == {for_now.key: unsubscribed}


async def test_what_will_expire_takes_nobodys_place_that_lasts_as_long(suppressions: Suppressions) -> None:
    for kept in (entry(), entry("ben", expires_at=NOW + 2 * HOUR)):
        await suppressions.add(kept)
        for sooner in (HOUR, 2 * HOUR):
            await suppressions.add(replace(kept, source="later", expires_at=NOW + sooner))
        assert await suppressions.among([kept.key]) == {kept.key: kept}


async def test_a_refusal_under_what_will_expire_withdraws_nothing_of_it(suppressions: Suppressions) -> None:
    for_now = entry(reason=SuppressionReason.MANUAL, source="operator", expires_at=NOW + 2 * HOUR)
    await suppressions.add(for_now)
    await suppressions.add(entry(delivery="d-1"))
    assert not await suppressions.withdraw([for_now.key], "d-1")
    assert await suppressions.among([for_now.key]) == {for_now.key: for_now}


async def test_what_has_expired_is_suppressed_anew(suppressions: Suppressions) -> None:
    await suppressions.add(entry(expires_at=NOW - HOUR))
    assert await suppressions.among([entry().key]) == {}
    await suppressions.add(entry(expires_at=NOW + HOUR))
    assert await suppressions.among([entry().key]) == {entry().key: entry(expires_at=NOW + HOUR)}


async def test_a_refusal_is_withdrawn_for_the_delivery_that_met_it_and_for_no_other(suppressions: Suppressions) -> None:
    await suppressions.add(entry(delivery="d-1"))
    await suppressions.add(entry("ben"))
    assert await suppressions.among([entry().key]) == {entry().key: entry(delivery="d-1")}
    keys = [entry().key, entry("ben").key]
    assert not await suppressions.withdraw(keys, "d-2")
    assert len(await suppressions.among(keys)) == 2
    assert await suppressions.withdraw(keys, "d-1")
    assert await suppressions.among(keys) == {entry("ben").key: entry("ben")}
    assert not await suppressions.withdraw(keys, "d-1")


async def test_many_refusals_are_withdrawn_at_once_each_by_its_own_delivery(suppressions: Suppressions) -> None:
    entries = [entry(f"user-{number}", delivery=f"d-{number}") for number in range(60)]
    await asyncio.gather(*map(suppressions.add, entries))
    withdrawn = await asyncio.gather(
        *(suppressions.withdraw([each.key], f"d-{number + number % 2}") for number, each in enumerate(entries))
    )
    assert withdrawn == [number % 2 == 0 for number in range(60)]
    assert len(await suppressions.among([each.key for each in entries])) == 30


async def test_another_refusal_changes_nothing(suppressions: Suppressions) -> None:
    await suppressions.add(entry(delivery="d-1"))
    await suppressions.add(entry(delivery="d-2"))
    assert not await suppressions.withdraw([entry().key], "d-2")
    await suppressions.add(entry("ben"))
    await suppressions.add(entry("ben", delivery="d-2"))
    assert not await suppressions.withdraw([entry("ben").key], "d-2")


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_complaint_is_not_withdrawn_with_the_refusal_that_it_meets(
    suppressions: Suppressions, at_once: bool
) -> None:
    complaint = entry(address="$ana@example.org", reason=SuppressionReason.COMPLAINT)  # $: no field of the document's
    refusal = entry(address="$ana@example.org", delivery="d-1")
    if at_once:
        await asyncio.gather(suppressions.add(refusal), suppressions.add(complaint))
    else:
        await suppressions.add(refusal)
        await suppressions.add(complaint)
    assert not await suppressions.withdraw([complaint.key], "d-1")
    assert await suppressions.among([complaint.key]) == {complaint.key: complaint}


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


async def test_of_processes_at_one_moment_what_lasts_wins(database: Database) -> None:
    processes = [MongoSuppressions(database) for _ in range(8)]
    for number in range(20):
        added = [entry(f"{number}", delivery=None if place == 5 else f"d-{place}") for place in range(8)]
        await asyncio.gather(*(process.add(each) for process, each in zip(processes, added, strict=True)))
        assert await processes[0].among([added[0].key]) == {added[0].key: added[5]}


async def test_of_processes_at_one_moment_what_lasts_longest_wins(database: Database) -> None:
    processes = [MongoSuppressions(database) for _ in range(8)]
    for number in range(20):
        added = [entry(f"{number}", expires_at=None if place == 5 else NOW + (2 + place) * HOUR) for place in range(8)]
        await asyncio.gather(*(process.add(each) for process, each in zip(processes, added, strict=True)))
        assert await processes[0].among([added[0].key]) == {added[0].key: added[5]}


@pytest.mark.parametrize("behind", [timedelta(seconds=40), 3 * HOUR])
async def test_a_new_primary_whose_clock_is_behind_hides_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch, behind: timedelta
) -> None:
    found, other = MongoSuppressions(database), MongoSuppressions(database)
    await found.add(entry("ben"))
    await found.refresh()
    found._looked_at -= 300  # for so long MongoDB was away, but for others not: they wrote soon after that
    await other.add(entry())
    written = datetime.now(UTC) - behind - timedelta(seconds=290)
    await database.collection("suppressions").update_one({"_id": entry().key}, {"$set": {"updated_at": written}})
    monkeypatch.setattr(database, "time_now", lambda: datetime.now(UTC) - behind)
    await found.refresh()
    assert list(await found.among([entry().key])) == [entry().key]


async def test_what_a_primary_has_stamped_a_little_too_early_is_seen(database: Database) -> None:
    found, other = MongoSuppressions(database), MongoSuppressions(database)
    await found.add(entry("ben"))
    await found.refresh()
    await other.add(entry())
    early = {"$set": {"updated_at": datetime.now(UTC) - timedelta(seconds=40)}}
    await database.collection("suppressions").update_one({"_id": entry().key}, early)
    await found.refresh()
    assert list(await found.among([entry().key])) == [entry().key]


async def test_a_refusal_that_another_process_met_a_moment_ago_is_withdrawn(database: Database) -> None:
    refused, replayed = MongoSuppressions(database), MongoSuppressions(database)
    await replayed.refresh()
    await refused.add(entry(delivery="d-1"))
    assert await replayed.among([entry().key]) == {}
    assert await replayed.withdraw([entry().key], "d-1")
    assert await refused.among([entry().key]) == {}


async def test_nobody_is_forgotten_while_all_is_read_anew(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.suppressions.ANEW", timedelta(0))
    held, other = MongoSuppressions(database), MongoSuppressions(database)
    await held.put([entry()])
    await held.refresh()
    read = held._fingerprints
    found: list[str] = []
    added = iter([(other, "theirs"), (held, "mine")])

    async def slow(since: datetime | None = None) -> set[int]:
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


@pytest.mark.parametrize(
    "damage",
    [
        *({"$unset": {field: ""}} for field in ("channel", "address", "reason", "source", "since")),
        {"$set": {"since": "yesterday"}},
        {"$set": {"expires_at": "never"}},
        {"$set": {"since": DatetimeMS(10**15)}},
        {"$set": {"channel": "pigeon"}},
        {"$set": {"address": 7, "reason": 7, "source": 7, "delivery": 7}},
    ],
)
async def test_an_entry_that_cannot_be_read_suppresses_and_stops_nobody_else(
    database: Database, damage: dict[str, Any]
) -> None:
    found = MongoSuppressions(database)
    await found.put([entry(), entry("ben")])
    await database.collection("suppressions").update_one({"_id": entry("ben").key}, damage)
    await found.refresh()
    both = await found.among([entry().key, entry("ben").key])
    assert both[entry().key] == entry()
    assert (both[entry("ben").key].source, both[entry("ben").key].reason) == ("unreadable entry", "manual")
    listed = [each.key async for each in found.listed(SuppressionFilter())]
    assert entry().key in listed
    assert await found.remove([entry("ben").key]) == 1
    assert list(await found.among([entry().key, entry("ben").key])) == [entry().key]


@pytest.mark.parametrize("damage", [{"$unset": {"updated_at": ""}}, {"$set": {"updated_at": "yesterday"}}])
async def test_an_entry_without_a_time_of_its_own_is_held_in_memory_too(
    database: Database, damage: dict[str, Any]
) -> None:
    await MongoSuppressions(database).put([entry()])
    await database.collection("suppressions").update_one({"_id": entry().key}, damage)
    found = MongoSuppressions(database)
    await found.refresh()
    assert list(await found.among([entry().key])) == [entry().key]


async def test_a_document_of_another_kind_keeps_nobody_from_learning_of_the_others(database: Database) -> None:
    found = MongoSuppressions(database)
    for odd in (ObjectId(), "email/ana@example.org", 7):
        await database.collection("suppressions").insert_one({"_id": odd, "updated_at": datetime.now(UTC)})
    await found.refresh()
    await MongoSuppressions(database).add(entry())
    await found.refresh()
    assert list(await found.among([entry().key])) == [entry().key]


async def test_an_entry_of_the_future_hides_nothing_that_is_new(database: Database) -> None:
    found, other = MongoSuppressions(database), MongoSuppressions(database)
    await other.put([entry("ben"), entry("cem")])
    for name, at in (("ben", DatetimeMS(10**15)), ("cem", datetime(3000, 1, 1, tzinfo=UTC))):
        await database.collection("suppressions").update_one({"_id": entry(name).key}, {"$set": {"updated_at": at}})
    await found.refresh()
    await found.refresh()
    await other.add(entry())
    await found.refresh()
    keys = [entry(name).key for name in ("ana", "ben", "cem")]
    assert sorted(await found.among(keys)) == sorted(keys)


async def test_the_list_goes_on_after_an_entry_that_cannot_be_read(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.suppressions.PAGE", 1)
    found = MongoSuppressions(database)
    await found.put([entry(f"user-{number}", since=NOW + HOUR * number) for number in range(4)])
    await database.collection("suppressions").update_one({"_id": entry("user-2").key}, {"$unset": {"since": ""}})
    await database.collection("suppressions").update_one({"_id": entry("user-1").key}, {"$unset": {"source": ""}})
    listed = [each.address.partition("@")[0] async for each in found.listed(SuppressionFilter())]
    assert listed[:3] == ["user-3", "user-1", "user-0"]


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
    await found.add(entry("cem", delivery="d-1"))
    await found.put([entry("cem")])
    assert not await found.withdraw([entry("cem").key], "d-1")


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
    for query in ({}, {"updated_at": {"$gt": datetime.min.replace(tzinfo=UTC)}}):
        plan = await collection.find(query, {"_id": 1, "updated_at": 1}).hint("changed").explain()
        assert plan["executionStats"]["totalDocsExamined"] == 0
        assert plan["executionStats"]["nReturned"] == 20

"""Records that are made together: by fewer statements, and each as if it had been alone."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pymongo import UpdateMany, UpdateOne
from pymongo.collection import Collection as BlockingCollection
from pymongo.errors import AutoReconnect

import storage.writes
from domain.delivery import Change, Delivery
from domain.vocabulary import Reason, State
from storage.database import Database, Document
from storage.deliveries import HISTORY_KEPT, MongoDeliveries
from storage.writes import Amendment, Found
from tests.contract.test_repositories import SECOND, delivery, refined, sent
from tests.fakes import START

Statements = Sequence[UpdateOne | UpdateMany]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Statements]:
    """The statements of each write."""
    seen: list[Statements] = []
    write = storage.writes._update

    def update(collection: BlockingCollection[Document], updates: Statements) -> int:
        seen.append(updates)
        return write(collection, updates)

    monkeypatch.setattr(storage.writes, "_update", update)
    return seen


def outcomes(before: Delivery) -> Sequence[tuple[Delivery, Sequence[Change]]]:
    """What may become of an attempt."""
    at = before.created_at
    plain = sent(before)[1]
    retry = Change(State.RETRYING, at + SECOND, Reason.TIMEOUT, 1, 1, "sink", "$slow {$now} a.b")
    over = Change(State.RETRYING, at, Reason.TIMEOUT, 1, 1, "backup", "$$ROOT", possible_duplicate=True)
    held = Change(State.HELD, at + SECOND, Reason.PROVIDER_PAUSED, 1, 1, "sink", "paused")
    return [
        (before.changed(plain, None), [plain]),
        (replace(before.changed(plain, None), reference="0102"), [plain]),
        (before.changed(retry, at + 9 * SECOND), [retry]),
        (before.changed(replace(retry, detail=None), at + 9 * SECOND), [replace(retry, detail=None)]),
        (before.changed(plain, None, [over]), [over, plain]),
        (replace(before.changed(held, at + 60 * SECOND), forgiven=1), [held]),
    ]


async def documents(database: Database) -> list[Document]:
    found = await database.collection("deliveries").find().sort("created_at").to_list(None)
    return [{name: value for name, value in document.items() if name != "_id"} for document in found]


async def test_what_is_recorded_together_is_what_each_would_have_recorded_alone(
    database: Database, written: list[Statements]
) -> None:
    deliveries, count = MongoDeliveries(database), 60
    found = []
    for together in (False, True):
        await database.collection("deliveries").delete_many({})
        await deliveries.add([delivery(number) for number in range(count)])
        changed = [outcomes(delivery(number))[number % 6] for number in range(count)]
        written.clear()
        records = [deliveries.record(after, 0, changes) for after, changes in changed]
        assert all(await asyncio.gather(*records)) if together else all([await each for each in records])
        found.append(await documents(database))
    assert found[0] == found[1]
    assert sum(map(len, written)) <= 10  # 60 of them, and of six kinds


async def test_what_another_has_decided_stays_and_the_others_are_recorded(database: Database) -> None:
    deliveries = MongoDeliveries(database)
    await deliveries.add([delivery(number) for number in range(20)])
    after, change = sent(delivery(7))
    assert await deliveries.record(after, 0, [change])
    retry = Change(State.RETRYING, START + 2 * SECOND, Reason.TIMEOUT, 1, 1, "sink", "slow")
    recorded = await asyncio.gather(
        *(deliveries.record(delivery(n).changed(retry, START + 9 * SECOND), 0, [retry]) for n in range(20))
    )
    assert recorded == [number != 7 for number in range(20)]
    stored = await deliveries.get("d-7")
    assert stored is not None
    assert (stored.state, len(stored.history)) == (State.SENT, 2)


def held(before: Delivery) -> tuple[Delivery, Change]:
    """Nothing was attempted: what it is found with is what it is left with."""
    change = Change(State.HELD, START + SECOND, Reason.PROVIDER_PAUSED, 1, 0, "sink", "paused")
    return before.changed(change, START + 60 * SECOND), change


@pytest.mark.parametrize("number", [1, 20])
@pytest.mark.parametrize("ending", [sent, held])
async def test_a_write_that_was_made_and_not_answered_is_recorded_once(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    ending: Callable[[Delivery], tuple[Delivery, Change]],
    number: int,
) -> None:
    deliveries, write, lost = MongoDeliveries(database), storage.writes._update, list[str]()
    planned = [delivery(each) for each in range(number)]
    await deliveries.add(planned)

    def unanswered(collection: BlockingCollection[Document], updates: Statements) -> int:
        matched = write(collection, updates)
        if not lost:
            lost.append("answer")
            raise AutoReconnect("connection closed")
        return matched

    monkeypatch.setattr(storage.writes, "_update", unanswered)
    changed = [ending(each) for each in planned]
    assert all(await asyncio.gather(*(deliveries.record(after, 0, [change]) for after, change in changed)))
    assert lost
    assert {len(document["history"]) for document in await documents(database)} == {2}


async def test_beside_one_that_does_not_match_the_others_are_recorded_once(database: Database) -> None:
    deliveries = MongoDeliveries(database)
    await deliveries.add([delivery(number) for number in range(20)])
    after, change = sent(delivery(7))
    assert await deliveries.record(after, 0, [change])
    changed = [held(delivery(number)) for number in range(20)]
    recorded = await asyncio.gather(*(deliveries.record(after, 0, [change]) for after, change in changed))
    assert recorded == [number != 7 for number in range(20)]
    assert {len(document["history"]) for document in await documents(database)} == {2}


async def test_what_a_hand_has_put_in_place_of_a_number_is_its_own_fault_alone(database: Database) -> None:
    deliveries = MongoDeliveries(database)
    await deliveries.add([delivery(number) for number in range(20)])
    changed = [sent(delivery(number)) for number in range(20)]
    changed[7] = replace(changed[7][0], epoch=[1]), changed[7][1]  # type: ignore[arg-type]
    recorded = await asyncio.gather(*(deliveries.record(after, 0, [change]) for after, change in changed))
    assert recorded == [number != 7 for number in range(20)]


async def test_what_a_statement_has_passed_over_is_recorded_by_itself(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it may happen to a document that moves from one shard to another."""
    deliveries, amending = MongoDeliveries(database), storage.writes._amending
    await deliveries.add([delivery(number) for number in range(20)])

    def without_one(found: Found, unset: tuple[str, ...], kept: int, several: dict[str, Amendment]) -> UpdateMany:
        return amending(found, unset, kept, {name: one for name, one in several.items() if name != "d-7"})

    monkeypatch.setattr(storage.writes, "_amending", without_one)
    changed = [sent(delivery(number)) for number in range(20)]
    assert all(await asyncio.gather(*(deliveries.record(after, 0, [change]) for after, change in changed)))
    assert {len(document["history"]) for document in await documents(database)} == {2}


BROKEN: dict[str, dict[str, Any]] = {
    "a history that is none": {"$set": {"history": "none"}},
    "a history that is a document": {"$set": {"history": {"0": "sent"}}},
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
async def test_a_document_that_stands_against_it_is_its_own_fault_alone(
    database: Database, change: dict[str, Any]
) -> None:
    deliveries = MongoDeliveries(database)
    await deliveries.add([delivery(number) for number in range(20)])
    await database.collection("deliveries").update_one({"_id": "d-7"}, change)
    changed = [sent(delivery(number)) for number in range(20)]
    recorded = await asyncio.gather(*(deliveries.record(after, 0, [change]) for after, change in changed))
    assert recorded == [number != 7 for number in range(20)]
    sound = [document for document in await documents(database) if isinstance(document["history"], list)]
    assert [len(document["history"]) for document in sound] == [2] * 19


async def test_a_document_without_history_gets_one(database: Database) -> None:
    deliveries = MongoDeliveries(database)
    await deliveries.add([delivery(1), delivery(2)])
    await database.collection("deliveries").update_many({}, {"$unset": {"history": ""}})
    changed = [sent(delivery(number)) for number in (1, 2)]
    assert all(await asyncio.gather(*(deliveries.record(after, 0, [change]) for after, change in changed)))
    assert [len(document["history"]) for document in await documents(database)] == [1, 1]


async def test_of_a_long_history_the_last_changes_are_kept(database: Database) -> None:
    deliveries = MongoDeliveries(database)
    long = tuple(
        Change(State.RETRYING, START + timedelta(seconds=n), Reason.TIMEOUT, 1, 0) for n in range(HISTORY_KEPT)
    )
    await deliveries.add([delivery(number, history=long) for number in (1, 2)])
    changed = [sent(delivery(number)) for number in (1, 2)]
    assert all(await asyncio.gather(*(deliveries.record(after, 0, [change]) for after, change in changed)))
    for document in await documents(database):
        assert len(document["history"]) == HISTORY_KEPT
        assert document["history"][-1]["state"] == "sent"


async def test_receipts_that_come_together_with_records_each_count_once(database: Database) -> None:
    deliveries = MongoDeliveries(database)
    await deliveries.add([delivery(number) for number in range(6)])
    delivered = sent(delivery(0))[0]
    assert await deliveries.record(delivered, 0, [sent(delivery(0))[1]])
    after, change = refined(delivered, State.DELIVERED, Reason.DELIVERED)
    receipts = [deliveries.refine(delivered, after, change) for _ in range(3)]
    records = [deliveries.record(sent(delivery(number))[0], 0, [sent(delivery(number))[1]]) for number in range(1, 6)]
    won = await asyncio.gather(*receipts, *records)
    assert (won[:3].count(True), won[3:]) == (1, [True] * 5)
    stored = await deliveries.get("d-0")
    assert stored is not None
    assert [each.state for each in stored.history].count(State.DELIVERED) == 1

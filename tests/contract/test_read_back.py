"""Writes that are told apart only by reading back: others may have moved a delivery on by then."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from pymongo import UpdateMany, UpdateOne
from pymongo.collection import Collection as BlockingCollection
from pymongo.errors import AutoReconnect

import storage.writes
from domain.delivery import Change, Delivery
from domain.ports import DeadFilter
from domain.vocabulary import Reason, State
from storage.database import Database, Document
from storage.deliveries import DeliveryFilter, MongoDeliveries
from storage.documents import CannotRead
from storage.writes import Amendment
from tests.contract.test_repositories import SECOND, delivery, refined, sent
from tests.fakes import START


async def once_delivered(theirs: MongoDeliveries, before: Delivery) -> None:
    """Another process takes a provider's receipt."""
    assert await theirs.refine(before, *refined(before, State.DELIVERED, Reason.DELIVERED))


def then_once(done: Callable[[], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do this after the next write of records, before anything is read back."""
    real, left = storage.writes.amend_all, [done]

    async def amend_all(database: Database, collection: Any, amendments: Sequence[Amendment]) -> Any:
        result = await real(database, collection, amendments)
        if left:
            await left.pop()()
        return result

    monkeypatch.setattr("storage.deliveries.amend_all", amend_all)


async def test_what_a_receipt_moves_on_before_it_is_read_back_is_recorded(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = MongoDeliveries(database), MongoDeliveries(database)
    await mine.add([delivery(1), delivery(2)])
    (good, change), (bad, another) = sent(delivery(1)), sent(delivery(2))
    then_once(lambda: once_delivered(theirs, good), monkeypatch)
    recorded = await asyncio.gather(mine.record(good, 0, [change]), mine.record(bad, 7, [another]))
    assert list(recorded) == [True, False]
    stored = await mine.get("d-1")
    assert stored is not None
    assert stored.state is State.DELIVERED


async def test_what_was_recorded_without_an_answer_and_moved_on_is_recorded(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs, loop = MongoDeliveries(database), MongoDeliveries(database), asyncio.get_running_loop()
    await mine.add([delivery()])
    after, change = sent(delivery())
    write, lost = storage.writes._update, list[str]()

    def unanswered(collection: BlockingCollection[Document], updates: Sequence[UpdateOne | UpdateMany]) -> int:
        matched = write(collection, updates)
        if not lost:
            lost.append("answer")
            asyncio.run_coroutine_threadsafe(once_delivered(theirs, after), loop).result(10)
            raise AutoReconnect("connection closed")
        return matched

    monkeypatch.setattr(storage.writes, "_update", unanswered)
    assert await mine.record(after, 0, [change])
    stored = await mine.get("d-1")
    assert stored is not None
    assert [each.state for each in stored.history].count(State.SENT) == 1


async def test_another_record_of_the_same_delivery_in_the_same_write_takes_nothing_away(database: Database) -> None:
    deliveries = MongoDeliveries(database)
    await deliveries.add([delivery()])
    after, change = sent(delivery())
    late = Change(State.RETRYING, START + SECOND * 2, Reason.TIMEOUT, 1, 8, "sink", "slow")
    recorded = await asyncio.gather(
        deliveries.record(delivery().changed(late, START), 7, [late]), deliveries.record(after, 0, [change])
    )
    assert list(recorded) == [False, True]


async def test_a_change_that_another_has_made_at_another_moment_is_not_ones_own(database: Database) -> None:
    deliveries = MongoDeliveries(database)
    await deliveries.add([delivery()])
    after, change = sent(delivery())
    assert await deliveries.record(after, 0, [change])
    late = Change(State.SENT, START + SECOND * 2, Reason.ACCEPTED, 1, 1, "sink", "250 ok")
    assert not await deliveries.record(delivery().changed(late, None), 0, [late])


async def test_a_history_that_is_none_is_no_fault_of_the_records_beside_it(database: Database) -> None:
    deliveries = MongoDeliveries(database)
    await deliveries.add([delivery(1), delivery(2)])
    await database.collection("deliveries").update_one({"_id": "d-1"}, {"$set": {"history": "none"}})
    changed = [sent(delivery(number)) for number in (1, 2)]
    recorded = await asyncio.gather(*(deliveries.record(after, 0, [change]) for after, change in changed))
    assert list(recorded) == [False, True]


UNREADABLE: dict[str, dict[str, Any]] = {
    "a channel of a later version": {"$set": {"channel": "voice"}},
    "a state of a later version": {"$set": {"state": "paused"}},
    "a count that a hand has written": {"$set": {"attempt": 0.0}},
    "no event": {"$unset": {"event_key": ""}},
    "a history that is none": {"$set": {"history": "none"}},
}


@pytest.mark.parametrize("change", UNREADABLE.values(), ids=UNREADABLE)
async def test_a_delivery_that_cannot_be_read_is_nobody_elses_fault(database: Database, change: dict[str, Any]) -> None:
    deliveries = MongoDeliveries(database)
    await deliveries.add([delivery(1), delivery(2, tell_at=None)])
    ended = {"state": State.FAILED, "due_at": None, "tell_at": START}
    await deliveries.add([delivery(3, **ended), delivery(4, **ended)])
    await database.collection("deliveries").update_many({"_id": {"$in": ["d-1", "d-3"]}}, change)
    for look, lame, sound in ((deliveries.due, "d-1", "d-2"), (deliveries.untold, "d-3", "d-4")):
        found = await look(START + SECOND * 9, 10)
        assert [each.id for each in found] == [lame, sound]
        assert [isinstance(each, Delivery) for each in found] == [False, True]
        await deliveries.postpone(found[0], START + SECOND * 60)
        assert [each.id for each in await look(START + SECOND * 9, 10)] == [sound]
        assert [each.id for each in await look(START + SECOND * 60, 10)] == [sound, lame]


@pytest.mark.parametrize(
    "change",
    [each for each in UNREADABLE.values() if each != {"$set": {"attempt": 0.0}}],  # which is read, if not used
)
async def test_a_list_leaves_out_what_cannot_be_read_and_tells_of_it(
    database: Database, change: dict[str, Any]
) -> None:
    deliveries, told = MongoDeliveries(database), list[CannotRead]()
    deliveries.on_unreadable = told.append
    ended = {"state": State.FAILED, "due_at": None}
    await deliveries.add([delivery(number, **ended) for number in (1, 2)])
    await database.collection("deliveries").update_one({"_id": "d-1"}, change)
    by_event = await deliveries.page(DeliveryFilter(event_key="e-1"), 10)
    lists = [by_event, await deliveries.page(DeliveryFilter(), 10), await deliveries.beginning_with("d-", 10)]
    lists.append([each async for each in deliveries.dead(DeadFilter(State.FAILED), None)])
    assert all("d-2" in [each.id for each in found] for found in lists)
    assert {each.delivery_id for each in told} <= {"d-1"}
    assert told
    with pytest.raises(CannotRead, match="delivery d-1 cannot be read"):
        await deliveries.current("d-1")

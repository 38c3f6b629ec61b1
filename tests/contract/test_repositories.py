"""The same cases over the in-memory stores and MongoDB."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest

from domain.delivery import Change, Delivery
from domain.ports import Claim, DeadFilter, Deliveries, Events, Record, StoredEvent
from domain.vocabulary import Channel, EventState, Lane, Reason, State
from storage.database import connect
from storage.deliveries import MongoDeliveries
from storage.events import FEW, MongoEvents
from tests.fakes import START, MemoryDeliveries, MemoryEvents

SECOND = timedelta(seconds=1)


@dataclass
class Stores:
    events: Events
    deliveries: Deliveries


@pytest.fixture(params=["memory", "mongodb"])
async def stores(request: pytest.FixtureRequest) -> AsyncIterator[Stores]:
    if request.param == "memory":
        memory = MemoryDeliveries()
        yield Stores(MemoryEvents(memory), memory)
        return
    async with connect(request.getfixturevalue("database_url")) as database:
        await database.ensure_indexes()
        yield Stores(MongoEvents(database), MongoDeliveries(database))


def delivery(number: int = 1, **more: Any) -> Delivery:
    values: dict[str, Any] = {
        "id": f"d-{number}",
        "event_key": "e-1",
        "event_id": "ord-1",
        "source": "shop",
        "type": "order.shipped",
        "notification": "shipped",
        "version": 1,
        "channel": Channel.EMAIL,
        "lane": Lane.NORMAL,
        "recipient": {"email": "ana@example.org", "push": [{"provider": "fcm", "token": "t"}]},
        "recipient_key": "ana@example.org",
        "state": State.QUEUED,
        "reason": Reason.PLANNED,
        "created_at": START + SECOND * number,
        "updated_at": START,
        "due_at": START + SECOND * number,
        "history": (Change(State.QUEUED, START, Reason.PLANNED, 1, 0),),
    }
    return Delivery(**(values | more))


def event(number: int = 1) -> StoredEvent:
    return StoredEvent(
        key=f"e-{number}",
        body=b'{"recipients": []}',
        id=f"ord-{number}",
        source="shop",
        type="order.shipped",
        time=START,
        received_at=START,
        state=EventState.ACCEPTED,
        plan=(("shipped", 3),),
        token="t",
    )


def claim(name: str, token: str = "t-1") -> Claim:
    return Claim(name, token, START, START + SECOND)


async def test_an_event_is_added_once(stores: Stores) -> None:
    assert await stores.events.add(event(), START)
    assert not await stores.events.add(replace(event(), body=b"other", token="another's"), START)
    assert await stores.events.add(event(), START), "its own repetition, after an outage"
    assert await stores.events.get("e-1") == event()
    assert await stores.events.get("nobody") is None


async def test_of_many_that_add_the_same_event_one_wins(stores: Stores) -> None:
    won = await asyncio.gather(*(stores.events.add(replace(event(), token=f"t-{n}"), START) for n in range(50)))
    assert won.count(True) == 1


async def test_an_event_that_the_primary_alone_has_is_as_unique(stores: Stores) -> None:
    assert await stores.events.add(event(), START, durable=False)
    assert not await stores.events.add(replace(event(), token="another's"), START, durable=False)
    assert not await stores.events.add(replace(event(), token="another's"), START)
    assert await stores.events.add(event(), START, durable=False), "its own repetition, after an outage"
    assert await stores.events.get("e-1") == event(), "a duplicate is told when a majority has the first"


@pytest.mark.parametrize("many", [1, FEW + 1])
async def test_an_event_is_added_with_its_deliveries_and_a_duplicate_with_none(stores: Stores, many: int) -> None:
    own = [delivery(number) for number in range(many)]
    assert await stores.events.add(event(), START, own, durable=False)
    assert sorted(await stores.deliveries.ids_of_event("e-1")) == sorted(each.id for each in own)
    another = replace(event(), token="another's")
    assert not await stores.events.add(another, START, [delivery(99)], durable=False)
    assert await stores.deliveries.get("d-99") is None
    assert await stores.events.add(event(), START, [delivery(1, state=State.SENT), delivery(98)]), "after an outage"
    assert await stores.deliveries.get("d-98") == delivery(98)
    if many > 1:
        assert await stores.deliveries.get("d-1") == delivery(1), "what is stored stays as it is"


async def test_events_that_are_added_together_keep_their_faults_to_themselves(stores: Stores) -> None:
    deliveries = [[delivery(n, event_key=f"e-{n}")] for n in range(3)]
    await stores.events.add(replace(event(1), token="another's"), START)
    adding = (stores.events.add(event(n), START, deliveries[n], durable=False) for n in range(3))
    assert await asyncio.gather(*adding) == [True, False, True]
    assert [await stores.deliveries.get(f"d-{n}") is not None for n in range(3)] == [True, False, True]


async def test_settling_tells_which_events_are_not_there(stores: Stores) -> None:
    await asyncio.gather(*(stores.events.add(event(number), START, durable=False) for number in (1, 2)))
    keys = ("e-1", "e-9", "e-2", "e-1")
    settled = await asyncio.gather(*(stores.events.settle(key, EventState.PLANNED, 1) for key in keys))
    assert settled == [True, False, True, True]
    assert await stores.events.due(START, 10) == []


async def test_an_event_is_due_until_it_is_settled(stores: Stores) -> None:
    await stores.events.add(event(1), START)
    await stores.events.add(event(2), START + SECOND)
    assert await stores.events.due(START + SECOND, 10) == [event(1), event(2)]
    await stores.events.settle("e-1", EventState.PLANNED, 3)
    await stores.events.postpone("e-1", START)
    await stores.events.postpone("e-2", START + SECOND * 9)
    assert await stores.events.due(START + SECOND, 10) == []
    settled = await stores.events.get("e-1")
    assert settled is not None
    assert (settled.state, settled.planned) == (EventState.PLANNED, 3)


async def test_how_often_an_event_was_taken_up_is_counted(stores: Stores) -> None:
    await stores.events.add(event(), START)
    for taken_up, counted in ((1, 1), (1, 2), (-1, 1), (0, 1)):
        await stores.events.postpone("e-1", START + SECOND * 9, taken_up)
        assert await stores.events.due(START + SECOND * 9, 10) == [replace(event(), resumed=counted)]
    assert await stores.events.due(START + SECOND * 8, 10) == []


def reopened(number: int = 1, token: str = "operator's") -> StoredEvent:
    return replace(event(number), plan=(("emptied", 7),), token=token)


async def test_an_unmatched_event_is_reopened_and_is_due(stores: Stores) -> None:
    await stores.events.add(replace(event(), plan=(), resumed=4), START)
    await stores.events.settle("e-1", EventState.UNMATCHED, 0)
    assert await stores.events.reopen(replace(reopened(), body=b"not stored"), START + SECOND)
    assert await stores.events.get("e-1") == reopened()
    assert await stores.events.due(START, 10) == []
    assert await stores.events.due(START + SECOND, 10) == [reopened()]
    await stores.events.settle("e-1", EventState.PLANNED, 1)
    assert await stores.events.reopen(reopened(), START + SECOND), "its own repetition, after an outage"
    assert await stores.events.get("e-1") == replace(reopened(), state=EventState.PLANNED, planned=1)
    assert await stores.events.due(START + SECOND, 10) == []


@pytest.mark.parametrize("state", sorted(set(EventState) - {EventState.UNMATCHED}))
async def test_no_event_but_an_unmatched_one_is_reopened(stores: Stores, state: EventState) -> None:
    await stores.events.add(event(), START)
    await stores.events.settle("e-1", state, 0)
    assert not await stores.events.reopen(reopened(), START)
    assert not await stores.events.reopen(reopened(9), START), "it is not there"
    assert await stores.events.get("e-1") == replace(event(), state=state)
    assert await stores.events.due(START, 10) == []


async def test_of_many_that_reopen_the_same_event_one_wins(stores: Stores) -> None:
    await stores.events.add(event(), START)
    await stores.events.settle("e-1", EventState.UNMATCHED, 0)
    won = await asyncio.gather(*(stores.events.reopen(reopened(token=f"o-{n}"), START) for n in range(20)))
    assert won.count(True) == 1


async def test_a_delivery_reads_back_as_it_was_added_and_stays_as_it_is(stores: Stores) -> None:
    await stores.deliveries.add([delivery()])
    await stores.deliveries.add([delivery(state=State.SENT), delivery(2)])
    assert await stores.deliveries.get("d-1") == delivery()
    assert sorted(await stores.deliveries.ids_of_event("e-1")) == ["d-1", "d-2"]


async def test_a_claim_reads_back_with_its_provider(stores: Stores) -> None:
    claims = {each.id: each for each in (claim("d-1/1/1"), replace(claim("d-2/1/1"), provider="second"))}
    for each in claims.values():
        assert await stores.deliveries.claim(each)
    assert await stores.deliveries.claims(list(claims)) == claims


async def test_a_claim_is_won_once_and_by_its_owner_again(stores: Stores) -> None:
    won = await asyncio.gather(*(stores.deliveries.claim(claim("d-1/1/1", f"t-{n}")) for n in range(50)))
    assert won.count(True) == 1
    assert await stores.deliveries.claim(claim("d-1/1/1", f"t-{won.index(True)}"))
    found = await stores.deliveries.claims(["d-1/1/1", "d-1/1/2"])
    assert {name: item.token for name, item in found.items()} == {"d-1/1/1": f"t-{won.index(True)}"}


async def test_many_claims_are_won_as_each_alone(stores: Stores) -> None:
    assert await stores.deliveries.claim(claim("d-2/1/1", "another"))
    wanted = [claim(f"d-{number}/1/1", f"t-{number}") for number in (1, 2, 3)]
    assert list(await stores.deliveries.claim_all(wanted)) == [True, False, True]
    assert list(await stores.deliveries.claim_all(wanted)) == [True, False, True], "by their owner again"
    assert list(await stores.deliveries.claim_all([])) == []


def sent(before: Delivery) -> tuple[Delivery, Change]:
    change = Change(State.SENT, START + SECOND, Reason.ACCEPTED, 1, 1, "sink", "250 ok")
    return before.changed(change, None), change


async def test_of_the_same_change_that_comes_many_times_at_once_one_counts(stores: Stores) -> None:
    await stores.deliveries.add([delivery()])
    after, change = sent(delivery())
    assert await stores.deliveries.record(after, 0, [change])
    told = Change(State.DELIVERED, START + SECOND * 2, Reason.DELIVERED, 1, 1, "sink")
    refined = after.changed(told, None)
    won = await asyncio.gather(*(stores.deliveries.refine(after, refined, told) for _ in range(20)))
    assert won.count(True) == 1
    stored = await stores.deliveries.get("d-1")
    assert stored is not None
    assert [each.state for each in stored.history].count(State.DELIVERED) == 1


async def test_an_outcome_is_recorded_once(stores: Stores) -> None:
    await stores.deliveries.add([delivery(1), delivery(2)])
    after, change = sent(delivery(1))
    assert await stores.deliveries.record(after, 0, [change])
    retry = Change(State.RETRYING, START + SECOND * 2, Reason.TIMEOUT, 1, 1, "sink", "slow")
    other = delivery(2).changed(retry, START + SECOND * 9)
    outcomes = await asyncio.gather(
        stores.deliveries.record(delivery(1).changed(retry, START), 0, [retry]),
        stores.deliveries.record(other, 0, [retry]),
    )
    assert list(outcomes) == [False, True]
    assert await stores.deliveries.get("d-1") == after
    assert await stores.deliveries.get("d-2") == other


async def test_many_outcomes_are_recorded_as_each_alone(stores: Stores) -> None:
    await stores.deliveries.add([delivery(1), delivery(2), delivery(3)])
    pairs = [sent(delivery(number)) for number in (1, 2, 3)]
    assert await stores.deliveries.record(pairs[1][0], 0, [pairs[1][1]])
    retry = Change(State.RETRYING, START + SECOND * 2, Reason.TIMEOUT, 1, 1, "sink", "slow")
    records = [
        Record(pairs[0][0], 0, [pairs[0][1]]),
        Record(delivery(2).changed(retry, START), 0, [retry]),
        Record(delivery(3).changed(retry, START + SECOND * 9), 0, [retry]),
    ]
    assert list(await stores.deliveries.record_all(records)) == [True, False, True]
    assert await stores.deliveries.get("d-1") == pairs[0][0]
    assert await stores.deliveries.get("d-2") == pairs[1][0]
    assert await stores.deliveries.get("d-3") == records[2].delivery


async def test_an_outcome_of_another_epoch_or_attempt_is_refused(stores: Stores) -> None:
    await stores.deliveries.add([delivery()])
    after, change = sent(delivery())
    assert not await stores.deliveries.record(replace(after, epoch=2), 0, [change])
    assert not await stores.deliveries.record(after, 1, [change])
    assert not await stores.deliveries.record(replace(after, id="nobody"), 0, [change])
    assert await stores.deliveries.get("d-1") == delivery()


async def test_a_late_outcome_is_noted(stores: Stores) -> None:
    await stores.deliveries.add([delivery()])
    _, change = sent(delivery())
    await stores.deliveries.note("d-1", change)
    stored = await stores.deliveries.get("d-1")
    assert stored is not None
    assert (stored.state, stored.possible_duplicate, stored.history[-1]) == (State.QUEUED, True, change)


async def test_what_is_due_comes_most_overdue_first_and_final_ones_never(stores: Stores) -> None:
    await stores.deliveries.add([delivery(3), delivery(1), delivery(2)])
    after, change = sent(delivery(2))
    await stores.deliveries.record(after, 0, [change])
    await stores.deliveries.postpone(after, START)
    due = await stores.deliveries.due(START + SECOND * 5, 10)
    assert [found.id for found in due] == ["d-1", "d-3"]
    await stores.deliveries.postpone(due[0], START + SECOND * 60)
    assert [found.id for found in await stores.deliveries.due(START + SECOND * 5, 10)] == ["d-3"]


async def test_an_end_is_to_be_told_until_it_is(stores: Stores) -> None:
    await stores.deliveries.add([delivery(1), delivery(2)])
    change = Change(State.CANCELLED, START, Reason.CANCELLED, 1, 0)
    ended = [
        replace(delivery(number).changed(change, None), tell_at=START + SECOND * number, id=f"d-{number}")
        for number in (1, 2)
    ]
    for each in ended:
        assert await stores.deliveries.record(each, 0, [change])
    assert [found.id for found in await stores.deliveries.untold(START + SECOND, 10)] == ["d-1"]
    assert [found.id for found in await stores.deliveries.untold(START + SECOND * 9, 10)] == ["d-1", "d-2"]
    await stores.deliveries.postpone(ended[0], START + SECOND * 20)
    await stores.deliveries.postpone(ended[0], START)
    assert [found.id for found in await stores.deliveries.untold(START + SECOND * 9, 10)] == ["d-2"]
    ended[0] = replace(ended[0], tell_at=START + SECOND * 20)
    assert [found.id for found in await stores.deliveries.untold(START + SECOND * 20, 10)] == ["d-2", "d-1"]
    await stores.deliveries.told(ended[0])
    await stores.deliveries.told(replace(ended[1], tell_at=START))
    assert [found.id for found in await stores.deliveries.untold(START + SECOND * 9, 10)] == ["d-2"]
    assert await stores.deliveries.due(START + SECOND * 9, 10) == []


async def test_a_final_delivery_is_reopened_once(stores: Stores) -> None:
    failed = delivery(state=State.FAILED, due_at=None)
    await stores.deliveries.add([failed])
    change = Change(State.QUEUED, START, Reason.REPLAYED, 2, 0)
    after = failed.changed(change, START + SECOND)
    won = [
        await stores.deliveries.reopen(failed, replace(after, updated_at=START + SECOND * n), change) for n in (1, 2)
    ]
    assert won == [True, False]
    stored = await stores.deliveries.get("d-1")
    assert stored is not None
    assert (stored.state, stored.epoch, stored.attempt, stored.history[-1]) == (State.QUEUED, 2, 0, change)


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        (DeadFilter(), ["d-1", "d-2", "d-3"]),
        (DeadFilter(channel=Channel.SMS), ["d-2"]),
        (DeadFilter(reason=Reason.TIMEOUT), ["d-3"]),
        (DeadFilter(source="shop", type="order.shipped"), ["d-1", "d-2", "d-3"]),
        (DeadFilter(type="order.lost"), []),
        (DeadFilter(since=START + SECOND), ["d-3"]),
        (DeadFilter(until=START), ["d-1", "d-2"]),
        (DeadFilter(state=State.UNKNOWN), ["d-4"]),
    ],
)
async def test_the_dead_are_found_by_what_an_operator_knows(
    stores: Stores, chosen: DeadFilter, found: list[str]
) -> None:
    dead = {"state": State.FAILED, "due_at": None}
    await stores.deliveries.add(
        [
            delivery(1, **dead),
            delivery(2, **dead, channel=Channel.SMS),
            delivery(3, **dead, reason=Reason.TIMEOUT, updated_at=START + SECOND * 2),
            delivery(4, state=State.UNKNOWN, due_at=None),
            delivery(5),
        ]
    )
    assert [item.id async for item in stores.deliveries.dead(chosen, None)] == found
    assert [item.id async for item in stores.deliveries.dead(chosen, 1)] == found[:1]


async def test_the_dead_come_in_the_order_in_which_they_became_so(stores: Stores) -> None:
    died = {1: 3, 2: 1, 3: 2, 4: 1}
    dead = [
        delivery(n, state=State.FAILED, due_at=None, channel=list(Channel)[n], updated_at=START + SECOND * after)
        for n, after in died.items()
    ]
    await stores.deliveries.add(dead)
    assert [item.id async for item in stores.deliveries.dead(DeadFilter(), None)] == ["d-2", "d-4", "d-3", "d-1"]
    assert [item.id async for item in stores.deliveries.dead(DeadFilter(), 3)] == ["d-2", "d-4", "d-3"]


def refined(before: Delivery, state: State, reason: Reason) -> tuple[Delivery, Change]:
    change = Change(state, START + SECOND * 9, reason, before.epoch, before.attempt, "ses", "5.1.1")
    return before.changed(change, None), change


async def test_a_reference_is_stored_with_what_was_sent_and_found(stores: Stores) -> None:
    await stores.deliveries.add([delivery(1), delivery(2), delivery(3)])
    for number, provider in ((1, "ses"), (2, "backup")):
        change = Change(State.SENT, START + SECOND, Reason.ACCEPTED, 1, 1, provider, "ok")
        after = replace(delivery(number).changed(change, None), reference="0102")
        assert await stores.deliveries.record(after, 0, [change])
    found = await stores.deliveries.by_reference("0102", {"ses", "another"})
    assert found is not None
    assert (found.id, found.reference, found.provider) == ("d-1", "0102", "ses")
    latest = await stores.deliveries.by_reference("0102", {"ses", "backup"})
    assert latest is not None
    assert latest.id == "d-2"
    assert await stores.deliveries.by_reference("0102", {"twilio"}) is None
    assert await stores.deliveries.by_reference("0103", {"ses"}) is None


async def test_a_reference_goes_with_the_epoch_that_it_belonged_to(stores: Stores) -> None:
    await stores.deliveries.add([delivery()])
    change = Change(State.UNKNOWN, START + SECOND, Reason.CONNECTION_LOST, 1, 1, "ses", "lost")
    unknown = replace(delivery().changed(change, None), reference="0102")
    assert await stores.deliveries.record(unknown, 0, [change])
    again = Change(State.QUEUED, START + SECOND * 2, Reason.REPLAYED, 2, 0)
    assert await stores.deliveries.reopen(unknown, unknown.changed(again, START + SECOND * 9), again)
    stored = await stores.deliveries.get("d-1")
    assert stored is not None
    assert stored.reference is None
    assert await stores.deliveries.by_reference("0102", {"ses"}) is None


async def test_what_was_sent_is_refined_from_where_it_stands(stores: Stores) -> None:
    await stores.deliveries.add([delivery(number) for number in range(1, 6)])
    sent_ones = []
    for number in range(1, 6):
        after, change = sent(delivery(number))
        assert await stores.deliveries.record(after, 0, [change])
        sent_ones.append(after)
    bounced = [refined(each, State.BOUNCED, Reason.HARD_BOUNCE) for each in sent_ones]
    other = refined(sent_ones[0], State.DELIVERED, Reason.DELIVERED)
    first = await stores.deliveries.refine(sent_ones[0], *other)
    outcomes = await asyncio.gather(
        *(stores.deliveries.refine(before, *after) for before, after in zip(sent_ones, bounced, strict=True))
    )
    assert (first, list(outcomes)) == (True, [False, True, True, True, True])
    stored = await asyncio.gather(*(stores.deliveries.get(each.id) for each in sent_ones))
    assert list(stored) == [other[0], *(after for after, _ in bounced[1:])]


async def test_of_two_refinements_at_once_one_counts(stores: Stores) -> None:
    await stores.deliveries.add([delivery()])
    before, change = sent(delivery())
    assert await stores.deliveries.record(before, 0, [change])
    outcomes = await asyncio.gather(
        stores.deliveries.refine(before, *refined(before, State.BOUNCED, Reason.HARD_BOUNCE)),
        stores.deliveries.refine(before, *refined(before, State.DELIVERED, Reason.DELIVERED)),
    )
    assert sorted(outcomes) == [False, True]
    stored = await stores.deliveries.get("d-1")
    assert stored is not None
    assert len(stored.history) == 3


async def test_a_late_reference_is_taken_where_there_is_none(stores: Stores) -> None:
    await stores.deliveries.add([delivery()])
    late = Change(State.SENT, START + SECOND, Reason.ACCEPTED, 1, 1, "mail")
    await stores.deliveries.note("d-1", replace(late, epoch=2), reference="of another epoch")
    assert await stores.deliveries.by_reference("of another epoch", {"mail"}) is None
    await stores.deliveries.note("d-1", late, reference="A")
    await stores.deliveries.note("d-1", late, reference="B")
    assert await stores.deliveries.by_reference("A", {"mail"}) is not None
    assert await stores.deliveries.by_reference("B", {"mail"}) is None


async def test_what_is_noted_once_is_noted_once(stores: Stores) -> None:
    await stores.deliveries.add([delivery()])
    change = Change(State.DELIVERED, START + SECOND, Reason.DELIVERED, 1, 1, "ses")
    noted = await asyncio.gather(*(stores.deliveries.note("d-1", change, once=True) for _ in range(9)))
    assert noted.count(True) == 1
    assert await stores.deliveries.note("d-1", replace(change, epoch=2), once=True)
    assert await stores.deliveries.note("d-1", replace(change, reason=Reason.COMPLAINED), once=True)
    assert await stores.deliveries.note("d-1", change)
    stored = await stores.deliveries.get("d-1")
    assert stored is not None
    assert [each.reason for each in stored.history[1:]].count(Reason.DELIVERED) == 3

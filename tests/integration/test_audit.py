"""Conservation over the real database and queues: each exception caused for real, named and mended."""

import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.errors import ExecutionTimeout

from config.settings import Settings
from consumers.app import audit_of, running, sweep_of
from deploy.smtp_sink import SmtpSink
from domain.audit import HOUR, Audited, Kind, Span, hour_of
from domain.conserve import Repair, Scope
from domain.delivery import Change
from domain.operate import Refused
from domain.ports import Claim
from domain.vocabulary import Channel, EventState, Reason, State
from storage.audit import MongoLedger
from storage.database import Collection
from tests.running import ORDER_SHIPPED, Stack, order, total
from tests.waiting import eventually

QUEUE = "notipy.channel.email.normal"


class Auditing:
    """An operator's view: audits, repairs, and the raw documents."""

    def __init__(self, stack: Stack) -> None:
        self.core = stack.core
        self.ledger = MongoLedger(self.core.database)
        self.audit = audit_of(self.core, self.ledger)
        self.repair = Repair(self.ledger, sweep_of(self.core), self.core.now)

    def raw(self, name: str) -> Collection:
        return self.core.database.collection(name)

    async def named(self, **scope: Any) -> set[tuple[Kind, str]]:
        audited = await self.audit(Scope(**scope))
        assert sum(audited.counts.values()) == len(audited.found)
        return {(each.kind, each.id) for each in audited.found}

    async def mend(self) -> Audited:
        """Repair what is found; twice, as two operators do."""
        audited = await self.audit(Scope())
        await self.repair(audited.found)
        await self.repair(audited.found)
        return audited

    async def shift(self, by: timedelta) -> None:
        """Everything happened that long ago, in one and the same hour."""
        at = hour_of(datetime.now(UTC)) - by + HOUR / 2
        await self.raw("events").update_many({}, {"$set": {"received_at": at}})
        await self.raw("deliveries").update_many({}, {"$set": {"created_at": at, "updated_at": at}})
        await self.raw("audit").delete_many({})


@pytest.fixture
def auditing(stack: Stack) -> Auditing:
    return Auditing(stack)


async def delivered(stack: Stack, settings: Settings, number: int) -> Sequence[str]:
    """So many events, each with one delivery that was sent."""
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        events = [await stack.publish(order()) for _ in range(number)]
        for event in events:
            await stack.final(event)
    return events


async def queued(stack: Stack, settings: Settings, number: int) -> Sequence[str]:
    """The ids of so many deliveries that wait in their queue, which nobody consumes."""
    await stack.apply(ORDER_SHIPPED)
    async with running(settings, ["events"]):
        events = [await stack.publish(order()) for _ in range(number)]
        return [(await stack.reach(event, State.QUEUED)).id for event in events]


async def test_an_empty_database_is_in_order(auditing: Auditing) -> None:
    audited = await auditing.audit(Scope())
    assert (audited.in_order, audited.sums.planned, audited.read) == (True, 0, 0)


async def test_the_sums_agree_while_deliveries_are_under_way(
    settings: Settings, stack: Stack, auditing: Auditing, smtp: SmtpSink
) -> None:
    await delivered(stack, settings, 3)
    await queued(stack, settings, 2)
    audited = await auditing.audit(Scope())
    assert audited.in_order
    sums = audited.sums
    assert (sums.events, sums.planned, sums.final, sums.in_flight) == (5, 5, 3, 2)


async def test_each_exception_is_named_and_mended(
    settings: Settings, stack: Stack, auditing: Auditing, smtp: SmtpSink
) -> None:
    events = await delivered(stack, settings, 5)
    by_event = {event: (await stack.deliveries(event))[0] for event in events}
    missing, orphaned, doubled, cut_short, _ = (by_event[event] for event in events)
    late = datetime.now(UTC) - timedelta(hours=1)
    await auditing.raw("deliveries").delete_one({"_id": missing.id})
    await auditing.raw("events").delete_one({"_id": orphaned.event_key})
    again = Change(State.SENT, datetime.now(UTC), Reason.ACCEPTED, 1, 1, "sink", "after its lease: 250 ok")
    await stack.core.deliveries.note(doubled.id, again)
    await auditing.raw("deliveries").delete_one({"_id": cut_short.id})
    await auditing.raw("events").update_one(
        {"_id": cut_short.event_key}, {"$set": {"state": "accepted", "planned": 0, "due_at": late}}
    )
    assert await auditing.named() == {
        (Kind.MISSING, missing.event_key),
        (Kind.ORPHANED, orphaned.id),
        (Kind.DUPLICATED, doubled.id),
        (Kind.UNPLANNED, cut_short.event_key),
    }
    await auditing.mend()
    assert await auditing.named() == set()
    async with running(settings):
        for event in events:
            (delivery,) = await stack.final(event)
            assert delivery.state is State.SENT
    # those that were deleted had been sent, which their claims tell: nobody knows whether they arrived
    assert {d.id for d in await stack.deliveries() if d.possible_duplicate} == {missing.id, cut_short.id, doubled.id}
    assert await auditing.named() == set()


async def test_what_a_queue_has_lost_is_named_and_dispatched_again(
    settings: Settings, stack: Stack, auditing: Auditing, smtp: SmtpSink
) -> None:
    ids = await queued(stack, settings, 3)
    queue = await stack.channel.get_queue(QUEUE, ensure=False)
    assert await auditing.named() == set()
    await queue.purge()

    async def named() -> bool:  # not before what is being published has had time to arrive
        return await auditing.named() == {(Kind.UNDISPATCHED, name) for name in ids}

    await eventually(named, timeout=8)
    claimed = await stack.core.deliveries.get(ids[0])
    assert claimed is not None
    now = datetime.now(UTC)
    await stack.core.deliveries.claim(Claim(claimed.claim_id(1), "somebody", now, now + timedelta(seconds=3)))
    found = await auditing.named()
    assert (Kind.UNDISPATCHED, ids[0]) not in found
    await auditing.mend()
    assert await auditing.named() == set()
    async with running(settings):
        await eventually(lambda: len(smtp.mails) >= 3, timeout=20)


async def test_what_nobody_looks_after_is_overdue(
    settings: Settings, stack: Stack, auditing: Auditing, smtp: SmtpSink
) -> None:
    late, forgotten, _ = await queued(stack, settings, 3)
    long_ago = datetime.now(UTC) - timedelta(hours=2)
    await auditing.raw("deliveries").update_one({"_id": late}, {"$set": {"due_at": long_ago}})
    await auditing.raw("deliveries").update_one({"_id": forgotten}, {"$unset": {"due_at": ""}})
    assert await auditing.named() == {(Kind.OVERDUE, late), (Kind.OVERDUE, forgotten)}
    await auditing.mend()
    assert await auditing.named() == set()
    async with running(settings):
        for delivery in await stack.deliveries():
            await stack.final(delivery.event_id)


async def test_an_orphan_in_flight_is_failed_and_parked(settings: Settings, stack: Stack, auditing: Auditing) -> None:
    (orphan,) = await queued(stack, settings, 1)
    await auditing.raw("events").delete_many({})
    assert await auditing.named() == {(Kind.ORPHANED, orphan)}
    await auditing.mend()
    assert await auditing.named() == set()
    delivery = await stack.core.deliveries.get(orphan)
    assert delivery is not None
    assert (delivery.state, delivery.reason) == (State.FAILED, Reason.INTERNAL_ERROR)
    assert (await stack.take("notipy.dead.email")).headers["x-notipy-delivery"] == orphan


async def test_more_than_was_planned_is_told_once(settings: Settings, stack: Stack, auditing: Auditing) -> None:
    (event,) = await delivered(stack, settings, 1)
    raw = auditing.raw("deliveries")
    document = await raw.find_one({"event_id": event})
    assert document is not None
    await raw.insert_one({**document, "_id": "another"})
    assert await auditing.named() == {(Kind.SURPLUS, document["event_key"])}
    await auditing.mend()
    assert await auditing.named() == set()
    await raw.insert_one({**document, "_id": "a third"})
    assert await auditing.named() == {(Kind.SURPLUS, document["event_key"])}


async def test_faults_that_cancel_each_other_out_are_found(
    settings: Settings, stack: Stack, auditing: Auditing
) -> None:
    first, second = [(await stack.deliveries(event))[0] for event in await delivered(stack, settings, 2)]
    await auditing.raw("deliveries").delete_one({"_id": first.id})
    await auditing.raw("events").delete_one({"_id": second.event_key})
    assert await auditing.named() == {(Kind.MISSING, first.event_key), (Kind.ORPHANED, second.id)}


async def test_what_is_planned_again_is_not_sent_again(
    settings: Settings, stack: Stack, auditing: Auditing, smtp: SmtpSink
) -> None:
    """Of an event with two deliveries one is lost; the other was cancelled, its claims deleted by retention."""
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        two = [{"email": "ana@example.org"}, {"email": "ben@example.org"}]
        event = await stack.publish({**order(), "recipients": two, "send_at": "2100-01-01T00:00:00Z"})
        await eventually(lambda: _planned(auditing))
        lost, cancelled = await stack.deliveries(event)
        assert not isinstance(await stack.core.operate.cancel(cancelled.id), Refused)
        await auditing.raw("attempts").delete_many({})
        await auditing.raw("deliveries").delete_one({"_id": lost.id})
        await auditing.mend()
        await eventually(lambda: _has(stack, event, 2))
    states = {delivery.id: delivery.state for delivery in await stack.deliveries(event)}
    assert states == {lost.id: State.HELD, cancelled.id: State.CANCELLED}
    assert await stack.depth(QUEUE) == 0
    assert not smtp.mails


async def _planned(auditing: Auditing) -> bool:
    return await auditing.raw("events").count_documents({"state": "planned"}) == 1


async def _has(stack: Stack, event: str, number: int) -> bool:
    return len(await stack.deliveries(event)) == number


# ---------------------------------------------------------------------------------------------------------------
# incremental
# ---------------------------------------------------------------------------------------------------------------


async def test_an_hour_that_is_over_and_in_order_is_not_read_again(
    settings: Settings, stack: Stack, auditing: Auditing
) -> None:
    events = await delivered(stack, settings, 3)
    await auditing.shift(2 * HOUR)
    first, second = await auditing.audit(Scope()), await auditing.audit(Scope())
    assert (first.read, first.verified, second.read, second.verified) == (1, 0, 0, 1)
    assert first.sums == second.sums
    await auditing.raw("deliveries").delete_one({"event_id": events[0]})
    assert (await auditing.audit(Scope())).in_order, "it takes the word of the first"
    full = await auditing.audit(Scope(full=True))
    assert [each.kind for each in full.found] == [Kind.MISSING]
    assert full.read == 1
    assert [each.kind for each in (await auditing.audit(Scope())).found] == [Kind.MISSING]


async def test_an_hour_with_an_exception_is_read_until_it_is_mended(
    settings: Settings, stack: Stack, auditing: Auditing
) -> None:
    (event,) = await delivered(stack, settings, 1)
    await auditing.shift(2 * HOUR)
    await auditing.raw("deliveries").delete_one({"event_id": event})
    for _ in range(2):
        audited = await auditing.audit(Scope())
        assert (audited.read, [each.kind for each in audited.found]) == (1, [Kind.MISSING])
    await auditing.mend()
    assert (await auditing.audit(Scope())).in_order
    later = await auditing.audit(Scope())
    assert (later.read, later.verified, later.sums.planned, later.sums.stored) == (0, 1, 1, 1)


async def test_a_replay_is_seen_in_an_hour_that_is_not_read_again(
    settings: Settings, stack: Stack, auditing: Auditing, smtp: SmtpSink
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        event = await stack.publish(order("reject-550@example.org"))
        (failed,) = await stack.final(event)
    await auditing.shift(2 * HOUR)
    failed = (await stack.deliveries(event))[0]
    assert (await auditing.audit(Scope())).sums.final == 1
    assert not isinstance(await stack.core.operate.replay(failed), Refused)
    replayed = await auditing.audit(Scope())
    assert (replayed.sums.final, replayed.sums.in_flight, replayed.read, replayed.in_order) == (0, 1, 0, True)
    async with running(settings):
        await stack.final(event)
    ended = await auditing.audit(Scope())
    assert (ended.sums.final, ended.sums.in_flight, ended.verified) == (1, 0, 1)


async def test_only_what_was_received_since_is_looked_at(settings: Settings, stack: Stack, auditing: Auditing) -> None:
    (event,) = await delivered(stack, settings, 1)
    await auditing.shift(5 * HOUR)
    await auditing.raw("deliveries").delete_one({"event_id": event})
    await delivered(stack, settings, 2)
    now = datetime.now(UTC)
    recent = await auditing.audit(Scope(since=now - timedelta(minutes=30)))
    assert (recent.in_order, recent.sums.planned, recent.sums.stored) == (True, 2, 2)
    older = await auditing.audit(Scope(since=now - 6 * HOUR))
    assert [each.kind for each in older.found] == [Kind.MISSING]


async def test_what_retention_may_have_deleted_is_not_missed(
    settings: Settings, stack: Stack, auditing: Auditing
) -> None:
    (event,) = await delivered(stack, settings, 1)
    await auditing.shift(100 * HOUR)
    key = (await stack.deliveries(event))[0].event_key
    await auditing.raw("deliveries").delete_many({})
    told = {"deliveries_before": datetime.now(UTC) - 48 * HOUR}
    before = await auditing.audit(Scope())
    await auditing.raw("housekeeping").update_one({"_id": "retention"}, {"$set": told}, upsert=True)
    assert [each.kind for each in before.found] == [Kind.MISSING]
    assert (await auditing.audit(Scope())).in_order
    await auditing.repair(before.found)
    stored = await stack.core.events.get(key)
    assert stored is not None
    assert stored.state is EventState.PLANNED, "an old notification is not sent again"


async def test_deliveries_of_an_older_version_raise_no_alarm(
    settings: Settings, stack: Stack, auditing: Auditing
) -> None:
    """Before, a delivery was created some milliseconds after its event was received: here, in the next hour."""
    await delivered(stack, settings, 1)
    hour = hour_of(datetime.now(UTC)) - 5 * HOUR
    await auditing.raw("events").update_many({}, {"$set": {"received_at": hour - timedelta(milliseconds=2)}})
    await auditing.raw("deliveries").update_many({}, {"$set": {"created_at": hour + timedelta(milliseconds=3)}})
    await auditing.raw("audit").delete_many({})
    first, second = await auditing.audit(Scope()), await auditing.audit(Scope())
    assert (first.in_order, first.sums.planned, first.sums.stored, first.read) == (True, 1, 1, 2)
    assert (second.sums, second.read, second.verified) == (first.sums, 0, 2)


async def test_the_sweeper_shows_the_same_sums(settings: Settings, stack: Stack, auditing: Auditing) -> None:
    (event, _) = await delivered(stack, settings, 2)
    await auditing.raw("deliveries").delete_one({"event_id": event})
    async with running(settings, ["sweeper"]) as application:
        await eventually(lambda: total(application, "notipy_audit_planned") == 2)
        assert total(application, "notipy_audit_stored") == 1
        assert total(application, "notipy_audit_exceptions", kind="missing") == 1
        assert total(application, "notipy_audit_exceptions") == 1
        assert total(application, "notipy_audit_timestamp_seconds") > 0


# ---------------------------------------------------------------------------------------------------------------
# cheap
# ---------------------------------------------------------------------------------------------------------------


async def test_every_query_keeps_to_its_index(stack: Stack, auditing: Auditing) -> None:
    """By MongoDB's own profile: no collection is scanned, and the sums read index entries alone."""
    hour = hour_of(datetime.now(UTC)) - 3 * HOUR
    await _fill(auditing, hour, events=3000)
    async with AsyncExitStack() as profiled:
        await _profile(auditing, 2)
        profiled.push_async_callback(_profile, auditing, 0)
        first = await auditing.audit(Scope())
        assert (first.in_order, first.sums.planned, first.sums.stored) == (True, 6000, 6000)
        seen = await auditing.raw("system.profile").find({"ns": re.compile("deliveries|events|attempts")}).to_list(None)
        read = [entry for entry in seen if entry["op"] in {"query", "command", "getmore"}]
        await _profile(auditing, 0)
        await auditing.raw("system.profile").drop()
        await _profile(auditing, 2)
        second = await auditing.audit(Scope())
        later = await auditing.raw("system.profile").find({"ns": re.compile("deliveries|events")}).to_list(None)
    assert read
    assert not [entry for entry in read if "COLLSCAN" in entry.get("planSummary", "")]
    assert sum(entry.get("docsExamined", 0) for entry in read) < 50
    assert sum(entry.get("keysExamined", 0) for entry in read) < 3000 + 2 * 6000 + 3000
    assert (second.sums, second.read) == (first.sums, 0)
    assert sum(entry.get("keysExamined", 0) for entry in later) < 500


async def test_the_sums_are_covered_by_indexes(auditing: Auditing) -> None:
    hour = hour_of(datetime.now(UTC)) - 3 * HOUR
    await _fill(auditing, hour, events=100)
    assert sum((await auditing.ledger.tally(Span(hour, hour + HOUR))).values()) == 200
    counted = await auditing.ledger.count(Span(hour, hour + HOUR))
    assert (counted.events, counted.planned, counted.of_events) == (100, 200, 200)


async def test_a_span_that_takes_too_long_is_counted_in_halves(
    auditing: Auditing, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour = hour_of(datetime.now(UTC)) - 3 * HOUR
    await _fill(auditing, hour, events=300)
    deliveries, refused = auditing.raw("deliveries"), []

    class Slow:
        """Refuses whatever spans more than ten minutes, as MongoDB refuses what takes too long."""

        def aggregate(self, stages: list[Any], **options: Any) -> Any:
            window = stages[0]["$match"]["created_at"]
            if window["$lt"] - window["$gte"] > timedelta(minutes=10):
                assert options["maxTimeMS"]
                refused.append(window)
                raise ExecutionTimeout("operation exceeded time limit")
            return deliveries.aggregate(stages, **options)

    monkeypatch.setattr(auditing.ledger, "_deliveries", Slow())
    assert await auditing.ledger.tally(Span(hour, hour + HOUR)) == {
        (Channel.EMAIL, State.SENT): 300,
        (Channel.SMS, State.SENT): 300,
    }
    assert len(refused) == 7


async def _profile(auditing: Auditing, level: int) -> None:
    await auditing.core.database._database.command({"profile": level})


async def _fill(auditing: Auditing, hour: datetime, events: int) -> None:
    at = [hour + timedelta(seconds=number % 3600) for number in range(events)]
    await auditing.raw("events").insert_many(
        [
            {"_id": f"e-{n:05}", "id": f"{n}", "source": "shop", "received_at": at[n], "state": "planned", "planned": 2}
            for n in range(events)
        ]
    )
    await auditing.raw("deliveries").insert_many(
        [
            {
                "_id": f"d-{n:05}-{channel}",
                "event_key": f"e-{n:05}",
                "channel": channel,
                "state": "sent",
                "created_at": at[n],
            }
            for n in range(events)
            for channel in ("email", "sms")
        ]
    )

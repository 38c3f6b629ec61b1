"""Retention over a real MongoDB and a real RabbitMQ: what goes, and above all what stays."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import FieldValue

from config.settings import RetentionSettings, Settings
from consumers import dead_letters, housekeeping
from consumers.app import running
from deploy.smtp_sink import SmtpSink
from domain.delivery import Change, Delivery
from domain.dispatch import STALE_AFTER, dispatch_of
from domain.event import Incoming
from domain.operate import Refused
from domain.ports import Claim, StoredEvent
from domain.text import Fault
from domain.vocabulary import Channel, EventState, Lane, Reason, State
from storage import retention
from storage.database import Database, Document
from storage.deliveries import MongoDeliveries
from storage.events import MongoEvents
from storage.retention import Cutoffs, Horizon, MongoRetention, read_horizon
from storage.writes import delete_all
from tests.running import ORDER_SHIPPED, Stack, order, total
from tests.waiting import eventually

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
BEFORE = NOW - 30 * DAY
FINAL = [state for state in State if state.final]
OVER = sorted(set(FINAL) - {State.FAILED, State.UNKNOWN})


def delivery(name: str, state: State = State.SENT, age: timedelta = 40 * DAY, **more: Any) -> Delivery:
    at = NOW - age
    values: dict[str, Any] = {
        "id": name,
        "event_key": f"event of {name}",
        "event_id": "ord-1",
        "source": "shop",
        "type": "order.shipped",
        "notification": "order-shipped",
        "version": 1,
        "channel": Channel.EMAIL,
        "lane": Lane.NORMAL,
        "recipient": {"email": "ana@example.org"},
        "recipient_key": "ana@example.org",
        "state": state,
        "reason": Reason.PLANNED,
        "created_at": at,
        "updated_at": at,
        "attempt": 1 if state.final else 0,
        "due_at": None if state.final else at,
        "history": (Change(state, at, Reason.PLANNED, 1, 0),),
    }
    return Delivery(**(values | more))


def event(key: str, state: EventState = EventState.PLANNED, age: timedelta = 40 * DAY) -> StoredEvent:
    at = NOW - age
    return StoredEvent(key, b"{}", key, "shop", "order.shipped", at, at, state, (("order-shipped", 1),), 1, "t")


async def store(database: Database, *deliveries: Delivery, claimed: timedelta = 40 * DAY) -> None:
    """Deliveries with a claim on each of their attempts, the next one's too."""
    stored = MongoDeliveries(database)
    await stored.add(deliveries)
    ids = [each.claim_id(attempt) for each in deliveries for attempt in range(1, each.attempt + 2)]
    at = NOW - claimed
    await asyncio.gather(*(stored.claim(Claim(id_, "t", at, at + timedelta(minutes=2))) for id_ in ids))


async def store_events(database: Database, *events: StoredEvent) -> None:
    stored = MongoEvents(database)
    await asyncio.gather(*(stored.add(each, NOW) for each in events))
    over = [each for each in events if each.state is not EventState.ACCEPTED]
    await asyncio.gather(*(stored.settle(each.key, each.state, 1) for each in over))


async def ids(database: Database, collection: str) -> set[str]:
    return {document["_id"] for document in await database.collection(collection).find({}, {"_id": 1}).to_list(None)}


# ---------------------------------------------------------------------------------------------------------------
# What goes and what stays
# ---------------------------------------------------------------------------------------------------------------


async def test_what_has_been_over_for_long_is_deleted_with_its_claims(database: Database) -> None:
    await store(database, *(delivery(f"old {state}", state) for state in OVER))
    await store(database, *(delivery(f"young {state}", state, 20 * DAY) for state in OVER), claimed=20 * DAY)
    step = await MongoRetention(database).deliveries(BEFORE)
    assert step.deleted == {"deliveries": len(OVER), "attempts": 2 * len(OVER)}
    assert await ids(database, "deliveries") == {f"young {state}" for state in OVER}
    assert await ids(database, "attempts") == {f"young {state}/1/{n}" for state in OVER for n in (1, 2)}


async def test_what_can_be_replayed_is_kept_for_as_long_as_is_said_of_it(database: Database) -> None:
    await store(database, delivery("failed", State.FAILED), delivery("unknown", State.UNKNOWN), delivery("sent"))
    await MongoRetention(database).deliveries(BEFORE)
    assert await ids(database, "deliveries") == {"failed", "unknown"}
    assert (await MongoRetention(database).dead(BEFORE)).deleted == {"dead": 2, "attempts": 4}
    assert not await ids(database, "deliveries") | await ids(database, "attempts")


async def test_nothing_that_is_not_final_is_deleted_whatever_its_age(database: Database) -> None:
    unfinished = [delivery(str(s), s, 4000 * DAY) for s in (State.QUEUED, State.HELD, State.RETRYING)]
    untold = replace(delivery("untold", State.FAILED, 4000 * DAY), tell_at=NOW - 3999 * DAY)
    await store(database, *unfinished, untold, claimed=4000 * DAY)
    await store_events(database, event("planning", EventState.ACCEPTED, 4000 * DAY))
    step = MongoRetention(database)
    for done in (await step.deliveries(NOW), await step.dead(NOW), await step.events(NOW, NOW)):
        assert not any(done.deleted.values())
    await step.attempts(NOW)
    assert await ids(database, "deliveries") == {"queued", "held", "retrying", "untold"}
    assert await ids(database, "attempts") >= {"queued/1/1", "held/1/1", "retrying/1/1"}
    assert await ids(database, "events") == {"planning"}


async def test_an_event_is_kept_until_its_last_delivery_goes(database: Database) -> None:
    events = [
        event("event of failed"),
        event("event of sent"),
        event("none", EventState.UNMATCHED),
        event("x", age=DAY),
    ]
    await store_events(database, *events, event("broken", EventState.FAILED))
    await store(database, delivery("failed", State.FAILED), delivery("sent"))
    assert (await MongoRetention(database).events(BEFORE)).deleted == {"events": 1}
    assert await ids(database, "events") == {"event of failed", "event of sent", "x", "broken"}
    await MongoRetention(database).deliveries(BEFORE)
    await MongoRetention(database).events(BEFORE)
    assert await ids(database, "events") == {"event of failed", "x", "broken"}
    await MongoRetention(database).dead(BEFORE)
    await MongoRetention(database).events(BEFORE, dead=BEFORE)
    assert await ids(database, "events") == {"x"}


async def test_claims_go_before_their_delivery_and_when_it_is_gone(database: Database) -> None:
    await store(database, delivery("long over"), delivery("open", State.RETRYING))
    await store(database, delivery("just over", age=DAY))  # claimed long ago, and decided yesterday
    await MongoDeliveries(database).claim(Claim("nobody's/1/1", "t", NOW - 40 * DAY, NOW - 40 * DAY))
    await MongoDeliveries(database).claim(Claim("long over/2/1", "t", NOW, NOW + DAY))
    assert (await MongoRetention(database).attempts(BEFORE)).deleted == {"attempts": 3}
    assert await ids(database, "attempts") == {"long over/2/1", "open/1/1", "just over/1/1", "just over/1/2"}
    assert len(await ids(database, "deliveries")) == 3


async def test_what_is_kept_does_not_stand_in_the_way_of_what_goes(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 5)
    kept = [delivery(f"failed {n}", State.FAILED, (100 - n % 3) * DAY) for n in range(23)]
    await store(database, *kept, *(delivery(f"open {n}", State.HELD, 100 * DAY) for n in range(7)))
    await store_events(database, *(event(each.event_key, age=50 * DAY) for each in kept), event("free"))
    await MongoDeliveries(database).claim(Claim("nobody's/1/1", "t", BEFORE - DAY, BEFORE - DAY))
    step = MongoRetention(database)
    for _ in range(12):
        await step.events(BEFORE)
        await step.attempts(BEFORE - 60 * DAY)
    assert "free" not in await ids(database, "events")
    assert len(await ids(database, "events")) == 23
    for _ in range(30):
        await step.attempts(BEFORE)
    assert len([name for name in await ids(database, "attempts") if name.startswith("open")]) == 7
    # a day later the walk begins anew, and finds what has become free
    await step.dead(BEFORE)
    while (await step.dead(BEFORE)).more:
        pass
    for _ in range(12):
        await step.events(BEFORE + DAY)
    assert not await ids(database, "events")


async def test_a_replay_that_comes_in_between_wins(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = delivery("failed", State.FAILED)
    await store(database, failed, delivery("also failed", State.FAILED))
    stored = MongoDeliveries(database)
    change = Change(State.QUEUED, NOW, Reason.REPLAYED, 2, 0)
    again = failed.changed(change, NOW)

    async def replayed_meanwhile(*arguments: Any) -> int:
        assert await stored.reopen(failed, again, change)
        assert await stored.claim(Claim(again.claim_id(1), "t", NOW, NOW + DAY))
        return await delete_all(*arguments)

    monkeypatch.setattr("storage.retention.delete_all", replayed_meanwhile)
    assert (await MongoRetention(database).dead(BEFORE)).deleted["dead"] == 1
    assert await ids(database, "deliveries") == {"failed"}
    assert await ids(database, "attempts") == {"failed/2/1"}


async def test_cut_short_between_claims_and_deliveries_it_is_continued(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store(database, delivery("sent"), delivery("cancelled", State.CANCELLED))
    step = MongoRetention(database)

    async def killed(*_: Any) -> int:
        raise asyncio.CancelledError

    with monkeypatch.context() as patched:
        patched.setattr(MongoRetention, "_delete", killed)
        with pytest.raises(asyncio.CancelledError):
            await step.deliveries(BEFORE)
    assert len(await ids(database, "deliveries")) == 2
    assert (await MongoRetention(database).deliveries(BEFORE)).deleted == {"deliveries": 2, "attempts": 0}


async def test_several_processes_at_once_do_no_harm(database: Database) -> None:
    await store(database, *(delivery(f"sent {n}") for n in range(50)), delivery("open", State.HELD))
    steps = await asyncio.gather(*(MongoRetention(database).deliveries(BEFORE) for _ in range(4)))
    assert sum(step.deleted.get("deliveries", 0) for step in steps) == 50
    assert await ids(database, "deliveries") == {"open"}


async def test_what_may_be_gone_is_said_and_never_taken_back(database: Database) -> None:
    assert await read_horizon(database) == Horizon()
    await MongoRetention(database).announce(Cutoffs(attempts=NOW))
    assert await read_horizon(database) == Horizon()
    await MongoRetention(database).announce(Cutoffs(deliveries=NOW - 9 * DAY, dead=NOW - 5 * DAY))
    assert await read_horizon(database) == Horizon(None, NOW - 5 * DAY)
    await MongoRetention(database).announce(Cutoffs(events=NOW - 8 * DAY, deliveries=NOW - 20 * DAY))
    assert await read_horizon(database) == Horizon(NOW - 8 * DAY, NOW - 5 * DAY)


async def test_every_query_is_served_by_an_index(database: Database) -> None:
    await store(database, *(delivery(f"{state} {n}", state) for state in FINAL for n in range(20)))
    await store_events(database, *(event(f"e {n}") for n in range(50)))
    raw = database.collection("x").database
    await raw.command("profile", 2)
    step = MongoRetention(database)
    for _ in range(2):
        for take in (step.attempts, step.deliveries, step.dead, step.events):
            await take(BEFORE)
    await raw.command("profile", 0)
    seen: list[Document] = (
        await raw["system.profile"].find({"op": {"$in": ["query", "remove", "command"]}}).to_list(None)
    )
    plans = [entry["planSummary"] for entry in seen if "planSummary" in entry]
    assert len(plans) > 20
    assert not [plan for plan in plans if "COLLSCAN" in plan]
    assert not [entry for entry in seen if entry.get("hasSortStage") and entry.get("op") == "query"]
    events = [e for e in seen if e["ns"].endswith(".events") and e["op"] == "query"]
    assert events
    assert all(e["docsExamined"] == 0 for e in events)  # their bodies are not read
    distinct = [e for e in seen if e["op"] == "command" and "distinct" in e["command"]]
    assert distinct
    assert all(e["docsExamined"] <= 40 for e in distinct)


# ---------------------------------------------------------------------------------------------------------------
# The job
# ---------------------------------------------------------------------------------------------------------------


def keeping(settings: Settings, **kept: timedelta | None) -> Settings:
    return settings.model_copy(update={"retention": RetentionSettings(**kept)})


async def test_the_sweeper_role_deletes_by_itself_and_tells(
    settings: Settings, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 10)
    monkeypatch.setattr(housekeeping, "BATCHES", 2)
    monkeypatch.setattr(housekeeping, "REST", 0.0)
    database = stack.core.database
    await store(database, *(delivery(f"sent {n}", age=100 * DAY) for n in range(95)), claimed=100 * DAY)
    await store(database, delivery("failed", State.FAILED, 100 * DAY), delivery("young"), claimed=100 * DAY)
    await store_events(database, *(event(f"event of sent {n}", age=100 * DAY) for n in range(95)))
    async with running(settings, ["sweeper"]) as application:

        async def gone() -> bool:
            return await ids(database, "deliveries") == {"failed", "young"} and not await ids(database, "attempts")

        await eventually(gone)
        await eventually(lambda: total(application, "notipy_deleted_total", **{"class": "deliveries"}) == 95)
        await eventually(lambda: total(application, "notipy_deleted_total", **{"class": "attempts"}) == 2 * 97)
        assert total(application, "notipy_deleted_total", **{"class": "dead"}) == 0

        async def all_events_gone() -> bool:
            return not await ids(database, "events")

        await eventually(all_events_gone)
    horizon = await read_horizon(database)
    assert horizon.events_before is not None
    assert abs(datetime.now(UTC) - 90 * DAY - horizon.events_before) < timedelta(minutes=5)
    assert horizon.deliveries_before is not None


async def test_one_of_two_instances_does_it(settings: Settings, stack: Stack) -> None:
    leases = stack.core.database.collection("leases")
    async with running(settings, ["sweeper"]), running(settings, ["sweeper"]):

        async def led() -> bool:
            return await leases.count_documents({"_id": "housekeeping"}) == 1

        await eventually(led)
    assert await leases.count_documents({}) == 0


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each round that has ended, whether there is more to do."""
    ended: list[bool] = []
    round_ = housekeeping.Housekeeping._round

    async def counted(self: housekeeping.Housekeeping) -> bool:
        ended.append(await round_(self))
        return ended[-1]

    monkeypatch.setattr(housekeeping.Housekeeping, "_round", counted)
    return ended


async def test_a_clock_that_has_run_ahead_deletes_nothing(settings: Settings, stack: Stack, rounds: list[bool]) -> None:
    database = stack.core.database
    await store(database, delivery("young", age=DAY))
    async with running(settings, ["sweeper"], now=lambda: datetime.now(UTC) + 1000 * DAY):
        await eventually(lambda: rounds)
    assert rounds == [False]
    assert (await read_horizon(database)).deliveries_before is not None
    assert await ids(database, "deliveries") == {"young"}


async def test_kept_for_ever_nothing_is_deleted(settings: Settings, stack: Stack, rounds: list[bool]) -> None:
    database = stack.core.database
    await store(database, delivery("old", age=4000 * DAY), delivery("failed", State.FAILED, 4000 * DAY))
    await store_events(database, event("old", age=4000 * DAY))
    await reject(stack, age=None)
    forever = keeping(settings, events=None, deliveries=None, attempts=None, dead=None)
    async with running(forever, ["sweeper"]):
        await eventually(lambda: rounds)
    assert await ids(database, "deliveries") == {"old", "failed"}
    assert len(await ids(database, "attempts")) == 4
    assert await stack.depth("notipy.dead.events") == 1
    assert await read_horizon(database) == Horizon()


# ---------------------------------------------------------------------------------------------------------------
# Dead letters
# ---------------------------------------------------------------------------------------------------------------


async def reject(stack: Stack, age: timedelta | None) -> None:
    """A message in `notipy.dead.events`, parked so long ago."""
    at = datetime.now(UTC) - (age or timedelta())
    headers: dict[str, FieldValue] = {"x-notipy-parked-at": at.isoformat(), "x-notipy-reason": "not_json"}
    dead = await stack.channel.get_exchange("notipy.dead", ensure=False)
    await dead.publish(aio_pika.Message(b"{", headers=headers), "events")


async def test_dead_letters_are_removed_from_the_head_while_they_are_old(settings: Settings, stack: Stack) -> None:
    for age in (50, 49, 45, 12, 1):
        await reject(stack, age * DAY)
    await stack.core.publisher.park(dispatch_of(delivery("failed", State.FAILED), None), Reason.TIMEOUT, "just now")
    await store(stack.core.database, delivery("failed", State.FAILED), delivery("lately", State.FAILED, 5 * DAY))
    async with running(keeping(settings, dead=30 * DAY), ["sweeper"]) as application:

        async def removed() -> bool:
            return total(application, "notipy_deleted_total", **{"class": "dead_messages"}) == 3

        await eventually(removed)
        assert await ids(stack.core.database, "deliveries") == {"lately"}

    async def left() -> bool:
        return await stack.depth("notipy.dead.events") == 2 and await stack.depth("notipy.dead.email") == 1

    await eventually(left)


async def test_no_more_are_removed_at_once_than_allowed(stack: Stack) -> None:
    for _ in range(5):
        await reject(stack, 50 * DAY)
    connection, queue = stack.core.connection, "notipy.dead.events"
    assert await dead_letters.remove_older(connection, queue, BEFORE, 3) == (3, None)
    assert await dead_letters.remove_older(connection, queue, BEFORE, 3) == (2, None)


async def test_what_rejects_parks_with_its_time(stack: Stack) -> None:
    incoming = Incoming(b"{", "shop.order.shipped", "m-1")
    await stack.core.publisher.reject(incoming, Reason.NOT_JSON, [Fault("", "is not JSON")])
    removed, stopped_at = await dead_letters.remove_older(stack.core.connection, "notipy.dead.events", BEFORE, 3)
    assert removed == 0
    assert stopped_at is not None
    assert abs(datetime.now(UTC) - stopped_at) < timedelta(minutes=1)


# ---------------------------------------------------------------------------------------------------------------
# A message that outlives the claims
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["claims", "delivery", "claims, and replayed"])
async def test_an_order_that_comes_after_its_claims_were_deleted_sends_nothing(
    settings: Settings, stack: Stack, smtp: SmtpSink, gone: str
) -> None:
    # given an order that lay in its queue while its delivery was cancelled and, much later, its claims deleted
    await stack.apply(ORDER_SHIPPED)
    async with running(settings, ["events"]):
        event_id = await stack.publish(order())
        queued = await stack.reach(event_id, State.QUEUED)
    assert not isinstance(await stack.core.operate.cancel(queued.id), Refused)
    database, long_ago = stack.core.database, datetime.now(UTC) - 8 * DAY
    stale = replace(queued, updated_at=long_ago, created_at=long_ago)
    await (await stack.channel.get_queue("notipy.channel.email.normal", ensure=False)).purge()
    data = {"updated_at": long_ago, "created_at": long_ago}
    await database.collection("deliveries").update_one({"_id": queued.id}, {"$set": data, "$unset": {"tell_at": ""}})
    await database.collection("attempts").update_many({}, {"$set": {"claimed_at": long_ago, "lease_until": long_ago}})
    step, before = MongoRetention(database), datetime.now(UTC) - 7 * DAY
    assert (await (step.deliveries if gone == "delivery" else step.attempts)(before)).deleted["attempts"] == 1
    if gone == "claims, and replayed":
        final = await stack.core.deliveries.get(queued.id)
        assert final is not None
        change = Change(State.HELD, NOW, Reason.REPLAYED, 2, 0)
        assert await stack.core.deliveries.reopen(final, final.changed(change, NOW + DAY), change)
    # when a consumer comes back and takes it
    await stack.core.publisher.dispatch(dispatch_of(stale, None))
    async with running(settings, ["email"]) as application:

        async def refused() -> bool:
            return total(application, "notipy_not_claimed_total") == 1

        await eventually(refused)
    # then nothing is sent
    assert not smtp.mails


async def test_an_order_that_has_waited_long_in_a_backlog_is_carried_out(
    settings: Settings, stack: Stack, smtp: SmtpSink
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings, ["events"]):
        event_id = await stack.publish(order())
        queued = await stack.reach(event_id, State.QUEUED)
    await (await stack.channel.get_queue("notipy.channel.email.normal", ensure=False)).purge()
    waited = replace(queued, updated_at=datetime.now(UTC) - 2 * STALE_AFTER)
    event = await stack.core.events.get(queued.event_key)
    assert event is not None
    for _ in range(2):
        await stack.core.publisher.dispatch(dispatch_of(waited, None))
    async with running(settings, ["email"]):
        (sent,) = await stack.final(event_id)
    assert sent.state is State.SENT
    assert len(smtp.mails) == 1

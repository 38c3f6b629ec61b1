"""Held, lost, cancelled, overdue: what the database drives on when no message does."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import aio_pika
import aiohttp
import pytest

from config.settings import Settings
from consumers.app import running
from deploy.rabbit_admin import RabbitAdmin
from deploy.smtp_sink import SmtpSink
from domain.accept import Accept
from domain.operate import Refused
from domain.ports import Claim, StoredEvent
from domain.vocabulary import EventState, Reason, State
from tests.conftest import SharedServers
from tests.running import ORDER_SHIPPED, Stack, order, total
from tests.waiting import eventually


def after(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


async def test_a_scheduled_delivery_is_sent_when_it_is_due(settings: Settings, stack: Stack, smtp: SmtpSink) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        at = after(1.5)
        event = await stack.publish(order(send_at=at))
        held = await stack.reach(event, State.HELD)
        assert held.reason is Reason.SCHEDULED
        (delivery,) = await stack.final(event)
    assert delivery.state is State.SENT
    assert delivery.updated_at >= datetime.fromisoformat(at)
    assert len(smtp.mails) == 1


async def test_a_held_delivery_can_be_cancelled_also_by_a_message(
    settings: Settings, stack: Stack, smtp: SmtpSink
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        first = await stack.publish(order(send_at=after(3600)))
        second = await stack.publish(order(send_at=after(3600)))
        held = await stack.reach(first, State.HELD)
        await stack.reach(second, State.HELD)
        assert not isinstance(await stack.core.operate.cancel(held.id), Refused)
        commands = await stack.channel.get_exchange("notipy.commands", ensure=False)
        body = json.dumps({"command": "cancel", "source": "shop", "id": second}).encode()
        await commands.publish(aio_pika.Message(body), "event.cancel")
        cancelled = await stack.reach(second, State.CANCELLED)
        await commands.publish(aio_pika.Message(b'{"command": "explode"}'), "x")
        parked = await stack.take("notipy.dead.events")
    assert cancelled.reason is Reason.CANCELLED
    assert parked.headers["x-notipy-reason"] == "bad_command"
    assert not smtp.mails


async def test_a_delivery_whose_time_is_over_is_not_sent(settings: Settings, stack: Stack, smtp: SmtpSink) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        late = await stack.publish(order(expires_at="2020-01-01T00:00:00Z"))
        held = await stack.publish(order(send_at=after(60), expires_at=after(1)))
        (first,) = await stack.final(late)
        (second,) = await stack.final(held)
    assert first.state is second.state is State.EXPIRED
    assert not smtp.mails


async def test_work_orders_that_the_broker_lost_are_driven_on(settings: Settings, stack: Stack, smtp: SmtpSink) -> None:
    await stack.apply(ORDER_SHIPPED)
    events_only = ["events"]
    async with running(settings, events_only):
        events = [await stack.publish(order()) for _ in range(50)]
        for event in events:
            await stack.reach(event, State.QUEUED)
    queue = await stack.channel.get_queue("notipy.channel.email.normal", ensure=False)
    await queue.purge()
    async with running(settings) as application:
        for event in events:
            await stack.final(event)
        await eventually(lambda: total(application, "notipy_swept_total", reason="redriven") == 50)
    assert len(smtp.mails) == 50


async def test_a_claim_whose_consumer_died_is_an_unknown_outcome(
    settings: Settings, stack: Stack, smtp: SmtpSink
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings, ["events"]):
        event = await stack.publish(order())
        queued = await stack.reach(event, State.QUEUED)
    now = datetime.now(UTC)
    lease = now, now + timedelta(seconds=1)
    await stack.core.deliveries.claim(Claim(queued.claim_id(1), "a dead consumer", *lease, provider="other"))
    shown = await stack.reach(event, State.SENDING)
    assert (shown.attempt, shown.provider) == (1, "other")
    async with running(settings):
        (delivery,) = await stack.final(event)
    assert [change.provider for change in delivery.history if change.possible_duplicate] == ["other"]
    assert (delivery.state, delivery.attempt, delivery.possible_duplicate) == (State.SENT, 2, True)


async def test_an_event_whose_planning_was_cut_short_is_completed(
    settings: Settings, stack: Stack, smtp: SmtpSink
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings) as application:
        event = await stack.publish(order())
        await stack.final(event)
        raw = application.core.database.collection("events")

        async def planned() -> bool:
            document = await raw.find_one({"id": event})
            return document is not None and document["state"] == EventState.PLANNED and "due_at" not in document

        await eventually(planned)
        await application.core.database.collection("deliveries").delete_many({})
        await application.core.database.collection("attempts").delete_many({})
        await raw.update_one({"id": event}, {"$set": {"state": "accepted", "due_at": datetime.now(UTC)}})
        await eventually(lambda: len(smtp.mails) == 2)
        await eventually(planned)
    (delivery,) = await stack.deliveries(event)
    assert delivery.state is State.SENT


async def test_an_event_that_is_being_planned_holds_up_no_delivery(
    settings: Settings, stack: Stack, smtp: SmtpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings, ["events"]):
        event = await stack.publish(order(send_at=after(1)))
        held = await stack.reach(event, State.HELD)
    raw = stack.core.database.collection("events")
    resuming: list[StoredEvent] = []

    async def for_minutes(_: Accept, stored: StoredEvent) -> None:
        resuming.append(stored)
        await asyncio.Event().wait()

    monkeypatch.setattr(Accept, "resume", for_minutes)
    await raw.update_one({"_id": held.event_key}, {"$set": {"state": "accepted", "due_at": datetime.now(UTC)}})
    async with running(settings, ["sweeper"]):
        await eventually(lambda: len(resuming) == 1)
    stopped = await raw.find_one({"_id": held.event_key})
    assert stopped is not None
    assert stopped["resumed"] == 0, "the process was stopped in order"
    async with running(settings, ["email", "sweeper"]):
        await eventually(lambda: len(resuming) == 2)
        (delivery,) = await stack.final(event)
    assert delivery.state is State.SENT
    assert len(smtp.mails) == 1


async def test_what_cannot_be_read_stops_nothing_else(settings: Settings, stack: Stack, smtp: SmtpSink) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings, ["events"]):
        at = after(1)
        events = [await stack.publish(order(send_at=at)) for _ in range(3)]
        held = [await stack.reach(event, State.HELD) for event in events]
    # what a newer version has written, that was taken back
    deliveries, raw = stack.core.database.collection("deliveries"), stack.core.database.collection("events")
    await deliveries.update_one({"_id": held[0].id}, {"$set": {"channel": "voice", "due_at": held[0].created_at}})
    archived = {"state": "archived", "due_at": held[1].created_at}
    await raw.update_one({"_id": held[1].event_key}, {"$set": archived})
    async with running(settings) as application:
        (delivery,) = await stack.final(events[2])
        await eventually(lambda: total(application, "notipy_swept_total", reason="fault") >= 3)

        async def set_aside() -> bool:
            now = {"$gt": datetime.now(UTC) + timedelta(minutes=5)}
            lame = await deliveries.count_documents({"_id": held[0].id, "due_at": now})
            return lame + await raw.count_documents({"_id": held[1].event_key, "due_at": now}) == 2

        await eventually(set_aside)
    assert delivery.state is State.SENT
    assert len(smtp.mails) == 1


async def test_only_one_of_two_instances_sweeps(settings: Settings, stack: Stack) -> None:
    async with running(settings, ["sweeper"]), running(settings, ["sweeper"]):
        leases = stack.core.database.collection("leases")

        async def led() -> bool:
            return await leases.count_documents({"_id": "sweeper"}) == 1

        await eventually(led)
    assert await leases.count_documents({}) == 0


async def test_the_page_tells_what_is_missing(
    settings: Settings, stack: Stack, servers: SharedServers, vhost: str
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings) as application, aiohttp.ClientSession() as http:
        assert application.page is not None
        base = f"http://127.0.0.1:{application.page.port}"

        async def get(path: str) -> tuple[int, str]:
            async with http.get(base + path) as answer:
                return answer.status, await answer.text()

        async def ready() -> bool:
            return (await get("/readyz"))[0] == 200

        await eventually(ready)
        event = await stack.publish(order("fail-451-1@example.org"))
        await stack.final(event)

        async def told() -> bool:  # a delivery is counted just after it is recorded
            status, text = await get("/metrics")
            assert status == 200
            for expected in (
                'notipy_events_total{outcome="accepted",reason=""} 1.0',
                'notipy_deliveries_total{channel="email",outcome="sent",provider="sink",reason="accepted"} 1.0',
                'outcome="retrying"',
                'notipy_event_to_sent_seconds_count{channel="email"} 1.0',
                "notipy_send_seconds_bucket",
                "notipy_in_flight",
                "notipy_oldest_overdue_seconds",
                "notipy_dead_letters",
                'notipy_up{server="broker"} 1.0',
            ):
                assert expected in text
            return True

        await eventually(told)
        assert "example.org" not in (await get("/metrics"))[1]
        await _until_connections_are_listed(servers, vhost)
        RabbitAdmin(servers.management_url).close_connections(vhost.rsplit("/", 1)[1])
        again = await stack.publish(order())
        await stack.final(again, timeout=40)

        await eventually(ready, timeout=30)
        assert (await get("/healthz"))[0] == 200


async def test_a_queue_without_consumer_is_not_ready(settings: Settings, stack: Stack) -> None:
    async with running(settings) as application:
        await eventually(lambda: application.health.state().ready)
        await application.consumers.stop(timedelta(seconds=5))
        condition = await application.health.look()
        assert not condition.ready
        assert "broker unreachable" in condition.problems or any("no consumer" in p for p in condition.problems)


async def _until_connections_are_listed(servers: SharedServers, vhost: str) -> None:
    admin, name = RabbitAdmin(servers.management_url), vhost.rsplit("/", 1)[1]
    await eventually(lambda: len(admin.list_connections(name)) >= 3, timeout=20)

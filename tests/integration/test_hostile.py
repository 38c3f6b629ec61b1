"""What one message, one document or one listener must not do to the others."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import aio_pika
import pika
import pika.data
import pytest

from config.settings import Settings
from consumers.app import running
from deploy.smtp_sink import SmtpSink
from domain.vocabulary import Reason, State
from storage.database import connect
from storage.deliveries import MongoDeliveries
from storage.events import MongoEvents
from tests.running import ORDER_SHIPPED, Stack, order, total
from tests.waiting import eventually


def publish_raw(url: str, monkeypatch: pytest.MonkeyPatch, **properties: Any) -> None:
    """As a client does that does not keep to UTF-8."""

    def as_it_is(pieces: list[bytes], value: Any) -> int:
        raw = value if isinstance(value, bytes) else str(value).encode("latin-1")
        pieces += [bytes([len(raw)]), raw]
        return 1 + len(raw)

    with monkeypatch.context() as patched:
        patched.setattr(pika.data, "encode_short_string", as_it_is)
        patched.setattr("pika.spec.data.encode_short_string", as_it_is)
        connection = pika.BlockingConnection(pika.URLParameters(url))
        body = json.dumps(order()).encode()
        connection.channel().basic_publish(
            "notipy.events", "shop.order.shipped", body, pika.BasicProperties(**properties)
        )
        connection.close()


@pytest.mark.parametrize(
    "properties",
    [
        {"message_id": "caf\xe9"},
        {"message_id": "m-1", "timestamp": 1_700_000_000_000_000_000},
        {"message_id": "m-1", "type": "\xff"},
        {"message_id": "m-1", "headers": {"caf\xe9": "x"}},
    ],
    ids=["message_id", "timestamp", "type", "header"],
)
async def test_a_property_that_cannot_be_decoded_stops_nobody(
    settings: Settings, stack: Stack, smtp: SmtpSink, monkeypatch: pytest.MonkeyPatch, properties: dict[str, Any]
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings) as application:
        await eventually(lambda: application.health.state().ready)
        await asyncio.to_thread(publish_raw, settings.amqp_url.get_secret_value(), monkeypatch, **properties)
        await stack.publish(order(), message_id="good")
        await stack.final("good")
        await eventually(lambda: len(smtp.mails) == 2)


async def test_a_time_that_no_database_keeps_is_refused_and_its_neighbours_are_delivered(
    settings: Settings, stack: Stack, smtp: SmtpSink
) -> None:
    await stack.apply(ORDER_SHIPPED)
    bad = [
        order(time="0001-01-01T00:00:00+14:00"),
        order(send_at="9999-12-31T23:59:59-14:00"),
        order(expires_at="9999-12-31T23:59:59-14:00"),
        order(content={"email": {"subject": "s", "text": "t", "n": 10**29}}),
    ]
    bodies = [json.dumps(body).encode() for body in bad] + [json.dumps(order()).encode()] * 100
    await asyncio.gather(*(stack.publish(body, message_id=f"m-{n}") for n, body in enumerate(bodies)))
    async with running(settings):
        await eventually(lambda: len(smtp.mails) == 100)

        async def parked() -> bool:
            return await stack.depth("notipy.dead.events") == len(bad)

        await eventually(parked)


async def test_a_lone_surrogate_out_of_a_template_fails_its_own_delivery_alone(
    settings: Settings, stack: Stack, smtp: SmtpSink
) -> None:
    await stack.apply(ORDER_SHIPPED)
    texts = [r'{{ data["\ud800"] }}', r'{{ 1.5|round(**{"\ud800": 1}) }}']
    for number, text in enumerate(texts):
        content = {"email": {"subject": "s", "text": text}}
        await stack.publish(order(content=content), message_id=f"bad-{number}")
    await asyncio.gather(*(stack.publish(order(), message_id=f"good-{number}") for number in range(50)))
    async with running(settings):
        for number in range(len(texts)):
            (delivery,) = await stack.final(f"bad-{number}")
            assert (delivery.state, delivery.reason) == (State.FAILED, Reason.TEMPLATE_ERROR)
        await eventually(lambda: len(smtp.mails) == 50)
    assert not [d for d in await stack.deliveries() if d.event_id.startswith("good") and d.state is not State.SENT]


async def test_a_document_that_cannot_be_written_fails_alone(database_url: str) -> None:
    from tests.contract.test_repositories import delivery, event

    async with connect(database_url) as database:
        stores = MongoEvents(database), MongoDeliveries(database)
        unwritable = event(0).__class__(
            **{name: getattr(event(0), name) for name in event(0).__dataclass_fields__} | {"id": "\ud800"}
        )
        now = datetime.now(UTC)
        results = await asyncio.gather(
            *(stores[0].add(each, now) for each in (event(1), unwritable, event(2))), return_exceptions=True
        )
        assert results[0] is results[2] is True
        assert isinstance(results[1], Exception)
        huge = delivery(1, detail="x" * 17_000_000)
        written = await asyncio.gather(*(stores[1].add([each]) for each in (huge, delivery(2))), return_exceptions=True)
        assert isinstance(written[0], ValueError)
        assert written[1] is None
        assert await stores[1].get("d-2") is not None


async def test_one_event_that_cannot_be_read_back_does_not_stop_the_sweeper(
    settings: Settings, stack: Stack, smtp: SmtpSink
) -> None:
    await stack.apply(ORDER_SHIPPED)
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    async with running(settings) as application:
        broken = await stack.publish(order(send_at=soon))
        await stack.reach(broken, State.HELD)
        events = stack.core.database.collection("events")
        await events.update_one({"id": broken}, {"$set": {"body": b"no event any more"}})
        good = await stack.publish(order(send_at=soon))
        (delivery,) = await stack.final(good)
        assert delivery.state is State.SENT
        await eventually(lambda: total(application, "notipy_swept_total", reason="fault") >= 1)
    assert len(smtp.mails) == 1


async def test_an_event_whose_source_has_dots_is_the_same_when_it_is_read_back(
    settings: Settings, stack: Stack, smtp: SmtpSink
) -> None:
    await stack.apply({**ORDER_SHIPPED, "on": "my.shop.order.shipped"})
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    text = {"email": {"subject": "{{ event.source }} / {{ event.type }}", "text": "t"}}
    async with running(settings):
        await stack.publish(order(source="my.shop", send_at=soon, content=text), message_id="dots")

        async def sent() -> bool:
            return len(smtp.mails) == 1

        await eventually(sent)
    assert smtp.mails[0].message["Subject"] == "my.shop / order.shipped"


async def test_a_listener_that_does_not_listen_stops_no_delivery(
    settings: Settings, stack: Stack, smtp: SmtpSink
) -> None:
    await stack.apply(ORDER_SHIPPED)
    full: Any = {"x-max-length": 1, "x-overflow": "reject-publish"}
    queue = await stack.channel.declare_queue("listener", durable=True, arguments=full)
    await queue.bind("notipy.status", "#")
    async with running(settings) as application:
        events = [await stack.publish(order()) for _ in range(30)]
        for event in events:
            await stack.final(event)
        await eventually(lambda: application.consumers.in_progress == 0)
    assert len(smtp.mails) == 30


async def test_asking_for_a_queue_that_is_missing_leaks_nothing(settings: Settings, stack: Stack) -> None:
    transport = stack.core.connection.transport
    assert transport is not None

    def channels() -> int:
        return len(transport.connection.channels)

    for _ in range(3):
        assert await stack.core.publisher.counts("notipy.nosuch") is None
    before = channels()
    for _ in range(20):
        assert await stack.core.publisher.counts("notipy.nosuch") is None
    await eventually(lambda: channels() <= before)
    assert await stack.core.publisher.counts("notipy.events") == (0, 0)


async def test_what_is_due_is_found_by_its_index(settings: Settings, stack: Stack) -> None:
    for name in ("deliveries", "events"):
        explained = await stack.core.database.collection(name).find({"due_at": {"$lte": datetime.now(UTC)}}).explain()
        assert "COLLSCAN" not in json.dumps(explained["queryPlanner"]["winningPlan"])


async def test_a_replayed_delivery_whose_last_outcome_was_unknown_is_marked(
    config: dict[str, Any], stack: Stack, smtp: SmtpSink
) -> None:
    config["channels"]["email"]["semantics"] = "at_most_once"
    await stack.apply(ORDER_SHIPPED)
    async with running(Settings.model_validate(config)):
        event = await stack.publish(order("drop-1@example.org"))
        (unknown,) = await stack.final(event)
        assert (unknown.state, unknown.possible_duplicate) == (State.UNKNOWN, False)
        await stack.core.operate.replay(unknown)
        replayed = await stack.reach(event, State.SENT)
    assert replayed.possible_duplicate
    assert len(smtp.mails) == 2


async def test_the_same_id_at_two_addresses_is_told_at_both(settings: Settings, stack: Stack, smtp: SmtpSink) -> None:
    await stack.apply(ORDER_SHIPPED)
    people = [{"id": "u", "email": "one@example.org"}, {"id": "u", "email": "two@example.org"}]
    async with running(settings):
        event = await stack.publish({"recipients": [*people, people[0]], "data": {"order_id": 1}})
        await stack.final(event, count=2)
    assert sorted(mail.recipients[0] for mail in smtp.mails) == ["one@example.org", "two@example.org"]


async def test_a_hopeless_list_of_recipients_is_refused_quickly(settings: Settings, stack: Stack) -> None:
    async with running(settings):
        await stack.publish({"recipients": [1] * 90_000})
        parked = await stack.take("notipy.dead.events")
    assert parked.headers["x-notipy-reason"] == "invalid"
    assert isinstance(parked, aio_pika.abc.AbstractIncomingMessage)
    assert len(json.loads(str(parked.headers["x-notipy-detail"]))) <= 20

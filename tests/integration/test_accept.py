"""From a producer's message to stored deliveries, on a real broker and database."""

import asyncio
import json
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import pika

from config.settings import Settings
from consumers.app import running
from deploy.smtp_sink import SmtpSink
from domain.event import event_key
from domain.vocabulary import EventState, Reason, State
from tests.running import ORDER_SHIPPED, Stack, order, total
from tests.waiting import eventually


def publish_with_pika(url: str, body: dict[str, Any], message_id: str) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()
    properties = pika.BasicProperties(message_id=message_id, delivery_mode=2)
    channel.basic_publish("notipy.events", "shop.order.shipped", json.dumps(body).encode(), properties, mandatory=True)
    connection.close()


async def test_the_smallest_message_of_pika_becomes_a_mail(settings: Settings, stack: Stack, smtp: SmtpSink) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        await asyncio.to_thread(publish_with_pika, settings.amqp_url.get_secret_value(), order(), "ord-1")
        (delivery,) = await stack.final("ord-1")
    assert (delivery.state, delivery.reason, delivery.attempt) == (State.SENT, Reason.ACCEPTED, 1)
    assert (delivery.provider, delivery.source, delivery.type) == ("sink", "shop", "order.shipped")
    (mail,) = smtp.mails
    assert mail.message["Subject"] == "Order 1042 shipped"
    assert mail.recipients == ("ana@example.org",)
    assert await stack.depth("notipy.events") == await stack.depth("notipy.channel.email.normal") == 0


async def test_an_event_that_is_published_again_without_an_id_gets_none(settings: Settings, stack: Stack) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        for _ in range(2):  # a replay, and one of what is rejected then
            await stack.core.publisher.event("shop.order.shipped", json.dumps(order()).encode(), None)
            parked = await stack.take("notipy.dead.events")
            assert parked.headers["x-notipy-reason"] == str(Reason.INVALID)
            assert "x-notipy-message-id" not in parked.headers
            assert json.loads(str(parked.headers["x-notipy-detail"]))[0]["field"] == "id"
    assert not await stack.deliveries()


async def test_the_same_event_fifty_times_at_once_is_delivered_once(
    settings: Settings, stack: Stack, smtp: SmtpSink
) -> None:
    await stack.apply(ORDER_SHIPPED)
    people = [{"email": "ana@example.org"}, {"email": "bob@example.org"}]
    async with running(settings) as application:
        body = {"recipients": people, "data": {"order_id": 1}}
        await asyncio.gather(*(stack.publish(body, message_id="ord-50") for _ in range(50)))
        await stack.final("ord-50", count=2)
        await eventually(lambda: application.consumers.in_progress == 0)
        await eventually(lambda: total(application, "notipy_events_total", outcome="duplicate") == 49)
    assert sorted(mail.recipients[0] for mail in smtp.mails) == ["ana@example.org", "bob@example.org"]


async def test_a_cloud_event_and_inline_content(settings: Settings, stack: Stack, smtp: SmtpSink) -> None:
    event = {
        "specversion": "1.0",
        "id": "c-1",
        "source": "shop",
        "type": "greeting",
        "data": {
            "recipients": [{"email": "ana@example.org", "name": "Ana"}],
            "data": {"word": "moin"},
            "content": {"email": {"subject": "{{ word }} {{ recipient.name }}", "text": "{{ event.id }}"}},
        },
    }
    async with running(settings):
        await stack.publish(event, key="any.thing")
        (delivery,) = await stack.final("c-1")
    assert (delivery.state, delivery.notification, delivery.version) == (State.SENT, "inline", 0)
    assert smtp.mails[0].message["Subject"] == "moin Ana"


async def test_an_event_on_which_there_is_no_notification_is_kept_unmatched(settings: Settings, stack: Stack) -> None:
    async with running(settings):
        event = await stack.publish(order(), key="shop.cart.emptied")

        async def unmatched() -> bool:
            stored = await stack.core.events.get(event_key("shop", event))
            return stored is not None and stored.state is EventState.UNMATCHED

        await eventually(unmatched)


async def test_a_change_of_the_catalog_is_taken_over_without_a_restart(
    settings: Settings, stack: Stack, smtp: SmtpSink
) -> None:
    changed: dict[str, Any] = {**ORDER_SHIPPED, "channels": {"email": {"subject": "changed", "text": "t"}}}
    async with running(settings) as application:
        assert not application.core.catalog.current
        await stack.apply(ORDER_SHIPPED)
        await eventually(lambda: len(application.core.catalog.current) == 1, timeout=5)
        first = await stack.publish(order())
        await stack.final(first)
        await stack.apply(changed)
        await eventually(lambda: application.core.catalog.current[0].version == 2, timeout=5)
        second = await stack.publish(order())
        await stack.final(second)
        await stack.core.catalog.delete("order-shipped")
        await eventually(lambda: not application.core.catalog.current, timeout=5)
    assert [mail.message["Subject"] for mail in smtp.mails] == ["Order 1042 shipped", "changed"]
    (delivery,) = await stack.deliveries(first)
    assert delivery.version == 1


def _bomb(template: str) -> dict[str, Any]:
    return order(content={"email": {"subject": "s", "text": template}})


BAD: list[tuple[str, Any]] = [
    ("not json", b"order 1042 has shipped"),
    ("empty", b""),
    ("cut short", b'{"recipients": [{"email": "ana@exam'),
    ("bad utf-8", b'{"recipients": [{"email": "\xff\xfe@example.org"}]}'),
    ("deep", b'{"data": ' + b'{"a":' * 5_000),
    ("deep data", order(data={"a": json.loads("[" * 60 + "]" * 60)})),
    ("huge", b'{"recipients": "' + b"x" * 70_000 + b'"}'),
    ("list", [1, 2, 3]),
    ("no recipients", {"data": {"order_id": 1}}),
    ("recipients of a wrong type", {"recipients": "ana@example.org"}),
    ("recipient of a wrong type", {"recipients": [7]}),
    ("bad address", order("ana at example.org")),
    ("two addresses", order("ana@example.org, eve@example.org")),
    ("header injection in the address", order("ana@example.org\r\nBcc: eve@example.org")),
    ("header injection in the name", {"recipients": [{"email": "a@example.org", "name": "A\nBcc: eve@example.org"}]}),
    ("header injection in the subject", order(data={"order_id": "1\r\nBcc: eve@example.org"})),
    ("missing data", order(data={})),
    ("endless loop", _bomb("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")),
    ("exponential text", _bomb("{{ 'x' * 999999999 }}")),
    ("sandbox escape", _bomb("{{ ''.__class__.__mro__[1].__subclasses__() }}")),
    ("template syntax", _bomb("{% if %}")),
    ("integer beyond bounds", b'{"recipients": [{"email": "a@example.org"}], "data": {"n": ' + b"9" * 400 + b"}}"),
    ("unknown field", order(recipient="ana@example.org")),
    ("naive time", order(send_at="tomorrow")),
]


async def test_bad_messages_are_explained_and_stop_nobody(config: dict[str, Any], stack: Stack, smtp: SmtpSink) -> None:
    # times as in production: a slow machine must not make a lease run out, which would be another test
    patient = {"lease": "2m", "sweeper": {"interval": "200ms", "overdue": "5m"}}
    settings = Settings.model_validate({**config, **patient, "events": {"max_bytes": 65536}})
    await stack.apply(ORDER_SHIPPED)
    good, bad = 500, 500
    kinds = [BAD[number % len(BAD)] for number in range(bad)]
    async with running(settings) as application:
        before = id(application)
        published: list[Coroutine[Any, Any, str]] = []
        for number, (_, body) in enumerate(kinds):
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            published.append(stack.publish(raw, message_id=f"bad-{number}"))
            published.append(stack.publish(order(), message_id=f"good-{number}"))
        await asyncio.gather(*published)

        async def good_ones_sent() -> bool:
            return len(smtp.mails) == good

        await eventually(good_ones_sent, timeout=60)

        async def bad_ones_explained() -> bool:
            found = [delivery for delivery in await stack.deliveries() if delivery.event_id.startswith("bad-")]
            return await stack.depth("notipy.dead.events") + len(found) == bad and all(d.state.final for d in found)

        await eventually(bad_ones_explained, timeout=60)
        assert before == id(application)
        await eventually(lambda: application.consumers.in_progress == 0)
    failed = [delivery for delivery in await stack.deliveries() if delivery.event_id.startswith("bad-")]
    assert {delivery.state for delivery in failed} == {State.FAILED}
    assert {delivery.reason for delivery in failed} == {Reason.TEMPLATE_ERROR, Reason.DATA_INVALID}
    assert all(delivery.detail for delivery in failed)
    assert await stack.depth("notipy.dead.email") == len(failed)
    reasons: Counter[str] = Counter()
    for _ in range(bad - len(failed)):
        message = await stack.take("notipy.dead.events")
        reasons[str(message.headers["x-notipy-reason"])] += 1
        assert json.loads(str(message.headers["x-notipy-detail"]))[0]["fault"]
    assert set(reasons) == {"not_json", "too_large", "too_deep", "invalid"}


async def test_ten_thousand_recipients(config: dict[str, Any], stack: Stack) -> None:
    settings = Settings.model_validate({**config, "sweeper": {"overdue": "5m"}})
    await stack.apply({**ORDER_SHIPPED, "channels": {"sms": {"text": "{{ order_id }}"}}})
    people = [{"phone": f"+49151{number:08d}"} for number in range(10_000)]
    async with running(settings) as application:
        event = await stack.publish({"recipients": people, "data": {"order_id": 1}})

        async def all_sent() -> bool:
            stored = await stack.core.events.get(event_key("shop", event))
            planned = stored is not None and stored.state is EventState.PLANNED
            return planned and await stack.core.deliveries.count_by_state() == {}

        await eventually(lambda: total(application, "notipy_deliveries_total") >= 10_000, timeout=90)
        await eventually(all_sent)
    deliveries = await stack.deliveries(event)
    assert Counter(delivery.state for delivery in deliveries) == {State.SENT: 10_000}

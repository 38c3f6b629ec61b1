"""Receipts through the real broker and database: refined, waited for, parked, shown and replayed."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from config.settings import Settings
from consumers.app import running
from consumers.topology import DEAD_RECEIPTS, RECEIPTS
from deploy.smtp_sink import SmtpSink
from domain.delivery import Delivery
from domain.event import event_key
from domain.message import Accepted, Message
from domain.suppression import address_key
from domain.vocabulary import Channel, Reason, State
from tests.fakes import ScriptedProvider
from tests.running import ORDER_SHIPPED, Stack, order, total
from tests.waiting import eventually

NOBODY = "00000000-0000-5000-8000-000000000000"
SMS = {"name": "order-sms", "on": "shop.order.shipped", "channels": {"sms": {"text": "Order {{ order_id }}"}}}


async def receive(stack: Stack, body: object, content_type: str = "application/json", key: str = "gateway") -> None:
    """As a gateway does."""
    exchange = await stack.channel.get_exchange(RECEIPTS, ensure=False)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    message = aio_pika.Message(raw, content_type=content_type, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
    await exchange.publish(message, key)


async def sent(stack: Stack, email: str = "ana@example.org") -> Delivery:
    return await stack.reach(await stack.publish(order(email)), State.SENT)


async def becomes(stack: Stack, delivery: Delivery, state: State) -> Delivery:
    found: list[Delivery] = []

    async def there() -> bool:
        now = await stack.core.deliveries.get(delivery.id)
        found[:] = [now] if now else []
        return now is not None and now.state is state

    await eventually(there)
    return found[0]


def faults(message: AbstractIncomingMessage) -> list[dict[str, str]]:
    told: list[dict[str, str]] = json.loads(str(message.headers["x-notipy-detail"]))
    return told


async def test_a_receipt_makes_a_sent_delivery_delivered_and_tells_so(settings: Settings, stack: Stack) -> None:
    await stack.apply(ORDER_SHIPPED)
    told = await stack.listen("delivered.#")
    async with running(settings) as application:
        delivery = await sent(stack)
        await eventually(lambda: total(application, "notipy_deliveries_total") == 1)  # just after it is recorded
        for _ in range(3):
            await receive(stack, {"delivery": delivery.id, "status": "delivered", "detail": "250 ok"})
        after = await becomes(stack, delivery, State.DELIVERED)
        await eventually(lambda: total(application, "notipy_receipts_total", outcome="repeated") == 2)
        await eventually(
            lambda: total(application, "notipy_receipts_total", outcome="refined", status="delivered") == 1
        )
        assert total(application, "notipy_deliveries_total") == 1, "refined, not counted again"
    assert (after.reason, after.detail, after.due_at) == (Reason.DELIVERED, "250 ok", None)
    status = await told.get()
    assert status is not None
    assert status.routing_key == "delivered.email.shop.order.shipped"
    body = json.loads(status.body)
    assert (body["id"], body["state"], body["reason"]) == (delivery.id, "delivered", "delivered")
    assert body["address_suppressed"] is False
    assert await stack.depth(DEAD_RECEIPTS) == 0


async def test_a_bounce_mail_bounces_its_delivery_and_suppresses_the_address(
    settings: Settings, stack: Stack, smtp: SmtpSink
) -> None:
    await stack.apply(ORDER_SHIPPED)
    told = await stack.listen("bounced.#")
    async with running(settings) as application:
        delivery = await sent(stack)
        (mail,) = smtp.mails
        await receive(stack, bounce_of(mail.message["Message-ID"], "ana@example.org"), "message/rfc822")
        after = await becomes(stack, delivery, State.BOUNCED)
        assert (after.reason, after.detail) == (Reason.HARD_BOUNCE, "5.1.1 550 5.1.1 <<address>>: no such user")
        stopped = await stack.final(await stack.publish(order("Ana@example.org")))
        assert [(each.state, each.reason) for each in stopped] == [(State.SUPPRESSED, Reason.SUPPRESSED_ADDRESS)]
        assert total(application, "notipy_suppressed_addresses_total", channel="email", reason="hard_bounce") == 1
    assert len(smtp.mails) == 1
    status = await told.get()
    assert status is not None
    assert json.loads(status.body)["address_suppressed"] is True


def bounce_of(message_id: str, address: str) -> bytes:
    return f"""\
From: MAILER-DAEMON@mx.example
To: shop@example.org
Subject: Undelivered
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="b"

--b
Content-Type: text/plain

Sorry.
--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example

Final-Recipient: rfc822; {address}
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 <{address}>: no such user

--b
Content-Type: text/rfc822-headers

From: Shop <shop@example.org>
Message-ID: {message_id}

--b--
""".encode()


async def test_a_providers_callback_finds_the_delivery_by_its_reference(settings: Settings, stack: Stack) -> None:
    await stack.apply(SMS)
    provider = ScriptedProvider([Accepted("HTTP 201", "SM42")], name="twilio")
    async with running(settings, providers={Channel.SMS: provider}):
        event = await stack.publish({"recipients": [{"phone": "+4915112345678"}], "data": {"order_id": 7}})
        delivery = await stack.reach(event, State.SENT)
        assert (delivery.reference, delivery.provider) == ("SM42", "twilio")
        await receive(stack, {"MessageSid": "SM42", "MessageStatus": "undelivered", "ErrorCode": "30005"})
        after = await becomes(stack, delivery, State.BOUNCED)
    assert (after.reason, after.reference) == (Reason.HARD_BOUNCE, "SM42")
    key = address_key(Channel.SMS, "+4915112345678")
    assert str((await stack.core.suppressions.among([key]))[key].reason) == "hard_bounce"


@dataclass
class SlowProvider(ScriptedProvider):
    """Has taken a message, and its answer is long in coming."""

    taken: asyncio.Event = field(default_factory=asyncio.Event)
    answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, message: Message) -> Accepted:
        self.taken.set()
        await self.answer.wait()
        return Accepted("HTTP 201", "SM43")


@pytest.mark.parametrize("by", ["delivery", "reference"])
async def test_a_receipt_that_is_faster_than_the_answer_to_the_send_waits(
    settings: Settings, stack: Stack, by: str
) -> None:
    await stack.apply(SMS)
    provider = SlowProvider(name="twilio")
    async with running(settings, providers={Channel.SMS: provider}) as application:
        event = await stack.publish({"recipients": [{"phone": "+4915112345678"}], "data": {"order_id": 7}})
        await asyncio.wait_for(provider.taken.wait(), 10)
        (delivery,) = await stack.deliveries(event)
        own = {"delivery": delivery.id, "status": "delivered"}
        await receive(stack, own if by == "delivery" else {"MessageSid": "SM43", "MessageStatus": "delivered"})
        await eventually(lambda: total(application, "notipy_receipts_total", outcome="waits") >= 1)
        provider.answer.set()
        after = await becomes(stack, delivery, State.DELIVERED)
    assert [change.state for change in after.history[-2:]] == [State.SENT, State.DELIVERED]
    assert await stack.depth(DEAD_RECEIPTS) == 0


async def test_what_is_about_nothing_is_parked_with_the_reason(settings: Settings, stack: Stack) -> None:
    async with running(settings) as application:
        await receive(stack, {"delivery": NOBODY, "status": "bounced"})
        await eventually(lambda: total(application, "notipy_receipts_total", outcome="parked") == 1)
        assert total(application, "notipy_receipts_total", outcome="waits") == 0, "its delivery will never come"
        await receive(stack, {"MessageSid": "SM-unknown", "MessageStatus": "delivered"})
        await eventually(lambda: total(application, "notipy_receipts_total", outcome="parked") == 2)
        assert total(application, "notipy_receipts_total", outcome="waits") == 5
    first, second = await stack.take(DEAD_RECEIPTS), await stack.take(DEAD_RECEIPTS)
    assert first.headers["x-notipy-reason"] == second.headers["x-notipy-reason"] == "unknown_delivery"
    assert json.loads(first.body) == {"delivery": NOBODY, "status": "bounced"}
    assert json.loads(second.body) == {"provider": "twilio", "reference": "SM-unknown", "status": "delivered"}
    assert faults(second) == [{"field": "reference", "fault": "no delivery has this provider's reference"}]


async def test_what_cannot_be_read_is_parked_as_it_came_with_every_fault(settings: Settings, stack: Stack) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        delivery = await sent(stack)
        mixed = [{"status": "gone", "delivery": ""}, {"delivery": delivery.id, "status": "delivered"}, 7]
        await receive(stack, mixed)
        await becomes(stack, delivery, State.DELIVERED)
        parked = await stack.take(DEAD_RECEIPTS)
        assert json.loads(parked.body) == mixed
        assert parked.headers["x-notipy-reason"] == "invalid"
        assert {fault["field"] for fault in faults(parked)} == {"0.status", "0.delivery", "2"}
        await receive(stack, b"Subject: no bounce\n\nHello", "message/rfc822")
        mail = await stack.take(DEAD_RECEIPTS)
    assert mail.headers["x-notipy-content-type"] == "message/rfc822"
    assert mail.body == b"Subject: no bounce\n\nHello"


async def test_hundreds_of_receipts_in_one_message_and_in_any_order(settings: Settings, stack: Stack) -> None:
    await stack.apply(ORDER_SHIPPED)
    people = [{"email": f"user-{number}@example.org"} for number in range(100)]
    async with running(settings):
        event = await stack.publish({"recipients": people, "data": {"order_id": 1}})
        deliveries = await stack.final(event, count=100, timeout=60)
        said = [{"delivery": each.id, "status": "delivered"} for each in deliveries]
        said += [{"delivery": each.id, "status": "soft_bounced"} for each in deliveries[:50]]
        await asyncio.gather(receive(stack, said), receive(stack, said[::-1]))

        async def settled() -> bool:
            states = [each.state for each in await stack.deliveries(event)]
            return states.count(State.BOUNCED) == 50 == states.count(State.DELIVERED)

        await eventually(settled, timeout=30)
        stored = await stack.core.events.get(event_key("shop", event))
    assert stored is not None
    assert stored.planned == 100
    for each in await stack.deliveries(event):
        reasons = [change.reason for change in each.history]
        assert reasons.count(Reason.DELIVERED) <= 1 >= reasons.count(Reason.SOFT_BOUNCE)


Notipy = Callable[..., Coroutine[Any, Any, Any]]


async def test_parked_receipts_are_listed_replayed_and_dropped(settings: Settings, stack: Stack, cli: Notipy) -> None:
    await stack.apply(SMS)
    provider = ScriptedProvider([Accepted("HTTP 201", "SM44")], name="twilio")
    callback = {"MessageSid": "SM44", "MessageStatus": "delivered"}
    async with running(settings, providers={Channel.SMS: provider}) as application:
        await receive(stack, callback)
        await receive(stack, b"no json")
        await eventually(lambda: total(application, "notipy_receipts_total", outcome="parked") == 1)
        await eventually(lambda: total(application, "notipy_receipts_total", outcome="unusable") == 1)
        code, out, _ = await cli("dead", "list", "--channel", "receipts", "--json")
        records = [json.loads(line) for line in out.splitlines()]
        assert code == 0
        assert {(each["channel"], each["reason"]) for each in records} == {
            ("receipts", "unknown_delivery"),
            ("receipts", "not_json"),
        }
        table = (await cli("dead", "list", "--channel", "receipts"))[1]
        unknown = next(each["id"] for each in records if each["reason"] == "unknown_delivery")
        assert all(each["id"] in table for each in records)
        event = await stack.publish({"recipients": [{"phone": "+4915112345678"}], "data": {"order_id": 7}})
        delivery = await stack.reach(event, State.SENT)
        nothing = await cli("dead", "replay", "--channel", "receipts", "--id", unknown, "--reason", "not_json")
        assert (nothing[0], nothing[1]) == (1, "")
        assert "No dead receipt that the other options mean has such an id." in nothing[2]
        replayed = await cli("dead", "replay", "--channel", "receipts", "--id", unknown)
        assert (replayed[0], replayed[1]) == (0, "1 dead receipt replayed.\n")
        await becomes(stack, delivery, State.DELIVERED)
        dropped = await cli("dead", "drop", "--channel", "receipts", "--yes")
        assert (dropped[0], dropped[1]) == (0, "1 dead receipt dropped.\n")
    assert await stack.depth(DEAD_RECEIPTS) == 0

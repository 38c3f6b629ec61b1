"""From a work order to a recorded outcome, against a real SMTP server, a real HTTP server and a real broker."""

import json
from pathlib import Path
from typing import Any

import aio_pika

from config.settings import Settings
from consumers.app import running
from consumers.dead_letters import walk
from deploy.smtp_sink import SmtpSink
from deploy.webhook_sink import WebhookSink
from domain.delivery import Delivery
from domain.operate import Refused
from domain.vocabulary import Channel, Reason, State
from tests.running import ORDER_SHIPPED, Stack, order
from tests.waiting import eventually


def outcomes(delivery: Delivery) -> list[tuple[str, int]]:
    return [(str(change.state), change.attempt) for change in delivery.history if change.attempt]


async def test_451_twice_then_250_is_one_mail_and_three_attempts(
    settings: Settings, stack: Stack, smtp: SmtpSink
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        event = await stack.publish(order("fail-451-2@example.org"))
        (delivery,) = await stack.final(event)
    assert (delivery.state, delivery.attempt) == (State.SENT, 3)
    assert outcomes(delivery) == [
        ("sending", 1),
        ("retrying", 1),
        ("sending", 2),
        ("retrying", 2),
        ("sending", 3),
        ("sent", 3),
    ]
    assert not delivery.possible_duplicate
    assert len(smtp.mails) == 1


async def test_550_is_parked_and_a_replay_delivers_it_in_a_new_epoch(
    settings: Settings, stack: Stack, smtp: SmtpSink
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        event = await stack.publish(order("refuse-552-1@example.org"))
        (delivery,) = await stack.final(event)
        assert (delivery.state, delivery.attempt) == (State.FAILED, 1)
        assert not smtp.mails
        parked = await stack.take("notipy.dead.email")
        assert parked.headers["x-notipy-delivery"] == delivery.id
        assert parked.headers["x-notipy-reason"] == str(delivery.reason)
        first = await stack.core.operate.replay(delivery)
        assert not isinstance(first, Refused)
        assert isinstance(await stack.core.operate.replay(delivery), Refused)
        replayed = await stack.reach(event, State.SENT)
    assert (replayed.epoch, replayed.attempt) == (2, 1)
    assert len(smtp.mails) == 1
    assert ".2@" in str(smtp.mails[0].message["Message-ID"])


async def test_550_is_not_tried_again(settings: Settings, stack: Stack) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        event = await stack.publish(order("reject-550@example.org"))
        (delivery,) = await stack.final(event)
    assert (delivery.state, delivery.reason, delivery.attempt) == (State.FAILED, Reason.RECIPIENT_REJECTED, 1)
    assert "@" not in str(delivery.detail)


async def test_attempts_run_out(settings: Settings, stack: Stack) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        event = await stack.publish(order("fail-451-99@example.org"))
        (delivery,) = await stack.final(event)
    # leaving waited for the handler, and so for the confirmation of what it parked
    assert (delivery.state, delivery.attempt) == (State.FAILED, 4)
    assert "gave up after 4 attempts" in str(delivery.detail)
    assert await stack.depth("notipy.dead.email") == 1


async def test_a_connection_lost_after_data_is_sent_again_and_marked(
    settings: Settings, stack: Stack, smtp: SmtpSink
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        event = await stack.publish(order("drop-1@example.org"))
        (delivery,) = await stack.final(event)
    assert (delivery.state, delivery.attempt, delivery.possible_duplicate) == (State.SENT, 2, True)
    assert len({mail.message["Message-ID"] for mail in smtp.mails}) == 1


async def test_at_most_once_stops_where_the_outcome_is_unknown(
    config: dict[str, Any], stack: Stack, smtp: SmtpSink
) -> None:
    config["channels"]["email"]["semantics"] = "at_most_once"
    await stack.apply(ORDER_SHIPPED)
    async with running(Settings.model_validate(config)):
        event = await stack.publish(order("drop-1@example.org"))
        (delivery,) = await stack.final(event)
    assert delivery.state is State.UNKNOWN
    assert len(smtp.mails) == 1
    assert await stack.core.deliveries.count_by_state() == {(Channel.EMAIL, State.UNKNOWN): 1}


async def test_a_signed_webhook_is_repeated_after_503(settings: Settings, stack: Stack, hooks: WebhookSink) -> None:
    definition = {"name": "alert", "on": "ops.#", "channels": {"webhook": {}}}
    await stack.apply(definition)
    async with running(settings):
        body = {"recipients": [{"webhook": f"{hooks.url}/fail/503/1"}], "data": {"level": "high"}}
        event = await stack.publish(body, key="ops.disk.full")
        await eventually(lambda: len(hooks.calls) >= 2)
        (delivery,) = await _final_of(stack, event, "ops")
    assert (delivery.state, delivery.attempt) == (State.SENT, 2)
    assert len({call.webhook_id for call in hooks.calls}) == 1


async def test_a_webhook_that_is_gone_fails_for_good(settings: Settings, stack: Stack, hooks: WebhookSink) -> None:
    await stack.apply({"name": "alert", "on": "ops.#", "channels": {"webhook": {}}})
    async with running(settings):
        event = await stack.publish({"recipients": [{"webhook": f"{hooks.url}/gone"}]}, key="ops.disk.full")
        (delivery,) = await _final_of(stack, event, "ops")
    assert (delivery.state, delivery.reason) == (State.FAILED, Reason.ENDPOINT_GONE)


async def test_a_private_address_is_refused_unless_allowed(
    config: dict[str, Any], stack: Stack, hooks: WebhookSink
) -> None:
    config["channels"]["webhook"]["providers"][0]["allow_private"] = False
    await stack.apply({"name": "alert", "on": "ops.#", "channels": {"webhook": {}}})
    async with running(Settings.model_validate(config)):
        event = await stack.publish({"recipients": [{"webhook": f"{hooks.url}/ok"}]}, key="ops.disk.full")
        (delivery,) = await _final_of(stack, event, "ops")
    assert (delivery.state, delivery.reason) == (State.FAILED, Reason.ADDRESS_REFUSED)
    assert not hooks.calls


async def test_an_sms_is_a_readable_file(settings: Settings, stack: Stack, tmp_path: Path) -> None:
    await stack.apply({**ORDER_SHIPPED, "channels": {"sms": {"text": "Order {{ order_id }} ships"}}})
    async with running(settings):
        event = await stack.publish({"recipients": [{"phone": "+49 151 12345678"}], "data": {"order_id": 7}})
        await stack.final(event)
    (file,) = (tmp_path / "sms" / "sms").iterdir()
    assert "+4915112345678" in file.read_text()
    assert "Order 7 ships" in file.read_text()


async def test_a_failing_recipient_stops_nobody_else(settings: Settings, stack: Stack, smtp: SmtpSink) -> None:
    await stack.apply(ORDER_SHIPPED)
    people = [{"email": "reject-550@example.org"}, {"email": "nowhere"}, {"email": "ana@example.org"}]
    async with running(settings):
        event = await stack.publish({"recipients": people, "data": {"order_id": 1}})
        found = await stack.final(event, count=3)
    assert sorted(str(delivery.state) for delivery in found) == ["failed", "failed", "sent"]
    assert [mail.recipients for mail in smtp.mails] == [("ana@example.org",)]


async def test_an_attachment_is_sent_along(settings: Settings, stack: Stack, smtp: SmtpSink) -> None:
    email = {"subject": "Invoice", "text": "see the file", "attachments": 1}
    await stack.apply({"name": "invoice", "on": "shop.#", "channels": {"email": email}})
    file = {"filename": "invoice.txt", "content_type": "text/plain", "content": "aGVsbG8="}
    async with running(settings):
        with_file = await stack.publish(order(attachments=[file]))
        without = await stack.publish(order())
        (sent,) = await stack.final(with_file)
        (failed,) = await stack.final(without)
    assert sent.state is State.SENT
    (part,) = smtp.mails[0].message.iter_attachments()
    assert part.get_filename() == "invoice.txt"
    assert (failed.state, failed.reason) == (State.FAILED, Reason.ATTACHMENT_REJECTED)


async def test_missing_data_is_named_at_planning_time(settings: Settings, stack: Stack) -> None:
    await stack.apply({"name": "n", "on": "shop.#", "channels": {"email": {"subject": "{{ carrier }}", "text": "t"}}})
    async with running(settings):
        event = await stack.publish(order())
        (delivery,) = await stack.final(event)
    assert (delivery.state, delivery.reason, delivery.attempt) == (State.FAILED, Reason.TEMPLATE_ERROR, 0)
    assert "carrier" in str(delivery.detail)


async def test_every_change_is_told_on_the_status_exchange(settings: Settings, stack: Stack) -> None:
    await stack.apply(ORDER_SHIPPED)
    queue = await stack.listen("*.email.shop.order.shipped")
    async with running(settings):
        event = await stack.publish(order("fail-451-1@example.org"))
        await stack.final(event)
    # leaving waited for the handler, and so for what it told last
    told = []
    while (message := await queue.get(fail=False, no_ack=True)) is not None:
        told.append(json.loads(message.body))
    assert [item["state"] for item in told] == ["queued", "sending", "retrying", "sending", "sent"]
    assert {item["event_id"] for item in told} == {event}
    assert "ana@" not in json.dumps(told)
    assert "example.org" not in json.dumps(told)


async def test_a_dispatch_that_is_none_is_parked(settings: Settings, stack: Stack) -> None:
    exchange = await stack.channel.get_exchange("notipy.channels", ensure=False)
    async with running(settings):
        await exchange.publish(aio_pika.Message(b"nonsense"), "email.normal")
        parked = await stack.take("notipy.dead.email")
    assert parked.headers["x-notipy-reason"] == "invalid"


async def test_an_unroutable_dispatch_is_kept_where_an_alert_sees_it(settings: Settings, stack: Stack) -> None:
    exchange = await stack.channel.get_exchange("notipy.channels", ensure=False)

    await exchange.publish(aio_pika.Message(b"nonsense"), "pigeon.normal")
    assert await stack.depth("notipy.unrouted") == 1


async def test_walking_a_dead_letter_queue_shows_each_message_once_and_leaves_it(stack: Stack) -> None:
    for number in range(450):
        exchange = await stack.channel.get_exchange("notipy.dead", ensure=False)

        await exchange.publish(aio_pika.Message(str(number).encode()), "events")
    seen: list[bytes] = []

    async def keep_odd(batch: Any) -> list[bool]:
        seen.extend(message.body for message in batch)
        return [int(message.body) % 2 == 0 for message in batch]

    assert await walk(stack.core.connection, "notipy.dead.events", keep_odd) == 225
    assert len(seen) == len(set(seen)) == 450

    async def left() -> bool:
        return await stack.depth("notipy.dead.events") == 225

    await eventually(left)


async def _final_of(stack: Stack, event: str, source: str) -> list[Delivery]:
    async def settled() -> bool:
        found = await stack.deliveries(event, source)
        return bool(found) and all(delivery.state.final for delivery in found)

    await eventually(settled)
    return list(await stack.deliveries(event, source))

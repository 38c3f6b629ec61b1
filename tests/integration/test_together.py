"""Deliveries that travel in one message: each is still claimed, recorded, retried and parked on its own."""

from typing import Any

import pytest

from config.settings import Settings
from consumers import codec
from consumers.app import running
from deploy.smtp_sink import SmtpSink
from domain.vocabulary import Lane, State
from tests.running import ORDER_SHIPPED, Stack, order, total
from tests.waiting import eventually

QUEUE = "notipy.channel.email.normal"
MANY = 250


def broadcast(count: int, *more: str, **fields: Any) -> dict[str, Any]:
    addresses = [*(f"u{number}@example.org" for number in range(count)), *more]
    return order(**fields) | {"recipients": [{"email": address} for address in addresses]}


async def planned(stack: Stack, settings: Settings, event: dict[str, Any]) -> tuple[str, float, float]:
    """Plan an event and deliver nothing; returns its id, the messages and the deliveries in them."""
    await stack.apply(ORDER_SHIPPED)
    async with running(settings, ["events"], serve_page=False) as application:
        published = await stack.publish(event)

        async def dispatched() -> bool:
            return total(application, "notipy_dispatched_deliveries_total") == len(event["recipients"])

        await eventually(dispatched)
        return published, total(application, "notipy_dispatches_total"), len(event["recipients"])


async def test_a_broadcast_travels_in_few_messages_and_one_bad_recipient_stops_nobody(
    settings: Settings, stack: Stack, smtp: SmtpSink
) -> None:
    event, messages, _ = await planned(
        stack, settings, broadcast(MANY, "reject-550@example.org", "fail-451-1@example.org")
    )
    assert messages <= 6
    async with running(settings):
        found = await stack.final(event, count=MANY + 2)
    states = {delivery.recipient["email"]: (delivery.state, delivery.attempt) for delivery in found}
    assert states.pop("reject-550@example.org") == (State.FAILED, 1)
    assert states.pop("fail-451-1@example.org") == (State.SENT, 2)
    assert set(states.values()) == {(State.SENT, 1)}
    assert len(smtp.mails) == MANY + 1
    parked = await stack.take("notipy.dead.email")
    assert parked.headers["x-notipy-delivery"] in {each.id for each in found if each.state is State.FAILED}


async def test_the_lane_high_shares_no_message(settings: Settings, stack: Stack) -> None:
    _, messages, deliveries = await planned(stack, settings, broadcast(MANY, lane="high"))
    assert messages == deliveries == MANY


async def test_a_message_that_comes_twice_sends_nothing_twice(settings: Settings, stack: Stack, smtp: SmtpSink) -> None:
    event, messages, _ = await planned(stack, settings, broadcast(MANY))
    for _ in range(int(messages)):
        taken = await stack.take(QUEUE)
        for _ in range(2):
            await stack.core.publisher.relay(f"email.{Lane.NORMAL}", taken.body, dict(taken.headers))
    async with running(settings):
        found = await stack.final(event, count=MANY)

        async def empty() -> bool:
            return await stack.depth(QUEUE) == 0

        await eventually(empty)
    assert {(delivery.state, delivery.attempt) for delivery in found} == {(State.SENT, 1)}
    assert len({str(mail.message["Message-ID"]) for mail in smtp.mails}) == len(smtp.mails) == MANY


async def test_a_message_that_was_handed_out_before_is_taken_apart(
    settings: Settings, stack: Stack, smtp: SmtpSink
) -> None:
    event, messages, _ = await planned(stack, settings, broadcast(MANY))
    queue = await stack.channel.get_queue(QUEUE, ensure=False)
    for _ in range(2):
        taken = [await queue.get() for _ in range(int(messages))]
        for message in taken:
            await message.nack(requeue=True)
    async with running(settings) as application:
        found = await stack.final(event, count=MANY)
        await eventually(lambda: total(application, "notipy_dispatches_total") > MANY - 2)  # but for one that was alone
    assert {(delivery.state, delivery.attempt) for delivery in found} == {(State.SENT, 1)}
    assert len(smtp.mails) == MANY


@pytest.mark.parametrize("most", [1, 20])
async def test_how_many_share_a_message_is_a_setting(config: dict[str, Any], stack: Stack, most: int) -> None:
    settings = Settings.model_validate({**config, "dispatch": {"normal": most}})
    _, messages, deliveries = await planned(stack, settings, broadcast(MANY))
    assert messages >= deliveries / most
    taken = await stack.take(QUEUE)
    assert codec.orders(taken.headers) <= most

"""In-app messages from an event to a browser's queue, and what a person does to them, over the real servers."""

import json
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractQueue

from config.settings import Settings
from consumers.app import running
from domain.inbox import inbox_key
from domain.vocabulary import Reason, State
from tests.running import Stack
from tests.waiting import eventually

HELLO = {"name": "hello", "on": "shop.#", "channels": {"inbox": {"title": "Hi", "text": "Order {{ order_id }}"}}}


@pytest.fixture
def config(config: dict[str, Any]) -> dict[str, Any]:
    """With an inbox, and chat that is handed to another exchange."""
    bridge = {"name": "bridge", "kind": "amqp", "exchange": "bridge", "routing_key": "chat.{{ recipient.id }}"}
    channels = {
        "inbox": {"retry": ["100ms"] * 3, "providers": [{"name": "app", "kind": "inbox"}]},
        "chat": {"retry": ["100ms"] * 3, "providers": [bridge]},
    }
    return {**config, "channels": {**config["channels"], **channels}}


class Browser:
    """Listens as one would over Web-STOMP: to its own user's key alone. `test_browsers` does it with the real thing."""

    def __init__(self, queue: AbstractQueue) -> None:
        self._queue = queue
        self.got: list[Any] = []

    async def look(self) -> int:
        while (message := await self._queue.get(fail=False, no_ack=True)) is not None:
            self.got.append(json.loads(message.body))
        return len(self.got)

    async def waits_for(self, count: int) -> list[Any]:
        async def there() -> bool:
            return await self.look() >= count

        await eventually(there)
        return self.got


async def listening(stack: Stack, recipient: str) -> Browser:
    queue = await stack.channel.declare_queue(exclusive=True)
    await queue.bind("notipy.inbox", inbox_key(recipient))
    return Browser(queue)


async def command(stack: Stack, **fields: Any) -> None:
    exchange = await stack.channel.get_exchange("notipy.commands")
    await exchange.publish(aio_pika.Message(json.dumps(fields).encode()), "inbox")


async def test_an_item_is_kept_told_read_and_counted(settings: Settings, stack: Stack) -> None:
    await stack.apply(HELLO)
    ana, bob = await listening(stack, "user.7"), await listening(stack, "user.8")
    inbox = stack.core.inbox
    async with running(settings):
        event = await stack.publish({"recipients": [{"id": "user.7"}], "data": {"order_id": 1042}})
        (delivery,) = await stack.final(event)
        assert (delivery.state, delivery.detail) == (State.SENT, "stored")
        (added,) = await ana.waits_for(1)
        assert (added["kind"], added["id"]) == ("added", f"{delivery.id}/1")
        assert added["content"] == {"title": "Hi", "text": "Order 1042"}
        assert (await inbox.counts("user.7")).unread == 1

        for seen in (2, 3):
            await command(stack, command="inbox.read", recipient="user.7", ids=[added["id"]])
            await ana.waits_for(seen)  # commands that are under way together may overtake each other
        await command(stack, command="inbox.archived", recipient="user.7", ids="all")
        told = await ana.waits_for(4)
        assert [change["kind"] for change in told[1:]] == ["read", "read", "archived"]
        assert [item.id for item in await inbox.page("user.7", 10, archived=True)] == [added["id"]]
        assert (await inbox.counts("user.7")).items == 0

        await command(stack, command="inbox.burn", recipient="user.7", ids="all")
        parked = await stack.take("notipy.dead.events")
        assert parked.headers["x-notipy-reason"] == str(Reason.BAD_COMMAND)
    assert await bob.look() == 0


async def test_a_listener_with_a_full_queue_stops_nobody(settings: Settings, stack: Stack) -> None:
    await stack.apply(HELLO)
    full = await stack.channel.declare_queue(
        exclusive=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
    )
    await full.bind("notipy.inbox", "user-7")
    async with running(settings):
        events = [await stack.publish({"recipients": [{"id": "user-7"}], "data": {"order_id": n}}) for n in range(5)]
        for event in events:
            (delivery,) = await stack.final(event)
            assert (delivery.state, delivery.attempt) == (State.SENT, 1)
    assert len(await stack.core.inbox.page("user-7", 10)) == 5


CHAT = {"name": "chat", "on": "shop.#", "channels": {"chat": {"text": "Order {{ order_id }}"}}}
TO_ANA = {"recipients": [{"id": "user.7", "chat": "ana"}], "data": {"order_id": 1042}}


async def test_a_message_is_handed_to_another_exchange(settings: Settings, stack: Stack) -> None:
    await stack.apply(CHAT)
    exchange = await stack.channel.declare_exchange("bridge", aio_pika.ExchangeType.TOPIC)
    queue = await stack.channel.declare_queue(exclusive=True)
    await queue.bind(exchange, "chat.user~2E7")
    async with running(settings):
        (delivery,) = await stack.final(await stack.publish(TO_ANA))
        assert (delivery.state, delivery.detail) == (State.SENT, "confirmed by bridge")
        handed = await queue.get()
        await handed.ack()
    assert handed.delivery_mode is aio_pika.DeliveryMode.PERSISTENT
    assert handed.headers["x-notipy-idempotency-key"] == f"{delivery.id}/1"
    told = json.loads(handed.body)
    assert (told["content"], told["recipient"]["chat"]) == ({"text": "Order 1042"}, "ana")


async def test_what_no_queue_takes_is_tried_again_and_then_parked(settings: Settings, stack: Stack) -> None:
    await stack.apply(CHAT)
    await stack.channel.declare_exchange("bridge", aio_pika.ExchangeType.TOPIC)
    async with running(settings):
        (delivery,) = await stack.final(await stack.publish(TO_ANA))
        assert (delivery.state, delivery.reason, delivery.attempt) == (State.FAILED, Reason.NOT_CONFIGURED, 4)
        assert str(delivery.detail).endswith("no queue takes this message from the exchange 'bridge'")


async def test_an_exchange_that_is_missing_holds_messages_until_it_is_there(settings: Settings, stack: Stack) -> None:
    await stack.apply(CHAT)
    async with running(settings):
        event = await stack.publish(TO_ANA)

        async def told() -> bool:
            found = await stack.deliveries(event)
            return bool(found) and "there is no exchange 'bridge'" in str(found[0].detail)

        await eventually(told)
        exchange = await stack.channel.declare_exchange("bridge", aio_pika.ExchangeType.TOPIC)
        queue = await stack.channel.declare_queue(exclusive=True)
        await queue.bind(exchange, "#")
        (delivery,) = await stack.final(event, timeout=40)
        assert delivery.state is State.SENT

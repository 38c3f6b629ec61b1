"""A consumer whose cancellation the broker does not confirm, and one that the broker cancels itself."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import aio_pika
import pytest

from config.settings import Settings
from consumers.app import amqp_url
from consumers.intake import Consumer, Consumers, Subscription
from consumers.received import Message
from consumers.topology import Queue
from tests.running import Stack
from tests.waiting import eventually

QUEUE = Queue("notipy.intake", "", "")


@dataclass
class Taking:
    """A queue that is taken from, unless it should not be."""

    stack: Stack
    why: str | None = None
    taken: list[bytes] = field(default_factory=list)

    def subscription(self) -> Subscription:
        return Subscription(QUEUE, 10, self._handle, lambda: self.why)

    async def publish(self, body: bytes) -> None:
        await self.stack.channel.default_exchange.publish(aio_pika.Message(body), QUEUE.name)

    async def consumers(self) -> int:
        """As the broker counts them."""
        return (await self.stack.core.publisher.counts(QUEUE.name) or (0, -1))[1]

    async def _handle(self, message: Message) -> None:
        self.taken.append(message.body)


@pytest.fixture
async def taking(stack: Stack) -> Taking:
    return Taking(stack)


@pytest.fixture
async def consumer(taking: Taking, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Consumer]:
    """Kept consuming or not, as it should; it waits a moment only for a confirmation."""
    monkeypatch.setattr("consumers.intake.CANCEL_SECONDS", 0.05)
    monkeypatch.setattr("consumers.intake.AGAIN_SECONDS", 0.5)
    consumers = Consumers(amqp_url(settings), [taking.subscription()])
    async with AsyncExitStack() as resources:
        await consumers.start()
        keeping = asyncio.create_task(consumers.keep())
        resources.push_async_callback(asyncio.wait, [keeping])
        resources.callback(keeping.cancel)
        yield consumers._consumers[0]
    await consumers.stop(taking.stack.core.settings.lease)


async def _for_ever(*_: Any) -> None:
    await asyncio.Event().wait()


async def _not_said(consumer: Consumer) -> None:
    """The connection is being restored, or another question over the channel is not answered."""
    consumer._subscriber._queue_obj.cancel = _for_ever


async def _not_confirmed(consumer: Consumer) -> None:
    """The broker is asked, and its answer does not come."""
    channel = await consumer._subscriber._queue_obj.channel.get_underlay_channel()
    channel.rpc_frames.get = _for_ever


@pytest.mark.parametrize("hang", [_not_said, _not_confirmed])
async def test_a_cancellation_that_is_not_confirmed_leaves_no_consumer_behind(
    consumer: Consumer, taking: Taking, hang: Callable[[Consumer], Awaitable[None]]
) -> None:
    await taking.publish(b"before")
    await eventually(lambda: taking.taken == [b"before"])
    await hang(consumer)
    taking.why = "its provider is paused"

    async def nobody() -> bool:
        return not consumer.consuming and await taking.consumers() == 0

    await eventually(nobody)
    await taking.publish(b"after")
    assert await taking.stack.depth(QUEUE.name) == 1
    taking.why = None
    await eventually(lambda: taking.taken == [b"before", b"after"])
    assert await taking.consumers() == 1


async def test_what_comes_to_a_consumer_that_the_client_has_restored_is_taken(
    consumer: Consumer, taking: Taking
) -> None:
    robust = consumer._subscriber._queue_obj.channel
    channel = await robust.get_underlay_channel()
    await channel.basic_cancel(consumer._subscriber._consumer_tag)  # as the broker does when its queue is deleted
    assert not channel.consumers
    await robust._restore_consumers()
    await taking.publish(b"restored")
    await eventually(lambda: taking.taken == [b"restored"])
    await eventually(lambda: not consumer._holding)

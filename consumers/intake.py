"""Consuming with FastStream: the fast path, and a start and a stop that swallow no message."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import structlog
from aio_pika.abc import AbstractIncomingMessage
from faststream import AckPolicy
from faststream.rabbit import Channel as AmqpChannel
from faststream.rabbit import QueueType, RabbitBroker, RabbitExchange, RabbitMessage, RabbitQueue
from faststream.rabbit.schemas import ExchangeType

from consumers.topology import Queue

if TYPE_CHECKING:
    from faststream.rabbit.schemas.queue import QuorumQueueArgs

log = structlog.get_logger()
RECONNECT_SECONDS = 1.0
SETTLE_SECONDS = 0.05
"""After a cancellation: for messages that have arrived and whose handlers have not begun."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One queue, how many of its messages may be in progress, and what handles them."""

    queue: Queue
    concurrency: int
    handle: Callable[[AbstractIncomingMessage], Awaitable[None]]


class Consumers:
    """The FastStream broker that consumes; nothing is published over its connection."""

    def __init__(self, url: str, subscriptions: list[Subscription]) -> None:
        # no dependency injection: a Context or RabbitMessage parameter costs ten times the handler
        self._broker = RabbitBroker(
            url,
            reconnect_interval=RECONNECT_SECONDS,
            apply_types=False,
            logger=None,
            graceful_timeout=None,
            app_id="notipy",
        )
        self._tasks: set[asyncio.Task[None]] = set()
        for subscription in subscriptions:
            self._subscribe(subscription)

    def _subscribe(self, subscription: Subscription) -> None:
        async def handle(message: RabbitMessage) -> None:
            await self._in_progress(subscription.handle(message.raw_message))

        self._broker.subscriber(
            _queue(subscription.queue),
            # the default exchange: bindings are the topology's, declared by whoever publishes
            RabbitExchange("", ExchangeType.DIRECT),
            ack_policy=AckPolicy.MANUAL,
            decoder=_undecoded,
            channel=AmqpChannel(prefetch_count=subscription.concurrency),
        )(handle)

    async def start(self) -> None:
        """Consume. Returns when every queue has its consumer."""
        for subscriber in self._broker.subscribers:
            # FastStream consumes before it sets this, and returns what comes in between un-acknowledged
            subscriber.running = True
        await self._broker.start()

    async def stop(self, grace: timedelta) -> bool:
        """Cancel the consumers, let what is in progress end, then disconnect; False if some did not end in time.

        In this order, because FastStream's own stop waits first and cancels then: what arrived meanwhile would
        be requeued, its delivery count raised.
        """
        await asyncio.gather(*(_cancel(subscriber) for subscriber in self._broker.subscribers))
        await asyncio.sleep(SETTLE_SECONDS)  # what had arrived before the cancellation begins now
        deadline = time.monotonic() + grace.total_seconds()
        while self._tasks and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait(set(self._tasks), timeout=left)
        finished = not self._tasks
        await self._broker.stop()
        return finished

    @property
    def in_progress(self) -> int:
        """How many messages are being handled."""
        return len(self._tasks)

    async def connected(self) -> bool:
        """Whether the connection is up, with the channel of every consumer of this process."""
        return all(map(_consuming, self._broker.subscribers)) and await self._broker.ping(timeout=2.0)

    async def _in_progress(self, handling: Awaitable[None]) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
        try:
            await handling
        finally:
            if task is not None:
                self._tasks.discard(task)


async def _undecoded(message: RabbitMessage) -> RabbitMessage:
    """Hand the handler the message itself: it reads the body once, as what it is."""
    return message


def _queue(queue: Queue) -> RabbitQueue:
    arguments = {name: value for name, value in queue.all_arguments.items() if name != "x-queue-type"}
    quorum = cast("QuorumQueueArgs", arguments)
    return RabbitQueue(queue.name, durable=True, queue_type=QueueType.QUORUM, arguments=quorum)


def _consumer(subscriber: object) -> tuple[Any, str] | None:
    """A subscriber's queue and consumer tag, if it consumes over an open channel.

    The two attributes are FastStream's own, without a public way to them; tests/integration hold this to them.
    """
    queue, tag = getattr(subscriber, "_queue_obj", None), getattr(subscriber, "_consumer_tag", None)
    return (queue, tag) if queue is not None and tag is not None and not queue.channel.is_closed else None


def _consuming(subscriber: object) -> bool:
    return _consumer(subscriber) is not None


async def _cancel(subscriber: object) -> None:
    if consumer := _consumer(subscriber):
        queue, tag = consumer
        await queue.cancel(tag)

"""Consuming with FastStream: the fast path, a start and a stop that swallow no message, and pauses in between."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import structlog
from aio_pika import IncomingMessage
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelClosed
from faststream import AckPolicy
from faststream.rabbit import Channel as AmqpChannel
from faststream.rabbit import QueueType, RabbitBroker, RabbitExchange, RabbitQueue
from faststream.rabbit.schemas import ExchangeType

from consumers.acks import Acks
from consumers.acks import AmqpChannel as AckedChannel
from consumers.publisher import OUTAGES
from consumers.received import ConsumingConnection, Message, Received
from consumers.topology import Queue
from domain.failures import place_of

if TYPE_CHECKING:
    from faststream.rabbit.schemas.queue import QuorumQueueArgs

log = structlog.get_logger()
RECONNECT_SECONDS = 1.0
CONNECT_SECONDS = 10.0
SETTLE_SECONDS = 0.05
"""After a cancellation: for messages that have arrived and whose handlers have not begun."""
QUIET_SECONDS = 0.1
"""Without a new message, after which the broker has nothing more under way to a consumer that acknowledges nothing."""
QUIET_WITHIN = 2.0
"""Seconds to wait for such a moment."""
CANCEL_SECONDS = 5.0
"""That the broker may take to confirm a cancellation."""
LOOK_SECONDS = 0.2
"""Between two looks whether a consumer should consume."""
DEAF_SECONDS = 60.0
"""Without a message, after which a consumer is renewed."""
AGAIN_SECONDS = 2.0
"""After a consumer could not be started, before the next try."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One queue, how many of its messages may be in progress, and what handles them.

    Attributes:
        handle: returns when the message may be acknowledged.
        paused: why nothing should be taken from the queue now; None to consume.
    """

    queue: Queue
    concurrency: int
    handle: Callable[[Message], Awaitable[None]]
    paused: Callable[[], str | None] = lambda: None


class Consumer:
    """One subscription: takes messages while it should, and acknowledges what is settled."""

    def __init__(self, broker: RabbitBroker, subscription: Subscription) -> None:
        self.subscription = subscription
        self.tasks: set[asyncio.Task[None]] = set()
        self._arrived = 0
        self._heard_at = time.monotonic()
        self._acks: Acks | None = None
        self._not_before = 0.0
        subscriber: Any = broker.subscriber(
            _queue(subscription.queue),
            # the default exchange: bindings are the topology's, declared by whoever publishes
            RabbitExchange("", ExchangeType.DIRECT),
            ack_policy=AckPolicy.MANUAL,
            channel=AmqpChannel(prefetch_count=subscription.concurrency),
        )
        self._subscriber = subscriber
        subscriber(_never)
        # FastStream keeps the connection, the channel, the queue and the prefetch. Its way of a message to a handler
        # (contexts, middlewares, parsing) is a twentieth of what a delivery costs, nothing of it is used here, and it
        # swallows what comes before it has started: messages come as the AMQP client has them (`ConsumingConnection`)
        subscriber.consume = self._receive

    @property
    def connected(self) -> bool:
        """Whether its channel is open."""
        # FastStream's own attributes, here and below, without a public way to them; tests/integration hold this to them
        queue = self._subscriber._queue_obj
        return queue is not None and not queue.channel.is_closed

    @property
    def consuming(self) -> bool:
        """Whether it takes messages."""
        return self.connected and self._subscriber._consumer_tag is not None

    @property
    def suspect(self) -> bool:
        """Whether it has been idle for so long that it may be deaf, which nothing here tells from an empty queue."""
        return self.consuming and not self.tasks and time.monotonic() - self._heard_at > DEAF_SECONDS

    async def renew(self) -> None:
        """Consume, if at all, over a fresh channel; what the broker believes under way to the old goes to others."""
        self._heard_at = time.monotonic()
        robust = self._subscriber._queue_obj.channel
        try:
            async with asyncio.timeout(AGAIN_SECONDS):
                old = await robust.get_underlay_channel()
                # and the robust channel around it opens another, with its consumer; but not for what it takes for the
                # end of the connection, which is what a channel that is closing already would end with by itself
                await old.close(ChannelClosed(None, "renewed"))
                while await self._restoring(old):  # noqa: ASYNC110 - nobody tells when
                    await asyncio.sleep(QUIET_SECONDS)
        except OUTAGES as error:  # what is lost altogether is restored by the client, or seen by health
            log.info("consumer.not_renewed", queue=self.subscription.queue.name, error=place_of(error))

    async def _restoring(self, old: object) -> bool:
        fresh = await self._subscriber._queue_obj.channel.get_underlay_channel()
        return fresh is old or (self.consuming and not fresh.consumers)

    @property
    def wrong(self) -> bool:
        """Whether it consumes and should not, or the other way round, and something can be done about it now."""
        differs = self.consuming != (self.subscription.paused() is None)
        return differs and self.connected and time.monotonic() >= self._not_before

    async def keep(self) -> None:
        """Consume if it should, cease if it should not; what cannot be done now is tried again later."""
        if not self.wrong:
            return
        wanted = self.subscription.paused() is None
        try:
            await (self._resume() if wanted else self.cancel())
        except Exception as error:  # noqa: BLE001 - told, and tried again
            self._not_before = time.monotonic() + AGAIN_SECONDS
            log.warning("consumer.not_kept", queue=self.subscription.queue.name, error=place_of(error))
            return
        log.info("consumer.resumed" if wanted else "consumer.paused", queue=self.subscription.queue.name)

    async def cancel(self) -> None:
        """Take no more.

        What is on its way to a consumer when it is cancelled the broker takes back, and counts as a delivery. So
        nothing is acknowledged for a moment: once as many messages as it may hold have arrived, no more are sent.
        """
        if not self.consuming:
            return
        if (acks := self._acks) is not None:
            acks.hold()
        try:
            await self._quiet()
            await self._cancel()
        finally:
            if acks is not None:
                acks.release()

    async def _cancel(self) -> None:
        """Where that is not confirmed, the channel goes, and its consumer with it: none stays that nobody knows of."""
        tag, self._subscriber._consumer_tag = self._subscriber._consumer_tag, None
        try:
            async with asyncio.timeout(CANCEL_SECONDS):
                await self._subscriber._queue_obj.cancel(tag)
        except BaseException:
            self._subscriber._queue_obj._consumers.pop(tag, None)  # nor does it come back with another channel
            await self.renew()
            raise

    async def flush(self) -> None:
        """Acknowledge what is settled, before the channel is closed."""
        if self._acks is not None and not self._acks.channel.is_closed:
            await self._acks.flush()

    async def _resume(self) -> None:
        subscriber = self._subscriber
        subscriber._consumer_tag = await subscriber._queue_obj.consume(subscriber.consume)

    async def _quiet(self) -> None:
        """Until nothing has come for a moment. Of a consumer that holds nothing, the last one counts."""
        if not self._holding and time.monotonic() - self._heard_at > QUIET_SECONDS:
            return
        deadline = time.monotonic() + QUIET_WITHIN
        before = -1
        while before != self._arrived and not self._full and time.monotonic() < deadline:
            before = self._arrived
            await asyncio.sleep(QUIET_SECONDS)

    @property
    def _holding(self) -> bool:
        """Whether there are messages that have come and are not acknowledged."""
        return self._acks is not None and self._acks.open > 0

    @property
    def _full(self) -> bool:
        """Whether it holds as many messages as it may, so that none is on its way."""
        return self._acks is not None and self._acks.open >= self.subscription.concurrency

    async def _receive(self, delivered: DeliveredMessage | IncomingMessage) -> None:
        message = Received(delivered)
        self._arrived += 1
        self._heard_at = time.monotonic()
        acks = self._acks_of(message.channel)
        acks.came()
        task = asyncio.create_task(self._handled(message, acks))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        # not waited for: the client cancels whatever came over a channel that is lost. What is under way goes on: the
        # message will come again, to somebody who finds the attempt claimed, and its outcome is worth more than a claim
        # without one

    async def _handled(self, message: Received, acks: Acks) -> None:
        """Handle it to its end; what can be neither handled nor parked goes back to its queue, after a while."""
        try:
            await self.subscription.handle(message)
        except Exception as error:  # noqa: BLE001 - told, and the message tried again
            log.error("message.given_back", queue=self.subscription.queue.name, error=place_of(error))
            await asyncio.sleep(AGAIN_SECONDS)
            if not message.channel.is_closed:
                await message.channel.basic_nack(message.delivery_tag, requeue=True)
                acks.given_back(message.delivery_tag)
        else:
            acks.settled(message.delivery_tag)

    def _acks_of(self, channel: AckedChannel) -> Acks:
        """Those of the channel over which a message has just come: one that was restored counts anew."""
        if self._acks is None or self._acks.channel is not channel:
            self._acks = Acks(channel, self.subscription.concurrency)
        return self._acks


class Consumers:
    """The FastStream broker that consumes; nothing is published over its connection."""

    def __init__(self, url: str, subscriptions: Sequence[Subscription]) -> None:
        # no dependency injection: a Context or RabbitMessage parameter costs ten times the handler
        self._broker = RabbitBroker(
            url,
            reconnect_interval=RECONNECT_SECONDS,
            # of each attempt: one that meets a network which swallows packets would wait for an answer for ever
            timeout=CONNECT_SECONDS,
            apply_types=False,
            logger=None,
            graceful_timeout=None,
            app_id="notipy",
        )
        self._broker._connection_kwargs["connection_class"] = ConsumingConnection
        self._consumers = [Consumer(self._broker, subscription) for subscription in subscriptions]
        self.stopping = False
        """Whether no more is taken, and only what is in progress should be brought to its end."""

    async def start(self) -> None:
        """Consume. Returns when every queue has its consumer."""
        await self._broker.start()

    async def keep(self) -> None:
        """See to it, until cancelled, that what should consume does, and nothing else."""
        while True:
            if wrong := [consumer for consumer in self._consumers if consumer.wrong]:
                await asyncio.gather(*(consumer.keep() for consumer in wrong))
            await asyncio.sleep(LOOK_SECONDS)

    async def renew(self, queues: Collection[str]) -> None:
        """Renew the consumers of queues that were gone, and one of those that have heard nothing for long.

        The broker tells a consumer that its queue is gone, unless a queue of the name is there again at that moment:
        then it consumes from that by itself, and forgets it with the old one. What it sends from there on reaches
        nobody and is not given back before the channel closes (seen with RabbitMQ 3.10 and a quorum queue;
        `handle_consuming_queue_down_or_eol` in its rabbit_channel.erl).
        """
        gone = [each for each in self._consumers if each.subscription.queue.name in queues and each.connected]
        idle = [each for each in self._consumers if each.suspect and each not in gone]
        for consumer in (*gone, *idle[:1]):
            await consumer.renew()

    async def stop(self, grace: timedelta) -> bool:
        """Cancel the consumers, let what is in progress end, then disconnect; False if some did not end in time.

        In this order, because FastStream's own stop waits first and cancels then: what arrived meanwhile would
        be requeued, its delivery count raised.
        """
        for told in await asyncio.gather(*(each.cancel() for each in self._consumers), return_exceptions=True):
            if told is not None:  # the connection is gone, and its consumers with it
                log.warning("consumer.not_cancelled", error=place_of(told))
        self.stopping = True
        await asyncio.sleep(SETTLE_SECONDS)  # what had arrived before the cancellation begins now
        deadline = time.monotonic() + grace.total_seconds()
        while (tasks := self._tasks()) and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait(tasks, timeout=left)
        finished = not self._tasks()
        for task in self._tasks():  # their messages come again, and their claims run out
            task.cancel()
        await asyncio.gather(*(consumer.flush() for consumer in self._consumers), return_exceptions=True)
        await self._broker.stop()
        return finished

    @property
    def in_progress(self) -> int:
        """How many messages are being handled."""
        return len(self._tasks())

    def paused(self) -> dict[str, str]:
        """The queues from which nothing is taken on purpose, and why."""
        found = {each.queue.name: each.paused() for each in (consumer.subscription for consumer in self._consumers)}
        return {queue: why for queue, why in found.items() if why is not None}

    async def connected(self) -> bool:
        """Whether the connection is up, with the channel of every consumer of this process."""
        return all(consumer.connected for consumer in self._consumers) and await self._broker.ping(timeout=2.0)

    def _tasks(self) -> set[asyncio.Task[None]]:
        return {task for consumer in self._consumers for task in consumer.tasks}


async def _never(_: object) -> None:
    """A subscriber needs a handler."""
    raise NotImplementedError


def _queue(queue: Queue) -> RabbitQueue:
    arguments = {name: value for name, value in queue.all_arguments.items() if name != "x-queue-type"}
    quorum = cast("QuorumQueueArgs", arguments)
    return RabbitQueue(queue.name, durable=True, queue_type=QueueType.QUORUM, arguments=quorum)

"""The exchanges and queues of one virtual host, as data, and their declaration.

All queues are durable quorum queues that refuse rather than drop; what may be tuned belongs in policies,
because a queue's arguments cannot be changed after it was declared.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import aiormq
from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel
from aiormq import spec
from aiormq.abc import ChannelFrame

from domain.duration import format_duration
from domain.inbox import EXCHANGE
from domain.vocabulary import Channel, Lane

EVENTS = "notipy.events"
CHANNELS = "notipy.channels"
DEAD = "notipy.dead"
STATUS = "notipy.status"
INBOX = EXCHANGE
COMMANDS = "notipy.commands"
RECEIPTS = "notipy.receipts"
UNROUTED = "notipy.unrouted"
DEAD_EVENTS = "notipy.dead.events"
DEAD_RECEIPTS = "notipy.dead.receipts"
RECEIPTS_KEY = "receipts"
"""Under which `notipy.channels` gives a receipt back that has waited in a retry queue."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange to declare."""

    name: str
    type: ExchangeType = ExchangeType.TOPIC
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue to declare, bound to `exchange` under `key`.

    Attributes:
        arguments: those beyond what every queue has.
        back: the key under which `notipy.channels` gives it what comes from a retry queue, if it is not bound there.
    """

    name: str
    exchange: str
    key: str
    arguments: dict[str, Any] = field(default_factory=dict)
    back: str | None = None

    @property
    def bindings(self) -> Sequence[tuple[str, str]]:
        """Exchanges and keys."""
        own = (self.exchange, self.key)
        return [own] if self.back is None else [own, (CHANNELS, self.back)]

    @property
    def all_arguments(self) -> dict[str, Any]:
        """A quorum queue that refuses what it has no room for, and hands dead letters on at least once."""
        return {"x-queue-type": "quorum", "x-overflow": "reject-publish", **self.arguments}


def channel_queue(channel: Channel, lane: Lane) -> str:
    """The queue that a channel's consumer takes this lane's deliveries from."""
    return f"notipy.channel.{channel}.{lane}"


def dead_queue(channel: Channel) -> str:
    """Where a channel's failed deliveries are parked."""
    return f"notipy.dead.{channel}"


def retry_name(tier: timedelta) -> str:
    """The exchange and the queue of a retry tier, `notipy.retry.45s`."""
    return f"notipy.retry.{format_duration(tier)}"


def _dead_lettering(exchange: str, key: str | None) -> dict[str, Any]:
    """At-least-once: without a route the broker keeps the message instead of dropping it."""
    arguments = {"x-dead-letter-exchange": exchange, "x-dead-letter-strategy": "at-least-once"}
    return arguments | ({"x-dead-letter-routing-key": key} if key else {})


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything that is declared for these channels and retry tiers."""

    channels: tuple[Channel, ...]
    tiers: tuple[timedelta, ...]

    @property
    def exchanges(self) -> Sequence[Exchange]:
        """In the order in which they are declared."""
        fixed = (
            Exchange(UNROUTED, ExchangeType.FANOUT),
            Exchange(EVENTS),
            Exchange(CHANNELS, arguments={"alternate-exchange": UNROUTED}),
            Exchange(DEAD),
            Exchange(STATUS),
            Exchange(INBOX),
            Exchange(COMMANDS),
            Exchange(RECEIPTS),
        )
        return (*fixed, *(Exchange(retry_name(tier), ExchangeType.FANOUT) for tier in self.tiers))

    @property
    def queues(self) -> Sequence[Queue]:
        """In the order in which they are declared."""
        return (
            Queue(DEAD_EVENTS, DEAD, "events"),
            Queue(DEAD_RECEIPTS, DEAD, "receipts"),
            # of every channel: also a delivery over one that is not configured is parked
            *(Queue(dead_queue(channel), DEAD, str(channel)) for channel in Channel),
            Queue(UNROUTED, UNROUTED, ""),
            Queue(EVENTS, EVENTS, "#", _dead_lettering(DEAD, "events")),
            Queue(COMMANDS, COMMANDS, "#", _dead_lettering(DEAD, "events")),
            Queue(RECEIPTS, RECEIPTS, "#", _dead_lettering(DEAD, "receipts"), RECEIPTS_KEY),
            *self._channel_queues(),
            *self._retry_queues(),
        )

    @property
    def channel_keys(self) -> frozenset[str]:
        """The routing keys under which `notipy.channels` has a queue."""
        return frozenset((RECEIPTS_KEY, *(f"{channel}.{lane}" for channel in self.channels for lane in Lane)))

    def queue(self, name: str) -> Queue:
        """The queue of this name."""
        return next(queue for queue in self.queues if queue.name == name)

    def _channel_queues(self) -> Iterable[Queue]:
        for channel in self.channels:
            for lane in Lane:
                arguments = _dead_lettering(DEAD, str(channel))
                yield Queue(channel_queue(channel, lane), CHANNELS, f"{channel}.{lane}", arguments)

    def _retry_queues(self) -> Iterable[Queue]:
        for tier in self.tiers:
            # without a dead-letter routing key the message keeps its own, so one queue serves every channel
            ttl = {"x-message-ttl": round(tier.total_seconds() * 1000)}
            yield Queue(retry_name(tier), retry_name(tier), "", ttl | _dead_lettering(CHANNELS, None))

    async def declare(self, channel: AbstractChannel) -> None:
        """Declare and bind everything; what exists already is left as it is.

        A robust channel remembers what was declared on it, and declares that anew when it is restored.

        Raises:
            aio_pika.exceptions.ChannelPreconditionFailed: something of the same name exists with other arguments.
        """
        for exchange in self.exchanges:
            await channel.declare_exchange(
                exchange.name, exchange.type, durable=True, arguments=dict(exchange.arguments) or None
            )
        for queue in self.queues:
            declared = await channel.declare_queue(queue.name, durable=True, arguments=queue.all_arguments)
            for exchange_name, key in queue.bindings:
                await declared.bind(exchange_name, key)

    async def declare_again(self, channel: AbstractChannel) -> None:
        """The same in one go, which costs a tenth of it: the broker answers the last request alone, or with a fault.

        Raises:
            aio_pika.exceptions.ChannelPreconditionFailed: something of the same name exists with other arguments.
        """
        underlay = cast("aiormq.Channel", await channel.get_underlay_channel())
        *unanswered, last = self._requests()
        last.nowait = False
        await underlay.write_queue.put(ChannelFrame.marshall(underlay.number, unanswered))
        await underlay.rpc(last)

    def _requests(self) -> Iterator[spec.Exchange.Declare | spec.Queue.Declare | spec.Queue.Bind]:
        """What `declare` asks, as frames."""
        for exchange in self.exchanges:
            yield spec.Exchange.Declare(
                exchange=exchange.name,
                exchange_type=exchange.type.value,
                durable=True,
                nowait=True,
                arguments=dict(exchange.arguments) or None,
            )
        for queue in self.queues:
            yield spec.Queue.Declare(queue=queue.name, durable=True, nowait=True, arguments=queue.all_arguments)
            for exchange_name, key in queue.bindings:
                yield spec.Queue.Bind(queue=queue.name, exchange=exchange_name, routing_key=key, nowait=True)

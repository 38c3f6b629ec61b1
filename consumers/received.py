"""Messages as they are handed to handlers, at a third of what aio-pika's own way to them costs.

aio-pika makes a message object of thirty checked fields, and another task to call the consumer in. What is needed
here are eight fields of what the AMQP client below it (aiormq) has read, in the task that it has made.
"""

from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from typing import Any, Protocol, cast

from aio_pika import IncomingMessage, RobustChannel, RobustConnection, RobustQueue
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.commands import Basic


class Message(Protocol):
    """What a handler reads of a message; aio-pika's own have it too."""

    @property
    def body(self) -> bytes:
        """As it was published."""
        ...

    @property
    def headers(self) -> Mapping[str, Any]:
        """Of the publisher, and of the broker."""
        ...

    @property
    def message_id(self) -> str | None:
        """The publisher's."""
        ...

    @property
    def content_type(self) -> str | None:
        """The publisher's."""
        ...

    @property
    def timestamp(self) -> datetime | None:
        """The publisher's."""
        ...

    @property
    def exchange(self) -> str | None:
        """Where it was published to; empty: straight to the queue."""
        ...

    @property
    def routing_key(self) -> str | None:
        """The key that it was published under."""
        ...

    @property
    def redelivered(self) -> bool | None:
        """Whether the broker has handed it out before."""
        ...


class Received:
    """A message that was consumed and is to be acknowledged, over the channel that it came by.

    Of what the AMQP client has read; or of aio-pika's own, which it makes past `_Queue` once it has restored a consumer
    that the broker had cancelled, with its queue (`RobustChannel._restore_missing_consumers`).
    """

    __slots__ = (
        "body",
        "channel",
        "content_type",
        "delivery_tag",
        "exchange",
        "headers",
        "message_id",
        "redelivered",
        "routing_key",
        "timestamp",
    )

    def __init__(self, message: DeliveredMessage | IncomingMessage) -> None:
        if isinstance(message, IncomingMessage):
            for name in self.__slots__:
                setattr(self, name, getattr(message, name))
            return
        properties, delivery = message.header.properties, cast(Basic.Deliver, message.delivery)
        self.body = message.body
        self.channel: AbstractChannel = message.channel
        self.headers: Mapping[str, Any] = properties.headers or {}
        self.message_id = properties.message_id
        self.content_type = properties.content_type
        self.timestamp = properties.timestamp
        self.exchange = delivery.exchange
        self.routing_key = delivery.routing_key
        self.redelivered = delivery.redelivered
        self.delivery_tag: int = delivery.delivery_tag or 0


class _Queue(RobustQueue):
    """One whose consumers get what the AMQP client has read."""

    async def consume(  # type: ignore[override]
        self,
        callback: Callable[[DeliveredMessage], Coroutine[Any, Any, None]],
        no_ack: bool = False,
        exclusive: bool = False,
        arguments: dict[str, Any] | None = None,
        consumer_tag: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - as it is called
        robust: bool = True,
    ) -> str:
        """As aio-pika's, but for what is handed over; `robust`: again on every channel that takes this one's place."""
        how: dict[str, Any] = {"no_ack": no_ack, "exclusive": exclusive, "arguments": arguments}
        channel = await self.channel.get_underlay_channel()
        consumed = await channel.basic_consume(self.name, callback, consumer_tag=consumer_tag, timeout=timeout, **how)
        tag = str(consumed.consumer_tag)
        if robust:
            self._consumers[tag] = {"callback": callback, **how}
        return tag


class _Channel(RobustChannel):
    QUEUE_CLASS = _Queue


class ConsumingConnection(RobustConnection):
    """A connection whose queues' consumers get what the AMQP client has read; to make `Received` of."""

    CHANNEL_CLASS = _Channel

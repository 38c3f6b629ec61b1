"""The channel on which messages are published and confirmed, and another in its place when the broker refuses on it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import DeliveryError, PublishError

RENEWED_AFTER = 1.0
"""Seconds that a channel is used at least: a queue that is full refuses on every one, however new."""


@dataclass(eq=False)
class _Line:
    channel: AbstractChannel
    opened_at: float
    under_way: int = 0
    refused: bool = False

    @property
    def spent(self) -> bool:
        return self.refused and monotonic() - self.opened_at >= RENEWED_AFTER


class ConfirmedChannel:
    """Publishes and waits for the confirmation.

    In a cluster, a channel whose first message for a quorum queue comes just after the node with the queue's leader
    died may be refused (`basic.nack`) every message for that queue until the node is back, while any other channel is
    served (seen with RabbitMQ 3.10: opened within 0.3 s of the node's end). So a channel that was refused something
    is replaced; what is under way on it is still waited for.
    """

    def __init__(self, open_channel: Callable[[], Awaitable[AbstractChannel]]) -> None:
        self._open_channel = open_channel
        self._line: _Line | None = None
        self._opening = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    async def publish(self, body: bytes, **how: Any) -> None:
        """Return once it is confirmed.

        Args:
            body: the message.
            how: the other arguments of aiormq's `basic_publish`.

        Raises:
            PublishError: the message found no queue and was to be returned then.
            DeliveryError: the broker refused it.
            Exception: the channel or the connection is lost, or cannot be opened at this moment.
        """
        line = await self._usable()
        line.under_way += 1
        try:
            underlay = await line.channel.get_underlay_channel()
            await underlay.basic_publish(body, **how)
        except PublishError:
            raise
        except DeliveryError:
            line.refused = True
            raise
        finally:
            line.under_way -= 1
            if line is not self._line and not line.under_way:
                self._retire(line)

    async def channel(self) -> AbstractChannel:
        """The one that is in use, to declare something on."""
        return (await self._usable()).channel

    async def close(self) -> None:
        """What is under way is no longer waited for."""
        await asyncio.gather(*self._closing)
        if self._line is not None:
            await _closed(self._line.channel)

    async def _usable(self) -> _Line:
        if self._line is None or self._line.spent:
            async with self._opening:
                if self._line is None or self._line.spent:
                    before, self._line = self._line, _Line(await self._open_channel(), monotonic())
                    if before is not None and not before.under_way:
                        self._retire(before)
        return self._line

    def _retire(self, line: _Line) -> None:
        task = asyncio.create_task(_closed(line.channel))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _closed(channel: AbstractChannel) -> None:
    if not channel.is_closed:
        with suppress(Exception):  # it is lost already, or with its connection
            await channel.close()

"""What found no queue: messages that stand in `notipy.unrouted` go their way as soon as their queue is there again."""

import time
from collections.abc import Mapping
from typing import Any

from aio_pika.abc import AbstractIncomingMessage, AbstractRobustConnection

from consumers.publisher import Publisher
from consumers.topology import UNROUTED, Topology

AT_ONCE = 500
"""Messages looked at in a round."""
LEFT_SECONDS = 3600.0
"""Before messages that were left are looked at again."""
_BROKERS_OWN = ("x-death", "x-first-death", "x-last-death", "x-delivery-count", "x-acquired-count")
"""Prefixes of headers that must not travel on: a message that has been through a retry queue is dropped by the next."""


class Unrouted:
    """Looks after `notipy.unrouted`."""

    def __init__(self, connection: AbstractRobustConnection, publisher: Publisher, topology: Topology) -> None:
        self._connection = connection
        self._publisher = publisher
        self._topology = topology
        self._left, self._not_before = 0, 0.0

    async def route_again(self) -> int:
        """Publish again what has a queue now; returns how many. Claims see to it that nothing is sent twice by this.

        What never had a queue of NotiPy's is left for an operator, and looked at seldom: each look counts as a
        delivery, and RabbitMQ 4 drops what was delivered too often.
        """
        waiting = (await self._publisher.counts(UNROUTED) or (0, 0))[0]
        if not waiting or (waiting <= self._left and time.monotonic() < self._not_before):
            return 0
        moved = await self._look()
        self._left, self._not_before = waiting - moved, time.monotonic() + LEFT_SECONDS
        return moved

    async def _look(self) -> int:
        channel = await self._connection.channel(publisher_confirms=False)
        moved = 0
        try:
            source = await channel.get_queue(UNROUTED, ensure=False)
            for _ in range(AT_ONCE):
                message = await source.get(fail=False)
                if message is None:
                    break
                moved += await _moved(message, self._publisher, self._topology)
            return moved
        finally:
            await channel.close()  # gives back what was left alone


async def _moved(message: AbstractIncomingMessage, publisher: Publisher, topology: Topology) -> bool:
    key = message.routing_key or ""
    if key not in topology.channel_keys:
        return False
    await publisher.relay(key, message.body, own_headers(message.headers))
    await message.ack()
    return True


def own_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers without those that the broker has added."""
    return {name: value for name, value in headers.items() if not name.startswith(_BROKERS_OWN)}

"""What found no queue: messages that stand in `notipy.unrouted` go their way as soon as their queue is there again."""

from collections.abc import Mapping
from typing import Any

from aio_pika.abc import AbstractIncomingMessage, AbstractRobustConnection

from consumers.publisher import Publisher
from consumers.topology import UNROUTED, Topology

AT_ONCE = 500
"""Messages looked at in a round."""
_BROKERS_OWN = ("x-death", "x-first-death", "x-last-death", "x-delivery-count", "x-acquired-count")
"""Prefixes of headers that must not travel on: a message that has been through a retry queue is dropped by the next."""


async def route_again(connection: AbstractRobustConnection, publisher: Publisher, topology: Topology) -> int:
    """Publish again what has a queue now; returns how many. Claims see to it that nothing is sent twice by this.

    What never had a queue of NotiPy's is left for an operator.
    """
    if not (await publisher.counts(UNROUTED) or (0, 0))[0]:
        return 0
    channel = await connection.channel(publisher_confirms=False)
    try:
        source = await channel.get_queue(UNROUTED, ensure=False)
        moved = 0
        for _ in range(AT_ONCE):
            message = await source.get(fail=False)
            if message is None:
                break
            moved += await _moved(message, publisher, topology)
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

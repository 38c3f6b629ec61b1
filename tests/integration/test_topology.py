"""What is declared again and again, against a real RabbitMQ: the same as at first, and what differs is told."""

import aio_pika
import pytest

from consumers.publisher import Publisher, TopologyDiffers
from consumers.topology import EVENTS, Topology
from domain.vocabulary import Channel
from tests.running import Stack

DECLARED = Topology((Channel.EMAIL, Channel.SMS), ())


async def test_what_was_deleted_is_declared_and_bound_again(stack: Stack) -> None:
    for queue in DECLARED.queues:
        await stack.channel.queue_delete(queue.name)
    await stack.channel.exchange_delete(EVENTS)
    publisher = Publisher(stack.core.connection, DECLARED)
    await publisher.declare()
    missing = [queue.name for queue in DECLARED.queues if await publisher.counts(queue.name) is None]
    assert missing == []
    exchange = await stack.channel.get_exchange(EVENTS)
    await exchange.publish(aio_pika.Message(b"{}"), "shop.order")
    assert await publisher.counts(EVENTS) == (1, 0)
    await publisher.close()


@pytest.mark.parametrize("name", [DECLARED.queues[0].name, EVENTS, DECLARED.queues[-1].name])
async def test_what_exists_with_other_arguments_is_told(stack: Stack, name: str) -> None:
    await stack.channel.queue_delete(name)
    await stack.channel.declare_queue(name, durable=True)
    publisher = Publisher(stack.core.connection, DECLARED)
    with pytest.raises(TopologyDiffers, match=name):
        await publisher.declare()
    await publisher.close()

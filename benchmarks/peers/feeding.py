"""Publishing events to a peer's queue: confirmed one by one, or many in a pipeline."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import aio_pika

Feed = Callable[[bytes], Awaitable[None]]
"""Publishes one event; returns when the broker has confirmed it."""
WINDOW = 500
"""Publishes under way at once, while a backlog is filled."""


@asynccontextmanager
async def feeding(
    amqp_url: str, exchange: str, key: str, message: Callable[[bytes], aio_pika.Message]
) -> AsyncIterator[Feed]:
    """A connection over which events are published, each as the message that is made of it."""
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange

        async def feed(body: bytes) -> None:
            await target.publish(message(body), key)

        yield feed


async def fill(feeder: AbstractAsyncContextManager[Feed], bodies: Sequence[bytes]) -> None:
    """Publish all of them; returns when every one is confirmed."""
    window = asyncio.Semaphore(WINDOW)
    async with feeder as feed:

        async def one(body: bytes) -> None:
            async with window:
                await feed(body)

        await asyncio.gather(*map(one, bodies))

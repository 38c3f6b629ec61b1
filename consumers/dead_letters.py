"""Walking a dead-letter queue: each message is seen once, and leaves only when that is decided.

MongoDB says which deliveries are dead; their queue is what operators see in the management UI. Events that
could not be used stand in their queue alone.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from aio_pika.abc import AbstractIncomingMessage, AbstractRobustConnection

from consumers import codec

WALK_BATCH = 200
"""Messages taken before their fate is decided together."""
GIVEN_BACK_WITHIN = 3.0
"""Seconds to wait for the messages that were kept to be ready again."""
Decide = Callable[[Sequence[AbstractIncomingMessage]], Awaitable[Sequence[bool]]]


@dataclass(frozen=True, slots=True)
class DeadEvent:
    """A message that was no event, as it stands in `notipy.dead.events`."""

    parked_at: datetime | None
    reason: str
    detail: str
    routing_key: str | None
    message_id: str | None
    size: int
    body: bytes


def dead_event(message: AbstractIncomingMessage) -> DeadEvent:
    """Read what `Publisher.reject` wrote; a message that the broker itself dead-lettered has no reason of ours."""
    headers = message.headers
    parked = headers.get(codec.PARKED_AT)
    key, message_id = headers.get(codec.ROUTING_KEY), headers.get(codec.MESSAGE_ID)
    return DeadEvent(
        parked_at=datetime.fromisoformat(str(parked)) if parked else None,
        reason=str(headers.get(codec.REASON) or headers.get("x-first-death-reason") or "unknown"),
        detail=str(headers.get(codec.DETAIL) or ""),
        routing_key=str(key) if key is not None else None,
        message_id=str(message_id) if message_id is not None else None,
        size=len(message.body),
        body=message.body,
    )


async def walk(
    connection: AbstractRobustConnection, queue: str, decide: Decide, progress: Callable[[int], None] = lambda _: None
) -> int:
    """Show every message that is in the queue now to `decide`, in batches; those it says True to are removed.

    The others stay: when this returns or raises they have been given back, and are there for the next to look.
    Returns how many were removed.
    """
    channel = await connection.channel(publisher_confirms=False)
    taken = removed = 0
    try:
        source = await channel.declare_queue(queue, passive=True, robust=False)
        left = source.declaration_result.message_count or 0
        while left > 0:
            batch = await _take(source, min(left, WALK_BATCH))
            taken += len(batch)
            if not batch:
                break
            removed += await _remove(batch, await decide(batch))
            left -= len(batch)
            progress(len(batch))
        return removed
    finally:
        await channel.close()  # gives back whatever was not acknowledged
        await _given_back(connection, queue, taken - removed)


async def _given_back(connection: AbstractRobustConnection, queue: str, kept: int) -> None:
    """Wait until the queue shows the messages again: a quorum queue takes a moment, and somebody may look next."""
    if not kept:
        return
    channel = await connection.channel(publisher_confirms=False)
    try:
        async with asyncio.timeout(GIVEN_BACK_WITHIN):
            while True:
                source = await channel.declare_queue(queue, passive=True, robust=False)
                if (source.declaration_result.message_count or 0) >= kept:
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:  # somebody else has taken some of them meanwhile
        return
    finally:
        await channel.close()


async def _take(queue: object, count: int) -> list[AbstractIncomingMessage]:
    batch: list[AbstractIncomingMessage] = []
    for _ in range(count):
        message = await queue.get(fail=False)  # type: ignore[attr-defined]
        if message is None:
            break
        batch.append(message)
    return batch


async def _remove(batch: Sequence[AbstractIncomingMessage], fates: Sequence[bool]) -> int:
    removed = 0
    for message, gone in zip(batch, fates, strict=True):
        if gone:
            await message.ack()
            removed += 1
    return removed

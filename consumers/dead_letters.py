"""Walking a dead-letter queue: each message is seen once, and leaves only when that is decided.

MongoDB says which deliveries are dead; their queue is what operators see in the management UI. Events that
could not be used stand in their queue alone.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from aio_pika.abc import AbstractIncomingMessage, AbstractRobustConnection

from consumers import codec
from domain.vocabulary import Reason

CLEARING = "clearing dead letters"
"""The lease under which dead-letter queues are cleared: what one holds in its hands, another would miss."""
TURN = timedelta(seconds=30)
"""How long whoever has died while clearing keeps another from it."""
WALK_BATCH = 200
"""Messages taken before their fate is decided together."""
ACKS_AT_ONCE = 16
"""Half of what RabbitMQ takes before it stashes them (`quorum_commands_soft_limit`)."""
GIVEN_BACK_WITHIN = 3.0
"""Seconds to wait for the messages that were kept to be ready again."""
DIGITS = 16
"""Of a digest that stands for a message: with it, no two of a million are likely to be taken for one another."""
Decide = Callable[[Sequence[AbstractIncomingMessage]], Awaitable[Sequence[bool]]]


@dataclass(frozen=True, slots=True)
class DeadEvent:
    """A message that was no event, or a receipt of nothing that is known, as it stands in its dead-letter queue."""

    parked_at: datetime | None
    reason: str
    detail: str
    routing_key: str | None
    message_id: str | None
    size: int
    body: bytes
    content_type: str | None = None

    @property
    def id(self) -> str:
        """By which an operator names it: the message's own, or a digest of the body of one that came without."""
        return self.message_id or hashlib.sha256(self.body).hexdigest()[:DIGITS]


def dead_event(message: AbstractIncomingMessage) -> DeadEvent:
    """Read what `Publisher.reject` wrote; a message that the broker itself dead-lettered has no headers of ours."""
    headers = message.headers
    if codec.REASON not in headers and headers.get("x-first-death-reason"):
        return _by_the_broker(message)
    parked = headers.get(codec.PARKED_AT)
    key, message_id = headers.get(codec.ROUTING_KEY), headers.get(codec.MESSAGE_ID)
    return DeadEvent(
        parked_at=datetime.fromisoformat(str(parked)) if parked else None,
        reason=str(headers.get(codec.REASON) or "unknown"),
        detail=str(headers.get(codec.DETAIL) or ""),
        routing_key=str(key) if key is not None else None,
        message_id=str(message_id) if message_id is not None else None,
        size=len(message.body),
        body=message.body,
        content_type=str(headers.get(codec.CONTENT_TYPE) or message.content_type or "") or None,
    )


def _by_the_broker(message: AbstractIncomingMessage) -> DeadEvent:
    """One that the broker dead-lettered: over its delivery limit (a policy, or RabbitMQ 4's own), it is poison."""
    reason = str(message.headers["x-first-death-reason"])
    deaths = message.headers.get("x-death")
    death = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}
    keys, at = death.get("routing-keys"), death.get("time")
    poison = reason == "delivery_limit"
    return DeadEvent(
        parked_at=at if isinstance(at, datetime) else None,
        reason=str(Reason.POISON) if poison else reason,
        detail="handed out more often than the broker's delivery limit allows" if poison else "by the broker",
        routing_key=str(keys[0]) if isinstance(keys, list) and keys else None,
        message_id=message.message_id,
        size=len(message.body),
        body=message.body,
        content_type=message.content_type,
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
            removed += await _remove(source, batch, await decide(batch))
            left -= len(batch)
            progress(len(batch))
        return removed
    finally:
        await channel.close()  # gives back whatever was not acknowledged
        await _given_back(connection, queue, taken - removed)


async def remove_older(
    connection: AbstractRobustConnection, queue: str, before: datetime, limit: int
) -> tuple[int, datetime | None]:
    """Remove messages from the head of a queue for as long as they were parked before this time, `limit` at most.

    Returns how many were removed, and when the one was parked at which it stopped; None if nothing stopped it. Whose
    age nobody knows stays, and what is behind it.
    """
    channel = await connection.channel(publisher_confirms=False)
    removed = 0
    try:
        source = await channel.declare_queue(queue, passive=True, robust=False)
        while removed < limit and (message := await source.get(fail=False)) is not None:
            at = parked_at(message)
            if at is None or at >= before:
                return removed, at or datetime.now(UTC)
            await message.ack()
            removed += 1
        return removed, None
    finally:
        await channel.close()  # gives back the one at which it stopped


def parked_at(message: AbstractIncomingMessage) -> datetime | None:
    """When it came into its dead-letter queue: what we wrote, or what the broker did of one that it parked itself."""
    written = message.headers.get(codec.PARKED_AT)
    try:
        at = datetime.fromisoformat(str(written)) if written else message.headers["x-death"][0]["time"]  # type: ignore[index,call-overload]
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)) if isinstance(at, datetime) else None


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


async def _remove(queue: Any, batch: Sequence[AbstractIncomingMessage], fates: Sequence[bool]) -> int:
    """Acknowledge a few at a time and wait for the queue in between.

    RabbitMQ stashes more than 32 acknowledgements of a quorum queue in the channel, and forgets them with it: those
    messages would be there again when the channel has been closed.
    """
    gone = [message for message, remove in zip(batch, fates, strict=True) if remove]
    for start in range(0, len(gone), ACKS_AT_ONCE):
        for message in gone[start : start + ACKS_AT_ONCE]:
            await message.ack()
        await queue.declare()  # passive: it is answered after what came before it
    return len(gone)

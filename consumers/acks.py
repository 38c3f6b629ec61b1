"""Acknowledging many messages at once, and never one that is not settled.

RabbitMQ hands each acknowledgement of a quorum queue to its log; one of `multiple` is one entry for them all. More than
32 single ones in a row are stashed in the channel, and lost with it: closed too early, it gives settled messages back.
"""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Protocol

import structlog

from domain.failures import place_of
from domain.group_commit import enough

log = structlog.get_logger()
GATHER_SECONDS = 0.02
"""That a settled message waits for others to be acknowledged with it, unless there are enough of them before."""
STRAGGLER_ROUNDS = 1
"""Rounds that a settled message waits for one before it that is not; then it is acknowledged alone."""


class AmqpChannel(Protocol):
    """What is needed of an AMQP channel."""

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be said over it any more."""
        ...

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> Awaitable[None]:
        """Acknowledge one message, or all up to this one."""
        ...


class Acks:
    """The acknowledgements of one channel with one consumer: its messages are numbered 1, 2, 3, … as they come.

    Everything up to `_floor` is settled, so one `multiple` covers it. What is settled beyond (`_beyond`) waits for the
    gap to close; if that takes long it is acknowledged alone, and its number kept (`_alone`) until the gap closes.

    Args:
        channel: the channel.
        prefetch: messages that the broker hands out at most before one is acknowledged: where half as many are settled,
            they wait for no others, also behind one that takes long.
    """

    def __init__(self, channel: AmqpChannel, prefetch: int) -> None:
        self.channel = channel
        self._enough, self._many = enough(prefetch), max(1, prefetch // 2)
        self._fresh, self._plenty = 0, asyncio.Event()
        self._floor = 0
        self._last, self._covered = 0, 0
        self._beyond: dict[int, int] = {}
        self._alone: set[int] = set()
        self._flushing: asyncio.Task[None] | None = None
        self._held = False
        self._open = 0

    @property
    def open(self) -> int:
        """Messages that have come over the channel and that the broker still counts as under way."""
        return self._open

    def came(self) -> None:
        """A message has come."""
        self._open += 1

    def settled(self, tag: int) -> None:
        """The message may be acknowledged; that happens within some 40 ms, unless they are held."""
        self._beyond[tag] = 0
        self._fresh += 1
        self._advance()
        if self._urgent:
            self._plenty.set()
        if self._flushing is None and not self._held:
            self._flushing = asyncio.create_task(self._flush_until_done())

    def given_back(self, tag: int) -> None:
        """The message is no longer ours: nothing is to be acknowledged, and those behind it need not wait for it."""
        self._open -= 1
        self._alone.add(tag)
        self._advance()

    def _advance(self) -> None:
        """Move the floor up; the broker closes a channel over which a message is acknowledged twice."""
        while True:
            tag = self._floor + 1
            if tag in self._beyond:
                del self._beyond[tag]
                self._last, self._covered = tag, self._covered + 1
            elif tag in self._alone:
                self._alone.discard(tag)
            else:
                return
            self._floor = tag

    def hold(self) -> None:
        """Acknowledge nothing until `release`."""
        self._held = True

    def release(self) -> None:
        """Acknowledge again."""
        self._held = False
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush_until_done())

    async def flush(self) -> None:
        """Acknowledge everything that is settled, now."""
        await self._prefix()
        for tag in list(self._beyond):
            await self._one(tag)

    async def _flush_until_done(self) -> None:
        try:
            while self._wanted():
                await self._gather()
                if self._wanted():  # it may have been held meanwhile
                    await self._prefix()
                    await self._stragglers()
        except Exception as error:  # noqa: BLE001 - the channel is gone, and the broker hands its messages out again
            log.warning("messages.not_acknowledged", error=place_of(error))
        finally:
            self._flushing = None

    async def _gather(self) -> None:
        if not self._urgent:
            self._plenty.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER_SECONDS):
                    await self._plenty.wait()
        self._fresh = 0

    @property
    def _urgent(self) -> bool:
        """Whether there are enough to share a frame, or so many that the broker may soon hand out no other."""
        return self._fresh >= self._enough or self._covered + len(self._beyond) >= self._many

    def _wanted(self) -> bool:
        pending = self._covered > 0 or bool(self._beyond)
        return pending and not self._held and not self.channel.is_closed

    async def _prefix(self) -> None:
        if self._covered:
            several = self._covered > 1
            self._open, self._covered = self._open - self._covered, 0
            await self.channel.basic_ack(self._last, multiple=several)

    async def _stragglers(self) -> None:
        for tag, rounds in list(self._beyond.items()):
            if rounds >= STRAGGLER_ROUNDS:
                await self._one(tag)
            elif tag in self._beyond:
                self._beyond[tag] = rounds + 1

    async def _one(self, tag: int) -> None:
        """Unless it has been already, or while another one was, the gap before it has closed."""
        if self._beyond.pop(tag, None) is not None:
            self._open -= 1
            self._alone.add(tag)
            await self.channel.basic_ack(tag)

"""What many concurrent handlers do with one operation: writes and acknowledgements."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from aiormq.abc import AbstractChannel

Item = TypeVar("Item")
Result = TypeVar("Result")

GROUP = 500
"""Documents of one write, at most."""
GATHER_SECONDS = 0.002
"""That an acknowledgement waits for others to go out with it."""


class Grouped(Generic[Item, Result]):
    """Concurrent callers share one write; the next goes out when it has returned. Each gets the write's own result."""

    def __init__(self, write: Callable[[list[Item]], Awaitable[Result]]) -> None:
        self._write = write
        self._groups: deque[tuple[list[Item], asyncio.Future[Result]]] = deque()
        self._writer: asyncio.Task[None] | None = None

    def submit(self, item: Item) -> "asyncio.Future[Result]":
        """Add the item to the next write."""
        if not self._groups or len(self._groups[-1][0]) == GROUP:
            self._groups.append(([], asyncio.get_running_loop().create_future()))
        items, done = self._groups[-1]
        items.append(item)
        if self._writer is None:
            self._writer = asyncio.create_task(self._run())
        return done

    async def _run(self) -> None:
        while self._groups:
            items, done = self._groups.popleft()
            try:
                done.set_result(await self._write(items))
            except Exception as error:  # noqa: BLE001 - handed to the callers
                done.set_exception(error)
        self._writer = None


class Acks:
    """Acknowledges all messages up to the first one that is not settled, with one `multiple`.

    It is the channel's only consumer, so its messages are numbered 1, 2, 3, …
    """

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self._acked = self._floor = 0
        self._beyond: set[int] = set()
        self._flushing: asyncio.Task[None] | None = None

    def settled(self, tag: int) -> None:
        """The message may be acknowledged."""
        self._beyond.add(tag)
        while self._floor + 1 in self._beyond:
            self._floor += 1
            self._beyond.remove(self._floor)
        if self._floor > self._acked and self._flushing is None:
            self._flushing = asyncio.create_task(self._flush_soon())

    async def flush(self) -> None:
        """Acknowledge now."""
        if self._floor > self._acked:
            self._acked = self._floor
            await self._channel.basic_ack(self._floor, multiple=True)

    async def _flush_soon(self) -> None:
        while self._floor > self._acked:
            await asyncio.sleep(GATHER_SECONDS)
            await self.flush()
        self._flushing = None

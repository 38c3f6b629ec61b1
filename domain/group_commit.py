"""Group commit: concurrent callers share one write, and each awaits its own result.

The first caller's batch goes out at once, unless it is to linger; whoever comes while it is under way shares
the next. Idle, a write costs one round trip; under load, batches grow by themselves, up to a limit.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
MAX_BATCH = 500
"""Documents a write: beyond it a batch costs the same per document and only adds latency."""
ENOUGH = 16
"""Items that wait for no more to come: from then on sharing saves little."""


def enough(in_progress: int) -> int:
    """How many need not wait for more, where `in_progress` at most are under way: never so many that all wait."""
    return max(1, min(ENOUGH, in_progress // 4))


class GroupCommit(Generic[Item, Result]):
    """Collects items and hands them to `write` in batches, one batch at a time.

    `write` returns one result for each item, in order; an exception in place of a result is raised to that
    item's caller alone, one raised by `write` itself to every caller of the batch.

    Args:
        linger: seconds that a write waits for others to share it, where nobody is in a hurry.
        enough: so many that they need not wait for more.
    """

    def __init__(
        self,
        write: Callable[[list[Item]], Awaitable[Sequence[Result | Exception]]],
        max_batch: int = MAX_BATCH,
        linger: float = 0.0,
        enough: int = MAX_BATCH,
    ) -> None:
        self._write = write
        self._max_batch = max_batch
        self._linger = linger
        self._enough = min(enough, max_batch)
        self._now = asyncio.Event()
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._writer: asyncio.Task[None] | None = None

    async def submit(self, item: Item, *, hurry: bool = False) -> Result:
        """Write the item with whoever else writes now; returns its result once the write is durable.

        `hurry`: nobody lingers for others.
        """
        (future,) = self._join([item], hurry)
        return await future

    async def submit_all(self, items: Sequence[Item], *, hurry: bool = False) -> Sequence[Result | Exception]:
        """As `submit` for each, by one caller; what an item has met alone stands in the place of its result."""
        results: list[Result | Exception] = []
        futures = self._join(items, hurry)
        try:
            for future in futures:  # most are there when the first is
                try:
                    results.append(await future)
                except Exception as error:  # noqa: BLE001 - the caller's to decide
                    results.append(error)
        finally:
            for future in futures[len(results) :]:  # of a caller that was cancelled: it wants none of them any more
                future.cancel()
        return results

    def _join(self, items: Sequence[Item], hurry: bool) -> Sequence["asyncio.Future[Result]"]:
        if not items:
            return []
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Result]] = [loop.create_future() for _ in items]
        self._waiting.extend(zip(items, futures, strict=True))
        if hurry or len(self._waiting) >= self._enough:
            self._now.set()
        if self._writer is None:
            self._writer = asyncio.create_task(self._run())
        return futures

    async def drain(self) -> None:
        """Wait until nothing is under way."""
        while self._writer is not None:
            await asyncio.wait([self._writer])

    async def _run(self) -> None:
        try:
            while self._waiting:
                if self._linger:
                    await self._gather()
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_batch))]
                # a caller that was cancelled before its write wants it no more
                await self._write_batch([(item, future) for item, future in batch if not future.done()])
        finally:
            self._writer = None

    async def _gather(self) -> None:
        """Wait until there are enough, somebody is in a hurry, or the time is over."""
        if len(self._waiting) < self._enough:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._linger):
                    await self._now.wait()
        self._now.clear()

    async def _write_batch(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        if not batch:
            return
        try:
            results = await self._write([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001 - handed to each caller, who decides
            results = [error] * len(batch)
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        for (_, future), result in zip(batch, results, strict=True):
            _resolve(future, result)


def _resolve(future: "asyncio.Future[Result]", result: Result | Exception) -> None:
    if future.done():  # its caller was cancelled; the write stands, and a redelivery will find it
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)

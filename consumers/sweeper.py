"""Runs the sweep round after round, in one process of many, and shows what stands."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog

from consumers.metrics import Metrics
from consumers.publisher import Publisher
from consumers.topology import DEAD_EVENTS, DEAD_RECEIPTS, UNROUTED, dead_queue
from domain.ports import Now
from domain.sweep import Sweep
from domain.vocabulary import Channel
from storage.deliveries import MongoDeliveries
from storage.leadership import MongoLeadership

log = structlog.get_logger()
SHOW_EVERY = timedelta(seconds=10)
"""How often the gauges are counted anew."""
LEASE_ROUNDS = 3
"""A leader that has not come round for so many intervals is replaced."""


class Sweeper:
    """The sweeper role. `run` goes on until it is cancelled."""

    def __init__(
        self,
        sweep: Sweep,
        leadership: MongoLeadership,
        deliveries: MongoDeliveries,
        publisher: Publisher,
        metrics: Metrics,
        now: Now,
        interval: timedelta,
        route_again: Callable[[], Awaitable[int]],
    ) -> None:
        self._sweep = sweep
        self._leadership = leadership
        self._deliveries = deliveries
        self._publisher = publisher
        self._metrics = metrics
        self._now = now
        self._interval = interval
        self._route_again = route_again

    async def run(self) -> None:
        """Round after round; gives the lead up when it is cancelled."""
        shown = self._now() - SHOW_EVERY
        try:
            while True:
                if await self._leads():
                    await self._round()
                if self._now() - shown >= SHOW_EVERY:
                    await self._show()
                    shown = self._now()
                await asyncio.sleep(self._interval.total_seconds())
        finally:
            await self._leadership.leave()

    async def _leads(self) -> bool:
        return await self._leadership.held(self._now(), max(self._interval * LEASE_ROUNDS, timedelta(seconds=5)))

    async def _round(self) -> None:
        swept = await self._sweep()
        self._metrics.swept(swept)
        if not swept.idle:
            found = {str(reason): count for reason, count in swept.deliveries.items()}
            log.info("sweeper.round", events=swept.events, **found)
        for place in swept.faults:
            log.error("sweeper.fault", place=place)
        if routed := await self._route_again():
            log.info("sweeper.routed", messages=routed)

    async def _show(self) -> None:
        self._metrics.standing(await self._deliveries.count_by_state(), await self._deliveries.oldest_due())
        parked = {"events": DEAD_EVENTS, "receipts": DEAD_RECEIPTS} | {
            str(channel): dead_queue(channel) for channel in Channel
        }
        for name, queue in parked.items():
            self._metrics.dead.labels(name).set((await self._publisher.counts(queue) or (0, 0))[0])
        self._metrics.unrouted.set((await self._publisher.counts(UNROUTED) or (0, 0))[0])

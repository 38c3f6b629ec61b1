"""Runs the sweep round after round, in one process of many, and shows what stands.

What takes seconds goes beside what may take minutes: deliveries do not wait for an event that is being planned.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog

from consumers.metrics import Metrics
from consumers.publisher import Publisher
from consumers.topology import DEAD_EVENTS, DEAD_RECEIPTS, UNROUTED, dead_queue
from domain.ports import Now
from domain.sweep import EVENTS_BATCH, Sweep, Swept
from domain.vocabulary import Channel
from storage.deliveries import MongoDeliveries
from storage.leadership import MongoLeadership

log = structlog.get_logger()
SHOW_EVERY = timedelta(seconds=10)
"""How often the gauges are counted anew."""
LEASE_ROUNDS = 3
"""A leader that has not come round for so many intervals is replaced."""


class Sweeper:
    """The sweeper role. `run` and `plan`, side by side, go on until they are cancelled."""

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
        self._leading = False

    async def run(self) -> None:
        """Deliveries, round after round; gives the lead up when it is cancelled."""
        shown = self._now() - SHOW_EVERY
        try:
            while True:
                self._leading = await self._leads()
                if self._leading:
                    await self._round()
                if self._now() - shown >= SHOW_EVERY:
                    await self._show()
                    shown = self._now()
                await asyncio.sleep(self._interval.total_seconds())
        finally:
            self._leading = False
            await self._leadership.leave()

    async def plan(self) -> None:
        """Events that were not planned to the end, round after round while `run` leads.

        The lead may go to another process in the middle of a round: an event that is taken up is not due meanwhile.
        """
        while True:
            more = self._leading and await self._plan_round()
            await asyncio.sleep(0 if more else self._interval.total_seconds())

    async def _leads(self) -> bool:
        return await self._leadership.held(self._now(), max(self._interval * LEASE_ROUNDS, timedelta(seconds=5)))

    async def _round(self) -> None:
        self._tell(await self._sweep.drive())
        if routed := await self._route_again():
            log.info("sweeper.routed", messages=routed)

    async def _plan_round(self) -> bool:
        """Whether there may be more: a replay makes thousands of events due at once."""
        swept = await self._sweep.plan()
        self._tell(swept)
        return swept.events >= EVENTS_BATCH

    def _tell(self, swept: Swept) -> None:
        self._metrics.swept(swept)
        if not swept.idle:
            found = {str(reason): count for reason, count in swept.deliveries.items()}
            log.info("sweeper.round", events=swept.events, **found)
        for place, times in Counter(swept.faults).items():
            log.error("sweeper.fault", place=place, times=times)

    async def _show(self) -> None:
        self._metrics.standing(await self._deliveries.count_by_state(), await self._deliveries.oldest_due())
        parked = {"events": DEAD_EVENTS, "receipts": DEAD_RECEIPTS} | {
            str(channel): dead_queue(channel) for channel in Channel
        }
        for name, queue in parked.items():
            self._metrics.dead.labels(name).set((await self._publisher.counts(queue) or (0, 0))[0])
        self._metrics.unrouted.set((await self._publisher.counts(UNROUTED) or (0, 0))[0])

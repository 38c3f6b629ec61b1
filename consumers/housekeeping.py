"""Retention: deletes what is over and older than it is kept, in one process of many, never in the way of deliveries."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from functools import partial

import structlog
from aio_pika.abc import AbstractRobustConnection

from config.settings import RetentionSettings
from consumers.dead_letters import CLEARING, TURN, remove_older
from consumers.metrics import Metrics
from consumers.publisher import OUTAGES
from consumers.topology import DEAD_EVENTS, DEAD_RECEIPTS, dead_queue
from domain.ports import Now
from domain.vocabulary import Channel
from storage.database import Database
from storage.leadership import MongoLeadership
from storage.retention import Cutoffs, MongoRetention, Step

log = structlog.get_logger()
EVERY = timedelta(minutes=1)
"""Between two rounds, once everything that is due is deleted."""
BATCHES = 20
"""Of one class in a round, so that no class waits for another; if there is more, the next round follows at once."""
REST = 4.0
"""After each batch it rests for so many times as long as the batch took: at most a fifth of the time is its own, and
the busier the database, the less it deletes."""
MESSAGES = 1000
"""Dead letters of one queue that are removed in a round."""
LEASE = timedelta(minutes=2)
"""A leader that has not come round for so long is replaced."""
LOOKS = 10
"""How often the first message of a dead-letter queue is looked at while it is kept: each look is a delivery, and a
broker with a delivery limit counts them."""


class Housekeeping:
    """The sweeper role's second job. `run` goes on until it is cancelled."""

    def __init__(
        self,
        database: Database,
        connection: AbstractRobustConnection,
        keep: RetentionSettings,
        metrics: Metrics,
        now: Now,
        owner: str,
    ) -> None:
        self._database = database
        self._connection = connection
        self._keep = keep
        self._metrics = metrics
        self._now = now
        self._retention = MongoRetention(database)
        self._leadership = MongoLeadership(database, "housekeeping", owner)
        self._clearing = MongoLeadership(database, CLEARING, owner)
        self._look_at: dict[str, datetime] = {}

    async def run(self) -> None:
        """Round after round, led by one process; gives the lead up when it is cancelled."""
        try:
            while True:
                more = await self._leads() and await self._round()
                await asyncio.sleep(0 if more else EVERY.total_seconds())
        finally:
            await self._leadership.leave()

    async def _leads(self) -> bool:
        return await self._leadership.held(self._now(), LEASE)

    async def _round(self) -> bool:
        """Every class once; whether there is more to do."""
        begun, deleted, more = time.monotonic(), Counter[str](), False
        cutoffs = await self._cutoffs()
        await self._retention.announce(cutoffs)
        for step in self._steps(cutoffs):
            more = await self._repeat(step, deleted) or more
        if cutoffs.events is not None and not more:  # what still has deliveries would be passed by for a day
            more = await self._repeat(partial(self._retention.events, cutoffs.events, cutoffs.dead), deleted)
            if not more:
                more = await self._repeat(partial(self._retention.files, cutoffs.events), deleted)
        if cutoffs.dead is not None:
            more = await self._dead_letters(cutoffs.dead, deleted) or more
        if any(deleted.values()):
            log.info("retention.round", **deleted, seconds=round(time.monotonic() - begun, 1), more=more)
        return more

    async def _cutoffs(self) -> Cutoffs:
        """By the earlier of the two clocks: a machine whose own has run ahead deletes nothing before its time."""
        now = min(self._now(), await self._database.time())
        return Cutoffs(**{name: now - kept for name, kept in self._keep if kept is not None})

    def _steps(self, cutoffs: Cutoffs) -> list[Callable[[], Awaitable[Step]]]:
        retention = self._retention
        named = [
            (retention.deliveries, cutoffs.deliveries),
            (retention.dead, cutoffs.dead),
            (retention.attempts, cutoffs.attempts),
            (retention.inbox, cutoffs.deliveries),
        ]
        return [partial(step, before) for step, before in named if before is not None]

    async def _repeat(self, step: Callable[[], Awaitable[Step]], deleted: Counter[str]) -> bool:
        """Batch after batch, as many as a round has and for as long as this process leads."""
        for _ in range(BATCHES):
            if not await self._leads():
                return False
            begun = time.monotonic()
            done = await step()
            self._count(done.deleted, deleted)
            if not done.more:
                return False
            await asyncio.sleep((time.monotonic() - begun) * REST)
        return True

    def _count(self, done: Mapping[str, int], deleted: Counter[str]) -> None:
        self._metrics.deleted(done)
        deleted.update(done)

    async def _dead_letters(self, before: datetime, deleted: Counter[str]) -> bool:
        """Also of the dead-letter queues, unless an operator is at them or the broker is away: then the next time."""
        now = self._now()
        if not await self._clearing.held(now, TURN):
            return False
        try:
            queues = [DEAD_EVENTS, DEAD_RECEIPTS, *map(dead_queue, Channel)]
            due = [queue for queue in queues if self._look_at.get(queue, now) <= now]
            return any([await self._queue(queue, before, deleted) for queue in due])
        finally:
            await self._clearing.leave()

    async def _queue(self, queue: str, before: datetime, deleted: Counter[str]) -> bool:
        try:
            removed, stopped_at = await remove_older(self._connection, queue, before, MESSAGES)
        except OUTAGES as error:
            log.info("retention.queue_unavailable", queue=queue, error=type(error).__name__)
            return False
        self._count({"dead_messages": removed}, deleted)
        now, kept = self._now(), self._now() - before
        if stopped_at is not None:
            self._look_at[queue] = min(stopped_at + kept, now + kept / LOOKS)
        return removed == MESSAGES

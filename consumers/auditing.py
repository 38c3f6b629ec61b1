"""Runs the audit over and over, in one process of many, and shows its sums."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta

import structlog

from consumers.metrics import Metrics
from consumers.topology import Topology, channel_queue, retry_name
from domain.audit import Audited, Queued
from domain.conserve import Audit, Scope
from domain.ports import Now, Waiting
from domain.vocabulary import Channel, Lane
from storage.audit import MongoLedger
from storage.leadership import MongoLeadership

log = structlog.get_logger()
EVERY = timedelta(minutes=1)
"""Between two audits."""
REST = 9
"""After each it rests for so many times as long as it took, so that it has a tenth of the time at most."""
LEASE = timedelta(minutes=15)
"""A leader that has not come round for so long is replaced. Two at once waste work and do no harm."""


class Auditor:
    """The sweeper role's third job. `run` goes on until it is cancelled."""

    def __init__(
        self,
        audit: Audit,
        ledger: MongoLedger,
        leadership: MongoLeadership,
        metrics: Metrics,
        now: Now,
        every: timedelta = EVERY,
    ) -> None:
        self._audit = audit
        self._ledger = ledger
        self._leadership = leadership
        self._metrics = metrics
        self._now = now
        self._every = every

    async def run(self) -> None:
        """Audit after audit, led by one process; each shows what the last one found."""
        try:
            while True:
                begun = time.monotonic()
                if await self._leadership.held(self._now(), LEASE):
                    await self._round()
                if latest := await self._ledger.latest():
                    self._metrics.audited(latest.planned, latest.stored, latest.counts, latest.at)
                await asyncio.sleep(max(self._every.total_seconds(), REST * (time.monotonic() - begun)))
        finally:
            await self._leadership.leave()

    async def _round(self) -> None:
        audited = await self._audit(Scope(limit=1))
        await self._ledger.keep_latest(audited, self._now())
        if not audited.in_order:
            log.warning("audit.exceptions", **_told(audited), advice="`notipy audit` names them")


def _told(audited: Audited) -> Mapping[str, int]:
    return {str(kind): count for kind, count in audited.counts.items() if count}


async def look_into(counts: Callable[[str], Awaitable[tuple[int, int] | None]], topology: Topology) -> Queued:
    """Ask what the queues hold, with `counts`: a queue's messages and consumers. One that is missing holds nothing."""
    lanes: dict[tuple[Channel, Lane], Waiting] = {}
    for channel in topology.channels:
        for lane in Lane:
            lanes[channel, lane] = Waiting(*(await counts(channel_queue(channel, lane)) or (0, 0)))
    retries = [await counts(retry_name(tier)) or (0, 0) for tier in topology.tiers]
    return Queued(lanes, sum(messages for messages, _ in retries))

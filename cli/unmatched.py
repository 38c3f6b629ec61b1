"""Replaying events that met no notification when they came: one of them, or thousands in bounded memory."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cli.output import json_line
from consumers.stores import Stores
from domain.operate import Refused
from domain.ports import StoredEvent
from domain.unmatched import PlanAgain
from domain.vocabulary import EventState
from storage.audit import MongoLedger
from storage.database import Database
from storage.event_pages import event_page

CONCURRENCY = 50
"""Events replayed at once: as many bodies are in memory."""
PAGE = 1000
"""Events that are looked up together, without their bodies."""
Treatment = Callable[[str], Awaitable[StoredEvent | Refused]]


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which unmatched events are meant, the newest first; None: any. At most `limit` of them are replayed."""

    source: str | None = None
    type: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    limit: int | None = None

    def means(self, event: StoredEvent) -> bool:
        """Whether it means this unmatched event."""
        return (
            self.source in {None, event.source}
            and self.type in {None, event.type}
            and (self.since is None or event.received_at >= self.since)
        )

    def over(self, looked_until: datetime) -> bool:
        """Whether it means none of those that were received before this."""
        return self.since is not None and looked_until < self.since


@dataclass(slots=True)
class Done:
    """What was done, and what was left alone and why.

    Attributes:
        shown: the first of those that were, or would be, replayed, with the notifications that they are planned with.
    """

    treated: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    shown: list[StoredEvent] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Report:
    """Tells of each event as JSON, or keeps the first `kept` of them for a person."""

    as_json: bool
    kept: int
    dry_run: bool

    def tell(self, event: StoredEvent, after: StoredEvent | Refused, done: Done) -> None:
        """One event: what became of it."""
        if isinstance(after, Refused):
            done.skipped[after.why] += 1
        else:
            done.treated += 1
            done.shown += [after] if len(done.shown) < self.kept else []
        if self.as_json:
            json_line(_record(event, after) | ({"dry_run": True} if self.dry_run else {}))


def _record(event: StoredEvent, after: StoredEvent | Refused) -> dict[str, Any]:
    about = {"id": event.id, "source": event.source, "type": event.type}
    if isinstance(after, Refused):
        return {**about, "action": "skipped", "why": after.why}
    return {**about, "action": "replayed", "notifications": [{"name": n, "version": v} for n, v in after.plan]}


async def replay_one(stores: Stores, event: StoredEvent, report: Report) -> Done:
    """Replay this event, if it is unmatched."""
    done = Done()
    report.tell(event, await (await _treatment(stores, report))(event.key), done)
    return done


async def replay_all(stores: Stores, chosen: Chosen, report: Report, advance: Callable[[int], None]) -> Done:
    """Replay those that are meant, some at a time; those that are refused do not count for the limit."""
    done, treatment = Done(), await _treatment(stores, report)
    async with aclosing(_meant(stores.database, chosen)) as events:
        while batch := await _next(events, _at_once(chosen, done)):
            outcomes = await asyncio.gather(*(treatment(event.key) for event in batch))
            for event, after in zip(batch, outcomes, strict=True):
                report.tell(event, after, done)
            advance(len(batch))
    return done


async def _treatment(stores: Stores, report: Report) -> Treatment:
    """With the notifications that are in force at this moment."""
    await stores.catalog.refresh()
    ledger = MongoLedger(stores.database)
    plan_again = PlanAgain(stores.events, stores.catalog, ledger.forget, lambda: datetime.now(UTC))
    return plan_again.replayable if report.dry_run else plan_again.replay


def _at_once(chosen: Chosen, done: Done) -> int:
    return CONCURRENCY if chosen.limit is None else min(CONCURRENCY, chosen.limit - done.treated)


async def _next(events: AsyncIterator[StoredEvent], number: int) -> Sequence[StoredEvent]:
    """So many of them, or as many as there are."""
    batch: list[StoredEvent] = []
    while len(batch) < number and (event := await anext(events, None)) is not None:
        batch.append(event)
    return batch


async def _meant(database: Database, chosen: Chosen) -> AsyncGenerator[StoredEvent, None]:
    """The unmatched events that are meant, without their bodies. One that is replayed meanwhile may be among them."""
    after = (chosen.until, "") if chosen.until else None
    while True:
        page = await event_page(database, EventState.UNMATCHED, after, PAGE)
        for event in page.events:
            if chosen.means(event):
                yield event
        after = page.looked_until
        if after is None or chosen.over(after[0]):
            return

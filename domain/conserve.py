"""The use cases of `notipy audit`: prove that everything is accounted for, and drive on what is not."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

from domain.audit import (
    HOUR,
    LASTING,
    PUBLISHING,
    SETTLING,
    Audited,
    Discrepancy,
    Dispatched,
    Kind,
    Patience,
    Queued,
    Span,
    Sums,
    Tally,
    hour_of,
    may_hold_orphans,
)
from domain.ports import Now
from domain.sweep import Swept

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
AT_ONCE = 4
"""Hours read at the same time."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The events of a span.

    Attributes:
        of_events: deliveries stored of them.
        open: events whose planning is not complete.
        amiss: those that do not add up.
    """

    events: int
    planned: int
    planning: int
    of_events: int
    open: int
    amiss: Sequence[Discrepancy]


@dataclass(frozen=True, slots=True)
class Late:
    """What nobody has looked after: the first of them, and how many there are; a stall leaves millions."""

    kind: Kind
    first: Sequence[Discrepancy]
    count: int


class Ledger(Protocol):
    """What the database says of events and deliveries, and what earlier audits have found."""

    async def kept_since(self) -> datetime | None:
        """What was received before may have been deleted, and is not compared; None: nothing is deleted."""
        ...

    async def verified(self, start: datetime) -> Mapping[datetime, Sums]:
        """The hours from `start` on that were found in order when they were over."""
        ...

    async def verified_before(self) -> datetime | None:
        """Before this time every hour is verified or was empty."""
        ...

    async def keep(self, hour: datetime, sums: Sums) -> None:
        """Remember that this hour is in order."""
        ...

    async def forget(self, hours: Sequence[datetime]) -> None:
        """These are not in order after all."""
        ...

    async def keep_before(self, time: datetime) -> None:
        """Remember that every hour before `time` is verified or empty."""
        ...

    async def next_time(self, start: datetime, end: datetime) -> datetime | None:
        """When the first event was received, or the first delivery created, between these times."""
        ...

    async def moving(self, start: datetime) -> Mapping[datetime, Tally]:
        """Of each hour from `start` on, the deliveries that may still change their state."""
        ...

    async def tally(self, span: Span) -> Tally:
        """The deliveries created in the span."""
        ...

    async def count(self, span: Span) -> Counted:
        """The events received in the span, each compared with its deliveries."""
        ...

    def orphans(self, span: Span) -> AsyncIterator[Sequence[Discrepancy]]:
        """Deliveries created in the span whose event is not stored."""
        ...

    async def late(self, since: datetime, before: datetime, limit: int) -> Sequence[Late]:
        """Events received since and their deliveries that were due `before`, or will never be looked after."""
        ...

    def duplicated(self, since: datetime) -> AsyncIterator[Sequence[Discrepancy]]:
        """Deliveries that are on record as sent more than once within an epoch."""
        ...

    async def dispatched(self, since: datetime, due: datetime, queued: Queued) -> Sequence[Dispatched]:
        """Deliveries, due no earlier than `due` and without a claim, that could only stand in a queue that is empty."""
        ...

    async def undispatched(self, lost: Sequence[Dispatched]) -> Sequence[Discrepancy]:
        """Those of them that still stand as they did and have no claim."""
        ...

    async def acknowledged(self, found: Sequence[Discrepancy]) -> frozenset[str]:
        """The tokens of those that an operator has acknowledged."""
        ...

    async def acknowledge(self, found: Discrepancy) -> None:
        """Not to be told again."""
        ...

    async def plan_again(self, key: str, now: datetime) -> bool:
        """Let the sweeper plan the event, at once; False if it is not stored."""
        ...

    async def look_after(self, delivery_id: str, now: datetime) -> bool:
        """Let the sweeper look after the delivery, at once; False if it is final."""
        ...


@dataclass(frozen=True, slots=True)
class Scope:
    """What an audit looks at.

    Attributes:
        since: events received since, and their deliveries; None: all that the database should still have.
        full: read also the hours that were verified.
        limit: how many discrepancies of each kind are told one by one.
    """

    since: datetime | None = None
    full: bool = False
    limit: int = 50


@dataclass
class Found:
    """Collects discrepancies: counts all, keeps the first of each kind."""

    ledger: Ledger
    limit: int
    counts: Counter[Kind] = field(default_factory=Counter)
    kept: list[Discrepancy] = field(default_factory=list)
    _listed: Counter[Kind] = field(default_factory=Counter)

    async def add(self, found: Sequence[Discrepancy]) -> int:
        """Returns how many of them nobody has acknowledged."""
        lasting = [each for each in found if each.kind in LASTING]
        known = await self.ledger.acknowledged(lasting) if lasting else frozenset()
        new = [each for each in found if each.token not in known]
        for each in new:
            self._keep(each)
            self.counts[each.kind] += 1
        return len(new)

    def add_late(self, late: Late) -> None:
        """The first of many, and their number."""
        for each in late.first:
            self._keep(each)
        self.counts[late.kind] += late.count

    def _keep(self, found: Discrepancy) -> None:
        if self._listed[found.kind] < self.limit:
            self._listed[found.kind] += 1
            self.kept.append(found)

    async def all_of(self, pages: AsyncIterator[Sequence[Discrepancy]]) -> int:
        """As `add`, page by page."""
        return sum([await self.add(page) async for page in pages])


@dataclass(frozen=True, slots=True)
class Audit:
    """Compares what was planned with what is stored, and finds what nobody drives on.

    Every event of an hour is compared with its own deliveries, over indexes alone. An hour that is over and in order
    is remembered with its sums and not compared again; only its counts of deliveries that may still move are, and its
    sums are taken anew where these have changed (a replay, a held delivery that was sent).

    Attributes:
        queued: asks the broker; None where it is not asked.
    """

    ledger: Ledger
    queued: Callable[[], Awaitable[Queued]] | None
    now: Now
    patience: Patience

    async def __call__(self, scope: Scope) -> Audited:
        """Look at everything in the scope; it can be broken off and goes on where it was."""
        found = Found(self.ledger, scope.limit)
        start = await self._start(scope)
        verified, read = ({}, []) if start is None else await self._hours(scope, start, found)
        await self._moves(scope, found)
        sums = sum([*verified.values(), *read], Sums())
        return Audited(
            scope.since, sums, found.kept, dict(found.counts), len(verified), len(read), self.queued is not None
        )

    async def _start(self, scope: Scope) -> datetime | None:
        """From when on there is something to compare; None if there is nothing."""
        kept = await self.ledger.kept_since()
        first = await self.ledger.next_time(max(scope.since or EPOCH, kept or EPOCH), self._end())
        return None if first is None else max(hour_of(first), scope.since or EPOCH)

    def _end(self) -> datetime:
        """Of the hour that has begun."""
        return hour_of(self.now()) + HOUR

    # -- conservation: hour by hour ---------------------------------------------------------------------------------

    async def _hours(self, scope: Scope, start: datetime, found: Found) -> tuple[Mapping[datetime, Sums], list[Sums]]:
        whole = start if start == hour_of(start) else hour_of(start) + HOUR
        kept = await self.ledger.verified(whole)
        known = {} if scope.full else dict(kept)
        before = None if scope.full else await self.ledger.verified_before()
        again = await self._changed(known, whole, before)
        for hour in again:
            known.pop(hour, None)
        spans = [Span(hour, hour + HOUR) for hour in again]
        spans += [span async for span in self._unverified(start, known, before) if span.start not in again]
        read = await self._read(sorted(spans, key=lambda span: span.start), found)
        good = {span.start for span, _, good in read if good}
        await self.ledger.forget(sorted(kept.keys() - known.keys() - good))
        if scope.since is None:
            await self._advance(read)
        return known, [sums for _, sums, _ in read]

    async def _changed(self, known: dict[datetime, Sums], start: datetime, before: datetime | None) -> set[datetime]:
        """Bring the sums of verified hours up to date; returns the hours that have to be compared again after all."""
        again = set()
        moving = await self.ledger.moving(start)
        for hour, sums in known.items():
            if sums.moving != moving.get(hour, {}):
                tally = await self.ledger.tally(Span(hour, hour + HOUR))
                known[hour] = replace(sums, tally=tally)
                if known[hour].stored == sums.stored:
                    await self.ledger.keep(hour, known[hour])
                else:
                    again.add(hour)
        return again | {hour for hour in moving if before is not None and hour < before and hour not in known}

    async def _unverified(
        self, start: datetime, known: Mapping[datetime, Sums], before: datetime | None
    ) -> AsyncIterator[Span]:
        """The hours in which there is something and that are not verified, in order."""
        stops = [*sorted(hour for hour in known if hour >= start), self._end()]
        time = start
        if before is not None and before > start and start == hour_of(start):
            time = before
        for stop in stops:
            while time < stop:
                first = await self.ledger.next_time(time, stop)
                if first is None:
                    break
                span = Span(max(hour_of(first), start), hour_of(first) + HOUR)
                yield span
                time = span.end
            time = max(time, stop + HOUR)

    async def _read(self, spans: Sequence[Span], found: Found) -> list[tuple[Span, Sums, bool]]:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(span: Span) -> tuple[Span, Sums, bool]:
            async with gate:
                return await self._compare(span, found)

        return list(await asyncio.gather(*map(one, spans)))

    async def _compare(self, span: Span, found: Found) -> tuple[Span, Sums, bool]:
        """One span; remembered if it is an hour that is over and in order. The tally comes before the events."""
        over = span.end + SETTLING <= self.now()
        tally = await self.ledger.tally(span)
        counted = await self.ledger.count(span)
        sums = Sums(counted.events, counted.planned, counted.planning, tally)
        wrong = await found.add(counted.amiss)
        if may_hold_orphans(sums.stored, counted.of_events, over=over):
            wrong += await found.all_of(self.ledger.orphans(span))
        good = not wrong and not counted.open and over
        if good and sums.stored < counted.of_events:
            # one that moved while they were counted may have been counted nowhere, an older version's in another hour
            good = await self.ledger.tally(span) == tally
        if good and span.whole:
            await self.ledger.keep(span.start, sums)
        return span, sums, good

    async def _advance(self, read: Sequence[tuple[Span, Sums, bool]]) -> None:
        """Up to the first hour that is not verified, nothing needs to be looked for any more."""
        settled = hour_of(self.now() - SETTLING)
        await self.ledger.keep_before(min([settled, *(hour_of(span.start) for span, _, good in read if not good)]))

    # -- motion: what is not final is driven on ---------------------------------------------------------------------

    async def _moves(self, scope: Scope, found: Found) -> None:
        since, late = scope.since or EPOCH, self.now() - self.patience.overdue
        for each in await self.ledger.late(since, late, scope.limit):
            found.add_late(each)
        await found.all_of(self.ledger.duplicated(since))
        if self.queued is not None:
            await found.add(await self._undispatched(since, late, self.queued))

    async def _undispatched(
        self, since: datetime, late: datetime, queued: Callable[[], Awaitable[Queued]]
    ) -> Sequence[Discrepancy]:
        """Looked for twice: between the queue and its claim a message is in a consumer's hands."""
        held = await queued()
        lost = self._lost(await self.ledger.dispatched(since, late, held), held)
        if not lost:
            return ()
        await asyncio.sleep(PUBLISHING.total_seconds() / 2)
        return await self.ledger.undispatched(self._lost(lost, await queued()))

    def _lost(self, deliveries: Sequence[Dispatched], queued: Queued) -> Sequence[Dispatched]:
        return [each for each in deliveries if self.patience.lost(each, queued, self.now())]


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair has done.

    Attributes:
        done: for each of what was found whether there was still something to do.
        faults: places in our own code where something could not be driven on; the sweeper tries it again later.
    """

    done: Sequence[bool]
    faults: Sequence[str]


@dataclass(frozen=True, slots=True)
class Repair:
    """Drives on what an audit has found. Each step is idempotent: two operators at once are harmless.

    Planning again comes to the same deliveries, a dispatch too many meets the claim, and the sweep is the sweeper's.
    """

    ledger: Ledger
    sweep: Callable[[], Awaitable[Swept]]
    now: Now

    async def __call__(self, found: Sequence[Discrepancy]) -> Repaired:
        """Make each due, then sweep until no event is left: a round takes up a few of them."""
        done, faults = [await self._one(each) for each in found], list[str]()
        more = bool(found)
        while more:
            swept = await self.sweep()
            faults += swept.faults
            more = swept.events > 0
        return Repaired(done, faults)

    async def _one(self, found: Discrepancy) -> bool:
        match found.kind:
            case Kind.UNPLANNED | Kind.MISSING:
                return await self.ledger.plan_again(found.key, self.now())
            case Kind.OVERDUE | Kind.UNDISPATCHED:
                return await self.ledger.look_after(found.id, self.now())
            case Kind.ORPHANED:
                await self.ledger.look_after(found.id, self.now())
            case Kind.SURPLUS | Kind.DUPLICATED:
                pass
        await self.ledger.acknowledge(found)
        return True

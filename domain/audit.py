"""Conservation: every accepted event's deliveries planned = final + in flight; and what is wrong where they are not.

Values and comparisons alone. An hour is the unit: a delivery is created when its event was received, so the events
received in an hour and the deliveries created in it belong together, and an hour that is over and has been found in
order need not be read again.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from domain.delivery import Change
from domain.ports import Waiting
from domain.vocabulary import IN_FLIGHT, REPLAYABLE, Channel, EventState, Lane, State

HOUR = timedelta(hours=1)
SETTLING = timedelta(minutes=5)
"""After its end an hour is verified for good: longer than any two machines' clocks differ, or planning takes."""
PUBLISHING = timedelta(seconds=2)
"""From the database's commit to the broker's confirmation, with room to spare."""
MOVING: tuple[State, ...] = (*IN_FLIGHT, *REPLAYABLE)
"""The states that a delivery can leave again. While an hour's counts of these have not changed, nothing in it has."""

Tally = Mapping[tuple[Channel, State], int]
"""How many deliveries stand in each state."""


class Kind(StrEnum):
    """What is wrong with an event or a delivery. Closed: it is a metric label."""

    UNPLANNED = "unplanned"
    """An event that was not planned to the end, and that nobody has taken up."""
    MISSING = "missing"
    """An event of which fewer deliveries are stored than were planned."""
    SURPLUS = "surplus"
    """An event of which more deliveries are stored than were planned."""
    ORPHANED = "orphaned"
    """A delivery whose event is not stored."""
    OVERDUE = "overdue"
    """A delivery that was due and that nobody has looked after, or that nobody ever will."""
    UNDISPATCHED = "undispatched"
    """A delivery that should wait in a queue, and the queues are empty."""
    DUPLICATED = "duplicated"
    """A delivery on record as sent more than once within an epoch."""


ADVICE: Mapping[Kind, str] = {
    Kind.UNPLANNED: "planned again",
    Kind.MISSING: "planned again",
    Kind.SURPLUS: "acknowledged: what is stored stays",
    Kind.ORPHANED: "failed and parked if it was in flight, and acknowledged",
    Kind.OVERDUE: "driven on, as the sweeper does",
    Kind.UNDISPATCHED: "dispatched again",
    Kind.DUPLICATED: "acknowledged: what was sent twice stays so",
}
"""What `notipy audit --repair` does about each."""


LASTING = frozenset({Kind.SURPLUS, Kind.ORPHANED, Kind.DUPLICATED})
"""Those that stay however they are repaired, and are acknowledged so as not to be told again."""


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """One event or delivery that is not as it should be.

    Attributes:
        key: the event in the database; `event_id` is the producer's.
        delivery: the delivery's id; None where an event is meant.
        at: when the event was received.
        mark: tells it from a later one of the same kind: one that was acknowledged is not told again.
    """

    kind: Kind
    key: str
    source: str
    event_id: str
    at: datetime
    detail: str
    delivery: str | None = None
    channel: Channel | None = None
    state: State | EventState | None = None
    mark: str = ""

    @property
    def id(self) -> str:
        """The delivery's id, or the event's key."""
        return self.delivery or self.key

    @property
    def token(self) -> str:
        """Under which it is acknowledged."""
        return f"{self.kind}/{self.id}{self.mark}"


@dataclass(frozen=True, slots=True)
class Span:
    """A span of time; `end` does not belong to it."""

    start: datetime
    end: datetime

    @property
    def whole(self) -> bool:
        """Whether it is one full hour of the clock, which can be verified for good."""
        return self.start == hour_of(self.start) and self.end - self.start == HOUR


@dataclass(frozen=True, slots=True)
class EventCount:
    """An event and how many deliveries it was planned to have; 0 until its planning is complete."""

    key: str
    state: EventState
    planned: int


@dataclass(frozen=True, slots=True)
class Sums:
    """What the events of a span planned, and what is stored of it.

    Attributes:
        planning: deliveries stored of events whose planning is not complete.
        tally: the stored deliveries by channel and state.
    """

    events: int = 0
    planned: int = 0
    planning: int = 0
    tally: Tally = field(default_factory=dict)

    @property
    def stored(self) -> int:
        """How many deliveries there are."""
        return sum(self.tally.values())

    @property
    def in_flight(self) -> int:
        """Those of them that are not final."""
        return sum(count for (_, state), count in self.tally.items() if not state.final)

    @property
    def final(self) -> int:
        """Those of them that are final."""
        return self.stored - self.in_flight

    @property
    def moving(self) -> Tally:
        """Those that may stand elsewhere at the next look."""
        return {place: count for place, count in self.tally.items() if place[1] in MOVING and count}

    def __add__(self, other: "Sums") -> "Sums":
        tally = Counter(self.tally)
        tally.update(other.tally)
        return Sums(
            self.events + other.events, self.planned + other.planned, self.planning + other.planning, dict(tally)
        )


@dataclass(frozen=True, slots=True)
class Audited:
    """What an audit has found.

    Attributes:
        found: the discrepancies, at most so many of each kind as were asked for.
        counts: how many there are of each kind, those not listed included.
        verified: hours that are in order for good, and were not read again.
        read: hours that were.
        queues: whether the broker was asked; without it nothing is known to be `undispatched`.
    """

    since: datetime | None
    sums: Sums
    found: Sequence[Discrepancy]
    counts: Mapping[Kind, int]
    verified: int
    read: int
    queues: bool

    @property
    def in_order(self) -> bool:
        """Everything is accounted for."""
        return not any(self.counts.values())


def hour_of(time: datetime) -> datetime:
    """The hour that it lies in."""
    return time.replace(minute=0, second=0, microsecond=0)


def unequal(events: Iterable[EventCount], stored: Mapping[str, int]) -> list[EventCount]:
    """The events of which not as many deliveries are stored as were planned.

    One whose planning is not complete is none of them: how many it will have is not known yet.
    """
    return [
        event
        for event in events
        if event.state is not EventState.ACCEPTED and stored.get(event.key, 0) != event.planned
    ]


def planning(events: Iterable[EventCount], stored: Mapping[str, int]) -> int:
    """Deliveries of events whose planning is not complete."""
    return sum(stored.get(event.key, 0) for event in events if event.state is EventState.ACCEPTED)


def amiss(planned: int, stored: int) -> tuple[Kind, str]:
    """What to call the difference, and how to tell it."""
    kind = Kind.MISSING if stored < planned else Kind.SURPLUS
    return kind, f"{planned} planned, {stored} stored"


def may_hold_orphans(stored: int, of_events: int, *, over: bool) -> bool:
    """Whether a span has to be searched for deliveries without an event.

    Args:
        stored: the deliveries created in it.
        of_events: those of the events received in it, counted afterwards.
        over: whether no event can be received in it any more.

    While it is not over, more of events than were stored a moment before are new ones. Once it is, any difference has
    a cause: once a delivery was created when it was planned, some milliseconds after its event was received, and
    such a delivery may stand in the hour after it.
    """
    return stored > of_events or (over and stored != of_events)


def sent_again(history: Iterable[Change]) -> Mapping[int, int]:
    """The epochs in which a delivery was sent more than once, and how often."""
    times = Counter(change.epoch for change in history if change.state is State.SENT)
    return {epoch: number for epoch, number in times.items() if number > 1}


@dataclass(frozen=True, slots=True)
class Queued:
    """What the queues hold: what waits for each channel and lane, and the messages in all retry queues together."""

    lanes: Mapping[tuple[Channel, Lane], Waiting]
    retries: int

    @property
    def channels(self) -> Sequence[Channel]:
        """Those with a queue in which nothing waits."""
        return sorted({channel for (channel, _), waiting in self.lanes.items() if not waiting.messages})


@dataclass(frozen=True, slots=True)
class Dispatched:
    """A delivery that should stand in a queue.

    Attributes:
        due_at: when the sweeper looks after it: `overdue` after it was dispatched, or is to come back from its retry.
    """

    id: str
    channel: Channel
    lane: Lane
    state: State
    claim_id: str
    updated_at: datetime
    due_at: datetime


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited before something counts as lost.

    Attributes:
        overdue: the setting `sweeper.overdue`.
        lease: the setting `lease`: a consumer may hold a message for so long and not have claimed its attempt.
    """

    overdue: timedelta
    lease: timedelta

    def lost(self, delivery: Dispatched, queued: Queued, now: datetime) -> bool:
        """Whether no queue can hold it, nor any consumer: it has no claim, and where it should stand is nothing."""
        waiting = queued.lanes.get((delivery.channel, delivery.lane))
        if waiting is None or waiting.messages:
            return False
        back = delivery.due_at - self.overdue
        if delivery.state is State.RETRYING:
            if queued.retries:
                return False
            if back > now:
                return now - delivery.updated_at >= PUBLISHING
        there = back if delivery.updated_at < back <= now else delivery.updated_at
        return now - there >= (max(self.lease, PUBLISHING) if waiting.consumers else PUBLISHING)

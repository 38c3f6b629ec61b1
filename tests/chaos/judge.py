"""The judge of a run: what arrived at the sinks against what MongoDB and the queues say. Pure, and tested itself.

What counts as a violation, by its first word:

| word           | meaning                                                                                    |
| -------------- | ------------------------------------------------------------------------------------------ |
| `lost`         | a confirmed event is not stored, a delivery of it not planned, or `sent` and never arrived |
| `unexplained`  | not final, an event not planned to the end, or a state that nothing explains               |
| `unflagged`    | arrived more than once, or arrived and not `sent`, and nothing says so                     |
| `repeated`     | arrived more than once over a channel that is at_most_once                                 |
| `unclaimed`    | arrived more often than there are claims                                                   |
| `unattributed` | arrived through a provider more often than its history has attempts of that provider       |
| `stuck`        | messages left in a queue, or un-acknowledged                                               |
| `parked`       | a dead-letter queue lacks a failed delivery, or holds what is no failed delivery           |
| `grown`        | connections, channels, memory or tasks that did not come back to what they were            |
| `slow`         | the recovery took longer than the fault allows                                             |
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from domain.vocabulary import EventState, State
from tests.chaos.load import Published, Wanted

Violation = tuple[str, str]
"""What kind it is, and which delivery, event or queue."""
AT_MOST_ONCE = "at_most_once"
_NAMED = 3
"""Deliveries that a violation names; the count says how many there are."""


@dataclass(frozen=True, slots=True)
class StoredDelivery:
    """A delivery as MongoDB has it."""

    id: str
    event_id: str
    channel: str
    address: str
    state: str
    reason: str
    flagged: bool = False
    detail: str = ""
    attempts: Mapping[str, int] = field(default_factory=dict)
    """By each provider that its history names."""


@dataclass(frozen=True, slots=True)
class Parked:
    """A message of a dead-letter queue."""

    queue: str
    delivery: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Measure:
    """Something of NotiPy that must not grow: before the fault, after the recovery, and how much more is allowed."""

    what: str
    before: float
    after: float
    slack: float = 0.0


@dataclass(frozen=True, slots=True)
class Allowances:
    """What a fault excuses.

    Attributes:
        fails: failures that it explains, of any recipient.
        dead_letters_lost: the broker lost its data: what was parked is in MongoDB alone.
        flags: whether deliveries may come to be in doubt that their recipient does not put in doubt itself.
        unrouted: messages may be left in `notipy.unrouted`: a queue was missing for a while.
        recovery_seconds: how long it may take from the end of the fault until what it delayed has arrived.
    """

    fails: frozenset[str] = frozenset()
    dead_letters_lost: bool = False
    flags: bool = True
    unrouted: bool = False
    recovery_seconds: float = 40.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found when everything had come to rest.

    Attributes:
        published: the events that the broker confirmed.
        events: state and number of planned deliveries of each stored event, by the producer's id.
        claims: how many attempts of each delivery were claimed.
        arrived: how often each delivery arrived at a sink.
        through: the same by the provider; what is not there is not looked at.
        semantics: of each channel.
        left: messages in each queue that is no dead-letter queue, after every process has stopped.
        recovery: seconds.
    """

    published: Sequence[Published]
    events: Mapping[str, tuple[str, int]]
    deliveries: Sequence[StoredDelivery]
    claims: Mapping[str, int]
    arrived: Mapping[str, int]
    semantics: Mapping[str, str]
    through: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    left: Mapping[str, int] = field(default_factory=dict)
    parked: Sequence[Parked] = ()
    measures: Sequence[Measure] = ()
    recovery: float = 0.0
    troubles: Sequence[str] = ()
    """What the harness itself saw going wrong."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The numbers of a run's line, and what is wrong."""

    accepted: int
    wanted: int
    delivered: int
    duplicates: int
    flagged: int
    lost: int
    violations: tuple[str, ...]


def judge(found: Evidence, allowed: Allowances) -> Judgement:
    """Compare."""
    by_id = {delivery.id: delivery for delivery in found.deliveries}
    lost = [*_lost(found)]
    violations = [
        *lost,
        *_events(found),
        *_states(found, allowed),
        *_duplicates(found),
        *_providers(found),
        *_doubts(found, allowed),
        *_strangers(found, by_id),
        *_queues(found, allowed),
        *_dead_letters(found, allowed),
        *_measures(found, allowed),
        *(("harness", trouble) for trouble in found.troubles),
    ]
    twice = [key for key, times in found.arrived.items() if times > 1]
    return Judgement(
        accepted=len([event for event in found.published if event.id in found.events]),
        wanted=sum(len(event.wanted) for event in found.published),
        delivered=len(found.arrived),
        duplicates=len([key for key in twice if key in by_id and by_id[key].flagged]),
        flagged=sum(delivery.flagged for delivery in found.deliveries),
        lost=len(lost),
        violations=_summed(violations),
    )


def _lost(found: Evidence) -> Iterator[Violation]:
    stored = {(d.event_id, d.channel, d.address) for d in found.deliveries}
    for event in found.published:
        if event.id not in found.events:
            yield "lost: a confirmed event is not stored", event.id
        for wanted in event.wanted:
            if event.id in found.events and (event.id, wanted.channel, wanted.address) not in stored:
                yield f"lost: a delivery was never planned, {wanted.channel}", event.id
    for delivery in found.deliveries:
        if delivery.state == State.SENT and not found.arrived.get(delivery.id):
            yield "lost: `sent` and never arrived", delivery.id


def _events(found: Evidence) -> Iterator[Violation]:
    planned = Counter(delivery.event_id for delivery in found.deliveries)
    for event_id, (state, count) in found.events.items():
        if state not in {EventState.PLANNED, EventState.UNMATCHED}:
            yield f"unexplained: an event that is still {state}", event_id
        elif count != planned[event_id]:
            yield f"unexplained: an event planned {count} deliveries and has {planned[event_id]}", event_id


def _states(found: Evidence, allowed: Allowances) -> Iterator[Violation]:
    wanted = {(e.id, w.channel, w.address): w for e in found.published for w in e.wanted}
    for delivery in found.deliveries:
        state = State(delivery.state)
        if not state.final:
            yield f"unexplained: still {state} ({delivery.reason})", delivery.id
            continue
        asked = wanted.get((delivery.event_id, delivery.channel, delivery.address))
        if asked is not None and not _explained(delivery, asked, found.semantics, allowed):
            told = f"{delivery.channel} {state}/{delivery.reason} {delivery.detail}"
            yield f"unexplained: {told}", delivery.id


def _explained(delivery: StoredDelivery, asked: Wanted, semantics: Mapping[str, str], allowed: Allowances) -> bool:
    if delivery.state == State.SENT:
        return asked.fails is None
    if delivery.state == State.UNKNOWN:
        return semantics.get(delivery.channel) == AT_MOST_ONCE
    return delivery.state == State.FAILED and delivery.reason in {asked.fails, *allowed.fails}


def _duplicates(found: Evidence) -> Iterator[Violation]:
    for delivery in found.deliveries:
        times = found.arrived.get(delivery.id, 0)
        if times > 1 and found.semantics.get(delivery.channel) == AT_MOST_ONCE:
            yield f"repeated: arrived {times} times, at_most_once", delivery.id
        elif times > 1 and not delivery.flagged:
            yield f"unflagged: arrived {times} times", delivery.id
        elif times and State(delivery.state) not in {State.SENT, State.UNKNOWN} and not delivery.flagged:
            yield f"unflagged: {delivery.state} ({delivery.reason}), yet it arrived", delivery.id
        if times > found.claims.get(delivery.id, 0):
            yield f"unclaimed: arrived {times} times, claimed {found.claims.get(delivery.id, 0)}", delivery.id


def _providers(found: Evidence) -> Iterator[Violation]:
    for delivery in found.deliveries:
        for provider, times in found.through.get(delivery.id, {}).items():
            if times > (known := delivery.attempts.get(provider, 0)):
                told = f"arrived {times} times through {provider}, which its history names {known} times"
                yield f"unattributed: {told}", delivery.id


def _doubts(found: Evidence, allowed: Allowances) -> Iterator[Violation]:
    if allowed.flags:
        return
    doubtful = {(e.id, w.channel, w.address) for e in found.published for w in e.wanted if w.doubtful}
    for delivery in found.deliveries:
        in_doubt = delivery.flagged or delivery.state == State.UNKNOWN
        if in_doubt and (delivery.event_id, delivery.channel, delivery.address) not in doubtful:
            yield f"unexplained: in doubt, though nothing was interrupted ({delivery.state})", delivery.id


def _strangers(found: Evidence, by_id: Mapping[str, StoredDelivery]) -> Iterator[Violation]:
    for key in found.arrived:
        if key not in by_id:
            yield "lost: something arrived that is not stored", key


def _queues(found: Evidence, allowed: Allowances) -> Iterator[Violation]:
    for queue, left in found.left.items():
        if left and not (allowed.unrouted and queue == "notipy.unrouted"):
            yield f"stuck: {left} messages are left", queue


def _dead_letters(found: Evidence, allowed: Allowances) -> Iterator[Violation]:
    parked = {message.delivery for message in found.parked}
    failed = {delivery.id for delivery in found.deliveries if delivery.state == State.FAILED}
    for message in found.parked:
        if message.delivery not in failed:
            yield f"parked: {message.queue} holds {message.reason}, no failed delivery", str(message.delivery)
    if not allowed.dead_letters_lost:
        yield from (("parked: no dead letter of a failed delivery", key) for key in sorted(failed - parked))


def _measures(found: Evidence, allowed: Allowances) -> Iterator[Violation]:
    for measure in found.measures:
        if measure.after > measure.before + measure.slack:
            yield f"grown: {measure.what}", f"{measure.before:g} before, {measure.after:g} after"
    if found.recovery > allowed.recovery_seconds:
        yield "slow", f"recovered after {found.recovery:.1f} s, allowed are {allowed.recovery_seconds:g} s"


def _summed(violations: Iterable[Violation]) -> tuple[str, ...]:
    """Those of a kind as one line, with how many there are and the first few of them."""
    kinds: dict[str, list[str]] = {}
    for kind, which in violations:
        kinds.setdefault(kind, []).append(which)
    return tuple(
        f"{kind}: {which[0]}" if len(which) == 1 else f"{kind} ({len(which)}: {', '.join(which[:_NAMED])})"
        for kind, which in kinds.items()
    )

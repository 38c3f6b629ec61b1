"""In-memory stores and queues for tests of the use cases; tests/contract holds the stores to what MongoDB does."""

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from domain.delivery import Change, Delivery
from domain.dispatch import Dispatch
from domain.event import Incoming
from domain.inbox import InboxItem, Mark, Marking
from domain.message import Accepted, Message
from domain.notification import Definition, Notification, matching
from domain.ports import Claim, DeadFilter, Failing, QueueFull, Record, StoredEvent, Unreadable, Waiting
from domain.suppression import Suppression
from domain.text import Fault
from domain.vocabulary import Channel, EventState, Lane, Reason, State

START = datetime(2026, 11, 22, 17, 0, tzinfo=UTC)


@dataclass
class Clock:
    """A clock that the test moves."""

    time: datetime = START

    def __call__(self) -> datetime:
        return self.time

    def advance(self, by: timedelta) -> None:
        self.time += by


class MemoryEndpoints:
    """`domain.ports.Endpoints`."""

    def __init__(self) -> None:
        self.known: dict[str, Failing] = {}

    async def failing(self, key: str, now: datetime, *, afresh: bool = False) -> Failing:
        before = self.known.get(key)
        found = before if before and not afresh else Failing(now, now)
        self.known[key] = replace(found, last=now)
        return found

    async def answered(self, keys: Collection[str]) -> None:
        for key in keys:
            self.known.pop(key, None)


class MemoryEvents:
    """`domain.ports.Events`."""

    def __init__(self, deliveries: "MemoryDeliveries | None" = None) -> None:
        self.stored: dict[str, StoredEvent] = {}
        self.due_at: dict[str, datetime] = {}
        self.deliveries = deliveries or MemoryDeliveries()

    async def add(
        self, event: StoredEvent, due_at: datetime, deliveries: Sequence[Delivery] = (), *, durable: bool = True
    ) -> bool:
        if event.key in self.stored and self.stored[event.key].token != event.token:
            return False
        if event.key not in self.stored:
            self.stored[event.key], self.due_at[event.key] = event, due_at
        await self.deliveries.add(deliveries)
        return True

    async def get(self, key: str) -> StoredEvent | None:
        return self.stored.get(key)

    async def settle(self, key: str, state: EventState, planned: int) -> bool:
        if key not in self.stored:
            return False
        self.stored[key] = replace(self.stored[key], state=state, planned=planned)
        self.due_at.pop(key, None)
        return True

    async def reopen(self, event: StoredEvent, due_at: datetime) -> bool:
        stored = self.stored.get(event.key)
        if stored is None or stored.state is not EventState.UNMATCHED:
            return stored is not None and stored.token == event.token
        changed = replace(stored, state=event.state, plan=event.plan, token=event.token, resumed=event.resumed)
        self.stored[event.key], self.due_at[event.key] = changed, due_at
        return True

    async def due(self, now: datetime, limit: int) -> Sequence[StoredEvent | Unreadable]:
        due = sorted((at, key) for key, at in self.due_at.items() if at <= now)
        return [self.stored[key] for _, key in due[:limit]]

    async def postpone(self, key: str, due_at: datetime, taken_up: int = 1) -> None:
        if key in self.due_at:
            self.due_at[key] = due_at
            self.stored[key] = replace(self.stored[key], resumed=self.stored[key].resumed + taken_up)


class MemoryDeliveries:
    """`domain.ports.Deliveries`."""

    def __init__(self) -> None:
        self.stored: dict[str, Delivery] = {}
        self.attempts: dict[str, Claim] = {}

    async def add(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.stored.setdefault(delivery.id, delivery)

    async def get(self, delivery_id: str) -> Delivery | None:
        return self.stored.get(delivery_id)

    async def by_reference(self, reference: str, providers: Collection[str]) -> Delivery | None:
        found = [d for d in self.stored.values() if d.reference == reference and d.provider in providers]
        return max(found, key=lambda delivery: delivery.created_at, default=None)

    async def ids_of_event(self, event_key: str) -> Sequence[str]:
        return [delivery.id for delivery in self.stored.values() if delivery.event_key == event_key]

    async def claim(self, claim: Claim) -> bool:
        return self.attempts.setdefault(claim.id, claim).token == claim.token

    async def claim_all(self, claims: Sequence[Claim]) -> Sequence[bool | Exception]:
        return [await self.claim(claim) for claim in claims]

    async def claims(self, ids: Sequence[str]) -> Mapping[str, Claim]:
        return {name: self.attempts[name] for name in ids if name in self.attempts}

    async def record(self, delivery: Delivery, expected_attempt: int, changes: Sequence[Change]) -> bool:
        stored = self.stored.get(delivery.id)
        if stored is None or stored.state.final:
            return False
        if (stored.epoch, stored.attempt) != (delivery.epoch, expected_attempt):
            return False
        self.stored[delivery.id] = replace(delivery, history=(*stored.history, *changes))
        return True

    async def record_all(self, records: Sequence[Record]) -> Sequence[bool | Exception]:
        return [await self.record(each.delivery, each.expected_attempt, each.changes) for each in records]

    async def note(self, delivery_id: str, change: Change, *, once: bool = False, reference: str | None = None) -> bool:
        stored = self.stored[delivery_id]
        same = (change.state, change.reason, change.epoch)
        if once and any((each.state, each.reason, each.epoch) == same for each in stored.history):
            return False
        duplicate = stored.possible_duplicate or change.state is State.SENT
        noted = replace(stored, history=(*stored.history, change), possible_duplicate=duplicate)
        free = stored.reference is None and stored.epoch == change.epoch and stored.provider in {None, change.provider}
        if reference is not None and free:
            noted = replace(noted, reference=reference, provider=change.provider)
        self.stored[delivery_id] = noted
        return True

    async def due(self, now: datetime, limit: int) -> Sequence[Delivery | Unreadable]:
        due = [delivery for delivery in self.stored.values() if delivery.due_at and delivery.due_at <= now]
        return sorted(due, key=lambda delivery: str(delivery.due_at))[:limit]

    async def untold(self, now: datetime, limit: int) -> Sequence[Delivery | Unreadable]:
        found = [d for d in self.stored.values() if d.tell_at is not None and d.tell_at <= now]
        return sorted(found, key=lambda d: (d.tell_at, d.id))[:limit]

    async def told(self, delivery: Delivery) -> None:
        stored = self.stored.get(delivery.id)
        if stored is not None and stored.tell_at == delivery.tell_at:
            self.stored[delivery.id] = replace(stored, tell_at=None)

    async def postpone(self, delivery: Delivery | Unreadable, at: datetime) -> None:
        stored = self.stored[delivery.id]
        if (stored.due_at, stored.tell_at) == (delivery.due_at, delivery.tell_at):
            due_at, tell_at = stored.due_at and at, stored.tell_at and at
            self.stored[delivery.id] = replace(stored, due_at=due_at, tell_at=tell_at)

    async def reopen(self, before: Delivery, after: Delivery, change: Change) -> bool:
        stored = self.stored.get(before.id)
        if stored is None or (stored.state, stored.epoch) != (before.state, before.epoch):
            return False
        self.stored[before.id] = replace(after, history=(*stored.history, change))
        return True

    async def refine(self, before: Delivery, after: Delivery, change: Change) -> bool:
        return await self.reopen(before, after, change)

    async def dead(self, chosen: DeadFilter, limit: int | None) -> AsyncIterator[Delivery]:
        found = sorted(
            (delivery for delivery in self.stored.values() if _chosen(delivery, chosen)),
            key=lambda delivery: (delivery.updated_at, delivery.id),
        )
        for delivery in found[:limit]:
            yield delivery


def _chosen(delivery: Delivery, chosen: DeadFilter) -> bool:
    wanted: dict[str, Any] = {
        name: getattr(chosen, name)
        for name in ("state", "channel", "reason", "source", "type")
        if getattr(chosen, name) is not None
    }
    return (
        all(getattr(delivery, name) == value for name, value in wanted.items())
        and (chosen.since is None or delivery.updated_at >= chosen.since)
        and (chosen.until is None or delivery.updated_at <= chosen.until)
    )


@dataclass
class MemorySuppressions:
    """`domain.suppression.Suppressions`."""

    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    stored: dict[str, Suppression] = field(default_factory=dict)
    bounced: dict[str, set[str]] = field(default_factory=dict)

    async def among(self, keys: Sequence[str]) -> Mapping[str, Suppression]:
        return {key: self.stored[key] for key in keys if key in self.stored and self.stored[key].in_force(self.now())}

    async def add(self, suppression: Suppression) -> None:
        found = (await self.among([suppression.key])).get(suppression.key)
        if found is None or not found.outlasts(suppression):
            self.stored[suppression.key] = suppression

    async def withdraw(self, keys: Sequence[str], delivery: str) -> bool:
        own = [key for key in keys if key in self.stored and self.stored[key].delivery == delivery]
        for key in own:
            del self.stored[key]
        return bool(own)

    async def soft_bounced(self, key: str, ref: str) -> int:
        self.bounced.setdefault(key, set()).add(ref)
        return len(self.bounced[key])

    async def forget_soft_bounces(self, key: str) -> None:
        self.bounced.pop(key, None)


@dataclass
class MemoryCatalog:
    """`domain.ports.Catalog`."""

    notifications: list[Notification] = field(default_factory=list)

    def matching(self, topic: str) -> Sequence[Notification]:
        return matching(self.notifications, topic)

    async def version(self, name: str, version: int) -> Notification | None:
        return next((n for n in self.notifications if (n.name, n.version) == (name, version)), None)


@dataclass
class MemoryInbox:
    """`domain.ports.Inbox`."""

    stored: dict[str, InboxItem] = field(default_factory=dict)

    async def add(self, item: InboxItem) -> bool:
        return self.stored.setdefault(item.id, item) is item

    async def mark(self, marking: Marking) -> None:
        changes: Mapping[Mark, Mapping[str, Any]] = {
            Mark.SEEN: {"unseen": False},
            Mark.READ: {"unseen": False, "unread": False},
            Mark.ARCHIVED: {"unseen": False, "unread": False, "archived": True},
            Mark.UNREAD: {"unread": True, "archived": False},
        }
        for item in list(self.stored.values()):
            meant = item.id in marking.ids if marking.ids is not None else item.at <= marking.at
            if item.recipient == marking.recipient and meant:
                self.stored[item.id] = replace(item, **changes[marking.mark])


@dataclass
class RecordingQueue:
    """`domain.ports.DispatchQueue`: remembers what was published."""

    dispatched: list[Dispatch] = field(default_factory=list)
    retried: list[tuple[Dispatch, timedelta]] = field(default_factory=list)
    parked: list[tuple[Dispatch, Reason, str]] = field(default_factory=list)
    rejected: list[tuple[Incoming, Reason, Sequence[Fault]]] = field(default_factory=list)
    told: list[Change] = field(default_factory=list)
    alone: list[Dispatch] = field(default_factory=list)
    depth: int = 0
    consumers: int = 1
    full: bool = False

    async def dispatch(self, job: Dispatch, *, alone: bool = False) -> None:
        if self.full:
            raise QueueFull
        self.dispatched.append(job)
        if alone:
            self.alone.append(job)

    async def dispatch_all(self, jobs: Sequence[Dispatch]) -> Sequence[Exception | None]:
        return [await self._dispatched(job) for job in jobs]

    async def _dispatched(self, job: Dispatch) -> Exception | None:
        try:
            await self.dispatch(job)
        except QueueFull as full:
            return full
        return None

    async def retry(self, job: Dispatch, tier: timedelta) -> None:
        if self.full:
            raise QueueFull
        self.retried.append((job, tier))

    async def park(self, job: Dispatch, reason: Reason, detail: str) -> None:
        if self.full:
            raise QueueFull
        self.parked.append((job, reason, detail))

    async def reject(
        self,
        incoming: Incoming,
        reason: Reason,
        faults: Sequence[Fault],
        where: str = "events",
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.rejected.append((incoming, reason, faults))

    async def status(self, delivery: Delivery, change: Change, *, patient: bool = False) -> None:
        self.told.append(change)

    async def statuses(self, changed: Sequence[tuple[Delivery, Change]]) -> None:
        self.told += [change for _, change in changed]

    async def waiting(self, channel: Channel, lane: Lane) -> Waiting:
        return Waiting(self.depth, self.consumers)


class NoSchemas:
    """`domain.ports.SchemaCheck` for definitions without a schema."""

    def faults(self, definition: Definition, data: Mapping[str, Any]) -> Sequence[Fault]:
        return ()


class PlainRenderer:
    """`domain.ports.Renderer` that returns the templates as they are."""

    def check(self, channel: Channel, content: Mapping[str, Any]) -> Sequence[Fault]:
        return ()

    def missing(
        self, channel: Channel, content: Mapping[str, Any], data: Mapping[str, Any], locale: str | None = None
    ) -> Sequence[str]:
        return ()

    def render(self, channel: Channel, content: Mapping[str, Any], context: Mapping[str, Any]) -> Mapping[str, str]:
        return {name: value for name, value in content.items() if isinstance(value, str)}

    def copies(self, content: Mapping[str, str]) -> Sequence[str]:
        return [each for field in ("cc", "bcc") for each in content.get(field, "").split()]

    def without_copies(self, content: Mapping[str, str], addresses: Collection[str]) -> Mapping[str, str]:
        fields = {field: content[field].split() for field in ("cc", "bcc") if field in content}
        fewer = {field: " ".join(a for a in each if a not in addresses) for field, each in fields.items()}
        return {**content, **fewer}


@dataclass
class ScriptedProvider:
    """`domain.ports.Provider`: each send meets the next of `script`, an answer or an exception; then it accepts."""

    script: list[str | Exception] = field(default_factory=list)
    name: str = "scripted"
    sent: list[Message] = field(default_factory=list)

    def takes(self, recipient: Mapping[str, Any]) -> bool:
        return True

    async def send(self, message: Message) -> Accepted:
        step = self.script.pop(0) if self.script else "ok"
        if isinstance(step, Exception):
            raise step
        self.sent.append(message)
        return step if isinstance(step, Accepted) else Accepted(step)

    async def check(self) -> str:
        return "ok"

    async def close(self) -> None:
        return None

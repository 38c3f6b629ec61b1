"""What a query costs does not grow with what is stored.

Every method of `storage/` is called on a history that is long in every direction: deliveries sent, failed, held and
queued, one event with thousands of them, claims, events. Just before a command is carried out, MongoDB explains it:
what it looks at has to be in proportion to what it returns, and it may neither scan a collection nor sort in memory.
That holds for a history of any length then: a command that goes through this one looks at thousands.
"""

import asyncio
import inspect
import pkgutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from itertools import product
from typing import Any

import pytest
from bson.codec_options import CodecOptions, DatetimeConversion
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import MongoClient
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

import storage
from domain.audit import HOUR, Audited, Discrepancy, Dispatched, Kind, Queued, Span, Sums, hour_of
from domain.conserve import EPOCH
from domain.delivery import Change, Delivery
from domain.inbox import InboxItem, Mark, Marking
from domain.notification import Definition
from domain.ports import Claim, DeadFilter, Record, StoredEvent, Waiting
from domain.suppression import Suppression
from domain.vocabulary import IN_FLIGHT, Channel, EventState, Lane, Reason, State, SuppressionReason
from storage import deliveries, event_pages
from storage.audit import MongoLedger
from storage.catalog import MongoCatalog
from storage.database import Database, Document
from storage.deliveries import DeliveryFilter, MongoDeliveries
from storage.documents import claim_document, delivery_document, event_document
from storage.endpoints import MongoEndpoints
from storage.event_pages import event_page
from storage.events import MongoEvents
from storage.files import MongoFiles
from storage.inbox import MongoInbox
from storage.leadership import MongoLeadership
from storage.migrations import Migrations
from storage.retention import Cutoffs, MongoRetention, read_horizon
from storage.shares import MongoShares
from storage.suppressions import MongoSuppressions, SuppressionFilter
from storage.suspects import MongoSuspects

LONG = 3000
"""Documents in each direction of the history; `BATCH` of retention and its like are well below it."""
SENT = 20_000
FEW = 5
"""Documents that a question is about; among `LONG` others."""
LIMIT = 10
STRETCH_HERE = 500
"""Events, or deliveries, that are looked at in one query for those of a state, or to one recipient."""
MULTIPLE = 2
"""Keys or documents that may be looked at for each that is returned, or asked for by its id."""
SPARE = 200
"""And beside them: a list over all states and channels begins in 66 places of its index."""
ANY_TIME: CodecOptions[Document] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_AUTO)
"""The bounds of a plan reach to the ends of time."""
ALIKE = 3
"""Statements of a bulk write that are explained: the others are like them."""

NOW = datetime.now(UTC).replace(microsecond=0)
SECOND, DAY = timedelta(seconds=1), timedelta(days=1)
OLD = NOW - 3 * DAY
"""When the history ends; what the questions are about is younger."""
LATER = NOW + DAY
CHANNELS = tuple(Channel)
BROADCAST = "event of many"

MORE = {
    "MongoDeliveries.page": "of one event with a state or a channel: looks at the event's deliveries, 10,000 at most",
    "MongoDeliveries.page_to": "there is no index on recipients: the newest STRETCH deliveries, so many at a time",
    "MongoDeliveries.count_by_state": "counts what is in flight or can be replayed, key by key; or one event's",
    "MongoDeliveries.count_due": "counts, key by key",
    "MongoDeliveries.dead": "of one reason, source or type: looks at the keys of what died in the time asked for",
    "MongoDeliveries.count_dead": "counts, key by key",
    "MongoEvents.count_due": "counts, key by key",
    "event_page": "of one state: looks at the keys of the newest events, at most STRETCH of them at a time",
    "MongoInbox.counts": "counts what is in one inbox, key by key",
    "MongoLedger.moving": "counts what is in flight and what can be replayed, key by key",
    "MongoLedger.late": "counts what is in flight, key by key",
    "MongoLedger.dispatched": "looks through the oldest that wait of a channel whose queue is empty, 20,000 at most",
}
"""Which queries look at more than they return, and why they may. None of it grows with what was sent."""


# ---------------------------------------------------------------------------------------------------------------
# Explaining
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Explained:
    """What MongoDB says of one statement."""

    command: Mapping[str, Any]
    stages: frozenset[str]
    keys: int
    documents: int
    returned: int

    def faults(self, case: "Case") -> Iterator[str]:
        """What is wrong with it."""
        named = sum(map(len, _values(self.command, "$in")))
        allowed = MULTIPLE * (self.returned + named) + SPARE
        if "COLLSCAN" in self.stages and self.documents > 1:  # one: whether there is any
            yield "scans the collection"
        if "SORT" in self.stages:
            yield "sorts in memory"
        if self.keys > allowed + case.keys:
            yield f"looks at {self.keys} keys"
        if self.documents > allowed + case.documents:
            yield f"looks at {self.documents} documents"


class Explainer(CommandListener):
    """Has every statement of a client explained, as long as `explained` is a list."""

    def __init__(self, url: str) -> None:
        self._client: MongoClient[Document] = MongoClient(url)
        self.explained: list[Explained] | None = None
        self.faults: list[Exception] = []

    def started(self, event: CommandStartedEvent) -> None:
        """Before it is carried out, in the thread that does so."""
        if self.explained is None:
            return
        try:
            database = self._client[event.database_name]
            for statement in _statements(event.command):
                answer = database.command({"explain": statement, "verbosity": "executionStats"}, codec_options=ANY_TIME)
                self.explained.append(_read(statement, answer))
        except Exception as error:  # noqa: BLE001 - the driver hides what a listener raises
            self.faults.append(error)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Of no interest."""

    def failed(self, event: CommandFailedEvent) -> None:
        """Of no interest: the repository raises."""

    async def explain(self, ask: Callable[[], Awaitable[object]]) -> list[Explained]:
        """Every statement that comes of it."""
        self.explained = found = list[Explained]()
        await ask()
        self.explained = None
        return found

    def close(self) -> None:
        self._client.close()


_ASKED = {"find", "aggregate", "count", "distinct", "findAndModify"}
_WRITES = {"update": "updates", "delete": "deletes"}
_NOT_EXPLAINED = {"insert", "getMore", "killCursors", "endSessions", "hello", "ping", "createIndexes"}
_OF_THE_SESSION = {"lsid", "txnNumber", "writeConcern", "readConcern", "maxTimeMS", "ordered"}


def _statements(command: Mapping[str, Any]) -> Iterable[Document]:
    """What of a command can be explained: each statement of a write by itself."""
    name = next(iter(command))
    plain = {key: value for key, value in command.items() if key not in _OF_THE_SESSION and not key.startswith("$")}
    if name in _ASKED:
        return [plain]
    if name in _WRITES:
        part = _WRITES[name]
        return [{**plain, part: [statement]} for statement in plain[part][:ALIKE]]
    assert name in _NOT_EXPLAINED, f"is {name} a query?"
    return []


def _read(statement: Document, answer: Mapping[str, Any]) -> Explained:
    plans = [*_values(answer, "winningPlan")]
    stages = {stage for plan in plans for stage in _values(plan, "stage")}
    stages |= {"SORT" for _ in _values(answer.get("stages"), "$sort")}
    stats = [*_values(answer, "executionStats")]
    assert plans, answer
    assert stats, answer
    last = answer["stages"][-1] if "stages" in answer else stats[0]
    done = stats[0]["executionStages"]
    return Explained(
        statement,
        frozenset(stages),
        keys=sum(each["totalKeysExamined"] for each in stats),
        documents=sum(each["totalDocsExamined"] for each in stats),
        returned=max(last["nReturned"], done.get("nMatched", 0), done.get("nWouldDelete", 0)),
    )


def _values(tree: Any, name: str) -> Iterator[Any]:
    """Everything that stands under this name, at any depth."""
    if isinstance(tree, Mapping):
        if name in tree:
            yield tree[name]
        for value in tree.values():
            yield from _values(value, name)
    elif isinstance(tree, list):
        for value in tree:
            yield from _values(value, name)


# ---------------------------------------------------------------------------------------------------------------
# The history
# ---------------------------------------------------------------------------------------------------------------


def delivery(name: str, number: int, state: State, age: timedelta, **more: Any) -> Delivery:
    at = NOW - age
    values: dict[str, Any] = {
        "id": f"{name}-{number:05}",
        "event_key": f"event of {name}-{number:05}",
        "event_id": f"ord-{number}",
        "source": "shop",
        "type": "order.shipped",
        "notification": "order-shipped",
        "version": 1,
        "channel": CHANNELS[number % len(CHANNELS)],
        "lane": Lane.NORMAL,
        "recipient": {"email": "ana@example.org"},
        "recipient_key": "ana@example.org",
        "state": state,
        "reason": Reason.TIMEOUT,
        "created_at": at,
        "updated_at": at,
        "attempt": 1 if state.final else 0,
        "due_at": None if state.final else LATER,
        "history": (Change(state, at, Reason.PLANNED, 1, 0),),
    }
    return Delivery(**(values | more))


def old(number: int) -> timedelta:
    """An age of the history; two in a second."""
    return NOW - OLD + SECOND * (number // 2)


def event(key: str, age: timedelta, state: EventState = EventState.PLANNED, planned: int = 1) -> StoredEvent:
    at = NOW - age
    return StoredEvent(key, b"{}", key, "shop", "order.shipped", at, at, state, (("hello", 1),), planned, "t")


def claim_on(one: Delivery, attempt: int, lease_until: datetime) -> Claim:
    return Claim(one.claim_id(attempt), "t", lease_until - SECOND, lease_until)


YOUNG = timedelta(hours=2)
IN_HOUR = Span(hour_of(NOW - YOUNG), hour_of(NOW - YOUNG) + HOUR)
"""Holds none of what is many."""
BROADCAST_AT = NOW - 4 * HOUR


def sent(number: int) -> Delivery:
    return delivery("sent", number, State.SENT, old(number), provider="mail", reference=f"SM{number}")


def failed(number: int) -> Delivery:
    return delivery("failed", number, State.FAILED, old(number))


def queued(number: int) -> Delivery:
    return delivery("queued", number, State.QUEUED, 3 * HOUR)


def of_broadcast(number: int) -> Delivery:
    """All of the same moment, as an event's deliveries are."""
    return delivery("many", number, State.SENT, NOW - BROADCAST_AT, event_key=BROADCAST)


def many() -> Iterator[Delivery]:
    """What no query may go through."""
    yield from map(sent, range(SENT))
    yield from map(of_broadcast, range(LONG))
    for n in range(LONG):
        yield failed(n)
        yield delivery("refused", n, State.FAILED, old(n), reason=Reason.RECIPIENT_REJECTED)
        yield delivery("unknown", n, State.UNKNOWN, old(n), reason=Reason.OUTCOME_UNKNOWN)
        yield queued(n)
        yield delivery("held", n, State.HELD, 3 * HOUR)


DEAD, WAITING = 3 * LONG, 2 * LONG
RARE = [
    delivery("rare", n, State.FAILED, YOUNG, reason=Reason.TLS, source="bank", type="paid", channel=Channel.EMAIL)
    for n in range(FEW)
]
"""The dead that the filters are about."""
DUE = [delivery("due", n, State.QUEUED, YOUNG, due_at=NOW - HOUR) for n in range(FEW)]
UNTOLD = [delivery("untold", n, State.CANCELLED, YOUNG, tell_at=NOW - HOUR) for n in range(FEW)]
DOUBTED = [delivery("doubted", n, State.SENT, YOUNG, possible_duplicate=True) for n in range(FEW)]
SENDING = [delivery("sending", n, State.QUEUED, YOUNG) for n in range(FEW)]
RECORDED = [delivery("recorded", n, State.SENT, YOUNG) for n in range(FEW)]


def history() -> Mapping[str, Sequence[Document]]:
    """The documents of each collection."""
    claims = [claim_on(each, 1, each.updated_at) for each in map(sent, range(SENT))]
    claims += [claim_on(each, 1, LATER) for each in (*SENDING, *RECORDED)]
    planned = [event(each.event_key, NOW - each.created_at) for each in map(sent, range(LONG))]
    ages = [(YOUNG, NOW - HOUR) if number < FEW else (old(number), LATER) for number in range(LONG)]
    accepted = [event(f"unplanned-{n}", age, EventState.ACCEPTED, 0) for n, (age, _) in enumerate(ages)]
    version = {"digest": "-", "definition": "{}"}
    return {
        "deliveries": [
            delivery_document(each) for each in (*many(), *RARE, *DUE, *UNTOLD, *DOUBTED, *SENDING, *RECORDED)
        ],
        "attempts": [claim_document(each) for each in claims],
        "events": [
            *map(event_document, planned),
            *({**event_document(each), "due_at": at} for each, (_, at) in zip(accepted, ages, strict=True)),
        ],
        "notifications": [{**version, "_id": f"other/{n}", "name": "other", "version": n} for n in range(LONG)],
        "audit": [{"_id": EPOCH + HOUR * n, "events": 0, "planned": 0, "tally": {}} for n in range(LONG)],
        "suppressions": [suppressed(n) for n in range(LONG)],
        "soft_bounces": [{"_id": f"email/{n}", "deliveries": ["d/1"], "at": NOW} for n in range(LONG)],
        "suspects": [{"_id": f"s-{n}", "marks": 1, "at": NOW} for n in range(LONG)],
        "endpoints": [{"_id": f"e-{n}", "since": OLD, "at": NOW} for n in range(LONG)],
        "inbox": list(inboxes()),
        "leases": [{"_id": f"l-{n}", "owner": "o", "until": NOW} for n in range(LONG)],
        "attachments": [attachment(n) for n in range(LONG)],
        "files.files": [kept_file(n) for n in range(LONG)],
        "files.chunks": [{"_id": f"c-{n}", "files_id": f"f-{n}", "n": 0, "data": b"x"} for n in range(LONG)],
    }


def attachment(number: int) -> Document:
    """Every second one's event has been deleted; every third has a file that another has as well."""
    event_key = f"gone-{number}" if number % 2 else sent(number).event_key
    file = f"f-{number - number % 3 // 2}"
    at = NOW - old(number)
    return {"_id": f"{event_key}/1", "at": at, "token": "t", "file": file, "digest": f"d-{number}", "uploads": [file]}


def kept_file(number: int) -> Document:
    at = NOW - old(number)
    about = {"length": 1, "chunkSize": 261120, "uploadDate": at, "metadata": {"used_at": at}}
    return {"_id": f"f-{number}", "filename": f"d-{number}", **about}


def inboxes() -> Iterator[Document]:
    """Of many, and one that is long, of which nearly everything was read or put away."""
    for n in range(LONG):
        new = {"unseen": True, "unread": True}
        yield {"_id": f"i-{n}/1", "recipient": f"user-{n}", "content": {}, "at": OLD, "archived": False, **new}
        for archived in (False, True):
            item: Document = {"_id": f"{archived}-{n}/1", "recipient": "user-7", "content": {}, "archived": archived}
            yield item | {"at": NOW - old(n)} | (new if n < FEW and not archived else {})


def store_history(url: str) -> None:
    """By one who writes much at once."""
    with MongoClient[Document](url) as client:
        for name, stored in history().items():
            client.get_default_database()[name].insert_many(stored, ordered=False)


# ---------------------------------------------------------------------------------------------------------------
# The cases
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stores:
    database: Database
    deliveries: MongoDeliveries
    events: MongoEvents
    ledger: MongoLedger
    retention: MongoRetention
    catalog: MongoCatalog
    suspects: MongoSuspects
    suppressions: MongoSuppressions
    endpoints: MongoEndpoints
    inbox: MongoInbox
    files: MongoFiles
    leadership: MongoLeadership
    shares: MongoShares
    migrations: Migrations

    @staticmethod
    def over(database: Database) -> "Stores":
        return Stores(
            database,
            MongoDeliveries(database),
            MongoEvents(database),
            MongoLedger(database),
            MongoRetention(database),
            MongoCatalog(database),
            MongoSuspects(database),
            MongoSuppressions(database),
            MongoEndpoints(database),
            MongoInbox(database),
            MongoFiles(database, lambda: NOW, cache_bytes=0),
            MongoLeadership(database, "l-0", "me"),
            MongoShares(database, "rate/email/main", "me"),
            Migrations(database),
        )


@dataclass(frozen=True)
class Case:
    """One way of asking.

    Attributes:
        keys: those that it may look at beyond what it returns; `MORE` says why.
        documents: the same.
    """

    method: str
    ask: Callable[[Stores], Awaitable[object]]
    about: str = ""
    keys: int = 0
    documents: int = 0

    @property
    def name(self) -> str:
        return f"{self.method}({self.about})"


async def everything(found: AsyncIterator[Any]) -> Sequence[Any]:
    return [each async for each in found]


def told(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items() if value is not None)


def filters(choices: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the choices."""
    for values in product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


PAGES: Mapping[str, Sequence[Any]] = {
    "event_key": (None, BROADCAST, RARE[0].event_key),
    "channel": (None, Channel.EMAIL),
    "state": (None, State.SENT, State.FAILED, State.QUEUED, State.EXPIRED, State.SENDING),
    "since": (None, NOW - 3 * HOUR),
    "after": (None, (BROADCAST_AT, of_broadcast(LONG // 2).id), (sent(1800).created_at, sent(1800).id)),
}
"""The cursors: in the midst of many of one moment, and far back."""


def page(values: Mapping[str, Any]) -> Case:
    narrowed = values["event_key"] == BROADCAST and (values["state"] or values["channel"])
    more = LONG if narrowed else 0
    chosen = DeliveryFilter(**values)
    return Case("MongoDeliveries.page", lambda s: s.deliveries.page(chosen, LIMIT), told(values), more, more)


def page_to(values: Mapping[str, Any]) -> Case:
    narrowed = values["event_key"] == BROADCAST and (values["state"] or values["channel"])
    more = LONG if narrowed else STRETCH_HERE
    chosen = DeliveryFilter(**values)
    ask: Callable[[Stores], Awaitable[object]] = lambda s: s.deliveries.page_to("nobody", chosen, LIMIT)  # noqa: E731
    return Case("MongoDeliveries.page_to", ask, told(values), more, more)


GRAVES: Mapping[str, Sequence[Any]] = {
    "state": (State.FAILED, State.UNKNOWN),
    "channel": (None, Channel.EMAIL),
    "reason": (None, Reason.TLS, Reason.TIMEOUT),
    "source": (None, "bank"),
    "type": (None, "paid"),
    "since": (None, NOW - 3 * HOUR),
    "until": (None, OLD + DAY),
}


def dead(values: Mapping[str, Any]) -> Case:
    more = DEAD + SPARE if values["reason"] or values["source"] or values["type"] else 0
    chosen = DeadFilter(**values)
    return Case("MongoDeliveries.dead", lambda s: everything(s.deliveries.dead(chosen, LIMIT)), told(values), more)


def count_dead(values: Mapping[str, Any]) -> Case:
    chosen = DeadFilter(**values)
    return Case("MongoDeliveries.count_dead", lambda s: s.deliveries.count_dead(chosen), told(values), DEAD)


def sent_now(one: Delivery) -> tuple[Delivery, Sequence[Change]]:
    change = Change(State.SENT, NOW, Reason.ACCEPTED, 1, one.attempt + 1, "mail", "250 ok")
    return one.changed(change, None), [change]


async def record_twice(stores: Stores) -> None:
    """The second finds that the first was here, and reads it back."""
    assert await stores.deliveries.record(*of_record(queued(0)))
    after, attempt, changes = of_record(queued(0))
    others = [replace(change, provider="other") for change in changes]
    assert not await stores.deliveries.record(replace(after, provider="other"), attempt, others)


async def record_many_twice(stores: Stores) -> None:
    """By one statement, then by one each."""
    records = [Record(*of_record(queued(number))) for number in range(3)]
    assert list(await stores.deliveries.record_all(records)) == [True] * 3
    other = [replace(each, changes=[replace(change, provider="other") for change in each.changes]) for each in records]
    assert list(await stores.deliveries.record_all(other)) == [False] * 3


def of_record(one: Delivery) -> tuple[Delivery, int, Sequence[Change]]:
    after, changes = sent_now(one)
    return after, one.attempt, changes


async def reopen(stores: Stores) -> None:
    change = Change(State.QUEUED, NOW, Reason.REPLAYED, 2, 0)
    assert await stores.deliveries.reopen(failed(0), failed(0).changed(change, LATER), change)


async def refine_twice(stores: Stores) -> None:
    """Once as it is, and once after somebody else has."""
    before, change = sent(7), Change(State.DELIVERED, NOW, Reason.DELIVERED, 1, 1, "mail")
    assert await stores.deliveries.refine(before, before.changed(change, None), change)
    late = Change(State.BOUNCED, NOW, Reason.HARD_BOUNCE, 1, 1, "mail")
    assert not await stores.deliveries.refine(before, before.changed(late, None), late)


def of_deliveries() -> Iterator[Case]:
    name = "MongoDeliveries."
    new = [delivery("new", number, State.QUEUED, timedelta()) for number in range(FEW)]
    ids = [sent(number).id for number in range(FEW)]
    late = Change(State.SENT, NOW, Reason.ACCEPTED, 1, 1, "mail", "late")
    claim = claim_on(new[0], 1, LATER)
    yield Case(name + "add", lambda s: s.deliveries.add(new[:1]), "one")
    yield Case(name + "add", lambda s: s.deliveries.add(new), "many, one of them known")
    yield Case(name + "get", lambda s: s.deliveries.get(ids[0]))
    yield Case(name + "by_reference", lambda s: s.deliveries.by_reference("SM1", {"mail", "other"}))
    yield Case(name + "claim", lambda s: s.deliveries.claim(claim))
    yield Case(name + "claim", lambda s: s.deliveries.claim(replace(claim, token="another's")), "lost")
    yield Case(name + "claim_all", lambda s: s.deliveries.claim_all([claim, replace(claim, token="another's")]))
    yield Case(name + "claims", lambda s: s.deliveries.claims([f"{each}/1/1" for each in ids]))
    yield Case(name + "record", record_twice)
    yield Case(name + "record_all", record_many_twice)
    yield Case(name + "note", lambda s: s.deliveries.note(ids[0], late))
    yield Case(name + "note", lambda s: s.deliveries.note(ids[0], late, once=True), "once")
    yield Case(name + "note", lambda s: s.deliveries.note(ids[0], late, reference="SM1"), "reference")
    yield Case(name + "due", lambda s: s.deliveries.due(NOW, LIMIT))
    yield Case(name + "postpone", lambda s: s.deliveries.postpone(queued(1), LATER + HOUR))
    yield Case(name + "untold", lambda s: s.deliveries.untold(NOW, LIMIT))
    yield Case(name + "told", lambda s: s.deliveries.told(UNTOLD[0]))
    yield Case(name + "reopen", reopen)
    yield Case(name + "refine", refine_twice)
    yield from map(dead, filters(GRAVES))
    yield from map(count_dead, filters(GRAVES))
    yield from map(page, filters(PAGES))
    yield from map(page_to, filters({**PAGES, "state": (None, State.SENT, State.QUEUED)}))
    yield Case(name + "current", lambda s: s.deliveries.current(SENDING[0].id))
    yield Case(name + "beginning_with", lambda s: s.deliveries.beginning_with(SENDING[0].id[:9], LIMIT))
    yield Case(name + "beginning_with", lambda s: s.deliveries.beginning_with(sent(0).id[:8], LIMIT), "thousands")
    yield Case(name + "beginning_with", lambda s: s.deliveries.beginning_with("no-such-one", LIMIT), "none")
    yield Case(name + "standing", lambda s: s.deliveries.standing(ids))
    yield Case(name + "ids_of_event", lambda s: s.deliveries.ids_of_event(RARE[0].event_key))
    yield Case(name + "ids_of_event", lambda s: s.deliveries.ids_of_event(BROADCAST), "many")
    moving = WAITING + DEAD
    yield Case(name + "count_by_state", lambda s: s.deliveries.count_by_state(), keys=moving)
    yield Case(
        name + "count_by_state", lambda s: s.deliveries.count_by_state((*IN_FLIGHT, *DEAD_STATES)), "audit", keys=moving
    )
    yield Case(
        name + "count_by_state", lambda s: s.deliveries.count_by_state(tuple(State), BROADCAST), "event", LONG, LONG
    )
    yield Case(name + "count_due", lambda s: s.deliveries.count_due(NOW))
    yield Case(name + "count_due", lambda s: s.deliveries.count_due(LATER + HOUR), "all", keys=WAITING)
    yield Case(name + "oldest_due", lambda s: s.deliveries.oldest_due())


DEAD_STATES = (State.FAILED, State.UNKNOWN)


def of_events() -> Iterator[Case]:
    name = "MongoEvents."
    new = event("new", timedelta(), EventState.ACCEPTED)
    sent_again = replace(new, key=sent(0).event_key, token="an operator's")
    yield Case(name + "add", lambda s: s.events.add(new, LATER))
    yield Case(name + "add", lambda s: s.events.add(replace(new, token="another's"), LATER), "known")
    yield Case(name + "get", lambda s: s.events.get(sent(0).event_key))
    yield Case(name + "settle", lambda s: s.events.settle("new", EventState.PLANNED, 1))
    yield Case(name + "settle", lambda s: s.events.settle("nobody's", EventState.PLANNED, 1), "not there")
    yield Case(name + "reopen", lambda s: s.events.reopen(sent_again, NOW))
    yield Case(name + "due", lambda s: s.events.due(NOW, LIMIT))
    yield Case(name + "count_due", lambda s: s.events.count_due(), "all", keys=LONG)
    yield Case(name + "count_due", lambda s: s.events.count_due(NOW))
    yield Case(name + "postpone", lambda s: s.events.postpone("unplanned-0", NOW - SECOND))


def of_event_pages() -> Iterator[Case]:
    newest, within = LONG - 2, (NOW - old(LONG // 2), "event of sent-01500")
    for state, after in product((None, *EventState), (None, within, (NOW - old(newest), "unplanned"))):
        keys = STRETCH_HERE + SPARE if state else 0
        about = told({"state": state, "after": after})
        yield Case(
            "event_page",
            lambda s, state=state, after=after: event_page(s.database, state, after, LIMIT),  # type: ignore[misc]
            about,
            keys,
        )


def of_ledger() -> Iterator[Case]:
    name = "MongoLedger."
    found = Discrepancy(Kind.SURPLUS, "event", "shop", "ord-1", NOW, "")
    audited = Audited(None, Sums(), (), {}, 0, 0, False)
    empty = Queued({(channel, Lane.NORMAL): Waiting(0, 1) for channel in Channel}, 0)
    lost = [at_work(each) for each in DUE]
    moving = WAITING + DEAD
    yield Case(name + "verified", lambda s: s.ledger.verified(EPOCH + HOUR * (LONG - FEW)))
    yield Case(name + "verified_before", lambda s: s.ledger.verified_before())
    yield Case(name + "keep", lambda s: s.ledger.keep(IN_HOUR.start, Sums(tally={(Channel.SMS, State.SENT): 1})))
    yield Case(name + "forget", lambda s: s.ledger.forget([IN_HOUR.start]))
    yield Case(name + "keep_before", lambda s: s.ledger.keep_before(OLD))
    yield Case(name + "keep_latest", lambda s: s.ledger.keep_latest(audited, NOW))
    yield Case(name + "latest", lambda s: s.ledger.latest())
    yield Case(name + "acknowledge", lambda s: s.ledger.acknowledge(found))
    yield Case(name + "acknowledged", lambda s: s.ledger.acknowledged([found]))
    yield Case(name + "kept_since", lambda s: s.ledger.kept_since())
    yield Case(name + "next_time", lambda s: s.ledger.next_time(EPOCH, NOW), "the first")
    yield Case(name + "next_time", lambda s: s.ledger.next_time(IN_HOUR.start, IN_HOUR.end))
    yield Case(name + "next_time", lambda s: s.ledger.next_time(NOW, LATER), "none")
    yield Case(name + "moving", lambda s: s.ledger.moving(EPOCH), keys=moving)
    yield Case(name + "tally", lambda s: s.ledger.tally(IN_HOUR))
    yield Case(name + "count", lambda s: s.ledger.count(IN_HOUR))
    yield Case(name + "orphans", lambda s: everything(s.ledger.orphans(IN_HOUR)))
    yield Case(name + "late", lambda s: s.ledger.late(EPOCH, NOW, LIMIT), keys=WAITING)
    yield Case(name + "late", lambda s: s.ledger.late(NOW - DAY, NOW, LIMIT), "since", keys=WAITING)
    yield Case(name + "duplicated", lambda s: everything(s.ledger.duplicated(NOW - DAY)))
    yield Case(name + "dispatched", lambda s: s.ledger.dispatched(EPOCH, NOW, empty), "", LONG, LONG)
    yield Case(name + "undispatched", lambda s: s.ledger.undispatched(lost))
    yield Case(name + "plan_again", lambda s: s.ledger.plan_again("unplanned-1", NOW))
    yield Case(name + "look_after", lambda s: s.ledger.look_after(queued(2).id, NOW))


def at_work(one: Delivery) -> Dispatched:
    assert one.due_at is not None
    return Dispatched(one.id, one.channel, one.lane, one.state, one.claim_id(1), one.updated_at, one.due_at)


def of_inbox() -> Iterator[Case]:
    name = "MongoInbox."
    item = InboxItem("new/1", "user-7", {}, NOW)
    yield Case(name + "add", lambda s: s.inbox.add(item))
    yield Case(name + "add", lambda s: s.inbox.add(item), "known")
    yield Case(name + "page", lambda s: s.inbox.page("user-7", LIMIT))
    yield Case(name + "page", lambda s: s.inbox.page("user-7", LIMIT, archived=True), "archive")
    yield Case(name + "page", lambda s: s.inbox.page("user-7", LIMIT, after=(OLD - HOUR / 6, "False-1")), "after")
    yield Case(name + "counts", lambda s: s.inbox.counts("user-7"), keys=LONG)
    for mark in (Mark.SEEN, Mark.READ):
        every = Marking("user-7", mark, None, NOW)
        yield Case(name + "mark", lambda s, every=every: s.inbox.mark(every), f"all {mark}")  # type: ignore[misc]
    for mark in Mark:
        few = Marking("user-7", mark, tuple(f"False-{n}/1" for n in range(FEW)), NOW)
        yield Case(name + "mark", lambda s, few=few: s.inbox.mark(few), f"few {mark}")  # type: ignore[misc]


async def fetched(content: bytes) -> bytes:
    return content


async def once(stores: Stores, event_key: str, content: bytes = b"new") -> None:
    assert await stores.files.once(event_key, "1", lambda: fetched(content), SECOND) == content


async def once_known(stores: Stores) -> None:
    """A file that another event has brought; then one that is stored, and read."""
    await once(stores, "another event")
    await once(stores, "another event")


def of_files() -> Iterator[Case]:
    yield Case("MongoFiles.once", lambda s: once(s, "new event"), "new")
    yield Case("MongoFiles.once", once_known, "known")
    yield Case("MongoFiles.once", lambda s: once(s, "gone-1", b"another"), "lost")


async def change_catalog(stores: Stores) -> None:
    """Apply, change and apply again, with a look at the versions that there were."""
    for text in ("one", "two"):
        given = {"name": "hello", "on": "shop.hello", "channels": {"sms": {"text": text}}}
        definition = Definition.model_validate(given)
        await stores.catalog.apply([definition], await stores.catalog.plan([definition], prune=False))


def suppression(number: int, **more: Any) -> Suppression:
    values: dict[str, Any] = {"channel": Channel.EMAIL, "reason": SuppressionReason.HARD_BOUNCE, "source": "operator"}
    return Suppression(
        address=f"user-{number}@example.org", **{**values, "since": OLD + SECOND * (number // 3), **more}
    )


def suppressed(number: int) -> Document:
    entry = suppression(number)
    values = {"channel": "email", "address": entry.address, "reason": "hard_bounce", "source": "operator"}
    return {"_id": entry.key, **values, "since": entry.since, "updated_at": OLD}


async def look_again(stores: Stores) -> None:
    """After the first look, at which everything is read."""
    await stores.suppressions.refresh()


def listed(chosen: SuppressionFilter = SuppressionFilter()) -> Callable[[Stores], Awaitable[object]]:  # noqa: B008
    return lambda stores: everything(stores.suppressions.listed(chosen, LIMIT))


def of_suppressions() -> Iterator[Case]:
    name, keys = "MongoSuppressions.", [suppression(number).key for number in range(FEW)]
    yield Case(name + "among", lambda s: s.suppressions.among(keys))
    yield Case(name + "refresh", look_again, "first")
    yield Case(name + "refresh", look_again, "again")
    yield Case(name + "add", lambda s: s.suppressions.add(suppression(LONG)), "new")
    yield Case(name + "add", lambda s: s.suppressions.add(suppression(1)), "known")
    yield Case(name + "add", lambda s: s.suppressions.add(suppression(2, delivery="d-1")), "refused")
    yield Case(name + "withdraw", lambda s: s.suppressions.withdraw(keys, "d-1"))
    yield Case(name + "soft_bounced", lambda s: s.suppressions.soft_bounced("email/1", "d/2"))
    yield Case(name + "forget_soft_bounces", lambda s: s.suppressions.forget_soft_bounces("email/1"))
    yield Case(name + "put", lambda s: s.suppressions.put([suppression(number) for number in range(FEW)]))
    yield Case(name + "stored", lambda s: s.suppressions.stored(keys))
    yield Case(name + "listed", listed())
    yield Case(name + "listed", listed(SuppressionFilter(since=NOW - DAY)), "since")
    yield Case(name + "listed", listed(SuppressionFilter(channel=Channel.SMS)), "channel")
    yield Case(name + "listed", listed(SuppressionFilter(reason=SuppressionReason.COMPLAINT)), "reason")
    yield Case(name + "remove", lambda s: s.suppressions.remove(keys))


async def lead_and_leave(stores: Stores) -> None:
    assert await stores.leadership.held(NOW, HOUR)
    await stores.leadership.leave()


def of_the_others() -> Iterator[Case]:
    yield Case("MongoCatalog.apply", change_catalog)
    yield Case("MongoCatalog.plan", change_catalog)
    yield Case("MongoCatalog.refresh", lambda s: s.catalog.refresh())
    yield Case("MongoCatalog.version", lambda s: s.catalog.version("hello", 2))
    yield Case("MongoCatalog.delete", lambda s: s.catalog.delete("hello"))
    yield Case("MongoSuspects.begin", lambda s: s.suspects.begin("s-1"))
    yield Case("MongoSuspects.end", lambda s: s.suspects.end("s-1"))
    yield Case("MongoEndpoints.failing", lambda s: s.endpoints.failing("e-1", NOW))
    yield Case("MongoEndpoints.answered", lambda s: s.endpoints.answered(["e-1", "e-2"]))
    yield Case("MongoLeadership.held", lead_and_leave)
    yield Case("MongoLeadership.leave", lead_and_leave)
    yield Case("MongoLeadership.give_up", lambda s: s.leadership.give_up())
    yield Case("MongoShares.renew", lambda s: s.shares.renew(HOUR))
    yield Case("MongoShares.leave", lambda s: s.shares.leave())
    yield Case("Migrations.look", lambda s: s.migrations.look())
    yield Case("Migrations.run", lambda s: s.migrations.run())
    yield Case("read_horizon", lambda s: read_horizon(s.database))


def of_retention() -> Iterator[Case]:
    """Last, because they delete: a batch of what is old, which is not all of it."""
    name, before = "MongoRetention.", OLD + HOUR
    for about in ("first", "second"):
        yield Case(name + "announce", lambda s: s.retention.announce(Cutoffs(before, before, before, before)), about)
        yield Case(name + "attempts", lambda s: s.retention.attempts(before), about)
        yield Case(name + "deliveries", lambda s: s.retention.deliveries(before), about)
        yield Case(name + "dead", lambda s: s.retention.dead(before), about)
        yield Case(name + "events", lambda s: s.retention.events(before, before), about)
        yield Case(name + "inbox", lambda s: s.retention.inbox(before), about)
        yield Case(name + "files", lambda s: s.retention.files(before + 3 * HOUR), about)


CASES = [
    *of_deliveries(),
    *of_events(),
    *of_event_pages(),
    *of_ledger(),
    *of_the_others(),
    *of_suppressions(),
    *of_inbox(),
    *of_files(),
    *of_retention(),
]


NOT_A_QUERY = {
    f"Database.{name}" for name in ("run", "read", "write", "ping", "version", "replica_set", "time", "ensure_indexes")
}
NOT_A_QUERY |= {"MongoFiles.close"}


def asked() -> set[str]:
    """What asks MongoDB something: the public asynchronous methods and functions of `storage/`."""
    found: set[str] = set()
    names = {info.name for info in pkgutil.iter_modules(storage.__path__)} - {"writes"}  # carries out others' commands
    for module in (import_module(f"storage.{name}") for name in names):
        for name, own in vars(module).items():
            if getattr(own, "__module__", None) == module.__name__:
                found |= {name} if _asks(name, own) else set()
                members = vars(own).items() if inspect.isclass(own) else ()
                found |= {f"{name}.{method}" for method, member in members if _asks(method, member)}
    return found


def _asks(name: str, member: object) -> bool:
    asynchronous = inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member)
    return asynchronous and not name.startswith("_")


# ---------------------------------------------------------------------------------------------------------------
# The tests
# ---------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def explained(url: str) -> AsyncIterator[tuple[Database, Explainer]]:
    explainer = Explainer(url)
    client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(url, event_listeners=[explainer])
    try:
        yield Database(client, client.get_default_database().name), explainer
    finally:
        client.close()
        explainer.close()
    assert explainer.faults == []


async def faults_of(case: Case, stores: Stores, explainer: Explainer) -> list[str]:
    found = await explainer.explain(lambda: case.ask(stores))
    return [f"{case.name}: {fault}: {each}" for each in found for fault in each.faults(case)]


async def test_no_query_looks_at_the_history(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "DEAD_PAGE", LIMIT // 3)  # several pages
    for module in (deliveries, event_pages):
        monkeypatch.setattr(module, "STRETCH", STRETCH_HERE)
    async with explained(database_url) as (database, explainer):
        await database.ensure_indexes()
        await asyncio.to_thread(store_history, database_url)
        stores = Stores.over(database)
        faults = [fault for case in CASES for fault in await faults_of(case, stores, explainer)]
    assert not faults, "\n".join(faults)


def test_every_method_and_every_filter_has_a_case() -> None:
    assert asked() - NOT_A_QUERY == {case.method for case in CASES}
    assert {each.name for each in fields(DeliveryFilter)} == PAGES.keys()
    assert {each.name for each in fields(DeadFilter)} == GRAVES.keys()
    assert {case.method for case in CASES if case.keys or case.documents} == MORE.keys()


async def test_a_query_that_grows_is_found(database_url: str) -> None:
    async with explained(database_url) as (database, explainer):
        kept = database.collection("deliveries")
        await kept.insert_many([{"_id": n, "state": "sent", "at": n} for n in range(LONG)])
        await kept.create_index("state")

        async def faults(ask: Callable[[], Awaitable[object]]) -> list[str]:
            return [fault for each in await explainer.explain(ask) for fault in each.faults(Case("", lambda _: ask()))]

        assert await faults(lambda: kept.find_one({"at": -1})) == ["scans the collection", f"looks at {LONG} documents"]
        query, none, change = {"state": "sent"}, {"state": "sent", "at": -1}, {"$set": {"at": 0}}
        assert "sorts in memory" in await faults(lambda: kept.find(query).sort("at").limit(9).to_list(9))
        assert await faults(lambda: kept.count_documents(query)) == [f"looks at {LONG + 1} keys"]
        assert f"looks at {LONG} documents" in await faults(lambda: kept.update_many(none, change))
        assert f"looks at {LONG} documents" in await faults(lambda: kept.delete_many(none))
        assert await faults(lambda: kept.find(query).limit(9).to_list(9)) == []

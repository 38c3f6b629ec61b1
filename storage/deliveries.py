"""The deliveries and the claims on their attempts."""

import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from heapq import nlargest
from operator import attrgetter

from pymongo import ASCENDING, DESCENDING

from domain.delivery import Change, Delivery
from domain.event import mail_address, phone_number
from domain.group_commit import GroupCommit
from domain.ports import Claim, DeadFilter, Record, Unreadable
from domain.vocabulary import IN_FLIGHT, REPLAYABLE, Channel, Reason, State
from storage.database import Database, Document
from storage.documents import (
    CannotRead,
    claim_document,
    delivery_document,
    delivery_of,
    read_change,
    read_claim,
    read_delivery,
    readable,
)
from storage.writes import Amendment, Found, Update, amend_all, insert_all, insert_own, update_all

_IN_FLIGHT = tuple(str(state) for state in IN_FLIGHT)
_SENDABLE = [str(state) for state in IN_FLIGHT if state is not State.HELD]
"""Stored states of a delivery that is `sending` as long as its next attempt is claimed."""
_STORED_STATES = [str(state) for state in State if state is not State.SENDING]
_CHANNELS = [str(channel) for channel in Channel]
_SET_BY_CHANGE = (
    "detail",
    "epoch",
    "attempt",
    "forgiven",
    "provider",
    "due_at",
    "tell_at",
    "updated_at",
)
"""Besides state and reason."""
_set_by_change = attrgetter(*_SET_BY_CHANGE)
PAGE = 2000
"""Claims looked through at once for what is being sent."""
STRETCH = 20_000
"""Deliveries among which those to one recipient are looked for at once: some 100 ms of the server's time."""
DEAD_PAGE = 500
"""Dead deliveries read at once."""
_AFTER_ALL = "\uffff"
"""Sorts behind every character that an id has."""
HISTORY_COMPARED = 20
"""Changes of one delivery, the last ones, among which a write that may have been made looks for its own."""
_USED = {"id": str, "event_key": str, "epoch": int, "attempt": int, "forgiven": int, "updated_at": datetime}
"""What a delivery that is due is driven on by."""
HISTORY_KEPT = 200
"""Changes kept of one delivery, the last ones: a provider that stays half dead for days must not fill its document."""


Place = tuple[datetime, str]
"""When a delivery was planned, and its id: its place in the order of every list."""


@dataclass(frozen=True, slots=True)
class _Record:
    delivery_id: str
    change: Change
    amendment: Amendment


@dataclass(frozen=True, slots=True)
class _Ordered:
    """A query whose results come out of this index in this order, without being sorted."""

    query: Document
    order: list[tuple[str, int]]
    index: str


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Which deliveries a list shows; None: any.

    Attributes:
        since: planned then, or later.
        after: the place at which the page before ended.
    """

    event_key: str | None = None
    channel: Channel | None = None
    state: State | None = None
    since: datetime | None = None
    after: Place | None = None


@dataclass(frozen=True, slots=True)
class DeliveryPage:
    """Some deliveries to one recipient, and how far the look for them went.

    Attributes:
        looked_until: the last one that was looked at, behind which the next page begins; None where there are no more.
    """

    deliveries: Sequence[Delivery]
    looked_until: Place | None


class MongoDeliveries:
    """`domain.ports.Deliveries` in the collections `deliveries` and `attempts`.

    `on_unreadable` is called with each that a list leaves out, because it cannot be read.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._collection = database.collection("deliveries")
        self._attempts = database.collection("attempts")
        self._reads: GroupCommit[str, Delivery | None] = GroupCommit(self._read_all)
        self._inserts: GroupCommit[Document, bool] = GroupCommit(self._insert)
        self._claims: GroupCommit[Claim, bool] = GroupCommit(self._insert_claims)
        self._records: GroupCommit[_Record, bool] = GroupCommit(self._write_records)
        self._postponements: GroupCommit[Update, None] = GroupCommit(self._postpone)
        self.on_unreadable: Callable[[CannotRead], None] = lambda _: None

    async def add(self, deliveries: Sequence[Delivery]) -> None:
        """One delivery shares its insert with other events'; many make an insert of their own."""
        if len(deliveries) == 1:
            await self._inserts.submit(delivery_document(deliveries[0]))
            return
        for result in await self._insert([delivery_document(delivery) for delivery in deliveries]):
            if isinstance(result, Exception):
                raise result

    async def get(self, delivery_id: str) -> Delivery | None:
        """By primary key, with whoever else reads one at this moment."""
        return await self._reads.submit(delivery_id)

    async def by_reference(self, reference: str, providers: Collection[str]) -> Delivery | None:
        """From the partial index `reference`; the latest, should a provider use a reference twice."""
        query = {"reference": reference, "provider": {"$in": list(providers)}}
        latest = [("created_at", DESCENDING)]
        document = await self._database.run(lambda: self._collection.find_one(query, sort=latest, hint="reference"))
        return delivery_of(document) if document else None

    async def claim(self, claim: Claim) -> bool:
        """An insert with a unique `_id`: grouped, yet each caller learns whether it won."""
        return await self._claims.submit(claim)

    async def claim_all(self, claims: Sequence[Claim]) -> Sequence[bool | Exception]:
        """As `claim`, by one caller."""
        return await self._claims.submit_all(claims)

    async def claims(self, ids: Sequence[str]) -> Mapping[str, Claim]:
        """By primary keys, in one query."""
        query = self._attempts.find({"_id": {"$in": list(ids)}})
        documents = await self._database.run(lambda: query.clone().to_list(None))
        return {document["_id"]: read_claim(document) for document in documents}

    async def record(self, delivery: Delivery, expected_attempt: int, changes: Sequence[Change]) -> bool:
        """A conditional update, grouped with others'."""
        return await self._records.submit(_record(Record(delivery, expected_attempt, changes)))

    async def record_all(self, records: Sequence[Record]) -> Sequence[bool | Exception]:
        """As `record`, by one caller."""
        return await self._records.submit_all([_record(record) for record in records])

    async def note(self, delivery_id: str, change: Change, *, once: bool = False, reference: str | None = None) -> bool:
        """A late `sent` makes what was sent meanwhile a possible duplicate."""
        condition: Document = {"_id": delivery_id}
        if once:
            same = {"state": str(change.state), "reason": str(change.reason), "epoch": change.epoch}
            condition["history"] = {"$not": {"$elemMatch": same}}
        update: Document = {"$push": {"history": change.document()}}
        if change.state is State.SENT:
            update["$set"] = {"possible_duplicate": True}
        result = await self._database.run(lambda: self._collection.update_one(condition, update))
        if reference is not None:
            await self._refer(delivery_id, change, reference)
        return bool(result.matched_count)

    async def _refer(self, delivery_id: str, change: Change, reference: str) -> None:
        condition = {
            "_id": delivery_id,
            "epoch": change.epoch,
            "reference": {"$exists": False},
            "provider": {"$in": [None, change.provider]},
        }
        update = {"$set": {"reference": reference, "provider": change.provider}}
        await self._database.run(lambda: self._collection.update_one(condition, update))

    async def due(self, now: datetime, limit: int) -> Sequence[Delivery | Unreadable]:
        """From the partial index `due`."""
        return await self._passed("due_at", now, limit)

    async def postpone(self, delivery: Delivery | Unreadable, at: datetime) -> None:
        """A conditional update, grouped with others': only from the time that was read."""
        read = {"due_at": delivery.due_at, "tell_at": delivery.tell_at}
        # one that is not set is not asked for: MongoDB would take a missing field for equal to null
        read = {name: value for name, value in read.items() if value is not None}
        if read:
            update = Update({"_id": delivery.id, **read}, {"$set": dict.fromkeys(read, at)})
            await self._postponements.submit(update)

    async def untold(self, now: datetime, limit: int) -> Sequence[Delivery | Unreadable]:
        """From the partial index `tell_at`."""
        return await self._passed("tell_at", now, limit)

    async def told(self, delivery: Delivery) -> None:
        """A conditional update, grouped with others'."""
        condition = {"_id": delivery.id, "tell_at": delivery.tell_at}
        await self._postponements.submit(Update(condition, {"$unset": {"tell_at": ""}}))

    async def reopen(self, before: Delivery, after: Delivery, change: Change) -> bool:
        """One conditional update: of two callers, one matches."""
        amendment = _amendment(after, _standing_as(before), [change])
        if before.reference is not None and after.reference is None:  # the epoch that it belonged to is over
            amendment = replace(amendment, unset=(*amendment.unset, "reference"))
        if before.version != after.version:
            amendment = replace(amendment, values={**amendment.values, "version": after.version})
        update = amendment.alone()
        tries = 0

        async def write() -> bool:
            nonlocal tries
            tries += 1
            return bool((await self._collection.update_one(update.condition, update.change)).matched_count)

        # a repetition of an update that an outage had left unanswered matches nothing, but finds its own work
        return await self._database.run(write) or (tries > 1 and (await self._applied([(after.id, change)]))[0])

    async def refine(self, before: Delivery, after: Delivery, change: Change) -> bool:
        """A conditional update, grouped with others'."""
        amendment = _amendment(after, _standing_as(before), [change])
        return await self._records.submit(_Record(after.id, change, amendment))

    async def dead(self, chosen: DeadFilter, limit: int | None) -> AsyncIterator[Delivery]:
        """From the partial index `dead`; in pages, so that a long run holds no cursor open.

        Only as far as the last there was at the beginning: one that is replayed and fails again is not met again.
        """
        end = await self._last_dead(chosen)
        last: Document | None = None
        left = limit
        while end is not None and (left is None or left > 0):
            size = min(DEAD_PAGE, left or DEAD_PAGE)
            page = await self._read(_dead_queries(replace(chosen, until=end), last), size)
            for delivery in self._readable(page):
                yield delivery
            if len(page) < size:
                return
            last, left = page[-1], None if left is None else left - len(page)

    async def count_dead(self, chosen: DeadFilter) -> int:
        """How many parked deliveries the filter means, from the keys of the index `dead` alone."""
        query = _dead_query(chosen)
        return await self._database.run(lambda: self._collection.count_documents(query, hint="dead"))

    async def page(self, chosen: DeliveryFilter, limit: int) -> Sequence[Delivery]:
        """Newest first. A delivery under a live claim is shown as `sending`, as which it is not stored."""
        if chosen.state is State.SENDING:
            return await self._database.run(lambda: self._being_sent(chosen, limit))
        found = await self._read(_list_queries(chosen), limit)
        return await self._with_claims(self._readable(found))

    async def page_to(self, recipient: str, chosen: DeliveryFilter, limit: int) -> DeliveryPage:
        """At most `limit` of those to this recipient, an id or an address, among the next `STRETCH` of a list.

        There is no index on recipients, which every delivery would have to pay for: they are looked for in bounded
        steps, between which the caller decides whether to go on. Not in the state `sending`, as which none is stored.
        """
        places: list[Place] = []
        end, left = None, STRETCH
        for each in _list_queries(chosen):
            if left:
                looked = await self._looked(each, left, _to(recipient), limit + 1)
                places += map(_place, looked["found"])
                for last in looked["end"]:
                    end, left = _place(last), left - last["number"]
        if len(places) > limit:
            end, left, places = places[limit - 1], 0, places[:limit]
        behind = end if left == 0 and end is not None and end[0] is not None else None
        return DeliveryPage(await self._by_ids([name for _, name in places]), behind)

    async def _looked(self, ordered: _Ordered, stretch: int, wanted: Document, limit: int) -> Document:
        """Among the next of a list the places of those that are wanted, of the last one, and how many were looked at.

        All by one look, for whatever is written meanwhile moves the stretch.
        """
        stages: list[Document] = [
            {"$match": ordered.query},
            {"$sort": dict(ordered.order)},
            {"$limit": stretch},
            {"$facet": {"found": [{"$match": wanted}, {"$limit": limit}, _PLACE], "end": [_LAST]}},
        ]
        found = await self._database.run(lambda: self._collection.aggregate(stages, hint=ordered.index).to_list(None))
        return found[0]

    async def _by_ids(self, ids: Sequence[str]) -> Sequence[Delivery]:
        """In this order, shown as `page` shows them; without those that are there no more, or cannot be read."""
        query = self._collection.find({"_id": {"$in": list(ids)}}).hint("_id_")
        found = {each["_id"]: each for each in await self._database.run(lambda: query.clone().to_list(None))}
        return await self._with_claims(self._readable([found[name] for name in ids if name in found]))

    async def current(self, delivery_id: str) -> Delivery | None:
        """One delivery, shown as `page` shows it."""
        delivery = await self.get(delivery_id)
        return (await self._with_claims([delivery]))[0] if delivery else None

    async def beginning_with(self, prefix: str, limit: int) -> Sequence[Delivery]:
        """Those whose ids begin so, by their ids and shown as `page` shows them; a range of the primary key."""
        query = self._collection.find({"_id": {"$gte": prefix, "$lt": prefix + _AFTER_ALL}}).hint("_id_")
        ordered = query.sort("_id", ASCENDING).limit(limit)
        documents = await self._database.run(lambda: ordered.clone().to_list(limit))
        return await self._with_claims(self._readable(documents))

    async def standing(self, ids: Sequence[str]) -> Mapping[str, tuple[State, int]]:
        """State and epoch of each of these ids that is stored, in one query."""
        query = self._collection.find({"_id": {"$in": list(ids)}}, {"state": 1, "epoch": 1})
        documents = await self._database.run(lambda: query.clone().to_list(None))
        return {document["_id"]: (State(document["state"]), document["epoch"]) for document in documents}

    async def ids_of_event(self, event_key: str) -> Sequence[str]:
        """Covered by the index `event_list`."""
        query = self._collection.find({"event_key": event_key}, {"_id": 1}).hint("event_list")
        return [document["_id"] for document in await self._database.run(lambda: query.clone().to_list(None))]

    async def count_by_state(
        self, states: Sequence[State] = (*IN_FLIGHT, *REPLAYABLE), event_key: str | None = None
    ) -> Mapping[tuple[Channel, State], int]:
        """How many deliveries stand in each of these states (those not final, and those to be replayed), by channel.

        Covered by the index `list`. `event_key`: of one event alone, from the index `event_list`.
        """
        chosen: Document = {"state": {"$in": [str(state) for state in states]}}
        stages: list[Document] = [
            {"$match": chosen if event_key is None else chosen | {"event_key": event_key}},
            {"$group": {"_id": {"channel": "$channel", "state": "$state"}, "count": {"$sum": 1}}},
        ]
        index = "list" if event_key is None else "event_list"
        documents = await self._database.run(lambda: self._collection.aggregate(stages, hint=index).to_list(None))
        return {
            (Channel(item["_id"]["channel"]), State(item["_id"]["state"])): int(item["count"])
            for item in documents
            if item["_id"].get("channel") in _CHANNELS  # or a later version's
        }

    async def count_due(self, before: datetime) -> int:
        """How many have been due since before this time, from the partial index `due`."""
        query = {"due_at": {"$lt": before}}
        return await self._database.run(lambda: self._collection.count_documents(query))

    async def oldest_due(self) -> datetime | None:
        """The earliest `due_at` there is."""
        query = {"due_at": {"$exists": True}}
        document = await self._database.run(
            lambda: self._collection.find_one(query, {"due_at": 1}, sort=[("due_at", ASCENDING)])
        )
        return document["due_at"] if document else None

    async def _being_sent(self, chosen: DeliveryFilter, limit: int) -> Sequence[Delivery]:
        """Those whose next attempt has a live claim: of most live claims the attempt is on record already."""
        queries = [{**each.query, "state": {"$in": _SENDABLE}} for each in _list_queries(replace(chosen, state=None))]
        live = self._attempts.find({"lease_until": {"$gt": _now()}}, {"_id": 1}).hint("lease").batch_size(PAGE)
        newest: list[Delivery] = []
        while page := await live.to_list(PAGE):
            claimed = {claim["_id"] for claim in page}
            ids = {"$in": list({name.split("/")[0] for name in claimed})}
            for query in queries:
                found = self._collection.find({"$and": [{"_id": ids}, query]}).hint("_id_")
                stored = await found.to_list(None)
                newest += [each for each in self._readable(stored) if _next_claim(each) in claimed]
            newest = nlargest(limit, newest, key=lambda each: (each.created_at, each.id))
        return [each for each in await self._with_claims(newest) if each.state is State.SENDING]

    async def _read(self, queries: Sequence[_Ordered], limit: int) -> list[Document]:
        """What the queries find, one after the other, up to the limit."""
        found: list[Document] = []
        for each in queries:
            if left := limit - len(found):
                cursor = self._collection.find(each.query).sort(each.order).limit(left).hint(each.index)
                found += await self._database.run(lambda cursor=cursor: cursor.clone().to_list(None))  # type: ignore[misc]
        return found

    def _readable(self, documents: Sequence[Document]) -> list[Delivery]:
        """Those that can be read; the others are told."""
        found: list[Delivery] = []
        for document in documents:
            try:
                found.append(delivery_of(document))
            except CannotRead as unreadable:
                self.on_unreadable(unreadable)
        return found

    async def _with_claims(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        open_ = {_next_claim(d): d for d in deliveries if str(d.state) in _SENDABLE}
        claims = await self.claims(list(open_)) if open_ else {}
        live = {open_[key].id: claim for key, claim in claims.items() if claim.lease_until > _now()}
        return [_sending(delivery, live.get(delivery.id)) for delivery in deliveries]

    async def _last_dead(self, chosen: DeadFilter) -> datetime | None:
        query, order = _dead_query(chosen), [("updated_at", DESCENDING), ("_id", DESCENDING)]
        found = await self._database.run(
            lambda: self._collection.find_one(query, {"updated_at": 1}, sort=order, hint="dead")
        )
        return found["updated_at"] if found else None

    async def _read_all(self, ids: list[str]) -> Sequence[Delivery | Exception | None]:
        query = self._collection.find({"_id": {"$in": ids}})
        documents = await self._database.run(lambda: query.clone().to_list(None))
        found = {document["_id"]: document for document in documents}
        return [_delivery_or_fault(found.get(each)) for each in ids]

    async def _insert(self, documents: list[Document]) -> Sequence[bool | Exception]:
        return await insert_all(self._database, self._collection, documents)

    async def _insert_claims(self, claims: list[Claim]) -> Sequence[bool | Exception]:
        return await insert_own(self._database, self._attempts, [claim_document(claim) for claim in claims])

    async def _postpone(self, updates: list[Update]) -> Sequence[Exception | None]:
        return (await update_all(self._database, self._collection, updates))[1]

    async def _write_records(self, records: list[_Record]) -> Sequence[bool | Exception]:
        """A bulk update tells only totals: where one did not match, the deliveries are read back."""
        amendments = [record.amendment for record in records]
        all_matched, faults = await amend_all(self._database, self._collection, amendments)
        if all_matched:
            return [True] * len(records)
        applied = await self._applied([(record.delivery_id, record.change) for record in records])
        first: dict[str, int] = {}
        for position, record in enumerate(records):
            if applied[position]:
                first.setdefault(record.delivery_id, position)
        # of two that came at the same moment and say the same, as repeated receipts do, one was applied
        own = (first.get(record.delivery_id) == position for position, record in enumerate(records))
        return [fault or mine for fault, mine in zip(faults, own, strict=True)]

    async def _applied(self, changes: Sequence[tuple[str, Change]]) -> Sequence[bool]:
        """Whether each is in its delivery's history, wherever that stands by now: a receipt may have come meanwhile."""
        ids = [delivery_id for delivery_id, _ in changes]
        query = self._collection.find({"_id": {"$in": ids}}, {"history": {"$slice": -HISTORY_COMPARED}})
        documents = await self._database.run(lambda: query.clone().to_list(None))
        histories = {document["_id"]: _history(document) for document in documents}
        return [any(_same(each, change) for each in histories.get(name, ())) for name, change in changes]

    async def _passed(self, name: str, now: datetime, limit: int) -> Sequence[Delivery | Unreadable]:
        """Those whose time of this name has passed, the earliest first."""
        query = self._collection.find({name: {"$lte": now}}).sort(name, ASCENDING).limit(limit)
        documents = await self._database.run(lambda: query.clone().to_list(limit))
        return [readable(document, read_delivery, _USED, name) for document in documents]


def _delivery_or_fault(document: Document | None) -> Delivery | Exception | None:
    """One that cannot be read is its own reader's fault alone."""
    try:
        return delivery_of(document) if document else None
    except CannotRead as unreadable:
        return unreadable


def _now() -> datetime:
    return datetime.now(UTC)


def _history(document: Document) -> Sequence[Change]:
    """Nothing where a hand has written something else: that is no fault of the records beside it."""
    try:
        return [read_change(change) for change in document.get("history", ())]
    except (ValueError, KeyError, TypeError, AttributeError):
        return ()


def _same(stored: Change, wanted: Change) -> bool:
    """Whether a stored change is this one; BSON keeps milliseconds."""
    return replace(stored, at=wanted.at, detail=wanted.detail) == wanted and (
        abs((stored.at - wanted.at).total_seconds()) < 0.001
    )


def _standing_as(before: Delivery) -> Found:
    return ("state", (str(before.state),)), ("epoch", (before.epoch,))


def _record(record: Record) -> _Record:
    delivery, changes = record.delivery, record.changes
    found = (("epoch", (delivery.epoch,)), ("attempt", (record.expected_attempt,)), ("state", _IN_FLIGHT))
    return _Record(delivery.id, changes[-1], _amendment(delivery, found, changes))


def _amendment(delivery: Delivery, found: Found, changes: Sequence[Change]) -> Amendment:
    values: Document = {"state": str(delivery.state), "reason": str(delivery.reason)}
    unset: list[str] = []
    for name, value in zip(_SET_BY_CHANGE, _set_by_change(delivery), strict=True):
        if value is None:
            unset.append(name)
        else:
            values[name] = value
    if delivery.possible_duplicate:
        values["possible_duplicate"] = True
    if delivery.reference is not None:
        values["reference"] = delivery.reference
    history = [change.document() for change in changes]
    return Amendment(delivery.id, found, values, tuple(unset), history, HISTORY_KEPT)


def _sending(delivery: Delivery, claim: Claim | None) -> Delivery:
    if claim is None:
        return delivery
    return replace(
        delivery,
        state=State.SENDING,
        reason=Reason.CLAIMED,
        attempt=delivery.attempt + 1,
        provider=claim.provider or delivery.provider,
        updated_at=claim.claimed_at,
        due_at=claim.lease_until,
    )


def _next_claim(delivery: Delivery) -> str:
    return delivery.claim_id(delivery.attempt + 1)


def _dead_query(chosen: DeadFilter) -> Document:
    query: Document = {
        "state": str(chosen.state),
        "channel": str(chosen.channel) if chosen.channel else {"$in": _CHANNELS},
    }
    for name in ("reason", "source", "type"):
        if (value := getattr(chosen, name)) is not None:
            query[name] = str(value)
    window = {"$gte": chosen.since, "$lte": chosen.until}
    if window := {name: value for name, value in window.items() if value is not None}:
        query["updated_at"] = window
    return query


def _dead_queries(chosen: DeadFilter, last: Document | None) -> Sequence[_Ordered]:
    after = None if last is None else (last["updated_at"], last["_id"])
    return _from(_dead_query(chosen), "updated_at", ASCENDING, after, "dead")


def _list_queries(chosen: DeliveryFilter) -> Sequence[_Ordered]:
    query: Document = {}
    if chosen.event_key is not None:
        query["event_key"] = chosen.event_key
    else:
        query["state"] = {"$in": _STORED_STATES}
        query["channel"] = {"$in": _CHANNELS}
    if chosen.state is not None:
        query["state"] = str(chosen.state)
    if chosen.channel is not None:
        query["channel"] = str(chosen.channel)
    if chosen.since is not None:
        query["created_at"] = {"$gte": chosen.since}
    index = "list" if chosen.event_key is None else "event_list"
    queries = _from(query, "created_at", DESCENDING, chosen.after, index)
    if chosen.since is not None and chosen.after is not None and chosen.after[0] < chosen.since:
        return []
    return queries


_PLACE: Document = {"$project": {"created_at": 1}}
_LAST: Document = {
    "$group": {"_id": None, "created_at": {"$last": "$created_at"}, "id": {"$last": "$_id"}, "number": {"$sum": 1}}
}


def _place(document: Document) -> Place:
    """A damaged one has no time, and stands behind all others."""
    return document.get("created_at"), document.get("id") or document["_id"]  # type: ignore[return-value]


def _to(recipient: str) -> Document:
    """Only what is to this recipient: by its id, or by any address that its event had.

    In the form in which an event's are stored; an e-mail address whatever its case.
    """
    exactly = [{f"recipient.{name}": recipient} for name in ("id", "chat", "webhook", "push.token")]
    phone = {"recipient.phone": phone_number(recipient)}
    mail = {"recipient.email": {"$regex": f"^{re.escape(mail_address(recipient))}$", "$options": "i"}}
    return {"$or": [*exactly, phone, mail]}


def _from(query: Document, by: str, way: int, after: tuple[datetime, str] | None, index: str) -> Sequence[_Ordered]:
    """Two queries where a page goes on: what is of the same moment, then the rest.

    Each begins in the index where the page before ended; one query for both would go through all the pages before.
    """
    if after is None:
        return [_Ordered(query, [(by, way), ("_id", way)], index)]
    at, last = after
    beyond = "$gt" if way == ASCENDING else "$lt"
    return [
        _Ordered({**query, by: at, "_id": {beyond: last}}, [("_id", way)], index),
        _Ordered({**query, by: {**query.get(by, {}), beyond: at}}, [(by, way), ("_id", way)], index),
    ]

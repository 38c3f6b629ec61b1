"""What `notipy audit` asks MongoDB: sums over covered indexes, and the few documents that do not add up.

The collection `audit` holds what earlier audits have found. A document whose `_id` is a time is an hour in order, with
its sums; `before` says before when every hour is in order or empty, `latest` what the sweeper found last, and any other
`_id` is the token of a discrepancy that an operator has acknowledged.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo import ASCENDING
from pymongo.errors import ExecutionTimeout

from domain.audit import (
    HOUR,
    MOVING,
    Audited,
    Discrepancy,
    Dispatched,
    EventCount,
    Kind,
    Queued,
    Span,
    Sums,
    Tally,
    amiss,
    hour_of,
    planning,
    sent_again,
    unequal,
)
from domain.conserve import EPOCH, Counted, Late
from domain.vocabulary import IN_FLIGHT, Channel, EventState, Lane, State
from storage.database import Database, Document
from storage.documents import read_change
from storage.retention import read_horizon

PAGE = 1000
"""Events compared, and deliveries looked up, in one query."""
LOOKED_AT = 20_000
"""Deliveries of a channel that are looked through for those that no queue holds, the oldest first."""
LONGEST_MS = 5000
"""Of one query that counts: well within the client's time limit (`storage.database.SOCKET_MS`)."""
INDIVISIBLE = timedelta(seconds=10)
"""A span so short is counted however long it takes."""
STORED = [state for state in State if state is not State.SENDING]
_STATES = [str(state) for state in STORED]
_CHANNELS = [str(channel) for channel in Channel]
_IN_FLIGHT = [str(state) for state in IN_FLIGHT]
_ABOUT_EVENT = {"source": 1, "id": 1, "received_at": 1, "state": 1, "planned": 1}
_ABOUT_DELIVERY = {"event_key": 1, "source": 1, "event_id": 1, "created_at": 1, "channel": 1, "state": 1, "due_at": 1}
_AT_WORK = {"channel": 1, "lane": 1, "state": 1, "epoch": 1, "attempt": 1, "updated_at": 1, "due_at": 1}


@dataclass(frozen=True, slots=True)
class Latest:
    """What the sweeper's last audit found, for every process that shows it."""

    at: datetime
    planned: int
    stored: int
    counts: Mapping[Kind, int]


class MongoLedger:
    """`domain.conserve.Ledger` over `events`, `deliveries` and `attempts`, with the collection `audit` of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._events = database.collection("events")
        self._deliveries = database.collection("deliveries")
        self._attempts = database.collection("attempts")
        self._audit = database.collection("audit")

    # -- what earlier audits have found -----------------------------------------------------------------------------

    async def verified(self, start: datetime) -> Mapping[datetime, Sums]:
        """From the primary key: a range of times."""
        documents = await self._found({"_id": {"$gte": start}})
        return {document["_id"]: _read_sums(document) for document in documents}

    async def verified_before(self) -> datetime | None:
        """One document."""
        document = await self._database.run(lambda: self._audit.find_one({"_id": "before"}))
        return document["time"] if document else None

    async def keep(self, hour: datetime, sums: Sums) -> None:
        """Replace what was kept of the hour."""
        tally: dict[str, dict[str, int]] = {}
        for (channel, state), count in sums.tally.items():
            tally.setdefault(str(channel), {})[str(state)] = count
        await self._put(hour, {"events": sums.events, "planned": sums.planned, "tally": tally})

    async def forget(self, hours: Sequence[datetime]) -> None:
        """Delete them, and look for hours without a document from the first of them on."""
        if hours:
            await self._database.run(lambda: self._audit.delete_many({"_id": {"$in": list(hours)}}))
            update = {"$min": {"time": hours[0]}}
            await self._database.run(lambda: self._audit.update_one({"_id": "before"}, update))

    async def keep_before(self, time: datetime) -> None:
        """Replace it."""
        await self._put("before", {"time": time})

    async def keep_latest(self, audited: Audited, at: datetime) -> None:
        """For `latest`."""
        counts = {str(kind): count for kind, count in audited.counts.items()}
        sums = audited.sums
        await self._put("latest", {"at": at, "planned": sums.planned, "stored": sums.stored, "counts": counts})

    async def latest(self) -> Latest | None:
        """What the sweeper found last."""
        found = await self._database.run(lambda: self._audit.find_one({"_id": "latest"}))
        if found is None:
            return None
        counts = {Kind(kind): count for kind, count in found["counts"].items()}
        return Latest(found["at"], found["planned"], found["stored"], counts)

    async def acknowledged(self, found: Sequence[Discrepancy]) -> frozenset[str]:
        """By primary keys."""
        documents = await self._found({"_id": {"$in": [each.token for each in found]}})
        return frozenset(document["_id"] for document in documents)

    async def acknowledge(self, found: Discrepancy) -> None:
        """Kept with the time of the event, by which it can be deleted with it."""
        await self._put(found.token, {"received_at": found.at})

    async def kept_since(self) -> datetime | None:
        """From what retention has told before it deleted anything; an hour later, for it goes on meanwhile."""
        horizon = await read_horizon(self._database)
        times = [time for time in (horizon.events_before, horizon.deliveries_before) if time is not None]
        return hour_of(max(times)) + 2 * HOUR if times else None

    # -- conservation -----------------------------------------------------------------------------------------------

    async def next_time(self, start: datetime, end: datetime) -> datetime | None:
        """The first entry of each index."""
        window = {"$gte": start, "$lt": end}
        event = await self._database.run(
            lambda: self._events.find_one(
                {"received_at": window}, {"received_at": 1}, sort=[("received_at", ASCENDING)], hint="received"
            )
        )
        delivery = await self._database.run(
            lambda: self._deliveries.find_one(
                _created(window), {"created_at": 1}, sort=[("created_at", ASCENDING), ("_id", ASCENDING)], hint="list"
            )
        )
        times = [event["received_at"]] if event else []
        return min([*times, delivery["created_at"]] if delivery else times, default=None)

    async def moving(self, start: datetime) -> Mapping[datetime, Tally]:
        """Covered by the index `list`."""
        hours: dict[datetime, Counter[tuple[Channel, State]]] = {}
        span = Span(start, datetime.now(UTC) + 24 * HOUR)
        hour = {"$dateTrunc": {"date": "$created_at", "unit": "hour"}}
        for place, count in await self._grouped(span, MOVING, {"hour": hour}):
            hours.setdefault(place["hour"], Counter())[_place(place)] += count
        return hours

    async def tally(self, span: Span) -> Tally:
        """Covered by the index `list`."""
        tally: Counter[tuple[Channel, State]] = Counter()
        for place, count in await self._grouped(span, STORED, {}):
            tally[_place(place)] += count
        return tally

    async def count(self, span: Span) -> Counted:
        """Covered by the indexes `received` of the events and `event_list` of the deliveries; anew after an outage."""
        return await self._database.run(lambda: self._count(span))

    async def _count(self, span: Span) -> Counted:
        total = planned = early = of_events = unfinished = 0
        wrong: list[Discrepancy] = []
        query = {"received_at": {"$gte": span.start, "$lt": span.end}}
        async for page in self._pages(self._events.find(query, {"state": 1, "planned": 1}).hint("received")):
            events = [EventCount(each["_id"], EventState(each["state"]), each["planned"]) for each in page]
            stored = await self._stored([event.key for event in events])
            total, planned = total + len(events), planned + sum(event.planned for event in events)
            early, of_events = early + planning(events, stored), of_events + sum(stored.values())
            open_ = [event.key for event in events if event.state is EventState.ACCEPTED]
            unfinished += len(open_)
            wrong += await self._amiss([event.key for event in unequal(events, stored)], stored)
            wrong += await self._abandoned(open_)
        return Counted(total, planned, early, of_events, unfinished, wrong)

    async def _stored(self, keys: Sequence[str]) -> Mapping[str, int]:
        """How many deliveries each of these events has, from the index `event_list` alone."""
        found = self._deliveries.find({"event_key": {"$in": list(keys)}}, {"_id": 0, "event_key": 1}).hint("event_list")
        counts: Counter[str] = Counter()  # here and not by MongoDB, which takes twice as long for it
        async for page in self._pages(found):
            counts.update(each["event_key"] for each in page)
        return counts

    async def _amiss(self, keys: Sequence[str], stored: Mapping[str, int]) -> list[Discrepancy]:
        if not keys:
            return []
        documents = await self._events.find({"_id": {"$in": list(keys)}}, _ABOUT_EVENT).to_list(None)
        return [_amiss(document, stored.get(document["_id"], 0)) for document in documents]

    async def _abandoned(self, keys: Sequence[str]) -> list[Discrepancy]:
        """Of events whose planning is not complete, those that nobody will take up."""
        if not keys:
            return []
        query = {"_id": {"$in": list(keys)}, "state": str(EventState.ACCEPTED), "due_at": {"$exists": False}}
        documents = await self._events.find(query, _ABOUT_EVENT).to_list(None)
        return [_of_event(Kind.UNPLANNED, each, "nobody will take it up: it has no due_at") for each in documents]

    async def orphans(self, span: Span) -> AsyncIterator[Sequence[Discrepancy]]:
        """Reads the deliveries of the span: only where the sums have told that there is something to find."""
        query = _created({"$gte": span.start, "$lt": span.end})
        async for page in self._pages(self._deliveries.find(query, _ABOUT_DELIVERY).hint("list")):
            keys = list({each["event_key"] for each in page})
            known = {each["_id"] async for each in self._events.find({"_id": {"$in": keys}}, {"_id": 1})}
            yield [
                _of_delivery(Kind.ORPHANED, each, "its event is not stored")
                for each in page
                if each["event_key"] not in known
            ]

    # -- motion -----------------------------------------------------------------------------------------------------

    async def late(self, since: datetime, before: datetime, limit: int) -> Sequence[Late]:
        """From the partial indexes `due_at`; those without one are looked for where the counts tell that there are."""
        due: Document = {"due_at": {"$lt": before}}
        late = [
            await self._late(Kind.UNPLANNED, due | _since("received_at", since), limit, "due_at"),
            await self._late(Kind.OVERDUE, due | _since("created_at", since), limit, "due_at"),
        ]
        if await self._undated():
            query = _created({"$gte": since}) | {"state": {"$in": _IN_FLIGHT}, "due_at": {"$exists": False}}
            late.append(await self._late(Kind.OVERDUE, query, limit, "list"))
        return late

    async def _late(self, kind: Kind, query: Document, limit: int, index: str) -> Late:
        collection = self._events if kind is Kind.UNPLANNED else self._deliveries
        about = _ABOUT_EVENT if kind is Kind.UNPLANNED else _ABOUT_DELIVERY
        found = collection.find(query, {**about, "due_at": 1}).hint(index).limit(limit)
        documents = await self._database.run(lambda: found.clone().to_list(limit))
        count = await self._database.run(lambda: collection.count_documents(query, hint=index))
        tell = _of_event if kind is Kind.UNPLANNED else _of_delivery
        return Late(kind, [tell(kind, each, _due_told(each)) for each in documents], count)

    async def _undated(self) -> bool:
        """Whether more deliveries are in flight than have a time at which the sweeper looks after them."""
        places = [{"state": state, "channel": channel} for state in _IN_FLIGHT for channel in _CHANNELS]
        dated: Document = {"due_at": {"$gt": EPOCH}}
        before = await self._number(dated, "due_at")
        in_flight = sum([await self._number(place, "list") for place in places])
        # of two counts, for what is in flight grows or shrinks meanwhile; looking for them is dear
        return in_flight > max(before, await self._number(dated, "due_at"))

    async def _number(self, query: Document, index: str) -> int:
        return await self._database.run(lambda: self._deliveries.count_documents(query, hint=index))

    async def duplicated(self, since: datetime) -> AsyncIterator[Sequence[Discrepancy]]:
        """From the partial index `possible_duplicate`, which holds few."""
        query = {"possible_duplicate": True, "created_at": {"$gte": since}}
        cursor = self._deliveries.find(query, {**_ABOUT_DELIVERY, "history": 1}).hint("possible_duplicate")
        async for page in self._pages(cursor):
            yield [found for each in page for found in _duplicated(each)]

    async def dispatched(self, since: datetime, due: datetime, queued: Queued) -> Sequence[Dispatched]:
        """From the index `list`, of channels with a queue in which nothing waits."""
        found: list[Document] = []
        for channel in queued.channels:
            chosen = {"state": {"$in": [str(State.QUEUED), str(State.RETRYING)]}, "channel": str(channel)}
            stages: list[Document] = [
                {"$match": chosen | {"created_at": {"$gte": since}}},
                {"$sort": {"created_at": ASCENDING, "_id": ASCENDING}},
                {"$limit": LOOKED_AT},
                {"$match": {"due_at": {"$gte": due}}},
                {"$project": _AT_WORK},
            ]
            found += await self._aggregate(stages)
        return await self._unclaimed([_read_dispatched(each) for each in found])

    async def undispatched(self, lost: Sequence[Dispatched]) -> Sequence[Discrepancy]:
        """By primary keys."""
        still = {each.id: each for each in await self._unclaimed(lost)}
        query = self._deliveries.find({"_id": {"$in": list(still)}}, {**_ABOUT_DELIVERY, **_AT_WORK})
        documents = await self._database.run(lambda: query.clone().to_list(None))
        return [
            _of_delivery(Kind.UNDISPATCHED, each, f"{each['state']}, and no queue of {each['channel']} holds it")
            for each in documents
            if each["state"] in _IN_FLIGHT and _read_dispatched(each) == still[each["_id"]]
        ]

    async def _unclaimed(self, deliveries: Sequence[Dispatched]) -> Sequence[Dispatched]:
        """Without those that somebody has, or had, in hand: the sweeper finds them when the lease has run out."""
        query = self._attempts.find({"_id": {"$in": [each.claim_id for each in deliveries]}}, {"_id": 1})
        claimed = {each["_id"] for each in await self._database.run(lambda: query.clone().to_list(None))}
        return [each for each in deliveries if each.claim_id not in claimed]

    # -- repair -----------------------------------------------------------------------------------------------------

    async def plan_again(self, key: str, now: datetime) -> bool:
        """As an event whose planning was cut short, which the sweeper takes up next.

        Not if its deliveries may have been deleted meanwhile because they were old: they would be sent again.
        """
        condition: Document = {"_id": key, "received_at": {"$gte": await self.kept_since() or EPOCH}}
        update = {"$set": {"state": str(EventState.ACCEPTED), "resumed": 0}, "$min": {"due_at": now}}
        return bool((await self._database.run(lambda: self._events.update_one(condition, update))).matched_count)

    async def look_after(self, delivery_id: str, now: datetime) -> bool:
        """Due now, unless it was due before."""
        condition = {"_id": delivery_id, "state": {"$in": _IN_FLIGHT}}
        update = {"$min": {"due_at": now}}
        return bool((await self._database.run(lambda: self._deliveries.update_one(condition, update))).matched_count)

    # ---------------------------------------------------------------------------------------------------------------

    async def _found(self, query: Document) -> list[Document]:
        return await self._database.run(lambda: self._audit.find(query).to_list(None))

    async def _put(self, key: str | datetime, values: Document) -> None:
        await self._database.run(lambda: self._audit.replace_one({"_id": key}, values, upsert=True))

    async def _grouped(self, span: Span, states: Sequence[State], by: Document) -> list[tuple[Document, int]]:
        """How many deliveries of the span stand where. A span that takes too long is counted in halves."""
        chosen = _created({"$gte": span.start, "$lt": span.end}, [str(state) for state in states])
        group = {"_id": {**by, "channel": "$channel", "state": "$state"}, "count": {"$sum": 1}}
        stages: list[Document] = [{"$match": chosen}, {"$group": group}]
        divisible = span.end - span.start > INDIVISIBLE

        async def counting() -> list[Document] | None:
            limit = {"maxTimeMS": LONGEST_MS} if divisible else {}
            try:
                return await self._deliveries.aggregate(stages, hint="list", **limit).to_list(None)
            except ExecutionTimeout:
                if divisible:
                    return None
                raise

        found = await self._database.run(counting)
        if found is not None:
            return [(each["_id"], each["count"]) for each in found]
        middle = span.start + (span.end - span.start) / 2
        halves = [await self._grouped(half, states, by) for half in (Span(span.start, middle), Span(middle, span.end))]
        return [each for half in halves for each in half]

    async def _aggregate(self, stages: list[Document]) -> list[Document]:
        return await self._database.run(lambda: self._deliveries.aggregate(stages, hint="list").to_list(None))

    async def _pages(self, cursor: Any) -> AsyncIterator[list[Document]]:
        """The documents of a cursor, `PAGE` at a time."""
        cursor = cursor.batch_size(PAGE)
        while page := await cursor.to_list(PAGE):
            yield page


def _created(window: Document, states: Sequence[str] = _STATES) -> Document:
    """Equality on the first fields of the index `list`, so that it serves for a range of times."""
    return {"state": {"$in": list(states)}, "channel": {"$in": _CHANNELS}, "created_at": window}


def _place(group: Document) -> tuple[Channel, State]:
    return Channel(group["channel"]), State(group["state"])


def _amiss(event: Document, stored: int) -> Discrepancy:
    kind, detail = amiss(event["planned"], stored)
    return _of_event(kind, event, detail, mark=f"/{stored}" if kind is Kind.SURPLUS else "")


def _of_event(kind: Kind, event: Document, detail: str, mark: str = "") -> Discrepancy:
    state = EventState(event["state"])
    return Discrepancy(
        kind, event["_id"], event["source"], event["id"], event["received_at"], detail, state=state, mark=mark
    )


def _of_delivery(kind: Kind, delivery: Document, detail: str, mark: str = "") -> Discrepancy:
    return Discrepancy(
        kind,
        delivery["event_key"],
        delivery["source"],
        delivery["event_id"],
        delivery["created_at"],
        detail,
        delivery["_id"],
        Channel(delivery["channel"]),
        State(delivery["state"]),
        mark,
    )


def _duplicated(delivery: Document) -> Sequence[Discrepancy]:
    history = [read_change(change) for change in delivery.get("history", ())]
    return [
        _of_delivery(Kind.DUPLICATED, delivery, f"sent {times} times in epoch {epoch}", f"/{epoch}/{times}")
        for epoch, times in sent_again(history).items()
    ]


def _read_dispatched(document: Document) -> Dispatched:
    return Dispatched(
        id=document["_id"],
        channel=Channel(document["channel"]),
        lane=Lane(document["lane"]),
        state=State(document["state"]),
        claim_id=f"{document['_id']}/{document['epoch']}/{document['attempt'] + 1}",
        updated_at=document["updated_at"],
        due_at=document["due_at"],
    )


def _read_sums(document: Document) -> Sums:
    tally = {
        (Channel(channel), State(state)): count
        for channel, states in document["tally"].items()
        for state, count in states.items()
    }
    return Sums(document["events"], document["planned"], 0, tally)


def _since(name: str, since: datetime) -> Document:
    """Left out where it says nothing, so that what is counted is counted from the index alone."""
    return {name: {"$gte": since}} if since > EPOCH else {}


def _due_told(document: Document) -> str:
    due = document.get("due_at")
    return f"due since {due.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if due else "nobody will look after it: no due_at"

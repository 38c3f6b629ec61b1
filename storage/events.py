"""The accepted events."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime

from pymongo import ASCENDING, UpdateMany

from domain.group_commit import GroupCommit, enough
from domain.ports import StoredEvent
from domain.vocabulary import EventState
from storage.database import Database, Document
from storage.documents import event_document, read_event
from storage.writes import Update, insert_own, update_all, write_all

SETTLE_LINGER = 0.05
"""Seconds that the end of an event's planning waits for others': its deliveries are on their way already, and each
write that is saved is one that a delivery does not queue behind. The prefetch of events lasts for far longer."""

_EVER = datetime.max.replace(tzinfo=UTC)


class MongoEvents:
    """`domain.ports.Events` in the collection `events`."""

    def __init__(self, database: Database, in_progress: int = 1) -> None:
        """`in_progress`: how many events are worked at a time."""
        self._database = database
        self._collection = database.collection("events")
        self._inserts: GroupCommit[Document, bool] = GroupCommit(self._insert)
        self._updates: GroupCommit[Update, None] = GroupCommit(self._update)
        self._settlements: GroupCommit[tuple[str, str, int], None] = GroupCommit(
            self._settle, linger=SETTLE_LINGER, enough=enough(in_progress)
        )

    async def add(self, event: StoredEvent, due_at: datetime) -> bool:
        """Insert with whoever else inserts; the unique `_id` tells a duplicate."""
        return await self._inserts.submit({**event_document(event), "due_at": due_at})

    async def get(self, key: str) -> StoredEvent | None:
        """By primary key."""
        document = await self._database.run(lambda: self._collection.find_one({"_id": key}))
        return read_event(document) if document else None

    async def settle(self, key: str, state: EventState, planned: int) -> None:
        """Leaves the sweeper's index."""
        await self._settlements.submit((key, str(state), planned))

    async def due(self, now: datetime, limit: int) -> Sequence[StoredEvent]:
        """From the partial index `due`."""
        query = self._collection.find({"due_at": {"$lte": now}}).sort("due_at", ASCENDING).limit(limit)
        documents = await self._database.run(lambda: query.clone().to_list(limit))
        return [read_event(document) for document in documents]

    async def count_due(self, before: datetime | None = None) -> int:
        """How many are not planned to the end: all of them, or those due since before this time."""
        query = {"due_at": {"$lt": before or _EVER}}  # of one that may be missing MongoDB would read the document
        return await self._database.run(lambda: self._collection.count_documents(query, hint="due_at"))

    async def postpone(self, key: str, due_at: datetime, taken_up: int = 1) -> None:
        """Only while it is due at all: one that is settled meanwhile stays so."""
        condition = {"_id": key, "due_at": {"$exists": True}}
        await self._updates.submit(Update(condition, {"$set": {"due_at": due_at}, "$inc": {"resumed": taken_up}}))

    async def _insert(self, documents: list[Document]) -> Sequence[bool | Exception]:
        return await insert_own(self._database, self._collection, documents)

    async def _settle(self, settlements: list[tuple[str, str, int]]) -> Sequence[None]:
        """Most come to the same: one update for all of those."""
        alike: dict[tuple[str, int], list[str]] = defaultdict(list)
        for key, state, planned in settlements:
            alike[state, planned].append(key)
        updates = [
            UpdateMany({"_id": {"$in": keys}}, {"$set": {"state": state, "planned": planned}, "$unset": {"due_at": ""}})
            for (state, planned), keys in alike.items()
        ]
        await self._database.run(lambda: write_all(self._collection, updates))
        return [None] * len(settlements)

    async def _update(self, updates: list[Update]) -> Sequence[Exception | None]:
        return (await update_all(self._database, self._collection, updates))[1]

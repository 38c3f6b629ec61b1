"""What is over and older than it is kept is deleted, a batch at a time; what is not final never is.

Each deletion carries its own condition, so that whatever has moved since it was chosen stays: a replay wins.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pymongo import ASCENDING

from domain.vocabulary import REPLAYABLE, EventState, State
from storage.database import Collection, Database, Document
from storage.files import BUCKET
from storage.writes import delete_all

BATCH = 500
"""Documents looked at together."""
FILES = 20
"""Attachments deleted together, each of some tens of chunks: one command ends long before a client gives it up."""
AGAIN_AFTER = timedelta(days=1)
"""How often a walk begins anew, to see again what it had to keep."""
SKEW = timedelta(hours=1)
"""What the clocks of two machines may differ by, generously: a claim may seem younger than the end that it led to."""
LAG = timedelta(hours=1)
"""How long after its time an event is looked at: when deliveries that became final soon after it have gone."""
_REPLAYABLE = [str(state) for state in REPLAYABLE]
_FINAL = [str(state) for state in State if state.final]
_OVER = [state for state in _FINAL if state not in _REPLAYABLE]
_SETTLED = [str(EventState.PLANNED), str(EventState.UNMATCHED)]
_RETENTION = "retention"


@dataclass(frozen=True, slots=True)
class Cutoffs:
    """What is older than these times is not kept; None: everything is kept.

    Attributes:
        events: by when they were received.
        deliveries: by when they became final, but for those that can be replayed.
        attempts: by when their delivery became final.
        dead: by when deliveries that can be replayed became so, and by when a message was parked.
    """

    events: datetime | None = None
    deliveries: datetime | None = None
    attempts: datetime | None = None
    dead: datetime | None = None


@dataclass(frozen=True, slots=True)
class Horizon:
    """What may be missing from the database because it was deleted, not lost.

    Attributes:
        events_before: an event received before this may have been deleted; None: none ever was.
        deliveries_before: the same of a delivery created before this.
    """

    events_before: datetime | None = None
    deliveries_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What one batch did: how many documents of each class were deleted, and whether there may be more to do."""

    deleted: Mapping[str, int]
    more: bool


async def read_horizon(database: Database) -> Horizon:
    """How far deletion may have come; written before anything is deleted, and never taken back."""
    document = await database.run(lambda: database.collection("housekeeping").find_one({"_id": _RETENTION}))
    found = document or {}
    return Horizon(found.get("events_before"), found.get("deliveries_before"))


@dataclass(slots=True)
class _Walk:
    """How far a walk from the oldest to the youngest has come, kept while the process lives.

    What it has passed by is looked at again when it begins anew: a little of what it passes is kept, and would
    otherwise stand in its way for ever.
    """

    collection: Collection
    by: str
    index: str
    at: datetime | None = None
    begun: datetime | None = None

    def window(self, before: datetime) -> Document:
        """What is still ahead."""
        if self.begun is None or before - self.begun >= AGAIN_AFTER:
            self.at, self.begun = None, before
        return {"$lt": before} | ({"$gte": self.at} if self.at is not None else {})

    def passed(self, page: Sequence[Document], deleted: int) -> bool:
        """Go on from the last of the page; past it, if a whole page of one moment was kept. Whether there is more."""
        more = len(page) == BATCH
        if page:
            last = page[-1][self.by]
            stuck = more and not deleted and page[0][self.by] == last
            self.at = last + timedelta(milliseconds=1) if stuck else last
        return more


@dataclass(slots=True)
class MongoRetention:
    """Deletes by class, one batch a call. Several processes at once waste work and do no harm."""

    database: Database
    _events: _Walk = field(init=False)
    _attempts: _Walk = field(init=False)
    _attachments: _Walk = field(init=False)
    _deliveries: Collection = field(init=False)
    _files: Collection = field(init=False)
    _chunks: Collection = field(init=False)

    def __post_init__(self) -> None:
        self._events = _Walk(self.database.collection("events"), "received_at", "received")
        self._attempts = _Walk(self.database.collection("attempts"), "lease_until", "lease")
        self._attachments = _Walk(self.database.collection("attachments"), "at", "at")
        self._deliveries = self.database.collection("deliveries")
        self._files = self.database.collection(f"{BUCKET}.files")
        self._chunks = self.database.collection(f"{BUCKET}.chunks")

    async def announce(self, cutoffs: Cutoffs) -> None:
        """Say what may be deleted from now on (`read_horizon`), before it is: later than before, never earlier."""
        final = max((at for at in (cutoffs.deliveries, cutoffs.dead) if at is not None), default=None)
        told = {"events_before": cutoffs.events, "deliveries_before": final}
        if update := {name: at for name, at in told.items() if at is not None}:
            collection = self.database.collection("housekeeping")
            await self.database.run(lambda: collection.update_one({"_id": _RETENTION}, {"$max": update}, upsert=True))

    async def deliveries(self, before: datetime) -> Step:
        """Those that became final before this time, with their claims, but for those that can be replayed."""
        return await self._final("deliveries", _OVER, before)

    async def dead(self, before: datetime) -> Step:
        """Those that failed, or whose outcome is unknown, since before this time, with their claims."""
        return await self._final("dead", _REPLAYABLE, before)

    async def attempts(self, before: datetime) -> Step:
        """Claims on deliveries that became final before this time, and claims whose delivery is no more."""
        page = await self._page(self._attempts, before)
        owners = {claim["_id"]: claim["_id"].split("/")[0] for claim in page}
        kept = await self._kept(sorted(set(owners.values())), before)
        gone = [claim for claim, owner in owners.items() if owner not in kept]
        deleted = await self._delete(self._attempts.collection, {"_id": {"$in": gone}}) if gone else 0
        return Step({"attempts": deleted}, self._attempts.passed(page, deleted))

    async def events(self, before: datetime, dead: datetime | None = None) -> Step:
        """Events received before this time that are settled and have no delivery left.

        `dead`: events that could not be planned go only if they were received before this.
        """
        page = await self._page(self._events, before - LAG)
        ids = [event["_id"] for event in page]
        kept = set(await self._with_deliveries(ids)) if ids else set()
        condition = {"_id": {"$in": [key for key in ids if key not in kept]}, "due_at": {"$exists": False}}
        states: list[Document] = [{"state": {"$in": _SETTLED}}]
        if dead is not None:
            states.append({"state": str(EventState.FAILED), "received_at": {"$lt": dead}})
        deleted = await self._delete(self._events.collection, {**condition, "$or": states}) if ids else 0
        return Step({"events": deleted}, self._events.passed(page, deleted))

    async def inbox(self, before: datetime) -> Step:
        """Items that were put into inboxes before this time, whatever was done to them."""
        collection, old = self.database.collection("inbox"), {"at": {"$lt": before}}
        query = collection.find(old, {"_id": 1}).sort("at", ASCENDING).limit(BATCH).hint("at")
        ids = [document["_id"] for document in await self.database.run(lambda: query.clone().to_list(BATCH))]
        deleted = await self._delete(collection, {"_id": {"$in": ids}}) if ids else 0
        return Step({"inbox": deleted}, len(ids) == BATCH)

    async def files(self, before: datetime) -> Step:
        """Attachments that were fetched before this time for events that are no more, and files that nobody else has.

        An attachment goes after its files, so that one which is cut short is come upon again.
        """
        page = await self._page(self._attachments, before - 2 * LAG)
        gone = await self._without_event([document["_id"] for document in page])
        deleted = 0
        for start in range(0, len(gone), FILES):
            deleted += await self._delete_attachments(gone[start : start + FILES], before)
        return Step({"attachments": deleted}, self._attachments.passed(page, deleted))

    async def _without_event(self, keys: list[str]) -> list[str]:
        """Those of these attachments whose event has been deleted."""
        query = self._events.collection.find({"_id": {"$in": [_event_of(key) for key in keys]}}, {"_id": 1})
        found = await self.database.run(lambda: query.clone().hint("_id_").to_list(None)) if keys else []
        events = {document["_id"] for document in found}
        return [key for key in keys if _event_of(key) not in events]

    async def _delete_attachments(self, keys: list[str], before: datetime) -> int:
        attachments = self._attachments.collection
        query = attachments.find({"_id": {"$in": keys}}, {"file": 1, "uploads": 1}).hint("_id_")
        found = await self.database.run(lambda: query.clone().to_list(None))
        files = {document["_id"]: _files_of(document) for document in found}
        kept = await self._delete_files(set().union(*files.values()), keys, before)
        over = [key for key, own in files.items() if not own & kept]
        return await self._delete(attachments, {"_id": {"$in": over}}) if over else 0

    async def _delete_files(self, ids: set[Any], keys: list[str], before: datetime) -> set[Any]:
        """Delete what no other attachment has; returns which of the files are left although none has.

        One that was used lately may be about to become another event's: its attachment is seen after this look.
        """
        elsewhere = {"file": {"$in": list(ids)}, "_id": {"$nin": keys}}
        shared = await self.database.run(lambda: self._attachments.collection.distinct("file", elsewhere))
        mine = list(ids - set(shared))
        if not mine:
            return set()
        unused = {"_id": {"$in": mine}, "metadata.used_at": {"$lt": before}}
        await self._delete(self._files, unused)
        query = self._files.find({"_id": {"$in": mine}}, {"_id": 1}).hint("_id_")
        left = {document["_id"] for document in await self.database.run(lambda: query.clone().to_list(None))}
        chunks = {"files_id": {"$in": [file for file in mine if file not in left]}}
        await self.database.run(lambda: self._chunks.delete_many(chunks, hint="files_id_1_n_1"))
        return left

    async def _final(self, name: str, states: list[str], before: datetime) -> Step:
        # one of whose end nobody has been told yet is not over
        over: Document = {"state": {"$in": states}, "updated_at": {"$lt": before}, "tell_at": {"$exists": False}}
        query = self._deliveries.find(over, {"_id": 1}).sort("updated_at", ASCENDING).limit(BATCH).hint("age")
        ids = [document["_id"] for document in await self.database.run(lambda: query.clone().to_list(BATCH))]
        if not ids:
            return Step({}, more=False)
        # claims first: cut short here, what is left is what there always is after `attempts`
        claims = await delete_all(
            self.database, self._attempts.collection, [_claims_of(key, before + SKEW) for key in ids]
        )
        deleted = await self._delete(self._deliveries, {"_id": {"$in": ids}, **over})
        return Step({name: deleted, "attempts": claims}, len(ids) == BATCH)

    async def _page(self, walk: _Walk, before: datetime) -> list[Document]:
        query = walk.collection.find({walk.by: walk.window(before)}, {"_id": 1, walk.by: 1})
        query = query.sort(walk.by, ASCENDING).limit(BATCH).hint(walk.index)
        return await self.database.run(lambda: query.clone().to_list(BATCH))

    async def _kept(self, ids: Iterable[str], before: datetime) -> set[str]:
        """The deliveries of these whose claims are needed: not final, or final since a short time."""
        query = self._deliveries.find({"_id": {"$in": list(ids)}}, {"state": 1, "updated_at": 1}).hint("_id_")
        found = await self.database.run(lambda: query.clone().to_list(None))
        return {d["_id"] for d in found if d["state"] not in _FINAL or d["updated_at"] >= before}

    async def _with_deliveries(self, event_keys: list[str]) -> list[Any]:
        chosen = {"event_key": {"$in": event_keys}}
        return await self.database.run(lambda: self._deliveries.distinct("event_key", chosen))

    async def _delete(self, collection: Collection, condition: Mapping[str, Any]) -> int:
        result = await self.database.run(lambda: collection.delete_many(condition, hint="_id_"))
        return result.deleted_count


def _event_of(attachment: str) -> str:
    return attachment.split("/")[0]


def _files_of(attachment: Document) -> set[Any]:
    """All that were ever stored for it, also those of a process that ended meanwhile."""
    return {*attachment.get("uploads", ()), *([attachment["file"]] if "file" in attachment else [])}


def _claims_of(delivery: str, before: datetime) -> Document:
    """Every claim of a delivery but those of an epoch that has begun since; `0` is the sign after `/`."""
    return {"_id": {"$gte": f"{delivery}/", "$lt": f"{delivery}0"}, "claimed_at": {"$lt": before}}

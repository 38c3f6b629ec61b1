"""The suppression list: the truth in MongoDB, and in memory which addresses have to be looked up there at all."""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from bson.codec_options import CodecOptions, DatetimeConversion
from pymongo import ASCENDING, DESCENDING, ReturnDocument, UpdateOne

from domain.group_commit import GroupCommit
from domain.suppression import Suppression
from domain.vocabulary import Channel, SuppressionReason
from storage.database import Database, Document
from storage.writes import delete_all, write_all

REFRESH = timedelta(seconds=2)
"""Between two looks for what is new: a suppression by another process takes effect within this, and a moment."""
IN_MEMORY = 100_000
"""Entries of which the fingerprints are held, some 7 MB; of a longer list every address is looked up, in groups."""
OVERLAP = timedelta(minutes=1)
"""What is read again at each look: writes become visible in another order than that of their times, and the clocks of
two primaries that took turns between two looks may differ by so much."""
ANEW = timedelta(minutes=15)
"""How often all of it is read anew: what was removed leaves no trace, and costs a query a message until then."""
PAGE = 1000
_FORGIVING: Final = CodecOptions[Document](
    tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO, unicode_decode_error_handler="replace"
)
"""A date or a text that Python cannot have is a fault of its own document, not of all that are read with it."""
UNREADABLE = "unreadable entry"
"""The source of an entry that cannot be read whole."""


@dataclass(frozen=True, slots=True)
class SuppressionFilter:
    """Which entries a list shows; None: any."""

    channel: Channel | None = None
    reason: SuppressionReason | None = None
    since: datetime | None = None


class MongoSuppressions:
    """`domain.suppression.Suppressions` in the collections `suppressions` and `soft_bounces`.

    Memory only says that an address may be suppressed; the database then says whether it is, so that an entry that was
    removed or has expired stops nobody.
    """

    def __init__(self, database: Database, limit: int = IN_MEMORY) -> None:
        self._database = database
        self._collection = database.collection("suppressions").with_options(codec_options=_FORGIVING)
        self._counts = database.collection("soft_bounces")
        self._limit = limit
        self._known: set[int] | None = None
        self._meanwhile: set[int] = set()
        self._seen_until = datetime.min.replace(tzinfo=UTC)
        self._read_at = self._looked_at = -math.inf
        self._refreshing = asyncio.Lock()
        self.on_added: Callable[[Suppression], None] = lambda _: None
        self._questions: GroupCommit[str, Suppression | None] = GroupCommit(self._look_up)
        self._additions: GroupCommit[Suppression, None] = GroupCommit(self._add_all)
        self._withdrawals: GroupCommit[tuple[Sequence[str], str], bool] = GroupCommit(self._withdraw_all)
        self._forgotten: GroupCommit[str, None] = GroupCommit(self._forget_all)

    # -- what every message asks ------------------------------------------------------------------------------------

    async def among(self, keys: Sequence[str]) -> Mapping[str, Suppression]:
        """From memory where none of them can be; a query shared with others' where one may."""
        known = self._known
        asked = keys if known is None else [key for key in keys if _fingerprint(key) in known]
        if not asked:
            return {}
        found = await asyncio.gather(*map(self._questions.submit, asked))
        return {key: entry for key, entry in zip(asked, found, strict=True) if entry is not None}

    async def refresh(self) -> None:
        """Take over what others have added; everything anew from time to time."""
        async with self._refreshing:
            now = time.monotonic()
            if now - self._read_at >= ANEW.total_seconds():
                await self._read_anew()
                self._read_at = now
            elif self._known is not None:
                # both questions in one visit to a thread: this is what an idle process does most often
                self._remember(self._taken(await self._database.read(self._new_documents)))
            self._looked_at = now

    def _new_documents(self) -> list[Document]:
        return self._documents(self._last_look(self._database.time_now()) - OVERLAP)

    def _last_look(self, now: datetime) -> datetime:
        """When that was, by the server's clock of then or of now, whichever is behind: the primary may be another one.

        An entry from a clock that is ahead, or of the year 3000, so hides none that is written later.
        """
        return min(self._seen_until, now - timedelta(seconds=time.monotonic() - self._looked_at))

    async def _read_anew(self) -> None:
        """What was known holds until all is read: meanwhile, or should that fail, nobody passes for not suppressed."""
        began = await self._database.time()
        self._meanwhile.clear()
        if await self._database.run(self._collection.estimated_document_count) > self._limit:
            self._known = None
        else:
            found = await self._fingerprints()
            added = await self._fingerprints(began - OVERLAP)  # by others, since the first reading began
            self._known = found
            self._remember(added | self._meanwhile)
        self._seen_until = max(self._seen_until, began)

    async def _fingerprints(self, since: datetime | None = None) -> set[int]:
        return self._taken(await self._database.read(lambda: self._documents(since)))

    def _documents(self, since: datetime | None) -> list[Document]:
        """From the index `changed` alone; without `since` also those that have no time, or a damaged one."""
        wanted = {"updated_at": {"$gt": since}} if since else {}
        query = self._collection.delegate.find(wanted, {"_id": 1, "updated_at": 1}).hint("changed")
        return list(query.limit(self._limit + 1))

    def _taken(self, documents: Sequence[Document]) -> set[int]:
        """Their fingerprints; the latest of their times is how far has been looked."""
        times = [at for document in documents if isinstance(at := document.get("updated_at"), datetime)]
        self._seen_until = max([self._seen_until, *times])
        return {_fingerprint(document["_id"]) for document in documents if _is_key(document["_id"])}

    def _wrote(self, keys: Iterable[str]) -> None:
        """Known to this process at once; also while all is read anew, which may have missed it."""
        fingerprints = {_fingerprint(key) for key in keys}
        if self._refreshing.locked():
            self._meanwhile |= fingerprints
        self._remember(fingerprints)

    def _remember(self, fingerprints: Iterable[int]) -> None:
        if self._known is not None:
            self._known.update(fingerprints)
            if len(self._known) > self._limit:
                self._known = None

    async def _look_up(self, keys: list[str]) -> Sequence[Suppression | None]:
        query = self._collection.find({"_id": {"$in": keys}})
        documents = await self._database.run(lambda: query.clone().to_list(None))
        now = datetime.now(UTC)
        found = {document["_id"]: entry for document in documents if (entry := _read(document)).in_force(now)}
        return [found.get(key) for key in keys]

    # -- what providers and receipts say ----------------------------------------------------------------------------

    async def add(self, suppression: Suppression) -> None:
        """An upsert that changes nothing of what outlasts it (`Suppression.outlasts`); grouped with others'."""
        await self._additions.submit(suppression)

    async def _add_all(self, additions: list[Suppression]) -> Sequence[None]:
        now = datetime.now(UTC)
        first: dict[str, Suppression] = {}
        for entry in additions:
            if (before := first.get(entry.key)) is None or not before.outlasts(entry):
                first[entry.key] = entry
        expired = {"_id": {"$in": list(first)}, "expires_at": {"$lte": now}}
        await self._database.run(lambda: self._collection.delete_many(expired, hint="_id_"))
        await self._write([UpdateOne({"_id": key}, _new(entry), upsert=True) for key, entry in first.items()])
        self._wrote(first)
        for entry in first.values():
            self.on_added(entry)
        return [None] * len(additions)

    async def withdraw(self, keys: Sequence[str], delivery: str) -> bool:
        """Asked of the database, whatever memory knows: another process may have been refused a moment ago.

        Grouped with others': of thousands that are replayed most had no address suppressed.
        """
        return await self._withdrawals.submit((keys, delivery))

    async def _withdraw_all(self, asked: list[tuple[Sequence[str], str]]) -> Sequence[bool]:
        keys = sorted({key for own, _ in asked for key in own})
        query = self._collection.find({"_id": {"$in": keys}}, {"delivery": 1})
        documents = await self._database.run(lambda: query.clone().to_list(None))
        made_by = {document["_id"]: document.get("delivery") for document in documents}
        had = [[key for key in own if made_by.get(key) == delivery] for own, delivery in asked]
        gone = [{"_id": key, "delivery": made_by[key]} for own in had for key in own]
        if gone:
            await delete_all(self._database, self._collection, gone)
        return [bool(own) for own in had]

    async def soft_bounced(self, key: str, ref: str) -> int:
        """One document an address, with the deliveries that bounced: a set, so that one told twice counts once."""
        update = {"$addToSet": {"deliveries": ref}, "$set": {"at": datetime.now(UTC)}}
        document = await self._database.run(
            lambda: self._counts.find_one_and_update(
                {"_id": key}, update, upsert=True, return_document=ReturnDocument.AFTER
            )
        )
        return len(document["deliveries"])

    async def forget_soft_bounces(self, key: str) -> None:
        """A deletion, grouped with others'; there mostly is nothing to delete."""
        await self._forgotten.submit(key)

    async def _forget_all(self, keys: list[str]) -> Sequence[None]:
        await self._database.run(lambda: self._counts.delete_many({"_id": {"$in": keys}}))
        return [None] * len(keys)

    # -- what operators do ------------------------------------------------------------------------------------------

    async def put(self, entries: Sequence[Suppression]) -> int:
        """Write these, in place of what is there; returns how many are new. The last of the same address counts."""
        last = {entry.key: entry for entry in entries}
        before = await self.stored(list(last))
        await self._write([UpdateOne({"_id": key}, _replacing(entry), upsert=True) for key, entry in last.items()])
        self._wrote(last)
        return len(last) - len(before)

    async def stored(self, keys: Sequence[str]) -> Collection[str]:
        """Those of these keys that are stored, in force or not."""
        query = self._collection.find({"_id": {"$in": list(keys)}}, {"_id": 1})
        return {document["_id"] for document in await self._database.run(lambda: query.clone().to_list(None))}

    async def remove(self, keys: Sequence[str]) -> int:
        """Use these addresses again, their soft bounces forgotten; returns how many were there."""
        await self._forget_all(list(keys))
        result = await self._database.run(lambda: self._collection.delete_many({"_id": {"$in": list(keys)}}))
        return result.deleted_count

    async def listed(self, chosen: SuppressionFilter, limit: int | None = None) -> AsyncIterator[Suppression]:
        """Those in force, the latest first; from the index `list`, in pages that hold no cursor open."""
        after: Document | None = None
        left = limit
        while left is None or left > 0:
            page = await self._page(chosen, after, min(PAGE, left or PAGE))
            for document in page:
                yield _read(document)
            if not page:
                return
            after, left = page[-1], None if left is None else left - len(page)

    async def _page(self, chosen: SuppressionFilter, after: Document | None, size: int) -> list[Document]:
        """Two queries where a page goes on, of the same moment and of those before, each from where it begins."""
        found: list[Document] = []
        for query in _queries(chosen, after):
            if left := size - len(found):
                ordered = self._collection.find(query).sort([("since", DESCENDING), ("_id", ASCENDING)]).limit(left)
                cursor = ordered.hint("list")
                found += await self._database.run(lambda cursor=cursor: cursor.clone().to_list(None))  # type: ignore[misc]
        return found

    async def _write(self, updates: Sequence[UpdateOne]) -> None:
        await write_all(self._database, self._collection, updates)


def _fingerprint(key: str) -> int:
    """64 bits of the hash: another address with the same ones costs a query, and is not suppressed by it."""
    return int(key[-16:], 16)


def _is_key(value: object) -> bool:
    """Whether an address can have this key; somebody may have written another by hand."""
    return isinstance(value, str) and _KEY.fullmatch(value) is not None


_KEY: Final = re.compile(r"[a-z]+/[0-9a-f]{64}")


def _wanted(chosen: SuppressionFilter) -> Document:
    channels = [str(channel) for channel in Channel] if chosen.channel is None else [str(chosen.channel)]
    reasons = [str(reason) for reason in SuppressionReason] if chosen.reason is None else [str(chosen.reason)]
    window: Document = {} if chosen.since is None else {"since": {"$gte": chosen.since}}
    return {"channel": {"$in": channels}, "reason": {"$in": reasons}, **window}


def _queries(chosen: SuppressionFilter, after: Document | None) -> Sequence[Document]:
    in_force = {"$or": [{"expires_at": {"$exists": False}}, {"expires_at": {"$gt": datetime.now(UTC)}}]}
    query = _wanted(chosen) | in_force
    if after is None:
        return [query]
    at = after.get("since")
    return [
        {**query, "since": at, "_id": {"$gt": after["_id"]}},
        {**query, "since": {**query.get("since", {}), "$lt": at}},
    ]


def _document(entry: Suppression) -> Document:
    document = {
        "channel": str(entry.channel),
        "address": entry.address,
        "reason": str(entry.reason),
        "source": entry.source,
        "since": entry.since,
        "expires_at": entry.expires_at,
        "delivery": entry.delivery,
    }
    return {name: value for name, value in document.items() if value is not None}


_STAMP: Mapping[str, Any] = {"$currentDate": {"updated_at": True}}
"""By the server's clock: by it others look for what is new."""


def _new(entry: Suppression) -> Document | list[Document]:
    """It takes the place of what does not outlast it, in one update: `Suppression.outlasts`, as MongoDB has it."""
    if entry.delivery is not None:
        return {"$setOnInsert": _document(entry), **_STAMP}
    # a field that is missing is below null
    lasts = [{"$gt": ["$since", None]}, {"$lte": ["$delivery", None]}, _no_sooner(entry.expires_at)]
    new = {"$literal": {"_id": entry.key, **_document(entry)}}
    return [{"$replaceWith": {"$cond": [{"$and": lasts}, "$$ROOT", new]}}, {"$set": {"updated_at": "$$NOW"}}]


def _no_sooner(expires_at: datetime | None) -> Document:
    """Whether what is stored expires no sooner than then; None: it must not expire at all."""
    never: Document = {"$lte": ["$expires_at", None]}
    return never if expires_at is None else {"$or": [never, {"$gte": ["$expires_at", expires_at]}]}


def _replacing(entry: Suppression) -> Document:
    document = _document(entry)
    unset = {name: "" for name in ("expires_at", "delivery") if name not in document}
    return {"$set": document, **_STAMP, "$unset": unset} if unset else {"$set": document, **_STAMP}


def _read(document: Mapping[str, Any]) -> Suppression:
    """The entry, whatever somebody has done to its document by hand.

    One that cannot be read whole suppresses its address all the same, until an operator says otherwise: nothing is sent
    to who wanted no more. It stops nobody else, and is seen in the list by its source.
    """
    try:
        return _whole(document)
    except (ValueError, KeyError, TypeError):
        channel, *_ = str(document["_id"]).partition("/")
        known = channel if channel in set(Channel) else Channel.EMAIL
        address, since = document.get("address"), document.get("since")
        return Suppression(
            channel=Channel(known),
            address=address if isinstance(address, str) else "?",
            reason=SuppressionReason.MANUAL,
            source=UNREADABLE,
            since=since if isinstance(since, datetime) else datetime.fromtimestamp(0, UTC),
        )


def _whole(document: Mapping[str, Any]) -> Suppression:
    """The entry.

    Raises:
        KeyError, ValueError, TypeError: a field is missing, or is no such thing.
    """
    return Suppression(
        channel=Channel(document["channel"]),
        address=_a(str, document["address"]),
        reason=SuppressionReason(document["reason"]),
        source=_a(str, document["source"]),
        since=_a(datetime, document["since"]),
        expires_at=_a(datetime | None, document.get("expires_at")),
        delivery=_a(str | None, document.get("delivery")),
    )


def _a(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"is a {type(value).__name__}")
    return value

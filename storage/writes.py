"""Grouped writes in which one document's fault is its own.

What is not `async` here waits for MongoDB, in a thread of `Database.write`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import bson
from pymongo import DeleteMany, UpdateMany, UpdateOne
from pymongo.collection import Collection as BlockingCollection
from pymongo.errors import BulkWriteError, OperationFailure, WriteConcernError

from storage.database import Collection, Database, Document, raise_if_refused

DUPLICATE_KEY = 11000
TOO_LARGE = 10334
"""MongoDB's error code for a document above its limit."""
UNWRITABLE = (bson.errors.BSONError, OverflowError, TypeError, ValueError, OperationFailure)
"""What a document that cannot be written is met with, by the client or for its size by the server; and with it the
whole write."""
MAX_BYTES = 16 * 1024 * 1024 - 16 * 1024
"""Of one document: what MongoDB takes, less what is pushed to its history later."""


Found = tuple[tuple[str, tuple[Any, ...]], ...]


@dataclass(frozen=True, slots=True)
class Update:
    """One conditional update."""

    condition: Mapping[str, Any]
    change: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Amendment:
    """New values of one document, and what is added to the end of its `history`; once, however often it is written.

    Attributes:
        found: how it must be found to be amended: fields, each with the values that it may have.
        kept: how many entries of the history are kept, the last ones.
    """

    id: str
    found: Found
    values: Document
    unset: tuple[str, ...]
    history: Sequence[Document]
    kept: int

    def alone(self) -> Update:
        """As an update of its own."""
        change: Document = {"$set": self.values, "$push": {"history": {"$each": self.history, "$slice": -self.kept}}}
        if self.unset:
            change["$unset"] = dict.fromkeys(self.unset, "")
        return Update({"_id": self.id, **_condition(self.found), "history": {"$ne": self.history[-1]}}, change)


async def insert_all(
    database: Database, collection: Collection, documents: list[Document]
) -> Sequence[bool | Exception]:
    """Insert in one write; for each document whether it is new, or the error that it alone met.

    Repeated after an outage: documents that the first, unanswered write had stored then count as duplicates.
    """
    try:
        return await database.write(lambda: insert(collection.delegate, documents))
    except UNWRITABLE as error:  # one of them, and the others with it
        _raise_if_written(error)
        faults = [_unwritable(document) for document in documents]
    good = [document for document, fault in zip(documents, faults, strict=True) if fault is None]
    written = iter(await database.write(lambda: insert(collection.delegate, good)) if good else ())
    return [next(written) if fault is None else fault for fault in faults]


async def insert_own(
    database: Database, collection: Collection, documents: list[Document]
) -> Sequence[bool | Exception]:
    """As `insert_all`; one that is stored already under its own `token` is new too: an outage left it unanswered."""
    results = await insert_all(database, collection, documents)
    ids = [document["_id"] for document, won in zip(documents, results, strict=True) if won is False]
    if not ids:
        return results
    query = collection.find({"_id": {"$in": ids}}, {"token": 1})
    owners = {found["_id"]: found["token"] for found in await database.run(lambda: query.clone().to_list(None))}
    return [
        owners.get(document["_id"]) == document["token"] if won is False else won
        for document, won in zip(documents, results, strict=True)
    ]


async def update_all(
    database: Database, collection: Collection, updates: Sequence[Update]
) -> tuple[bool, Sequence[Exception | None]]:
    """Update in one write; whether every condition matched, and for each the error that it alone met."""
    operations = [UpdateOne(update.condition, update.change) for update in updates]
    try:
        matched = await write_all(database, collection, operations)
    except UNWRITABLE as error:  # one of them, and the others with it
        _raise_if_written(error)
        faults = [_unwritable(update.change) for update in updates]
        good = [operation for operation, fault in zip(operations, faults, strict=True) if fault is None]
        matched = await write_all(database, collection, good) if good else 0
        return matched == len(updates), faults
    return matched == len(updates), [None] * len(updates)


async def amend_all(
    database: Database, collection: Collection, amendments: Sequence[Amendment]
) -> tuple[bool, Sequence[Exception | None]]:
    """As `update_all`, by few statements.

    Where not all have matched, then each by its own, which those do not match that are amended already: a document may
    have stood against its statement and so against others of it; and one that moves between shards meanwhile may have
    been passed over.
    """
    statements = _statements(amendments)
    if len(statements) < len(amendments) and await _matched(database, collection, statements) == len(amendments):
        return True, [None] * len(amendments)
    return await update_all(database, collection, [amendment.alone() for amendment in amendments])


async def _matched(database: Database, collection: Collection, statements: Sequence[UpdateOne | UpdateMany]) -> int:
    """How many documents were; 0 where something cannot be written, whatever else was."""
    try:
        return await write_all(database, collection, statements)
    except UNWRITABLE as error:
        _raise_if_written(error)
        return 0


def _statements(amendments: Sequence[Amendment]) -> Sequence[UpdateOne | UpdateMany]:
    """One for all that differ in their values only; a second amendment of a document stands alone."""
    alike: defaultdict[tuple[Found, tuple[str, ...], int], dict[str, Amendment]] = defaultdict(dict)
    alone: list[Amendment] = []
    for amendment in amendments:
        try:
            several = alike[amendment.found, amendment.unset, amendment.kept]
        except TypeError:  # not hashable: a hand has written something else than a number
            alone.append(amendment)
            continue
        if several.setdefault(amendment.id, amendment) is not amendment:
            alone.append(amendment)
    statements: list[UpdateOne | UpdateMany] = []
    for (found, unset, kept), several in alike.items():
        if len(several) > 1:
            statements.append(_amending(found, unset, kept, several))
        else:
            alone += several.values()
    return [*statements, *(UpdateOne(each.condition, each.change) for each in map(Amendment.alone, alone))]


def _amending(found: Found, unset: tuple[str, ...], kept: int, several: Mapping[str, Amendment]) -> UpdateMany:
    """Each document looks up what is its own: a quarter to a half less work for the server than a statement each."""
    ids = list(several)
    each = [{"values": amendment.values, "history": amendment.history} for amendment in several.values()]
    own = {"$arrayElemAt": [{"$literal": each}, {"$indexOfArray": [{"$literal": ids}, "$_id"]}]}
    before = {"$ifNull": ["$history", []]}
    history = {"$slice": [{"$concatArrays": [before, "$$own.history"]}, -kept]}
    amended: Document = {"$mergeObjects": ["$$ROOT", "$$own.values", {"history": history}]}
    for name in unset:
        amended = {"$unsetField": {"field": name, "input": amended}}
    once = {"$cond": [{"$in": [{"$last": "$$own.history"}, before]}, "$$ROOT", amended]}
    stages = [{"$replaceWith": {"$let": {"vars": {"own": own}, "in": once}}}]
    # by their ids in any case: the states that they must be found in are indexed too
    return UpdateMany({"_id": {"$in": ids}, **_condition(found)}, stages, hint="_id_")


def _condition(found: Found) -> Document:
    return {name: values[0] if len(values) == 1 else {"$in": list(values)} for name, values in found}


async def delete_all(database: Database, collection: Collection, conditions: Sequence[Mapping[str, Any]]) -> int:
    """Delete whatever meets one of the conditions, in one write; returns how many documents that were."""
    deletions = [DeleteMany(condition, hint="_id_") for condition in conditions]

    def write() -> int:
        try:
            return int(collection.delegate.bulk_write(deletions, ordered=False).deleted_count)
        except BulkWriteError as error:
            _raise_if_unsure(error)
            raise

    return await database.write(write)


def insert(collection: BlockingCollection[Document], documents: Sequence[Document]) -> Sequence[bool | Exception]:
    """Insert in one write; for each document whether it is new, or what the server has against it.

    Raises:
        Exception: one of `UNWRITABLE`, and no document may have been written; or an outage.
    """
    try:
        collection.insert_many(documents, ordered=False)
    except BulkWriteError as error:
        _raise_if_unsure(error)
        results: list[bool | Exception] = [True] * len(documents)
        for fault in (error.details or {}).get("writeErrors", ()):
            results[fault["index"]] = False if fault["code"] == DUPLICATE_KEY else RuntimeError(fault["errmsg"])
        return results
    return [True] * len(documents)


async def write_all(database: Database, collection: Collection, updates: Sequence[UpdateOne | UpdateMany]) -> int:
    """Update in one write, which must be harmless to repeat; returns how many documents matched."""
    return await database.write(lambda: _update(collection.delegate, updates))


def _update(collection: BlockingCollection[Document], updates: Sequence[UpdateOne | UpdateMany]) -> int:
    try:
        return int(collection.bulk_write(updates, ordered=False).matched_count)
    except BulkWriteError as error:
        _raise_if_unsure(error)
        return int((error.details or {}).get("nMatched", 0))


def _raise_if_unsure(error: BulkWriteError) -> None:
    """A write that was refused, or made and not confirmed (a primary that stepped down), is repeated: an outage."""
    raise_if_refused(error)
    if unsure := (error.details or {}).get("writeConcernErrors"):
        raise WriteConcernError(str(unsure[0].get("errmsg"))) from error


def _raise_if_written(error: Exception) -> None:
    """Anything that the server says but that a document is too large is no fault of a document."""
    if isinstance(error, OperationFailure) and error.code != TOO_LARGE:
        raise error


def _unwritable(document: Mapping[str, Any]) -> Exception | None:
    """Why the document cannot be written; looked for when it has failed the write for everybody in it."""
    try:
        size = len(bson.encode(document))
    except UNWRITABLE as error:
        return error
    return None if size <= MAX_BYTES else ValueError(f"a document of {size} bytes")

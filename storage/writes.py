"""Grouped inserts that tell each duplicate."""

from collections.abc import Sequence

from pymongo.errors import BulkWriteError

from storage.database import OUTAGES, Collection, Database, Document

DUPLICATE_KEY = 11000


async def insert_all(
    database: Database, collection: Collection, documents: list[Document]
) -> Sequence[bool | Exception]:
    """Insert in one write; for each document whether it is new, or the error that it alone met.

    Repeated after an outage: documents that the first, unanswered write had stored then count as duplicates.
    """

    async def write() -> Sequence[bool | Exception]:
        try:
            await collection.insert_many(documents, ordered=False)
        except BulkWriteError as error:
            return _results(error, len(documents))
        return [True] * len(documents)

    return await database.run(write)


def _results(error: BulkWriteError, count: int) -> Sequence[bool | Exception]:
    details = error.details or {}
    if details.get("writeConcernErrors"):
        raise OUTAGES[2](str(details["writeConcernErrors"][0].get("errmsg")))
    results: list[bool | Exception] = [True] * count
    for fault in details.get("writeErrors", ()):
        results[fault["index"]] = False if fault["code"] == DUPLICATE_KEY else RuntimeError(fault["errmsg"])
    return results

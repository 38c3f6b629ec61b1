"""Since when the endpoints of recipients have done nothing but fail."""

from collections.abc import Collection
from datetime import datetime

from domain.ports import Failing
from storage.database import Database, Document


class MongoEndpoints:
    """`domain.ports.Endpoints` in the collection `endpoints`: a document for each one that is failing.

    One that nobody calls any more goes by itself, 60 days after its last failure that was noted.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._collection = database.collection("endpoints")

    async def failing(self, key: str, now: datetime, *, afresh: bool = False) -> Failing:
        """One upsert by primary key, which tells what was there before; repeated after an outage, `last` is `now`."""
        note = {"$set": {"since": now, "at": now}} if afresh else {"$setOnInsert": {"since": now}, "$set": {"at": now}}
        before: Document | None = await self._database.run(
            lambda: self._collection.find_one_and_update({"_id": key}, note, upsert=True)
        )
        return Failing(now, now) if before is None or afresh else Failing(before["since"], before["at"])

    async def answered(self, keys: Collection[str]) -> None:
        """While no endpoint is failing, one look at an empty collection; else one delete by primary keys."""
        if await self._database.run(lambda: self._collection.find_one({}, {"_id": 1}, hint="_id_")):
            await self._database.run(lambda: self._collection.delete_many({"_id": {"$in": list(keys)}}))

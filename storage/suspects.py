"""Marks on messages that may be what ends their consumers, while they are handled."""

from datetime import UTC, datetime

from pymongo import ReturnDocument

from storage.database import Database


class MongoSuspects:
    """`consumers.handlers.Suspects` in the collection `suspects`; what nobody takes away goes by itself after a day."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._collection = database.collection("suspects")

    async def begin(self, key: str) -> int:
        """One update; repeated after an outage it may count twice, of which nothing comes but an earlier verdict."""
        update = {"$inc": {"marks": 1}, "$set": {"at": datetime.now(UTC)}}
        document = await self._database.run(
            lambda: self._collection.find_one_and_update(
                {"_id": key}, update, upsert=True, return_document=ReturnDocument.AFTER
            )
        )
        return int(document["marks"])

    async def end(self, key: str) -> None:
        """By primary key."""
        await self._database.run(lambda: self._collection.delete_one({"_id": key}))

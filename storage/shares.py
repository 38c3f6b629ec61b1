"""How many processes use what is limited for all of them together."""

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any

from pymongo import ReturnDocument

from storage.database import Database, Document

LEAVE_SECONDS = 1.0


class MongoShares:
    """One document for each thing that is shared, with the processes that use it and the end of each one's lease.

    Times are the server's, so that the clocks of the processes' machines need not agree.
    """

    def __init__(self, database: Database, name: str, owner: str) -> None:
        self._database = database
        self._collection = database.collection("leases")
        self._name = name
        self._owner = owner

    async def renew(self, lease: timedelta) -> int:
        """Be one of them for as long as `lease`; returns how many there are. Those whose lease has ended are gone."""
        until = {"$add": ["$$NOW", round(lease.total_seconds() * 1000)]}
        update = self._others(then=[{"owner": self._owner, "until": until}])
        document = await self._database.run(
            lambda: self._collection.find_one_and_update(
                {"_id": self._name}, update, upsert=True, return_document=ReturnDocument.AFTER
            )
        )
        return len(document["members"])

    async def leave(self) -> None:
        """When stopping, which does not wait for a database that is away: then the lease ends by itself."""
        with suppress(Exception):
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._collection.update_one({"_id": self._name}, self._others(then=[]))

    def _others(self, then: list[Document]) -> list[Document]:
        mine_or_over = {"$or": [{"$eq": ["$$member.owner", self._owner]}, {"$lte": ["$$member.until", "$$NOW"]}]}
        kept: dict[str, Any] = {
            "$filter": {"input": {"$ifNull": ["$members", []]}, "as": "member", "cond": {"$not": [mine_or_over]}}
        }
        return [{"$set": {"members": {"$concatArrays": [kept, then]}}}]

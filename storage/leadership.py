"""One of many: a lease in the database that one process at a time holds."""

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta

from pymongo.errors import DuplicateKeyError

from storage.database import Database

LEAVE_SECONDS = 1.0


class MongoLeadership:
    """Lets one of several instances do what need not be done by all. Two at once for a moment must be harmless."""

    def __init__(self, database: Database, name: str, owner: str) -> None:
        self._database = database
        self._collection = database.collection("leases")
        self._name = name
        self._owner = owner

    async def held(self, now: datetime, lease: timedelta) -> bool:
        """Take or keep the lease; False while another holds it."""
        free = {"_id": self._name, "$or": [{"owner": self._owner}, {"until": {"$lte": now}}]}
        update = {"$set": {"owner": self._owner, "until": now + lease}}

        async def take() -> bool:
            try:
                return bool((await self._collection.update_one(free, update, upsert=True)).acknowledged)
            except DuplicateKeyError:  # the upsert met another's lease
                return False

        return await self._database.run(take)

    async def leave(self) -> None:
        """Give it up when stopping, which does not wait for a database that is away: then the lease ends by itself."""
        with suppress(Exception):
            async with asyncio.timeout(LEAVE_SECONDS):
                await self.give_up()

    async def give_up(self) -> None:
        """Let another take over at once."""
        condition = {"_id": self._name, "owner": self._owner}
        await self._database.run(lambda: self._collection.delete_one(condition))

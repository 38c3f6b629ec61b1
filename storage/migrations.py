"""The version of what is stored, and how an older database is brought forward while everything goes on.

A migration only adds: a NotiPy of the version before works beside it, writes as it always did, and is understood. So
reading code takes what it does not find for its default, and `Migration.readable_by` rises only in a later release,
when nothing of that version runs any more.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from storage.database import Collection, Database
from storage.leadership import MongoLeadership
from storage.writes import insert_all

BASELINE = 1
"""The version of a database that was written before versions were."""
LEASE = timedelta(seconds=30)
"""How long a migration that was killed keeps the next process from continuing it."""
LOOK_EVERY = 0.5
"""Seconds between two looks at how far another process has come."""
_SCHEMA = "schema"
_KEPT = ("events", "deliveries", "attempts", "notifications")


@dataclass(frozen=True, slots=True)
class Migration:
    """One step forward.

    Attributes:
        apply: does it, in batches; whatever it finds done already it passes by, so that one that was killed is
            continued, and one that runs twice does no harm.
        needed: whether this NotiPy cannot work before it is done; else it is done meanwhile.
        readable_by: the oldest version of NotiPy's schema that can work with what this leaves.
    """

    version: int
    description: str
    apply: Callable[[Database], Awaitable[None]]
    needed: bool = False
    readable_by: int = BASELINE


MIGRATIONS: tuple[Migration, ...] = ()
"""In order of their versions, from `BASELINE + 1` on. None yet: all that was added since has a default."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What a database says of itself."""

    version: int
    readable_by: int


class SchemaError(Exception):
    """Database and NotiPy are of versions that do not go together; `advice` says what to do."""

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.advice = advice


@dataclass(frozen=True)
class Migrations:
    """Brings one database forward. Of many processes that start together one does, under a lease."""

    database: Database
    steps: Sequence[Migration] = MIGRATIONS
    lease: timedelta = LEASE
    on_done: Callable[[Migration, float], None] = lambda *_: None
    _owner: str = field(default_factory=lambda: uuid4().hex)

    @property
    def newest(self) -> int:
        """The version that this NotiPy writes."""
        return self.steps[-1].version if self.steps else BASELINE

    async def look(self) -> Schema:
        """What the database says; one that says nothing yet is told: the newest if it is empty, else the baseline.

        Raises:
            SchemaError: a newer NotiPy has brought it to where this one cannot follow.
        """
        found = await self._read() or await self._first()
        if found.readable_by > self.newest:
            raise SchemaError(
                f"the database has schema version {found.version}, written by a newer NotiPy; it can be used from "
                f"version {found.readable_by} on, and this NotiPy knows {self.newest}",
                "Install the version of NotiPy that the other processes run, or a newer one.",
            )
        return found

    def pending(self, schema: Schema) -> Sequence[Migration]:
        """What has to be done yet."""
        return [step for step in self.steps if step.version > schema.version]

    def require(self, schema: Schema) -> None:
        """Let a command, which migrates nothing, go on only where it can.

        Raises:
            SchemaError: something that this NotiPy needs is not done.
        """
        if any(step.needed for step in self.pending(schema)):
            raise SchemaError(
                f"the database has schema version {schema.version}, and this NotiPy needs {self.newest}",
                "Start `notipy run` of this version: it brings the database forward.",
            )

    async def run(self) -> None:
        """Return when the database is at the newest version, whoever has brought it there."""
        leadership = MongoLeadership(self.database, _SCHEMA, self._owner)
        while self.pending(await self.look()):
            if not await leadership.held(datetime.now(UTC), self.lease):
                await asyncio.sleep(LOOK_EVERY)
                continue
            try:
                await self._carry_out(leadership)
            finally:
                await leadership.leave()

    async def _carry_out(self, leadership: MongoLeadership) -> None:
        """One after the other, each on record before the next; ends where the lease is lost."""
        for step in self.pending(await self.look()):
            begun = time.monotonic()
            if not await self._under(leadership, step):
                return
            await self._done(step)
            self.on_done(step, time.monotonic() - begun)

    async def _under(self, leadership: MongoLeadership, step: Migration) -> bool:
        """Apply it while the lease is renewed; False if another process has taken it over."""
        work = asyncio.ensure_future(step.apply(self.database))
        try:
            while not (await asyncio.wait({work}, timeout=self.lease.total_seconds() / 3))[0]:
                if not await leadership.held(datetime.now(UTC), self.lease):
                    return False
            await work
            return True
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _done(self, step: Migration) -> None:
        condition = {"_id": _SCHEMA, "version": {"$lt": step.version}}
        entry = {"version": step.version, "description": step.description, "at": datetime.now(UTC)}
        update = {
            "$set": {"version": step.version},
            "$max": {"readable_by": step.readable_by},
            "$push": {"applied": entry},
        }
        await self.database.run(lambda: self._collection.update_one(condition, update))

    async def _read(self) -> Schema | None:
        document = await self.database.run(lambda: self._collection.find_one({"_id": _SCHEMA}))
        return Schema(document["version"], document["readable_by"]) if document else None

    async def _first(self) -> Schema:
        """Write what it is; another process may have done so at the same moment, and then that counts."""
        empty = await self._empty()
        readable_by = max((step.readable_by for step in self.steps), default=BASELINE) if empty else BASELINE
        first = {"_id": _SCHEMA, "version": self.newest if empty else BASELINE, "readable_by": readable_by}
        await insert_all(self.database, self._collection, [first])
        found = await self._read()
        if found is None:
            raise SchemaError("the schema's version cannot be written", "See what MongoDB's log says.")
        return found

    async def _empty(self) -> bool:
        for name in _KEPT:
            kept = self.database.collection(name)
            if await self.database.run(lambda kept=kept: kept.find_one({}, {"_id": 1})):  # type: ignore[misc]
                return False
        return True

    @property
    def _collection(self) -> Collection:
        return self.database.collection("housekeeping")

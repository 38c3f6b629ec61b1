"""The connection to MongoDB, its indexes, and how an outage is waited out."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

from bson.codec_options import CodecOptions
from motor.motor_asyncio import (
    AsyncIOMotorClient,
    AsyncIOMotorCollection,
    AsyncIOMotorDatabase,
    AsyncIOMotorGridFSBucket,
)
from pymongo import ASCENDING, DESCENDING, IndexModel, WriteConcern
from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    WriteConcernError,
    WTimeoutError,
)
from pymongo.read_concern import ReadConcern

from domain.backoff import wait_out
from domain.vocabulary import REPLAYABLE

T = TypeVar("T")
Document = dict[str, Any]
Collection = AsyncIOMotorCollection[Document]


class WritesRefused(PyMongoError):
    """The database answers, and lets nothing be written: no document is at fault."""


OUTAGES = (ConnectionFailure, WTimeoutError, WriteConcernError, ExecutionTimeout, WritesRefused)
"""Errors that pass when the database is back: waited out. Others are bugs and are raised."""
REFUSALS = frozenset(
    {
        13,  # Unauthorized: a role was taken away
        18,  # AuthenticationFailed
        24,  # LockTimeout
        50,  # MaxTimeMSExpired
        63,  # StaleShardVersion
        82,  # NoProgressMade
        91,  # ShutdownInProgress
        112,  # WriteConflict
        133,  # FailedToSatisfyReadPreference: mongos finds no primary
        189,  # PrimarySteppedDown
        202,  # NetworkInterfaceExceededTimeLimit
        262,  # ExceededTimeLimit
        371,  # UserWritesBlocked
        8000,  # AtlasError: a quota, among others
        10107,  # NotWritablePrimary
        11600,  # InterruptedAtShutdown
        11602,  # InterruptedDueToReplStateChange
        13435,  # NotPrimaryNoSecondaryOk
        13436,  # NotPrimaryOrSecondary
        14031,  # OutOfDiskSpace
    }
)
"""MongoDB's codes (error_codes.yml) of a write that no document has made fail: it is waited out like an outage."""
DatabaseError = PyMongoError
"""Whatever MongoDB or its client raises."""
SERVER_SELECTION_MS = 2000
"""How long one call looks for a primary before the outage is told and the call repeated."""
SOCKET_MS = 20_000
WRITERS = 10
"""Threads for writes: grouped ones are one at a time of each kind."""

INDEXES: dict[str, list[IndexModel]] = {
    "events": [
        # the sweeper's: only events whose planning is not complete are in it
        IndexModel([("due_at", ASCENDING)], name="due_at", partialFilterExpression={"due_at": {"$exists": True}}),
        # retention's and the audit's, which look through them without reading their bodies
        IndexModel(
            [("received_at", ASCENDING), ("_id", ASCENDING), ("state", ASCENDING), ("planned", ASCENDING)],
            name="received",
        ),
    ],
    "deliveries": [
        # the sweeper's: only deliveries that are not final are in it
        IndexModel([("due_at", ASCENDING)], name="due_at", partialFilterExpression={"due_at": {"$exists": True}}),
        # final ones of which nobody has been told yet: none, but for a moment or after a crash
        IndexModel([("tell_at", ASCENDING)], name="tell_at", partialFilterExpression={"tell_at": {"$exists": True}}),
        # an event's, in the order of every list; the audit counts them by its first field
        IndexModel([("event_key", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)], name="event_list"),
        # a receipt's: what a provider called a message; a mail server's receipts name the delivery itself
        IndexModel(
            [("reference", ASCENDING), ("created_at", DESCENDING)],
            name="reference",
            partialFilterExpression={"reference": {"$exists": True}},
        ),
        # retention's: those that became final longest ago
        IndexModel([("state", ASCENDING), ("updated_at", ASCENDING)], name="age"),
        # the audit's: the few that may have been sent twice
        IndexModel(
            [("created_at", ASCENDING)],
            name="possible_duplicate",
            partialFilterExpression={"possible_duplicate": True},
        ),
        # the dead, in the order in which they became so; what else they are chosen by is read from the keys
        IndexModel(
            [
                *((name, ASCENDING) for name in ("state", "channel", "updated_at", "_id")),
                *((name, ASCENDING) for name in ("reason", "source", "type")),
            ],
            name="dead",
            partialFilterExpression={"state": {"$in": [str(state) for state in REPLAYABLE]}},
        ),
        # every list: equality on state and channel (all of them where none is asked for), merged in this order
        IndexModel(
            [("state", ASCENDING), ("channel", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)], name="list"
        ),
    ],
    "attempts": [
        IndexModel([("lease_until", ASCENDING)], name="lease"),
    ],
    "attachments": [
        # retention's: those that were fetched longest ago
        IndexModel([("at", ASCENDING)], name="at"),
        # and whether another event has the same file
        IndexModel([("file", ASCENDING)], name="file", partialFilterExpression={"file": {"$exists": True}}),
    ],
    # as GridFS would make them itself, when the first file is stored
    "files.files": [
        IndexModel([("filename", ASCENDING), ("uploadDate", ASCENDING)], name="filename_1_uploadDate_1"),
    ],
    "files.chunks": [
        IndexModel([("files_id", ASCENDING), ("n", ASCENDING)], name="files_id_1_n_1", unique=True),
    ],
    "notifications": [
        # the catalog's: the last version of a name
        IndexModel([("name", ASCENDING), ("version", ASCENDING)], name="version"),
    ],
    "suppressions": [
        # every consumer's: what is new, told by the keys alone
        IndexModel([("updated_at", ASCENDING), ("_id", ASCENDING)], name="changed"),
        # the operator's: equality on channel and reason (all of them where none is asked for), merged in this order
        IndexModel(
            [("channel", ASCENDING), ("reason", ASCENDING), ("since", DESCENDING), ("_id", ASCENDING)], name="list"
        ),
        IndexModel([("expires_at", ASCENDING)], name="expires", expireAfterSeconds=0),
    ],
    "soft_bounces": [
        IndexModel([("at", ASCENDING)], name="at", expireAfterSeconds=180 * 24 * 60 * 60),
    ],
    "endpoints": [
        # of those that nobody calls any more; twice the longest that a setting can ask for
        IndexModel([("at", ASCENDING)], name="at", expireAfterSeconds=60 * 24 * 60 * 60),
    ],
    "inbox": [
        # every list: equality on the recipient and on whether it is archived, in this order
        IndexModel(
            [("recipient", ASCENDING), ("archived", ASCENDING), ("at", DESCENDING), ("_id", DESCENDING)], name="list"
        ),
        # what is still unseen or unread, which is little: counted, and found when all of it is marked
        *(
            IndexModel(
                [("recipient", ASCENDING), ("at", ASCENDING), (name, ASCENDING)],
                name=name,
                partialFilterExpression={name: True},
            )
            for name in ("unseen", "unread")
        ),
        # retention's: the oldest
        IndexModel([("at", ASCENDING)], name="at"),
    ],
    "suspects": [
        IndexModel([("at", ASCENDING)], name="at", expireAfterSeconds=24 * 60 * 60),
    ],
}


class Database:
    """One MongoDB database.

    `reachable` tells whether the last call got through; while an outage lasts, calls wait. `recovered_at`: when the
    last outage was over; None if there was none.
    """

    def __init__(self, client: AsyncIOMotorClient[Document], name: str) -> None:
        self._client = client
        self._database: AsyncIOMotorDatabase[Document] = client.get_database(
            name,
            codec_options=CodecOptions(tz_aware=True),
            write_concern=WriteConcern(w="majority", j=True),
            read_concern=ReadConcern("majority"),
        )
        self._writers = ThreadPoolExecutor(WRITERS, "notipy-mongo")
        self.reachable = True
        self.recovered_at: datetime | None = None
        self.on_outage: Callable[[BaseException], None] = _quietly

    def collection(self, name: str) -> Collection:
        """A collection whose writes are majority-committed and journalled."""
        return self._database[name]

    def bucket(self, name: str) -> AsyncIOMotorGridFSBucket:
        """A GridFS bucket, its writes as safe as those of a collection."""
        return AsyncIOMotorGridFSBucket(self._database, bucket_name=name)

    async def run(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Call the operation until it gets through; it must be harmless to repeat."""
        result = await wait_out(operation, OUTAGES, self._outage)
        self._answered()
        return result

    async def write(self, statements: Callable[[], T]) -> T:
        """Call what waits for MongoDB, in a thread, until it gets through; it must be harmless to repeat.

        For the statements of the hot path, through the client below Motor (a collection's `delegate`): Motor goes to a
        thread and back for each statement, and what it does around that costs as much as a small write.
        """
        loop = asyncio.get_running_loop()
        return await self.run(lambda: loop.run_in_executor(self._writers, _telling_refusals, statements))

    async def read(self, statements: Callable[[], T]) -> T:
        """The same for what only reads, and belongs together."""
        loop = asyncio.get_running_loop()
        return await self.run(lambda: loop.run_in_executor(self._writers, statements))

    def close(self) -> None:
        """Have the threads end when they have nothing more to do."""
        self._writers.shutdown(wait=False)

    async def ping(self) -> None:
        """Whether it answers.

        Raises:
            PyMongoError: it cannot be reached.
        """
        try:
            await self._database.command("ping")
        except (PyMongoError, asyncio.CancelledError):  # cancelled: whoever asked has lost patience
            self.reachable = False
            raise
        self._answered()

    async def version(self) -> str:
        """The server's.

        Raises:
            PyMongoError: it cannot be reached.
        """
        return str((await self._client.server_info())["version"])

    async def replica_set(self) -> str | None:
        """The replica set's name; None for a server that stands alone.

        Raises:
            PyMongoError: it cannot be reached.
        """
        name = (await self._database.command("hello")).get("setName")
        return str(name) if name else None

    async def time(self) -> datetime:
        """The server's clock."""
        return await self.read(self.time_now)

    def time_now(self) -> datetime:
        """The same, for what is in a thread already (`read`)."""
        answer: Document = self._database.delegate.command("hello")
        return answer["localTime"].replace(tzinfo=UTC)  # type: ignore[no-any-return]

    async def ensure_indexes(self) -> None:
        """Create the indexes that are missing; those that exist are left as they are.

        Also one that is not named here any more: the version before needs it, and may run beside this one.
        """
        for name, indexes in INDEXES.items():
            await self.run(lambda name=name, indexes=indexes: self._database[name].create_indexes(indexes))  # type: ignore[misc]

    def _answered(self) -> None:
        if not self.reachable:
            self.reachable, self.recovered_at = True, datetime.now(UTC)

    def _outage(self, error: BaseException) -> None:
        self.reachable = False
        self.on_outage(error)


def _telling_refusals(statements: Callable[[], T]) -> T:
    try:
        return statements()
    except OperationFailure as error:
        raise_if_refused(error)
        raise


def raise_if_refused(error: OperationFailure) -> None:
    """Whatever the write was.

    Raises:
        WritesRefused: the database takes none.
    """
    details = (error.details or {}).get("writeErrors", ()) if isinstance(error, BulkWriteError) else ()
    for code in (error.code, *(each.get("code") for each in details)):
        if code in REFUSALS:
            raise WritesRefused(f"the database refuses writes with code {code}") from error


def _quietly(_: BaseException) -> None:
    return None


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Database]:
    """Open the database that the URL names (`notipy` if it names none); closed on leaving."""
    client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(
        url,
        serverSelectionTimeoutMS=SERVER_SELECTION_MS,
        socketTimeoutMS=SOCKET_MS,
        connectTimeoutMS=SERVER_SELECTION_MS,
        appname="notipy",
    )
    database = Database(client, client.get_default_database("notipy").name)
    try:
        yield database
    finally:
        database.close()
        client.close()

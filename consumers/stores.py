"""What is kept in MongoDB, opened by itself: for commands that need no broker and no provider, and start at once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from config.settings import Settings
from storage.catalog import MongoCatalog
from storage.database import Database, connect
from storage.deliveries import MongoDeliveries
from storage.events import MongoEvents

log = structlog.get_logger()


@dataclass(frozen=True)
class Stores:
    """The database and its repositories."""

    database: Database
    events: MongoEvents
    deliveries: MongoDeliveries
    catalog: MongoCatalog


@asynccontextmanager
async def open_storage(settings: Settings, *, wait: bool = False) -> AsyncIterator[Stores]:
    """Connect to MongoDB and create the indexes that are missing.

    Raises:
        PyMongoError: without `wait`, it cannot be reached.
    """
    async with connect(settings.mongo_url.get_secret_value()) as database:
        if not wait:
            await database.ping()
        database.on_outage = lambda error: log.warning("database.unreachable", error=type(error).__name__)
        await database.ensure_indexes()
        yield Stores(database, MongoEvents(database), MongoDeliveries(database), MongoCatalog(database))

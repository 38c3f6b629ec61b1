"""What is kept in MongoDB, opened by itself: for commands that need no broker and no provider, and start at once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from config.logging import told_seldom
from config.settings import Settings
from storage.catalog import MongoCatalog
from storage.database import Database, connect
from storage.deliveries import MongoDeliveries
from storage.events import MongoEvents


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
        advice = "see that MongoDB runs and has a primary, and that mongo_url names it"
        database.on_outage = told_seldom("database.unreachable", advice)
        await database.ensure_indexes()
        yield Stores(database, MongoEvents(database), MongoDeliveries(database), MongoCatalog(database))

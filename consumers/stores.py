"""What is kept in MongoDB, opened by itself: for commands that need no broker and no provider, and start at once."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from config.logging import told_seldom
from config.settings import Settings
from domain.failures import place_of
from storage.catalog import MongoCatalog
from storage.database import Database, connect
from storage.deliveries import MongoDeliveries
from storage.documents import CannotRead
from storage.events import MongoEvents
from storage.inbox import MongoInbox
from storage.migrations import MIGRATIONS, Migration, Migrations, Schema
from storage.suppressions import MongoSuppressions

log = structlog.get_logger()
AGAIN_AFTER = 10.0
"""Seconds after which a migration that has failed is tried again."""


@dataclass(frozen=True)
class Stores:
    """The database and its repositories."""

    database: Database
    events: MongoEvents
    deliveries: MongoDeliveries
    catalog: MongoCatalog
    inbox: MongoInbox
    suppressions: MongoSuppressions


@asynccontextmanager
async def open_storage(
    settings: Settings, *, wait: bool = False, migrations: Sequence[Migration] = MIGRATIONS
) -> AsyncIterator[Stores]:
    """Connect to MongoDB, create the indexes that are missing and bring an older database forward.

    With `wait` (a consumer) it is brought forward meanwhile, or before this yields where it has to be. Without (a
    command) it is left as it is. An older NotiPy leaves a newer database's indexes alone.

    Raises:
        PyMongoError: without `wait`, it cannot be reached.
        SchemaError: this NotiPy cannot work with this database.
    """
    async with connect(settings.mongo_url.get_secret_value()) as database:
        if not wait:
            await database.ping()
        advice = "see that MongoDB runs and has a primary, and that mongo_url names it"
        database.on_outage = told_seldom("database.unreachable", advice)
        steps = Migrations(database, migrations, on_done=_log_done)
        schema = await steps.look()
        if schema.version <= steps.newest:
            await database.ensure_indexes()
        async with _brought_forward(steps, schema, wait):
            events, deliveries = MongoEvents(database, settings.events.concurrency), MongoDeliveries(database)
            deliveries.on_unreadable = _log_unreadable
            inbox, suppressions = MongoInbox(database), MongoSuppressions(database)
            yield Stores(database, events, deliveries, MongoCatalog(database), inbox, suppressions)


@asynccontextmanager
async def _brought_forward(migrations: Migrations, schema: Schema, wait: bool) -> AsyncIterator[None]:
    if not wait:
        migrations.require(schema)
        yield
        return
    if any(step.needed for step in migrations.pending(schema)):
        log.info("schema.migrating", version=schema.version, to=migrations.newest)
        await migrations.run()
    migrating = asyncio.create_task(_until_newest(migrations), name="notipy-migrations")
    try:
        yield
    finally:
        migrating.cancel()
        await asyncio.gather(migrating, return_exceptions=True)


async def _until_newest(migrations: Migrations) -> None:
    """Beside the work: what fails is told, and tried again."""
    while True:
        try:
            return await migrations.run()
        except Exception as error:  # noqa: BLE001 - logged, and tried again
            log.error("schema.migration_failed", error=place_of(error))
        await asyncio.sleep(AGAIN_AFTER)


def _log_unreadable(found: CannotRead) -> None:
    log.warning("delivery.unreadable", delivery=found.delivery_id, why=found.why)


def _log_done(step: Migration, seconds: float) -> None:
    log.info("schema.migrated", version=step.version, description=step.description, seconds=round(seconds, 1))

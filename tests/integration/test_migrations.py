"""The schema's version over a real MongoDB, with migrations that the tests bring along."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings
from consumers.stores import open_storage
from domain.vocabulary import State
from storage.database import Database, connect
from storage.deliveries import MongoDeliveries
from storage.migrations import BASELINE, MIGRATIONS, Migration, Migrations, Schema, SchemaError
from tests.contract.test_repositories import delivery
from tests.waiting import eventually

SHORT = timedelta(milliseconds=600)


@dataclass
class Marking:
    """A migration that gives every delivery a field, one batch of `size` at a time, as a real one does."""

    size: int = 10
    runs: int = 0
    written: int = 0
    before_batch: Callable[[], Awaitable[object]] = field(default=lambda: asyncio.sleep(0))

    async def __call__(self, database: Database) -> None:
        self.runs += 1
        kept = database.collection("deliveries")
        while found := await kept.find({"mark": {"$exists": False}}, {"_id": 1}).limit(self.size).to_list(None):
            await self.before_batch()
            ids = [document["_id"] for document in found]
            result = await kept.update_many({"_id": {"$in": ids}}, {"$set": {"mark": True}})
            self.written += result.modified_count


def second(apply: Callable[[Database], Awaitable[None]], **more: Any) -> Migration:
    return Migration(BASELINE + 1, "every delivery is marked", apply, **more)


async def nothing(_: Database) -> None:
    return None


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with connect(database_url) as opened:
        yield opened


async def with_deliveries(database: Database, count: int = 50) -> None:
    await MongoDeliveries(database).add([delivery(number) for number in range(count)])


async def version(database: Database) -> int:
    return int((await document(database))["version"])


async def document(database: Database) -> dict[str, Any]:
    return await database.collection("housekeeping").find_one({"_id": "schema"}) or {"version": 0}


async def marked(database: Database) -> int:
    return await database.collection("deliveries").count_documents({"mark": True})


def test_the_versions_of_our_own_migrations_follow_each_other() -> None:
    assert [step.version for step in MIGRATIONS] == [BASELINE + 1 + n for n in range(len(MIGRATIONS))]
    assert all(step.readable_by <= step.version for step in MIGRATIONS)


async def test_an_empty_database_is_of_the_newest_version(database: Database) -> None:
    marking = Marking()
    migrations = Migrations(database, [second(marking, readable_by=2)])
    assert await migrations.look() == Schema(2, 2)
    await migrations.run()
    assert marking.runs == 0


async def test_a_database_from_before_there_were_versions_is_the_baseline(database: Database) -> None:
    await with_deliveries(database)
    assert await Migrations(database).look() == Schema(BASELINE, BASELINE)
    assert not Migrations(database).pending(await Migrations(database).look())


async def test_each_migration_is_done_in_order_and_put_on_record(database: Database) -> None:
    await with_deliveries(database)
    done: list[int] = []

    async def third(_: Database) -> None:
        assert await version(database) == 2
        assert await marked(database) == 50

    steps = [second(Marking()), Migration(3, "nothing", third, readable_by=2)]
    await Migrations(database, steps, on_done=lambda step, _: done.append(step.version)).run()
    stored = await document(database)
    assert done == [2, 3]
    assert (stored["version"], stored["readable_by"]) == (3, 2)
    assert [entry["version"] for entry in stored["applied"]] == [2, 3]
    assert not await database.collection("leases").count_documents({})


async def test_of_many_that_start_together_one_does_it(database_url: str, database: Database) -> None:
    await with_deliveries(database)
    started: list[Database] = []
    marking = Marking(before_batch=lambda: eventually(lambda: len(started) == 4))

    async def start() -> int:
        async with connect(database_url) as own:
            started.append(own)
            await Migrations(own, [second(marking)]).run()
            return await marked(own)

    assert await asyncio.gather(*(start() for _ in range(4))) == [50] * 4
    assert (marking.runs, marking.written) == (1, 50)
    assert len((await document(database))["applied"]) == 1


async def test_it_takes_longer_than_its_lease(database_url: str, database: Database) -> None:
    await with_deliveries(database, 20)
    marking = Marking(size=5, before_batch=lambda: asyncio.sleep(SHORT.total_seconds()))

    async def start() -> None:
        async with connect(database_url) as own:
            await Migrations(own, [second(marking)], lease=SHORT).run()

    await asyncio.gather(start(), start())
    assert (marking.runs, marking.written) == (1, 20)


PROCESS = """
import asyncio, os, signal, sys
from storage.database import connect
from storage.migrations import Migration, Migrations
from tests.integration.test_migrations import Marking, SHORT, second

async def die_in_the_middle():
    if marking.written >= 20:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with connect(sys.argv[1]) as database:
        await Migrations(database, [second(marking)], lease=SHORT).run()

marking = Marking(before_batch=die_in_the_middle)
asyncio.run(main())
"""


async def test_one_that_was_killed_is_continued(database_url: str, database: Database) -> None:
    await with_deliveries(database)
    root = str(Path(__file__).parents[2])
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROCESS, database_url, cwd=root)
    assert await process.wait() == -9
    assert (await marked(database), await version(database)) == (20, 1)
    marking = Marking()
    await Migrations(database, [second(marking)], lease=SHORT).run()
    assert (marking.written, await marked(database), await version(database)) == (30, 50, 2)


async def test_what_the_old_version_writes_beside_it_is_read(settings: Settings, database: Database) -> None:
    await with_deliveries(database)
    release = asyncio.Event()
    old = MongoDeliveries(database)
    steps = [second(Marking(before_batch=release.wait))]
    async with open_storage(settings, wait=True, migrations=steps) as new:
        # while it goes on, the new version works, and so does the old
        await old.add([delivery(100)])
        assert (await new.deliveries.get("d-100")) == delivery(100)
        release.set()

        async def there() -> bool:
            return await version(database) == 2

        await eventually(there)
        await old.add([delivery(101)])
        found = await new.deliveries.get("d-101")
        assert found is not None
        assert found.state is State.QUEUED
    assert (await Migrations(database).look()).version == 2  # and the old one starts beside it


async def test_what_is_needed_is_done_before_anything_else(settings: Settings, database: Database) -> None:
    await with_deliveries(database)
    steps = [second(Marking(), needed=True)]
    with pytest.raises(SchemaError, match="version 1, and this NotiPy needs 2") as caught:
        async with open_storage(settings, migrations=steps):
            pass
    assert "notipy run" in caught.value.advice
    async with open_storage(settings, wait=True, migrations=steps):
        assert await marked(database) == 50
    async with open_storage(settings, migrations=steps):
        pass


async def test_a_command_migrates_nothing(settings: Settings, database: Database) -> None:
    await with_deliveries(database)
    marking = Marking()
    async with open_storage(settings, migrations=[second(marking)]) as stores:
        assert await stores.deliveries.get("d-1") is not None
    assert (marking.runs, await version(database)) == (0, 1)


async def test_a_migration_that_fails_is_told_and_tried_again(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await with_deliveries(database)
    monkeypatch.setattr("consumers.stores.AGAIN_AFTER", 0.01)
    tries = 0

    async def fail_once(_: Database) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ValueError("a bug")

    async with open_storage(settings, wait=True, migrations=[second(fail_once)]):

        async def there() -> bool:
            return await version(database) == 2

        await eventually(there)
    assert tries == 2
    shown = capsys.readouterr()  # on which of the two depends on what has configured the log before
    assert "schema.migration_failed" in shown.out + shown.err


@pytest.mark.parametrize("wait", [False, True])
async def test_an_older_notipy_stops_only_where_it_cannot_follow(
    settings: Settings, database: Database, wait: bool
) -> None:
    readable = Migration(3, "something that is only more", nothing, readable_by=1)
    await Migrations(database, [second(nothing), readable]).look()
    async with open_storage(settings, wait=wait):
        pass
    assert "age" not in await database.collection("deliveries").index_information()  # the newer one's are its own
    await database.collection("housekeeping").delete_many({})
    await Migrations(database, [second(nothing), Migration(3, "a field is gone", nothing, readable_by=2)]).look()
    with pytest.raises(SchemaError, match="version 3, written by a newer NotiPy; it can be used from version 2") as no:
        async with open_storage(settings, wait=wait):
            pass
    assert "Install" in no.value.advice

"""Attachments from URLs: fetched once for an event, whoever needs them first, and deleted with it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from channels.fetch import AttachmentFetcher, Limits
from config.settings import Settings
from consumers.app import running
from deploy.smtp_sink import SmtpSink
from domain.event import Attachment
from domain.failures import DeliveryFailure, PermanentFailure, TransientFailure
from domain.ports import StoredEvent
from domain.vocabulary import EventState, Reason, State
from storage.database import Database, connect
from storage.events import MongoEvents
from storage.files import PERMANENT_KEPT, STORING, TRANSIENT_KEPT, Fetch, MongoFiles
from storage.retention import MongoRetention
from tests.contract.peers import http_server
from tests.forking import Forker
from tests.running import ORDER_SHIPPED, Stack, order
from tests.waiting import eventually

NOW = datetime.now(UTC).replace(microsecond=0)
DAY, MINUTE, SECOND = timedelta(days=1), timedelta(minutes=1), timedelta(seconds=1)
PDF = b"%PDF-1.7 " + bytes(range(256)) * 2000


class Library:
    """An HTTP server's files, and how often each was asked for."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.url = ""
        self.broken: set[str] = set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked[request.path] += 1
        if request.path in self.broken:
            return web.Response(status=503)
        return web.Response(body=PDF) if request.path.endswith(".pdf") else web.Response(status=404)

    def attachment(self, name: str) -> dict[str, str]:
        return {"filename": name, "content_type": "application/pdf", "url": f"{self.url}{name}"}


@pytest.fixture
async def library() -> AsyncIterator[Library]:
    library = Library()
    async with http_server(library.answer) as library.url:
        yield library


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


class Source:
    """Something to fetch."""

    def __init__(self, content: bytes = PDF) -> None:
        self.content = content
        self.fetched = 0
        self.failure: Exception | None = None
        self.go = asyncio.Event()
        self.go.set()

    async def fetch(self) -> bytes:
        self.fetched += 1
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        return self.content


@asynccontextmanager
async def processes(url: str, count: int, clock: Clock, cache_bytes: int = 2**20) -> AsyncIterator[list[MongoFiles]]:
    """So many stores as processes have: each with a connection and a memory of its own."""
    async with connect(url) as first, connect(url) as second:
        stores = [MongoFiles(database, clock, cache_bytes) for database in [first, second] * count][:count]
        try:
            yield stores
        finally:
            for store in stores:
                await store.close()


async def once(store: MongoFiles, fetch: Fetch, event: str = "event-1", source: str = "a" * 64) -> bytes:
    return await store.once(event, source, fetch, MINUTE)


# ---------------------------------------------------------------------------------------------------------------
# NotiPy
# ---------------------------------------------------------------------------------------------------------------


def allowing_private(document: dict[str, Any]) -> dict[str, Any]:
    document["channels"]["email"]["providers"][0]["allow_private"] = True
    return document


async def test_two_processes_fetch_once_for_fifty_recipients(
    stack: Stack, config_file: Path, forker: Forker, smtp: SmtpSink, library: Library, tmp_path: Path
) -> None:
    # leases so long that none runs out on a slow machine, which would send again
    patient = {"lease": "2m", "sweeper": {"interval": "200ms", "overdue": "2m"}}
    config_file.write_text(yaml.safe_dump(allowing_private(yaml.safe_load(config_file.read_text())) | patient))
    await stack.apply(ORDER_SHIPPED)
    recipients = [{"email": f"user{number}@example.org"} for number in range(50)]
    body = {**order(), "recipients": recipients, "attachments": [library.attachment("invoice.pdf")], "lane": "high"}
    log = tmp_path / "notipy.log"
    async with forker.consumer(config_file, log=log), forker.consumer(config_file, log=log):
        event = await stack.publish(body)
        deliveries = await stack.final(event, count=50, timeout=60)
    assert {delivery.state for delivery in deliveries} == {State.SENT}
    assert library.asked == {"/invoice.pdf": 1}
    assert Counter(mail.recipients[0] for mail in smtp.mails) == {each["email"]: 1 for each in recipients}
    for mail in smtp.mails:
        (part,) = mail.message.iter_attachments()
        assert part.get_content() == PDF


async def test_a_server_that_is_down_is_asked_again_and_a_missing_file_is_not(
    config: dict[str, Any], stack: Stack, smtp: SmtpSink, library: Library
) -> None:
    config["channels"]["email"]["retry"] = ["1500ms", "1500ms"]
    library.broken = {"/late.pdf"}
    await stack.apply(ORDER_SHIPPED)
    async with running(Settings.model_validate(allowing_private(config))):
        late = await stack.publish({**order(), "attachments": [library.attachment("late.pdf")]})
        await stack.reach(late, State.HELD)
        library.broken.clear()
        gone = await stack.publish({**order(), "attachments": [library.attachment("gone")]})
        (delivery,) = await stack.final(gone)
        assert (delivery.state, delivery.reason) == (State.FAILED, Reason.ATTACHMENT_REJECTED)
        await stack.final(late)
    assert library.asked == {"/late.pdf": 2, "/gone": 1}
    assert len(smtp.mails) == 1


# ---------------------------------------------------------------------------------------------------------------
# Once
# ---------------------------------------------------------------------------------------------------------------


async def test_many_callers_of_several_processes_fetch_once(database_url: str, database: Database) -> None:
    source = Source()
    source.go.clear()
    async with processes(database_url, 4, Clock()) as stores:
        asking = [asyncio.create_task(once(store, source.fetch)) for store in stores * 25]
        await eventually(lambda: source.fetched)
        source.go.set()
        assert set(await asyncio.gather(*asking)) == {PDF}
    assert source.fetched == 1
    assert await database.collection("files.files").count_documents({}) == 1


async def test_the_same_content_of_two_events_is_stored_once(database_url: str, database: Database) -> None:
    source = Source()
    async with processes(database_url, 2, Clock()) as (one, other):
        await once(one, source.fetch, "event-1")
        await once(other, source.fetch, "event-2")
    assert source.fetched == 2
    assert await database.collection("files.files").count_documents({}) == 1
    assert await database.collection("files.chunks").distinct("n") == [0, 1]


async def test_whoever_gives_up_takes_nothing_from_the_others(database_url: str, database: Database) -> None:
    source = Source()
    source.go.clear()
    async with processes(database_url, 1, Clock()) as (store,):
        impatient = asyncio.create_task(once(store, source.fetch))
        patient = asyncio.create_task(once(store, source.fetch))
        await eventually(lambda: source.fetched)
        impatient.cancel()
        with suppress(asyncio.CancelledError):
            await impatient
        source.go.set()
        assert await patient == PDF
    assert source.fetched == 1


async def test_when_a_process_dies_another_takes_over_at_the_end_of_its_lease(
    database_url: str, database: Database
) -> None:
    clock = Clock()
    claim = {"_id": f"event-1/{'a' * 64}", "at": NOW, "token": "the dead one's", "lease_until": NOW + MINUTE + STORING}
    await database.collection("attachments").insert_one(claim)
    source = Source()
    async with processes(database_url, 2, clock) as stores:
        asking = [asyncio.create_task(once(store, source.fetch)) for store in stores]
        await asyncio.wait(asking, timeout=0.3)
        assert source.fetched == 0
        clock.now += MINUTE + STORING
        assert await asyncio.gather(*asking) == [PDF, PDF]
    assert source.fetched == 1


async def test_a_process_that_stops_leaves_it_to_another_at_once(database_url: str, database: Database) -> None:
    slow, quick = Source(), Source()
    slow.go.clear()
    async with processes(database_url, 2, Clock()) as (stopping, other):
        asking = asyncio.create_task(once(stopping, slow.fetch))
        await eventually(lambda: slow.fetched)
        await stopping.close()
        assert await once(other, quick.fetch) == PDF
        with suppress(asyncio.CancelledError):
            await asking
    assert (slow.fetched, quick.fetched) == (1, 1)


@pytest.mark.parametrize(
    ("failure", "kept"),
    [
        (TransientFailure(Reason.ATTACHMENT_UNAVAILABLE, "attachment 1: HTTP 503"), TRANSIENT_KEPT),
        (PermanentFailure(Reason.ATTACHMENT_REJECTED, "attachment 1: HTTP 404"), PERMANENT_KEPT),
    ],
)
async def test_a_failure_is_found_out_once_and_forgotten_soon(
    database_url: str, database: Database, failure: DeliveryFailure, kept: timedelta
) -> None:
    clock, source = Clock(), Source()
    source.failure = failure
    async with processes(database_url, 2, clock) as stores:
        for store in stores * 3:
            with pytest.raises(type(failure)) as caught:
                await once(store, source.fetch)
            assert (caught.value.reason, caught.value.detail) == (failure.reason, failure.detail)
        assert source.fetched == 1
        clock.now += kept
        source.failure = None
        assert await once(stores[1], source.fetch) == PDF
    assert source.fetched == 2


async def test_an_error_of_ones_own_is_no_failure_of_others(database_url: str, database: Database) -> None:
    source = Source()
    source.failure = ZeroDivisionError()
    async with processes(database_url, 2, Clock()) as (one, other):
        with pytest.raises(ZeroDivisionError):
            await once(one, source.fetch)
        source.failure = None
        assert await once(other, source.fetch) == PDF


async def test_a_file_that_was_lost_or_changed_is_fetched_again(database_url: str, database: Database) -> None:
    source = Source()
    async with processes(database_url, 3, Clock()) as (first, second, third):
        await once(first, source.fetch)
        await database.collection("files.chunks").delete_one({"n": 1})
        assert await once(second, source.fetch) == PDF
        # what it holds was put in place of the same digest: it is not told from one that is whole until it is read
        await database.collection("files.files").delete_many({})
        assert await once(third, source.fetch) == PDF
    assert source.fetched == 3


async def test_memory_holds_so_many_bytes(database_url: str, database: Database) -> None:
    async with processes(database_url, 1, Clock(), cache_bytes=1000) as (store,):
        sources = {name: Source(name.encode() * 400) for name in ("a", "b", "c")}
        for name, source in sources.items():
            await once(store, source.fetch, source=name)
        await database.collection("files.chunks").delete_many({})
        assert await once(store, sources["c"].fetch, source="c") == b"c" * 400
        assert await once(store, sources["a"].fetch, source="a") == b"a" * 400
    assert {name: source.fetched for name, source in sources.items()} == {"a": 2, "b": 1, "c": 1}


# ---------------------------------------------------------------------------------------------------------------
# Under which rules
# ---------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def fetcher(files: MongoFiles, each: int = 10**6, **options: Any) -> AsyncIterator[AttachmentFetcher]:
    limits = Limits(2, each, int(1.5 * len(PDF)), MINUTE)
    made = AttachmentFetcher(limits, **{"allow_private": True, "files": files, **options})
    try:
        yield made
    finally:
        await made.close()


async def test_the_rules_hold_for_what_is_kept(database_url: str, database: Database, library: Library) -> None:
    invoice = Attachment.model_validate(library.attachment("invoice.pdf"))
    async with (
        processes(database_url, 1, Clock()) as (store,),
        fetcher(store) as usual,
        fetcher(store) as alike,
        fetcher(store, len(PDF) - 1) as narrow,
    ):
        for one in (usual, alike):
            assert [file.content for file in await one.fetch([invoice], "event-1")] == [PDF]
        with pytest.raises(PermanentFailure) as caught:  # both together
            await usual.fetch([invoice, invoice], "event-1")
        assert "attachment 2: larger than" in caught.value.detail
        assert library.asked["/invoice.pdf"] == 1
        with pytest.raises(PermanentFailure) as caught:
            await narrow.fetch([invoice], "event-1")
        assert caught.value.reason is Reason.ATTACHMENT_REJECTED
        assert library.asked["/invoice.pdf"] == 2
        assert [file.content for file in await usual.fetch([invoice], "event-1")] == [PDF]


async def test_what_one_provider_may_fetch_another_may_not_send(
    database_url: str, database: Database, library: Library
) -> None:
    invoice = Attachment.model_validate(library.attachment("invoice.pdf"))
    async with (
        processes(database_url, 1, Clock()) as (store,),
        fetcher(store) as trusting,
        fetcher(store, allow_private=False) as careful,
    ):
        await trusting.fetch([invoice], "event-1")
        with pytest.raises(PermanentFailure) as caught:
            await careful.fetch([invoice], "event-1")
        assert caught.value.reason is Reason.ADDRESS_REFUSED
        assert len(await trusting.fetch([invoice], "event-1")) == 1
    assert library.asked["/invoice.pdf"] == 1


# ---------------------------------------------------------------------------------------------------------------
# Retention
# ---------------------------------------------------------------------------------------------------------------


async def keep_event(database: Database, key: str) -> None:
    stored = StoredEvent(key, b"{}", key, "shop", "x", NOW, NOW, EventState.PLANNED, (), 1, "t")
    await MongoEvents(database).add(stored, NOW)


async def counts(database: Database) -> tuple[int, int, int]:
    """Attachments, files and chunks."""
    names = ("attachments", "files.files", "files.chunks")
    found = [await database.collection(name).count_documents({}) for name in names]
    return found[0], found[1], found[2]


async def test_files_go_with_the_last_event_that_has_them(database_url: str, database: Database) -> None:
    clock = Clock()
    clock.now = NOW - 40 * DAY
    async with processes(database_url, 1, clock) as (store,):
        for name in ("gone-1", "gone-2", "kept"):
            await once(store, Source().fetch, name)
        await once(store, Source(b"another").fetch, "gone-1", "b" * 64)
        clock.now = NOW
        await once(store, Source(b"young").fetch, "gone-3")
    await keep_event(database, "kept")
    step = await MongoRetention(database).files(NOW - 30 * DAY)
    assert step.deleted == {"attachments": 3}
    assert await counts(database) == (2, 2, 3)
    await database.collection("events").delete_one({"_id": "kept"})
    assert (await MongoRetention(database).files(NOW - 30 * DAY)).deleted == {"attachments": 1}
    assert await counts(database) == (1, 1, 1)
    assert (await MongoRetention(database).files(NOW - 30 * DAY)).deleted == {"attachments": 0}


async def test_a_file_that_is_just_becoming_anothers_stays(database_url: str, database: Database) -> None:
    clock = Clock()
    clock.now = NOW - 40 * DAY
    async with processes(database_url, 1, clock) as (store,):
        await once(store, Source().fetch, "gone")
    # what another process has done so far: it has found the file, and not yet said that it has it
    await database.collection("files.files").update_many({}, {"$set": {"metadata.used_at": NOW}})
    assert (await MongoRetention(database).files(NOW - 30 * DAY)).deleted == {"attachments": 0}
    assert await counts(database) == (1, 1, 2)


async def test_what_a_process_had_half_stored_when_it_died_goes_too(database_url: str, database: Database) -> None:
    clock = Clock()
    clock.now = NOW - 40 * DAY
    async with processes(database_url, 1, clock) as (store,):
        await once(store, Source().fetch, "gone")
    await database.collection("files.files").delete_many({})
    await database.collection("attachments").update_many({}, {"$unset": {"file": "", "digest": ""}})
    assert (await MongoRetention(database).files(NOW - 30 * DAY)).deleted == {"attachments": 1}
    assert await counts(database) == (0, 0, 0)


async def test_housekeeping_deletes_them(settings: Settings, stack: Stack, database: Database) -> None:
    at = NOW - 100 * DAY
    old = {"_id": f"gone/{'a' * 64}", "at": at, "token": "t", "file": 1, "digest": "d", "uploads": [1]}
    await database.collection("attachments").insert_many([old, {**old, "_id": "gone/young", "at": NOW}])
    async with running(settings):

        async def only_the_young() -> bool:
            return [each["_id"] async for each in database.collection("attachments").find()] == ["gone/young"]

        await eventually(only_the_young)

"""What is done to a system, and what is measured of it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from statistics import median
from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import WriteConcern

from benchmarks.measuring import WINDOW, Run, running_on
from benchmarks.peers.feeding import Feed
from benchmarks.sink import Behaviour
from benchmarks.systems import NOTIPY, NotiPy, Place, System, event
from consumers.app import audit_of, open_core
from deploy.embedded import Servers
from domain.conserve import Scope
from domain.delivery import Change, Delivery, delivery_id
from domain.event import event_key
from domain.ports import Claim, StoredEvent
from domain.token import unique_token
from domain.vocabulary import Channel, EventState, Lane, Reason, State
from storage.audit import MongoLedger
from storage.documents import claim_document, delivery_document, event_document

IDLE_SECONDS = 10
NOTHING_ELSE: Mapping[str, str] = {}
THREE_ADDRESSES = {"phone": "+4915112345678", "id": "user"}
STEADY = 100
"""Events a second."""


@dataclass(frozen=True)
class Figure:
    """One run; seconds, milliseconds, MiB. Costs are seconds of CPU per 1,000 deliveries in the measured window."""

    scenario: str
    system: str
    processes: int
    deliveries: int
    values: Mapping[str, float]
    lost: int
    duplicates: int
    of: Sequence["Figure"] = field(default=(), repr=False)


def middle(figures: Sequence[Figure]) -> Figure:
    """The medians of several runs of one scenario and system; what was lost or came twice is added up."""
    names = figures[0].values
    values = {name: median(figure.values[name] for figure in figures) for name in names}
    lost, twice = sum(f.lost for f in figures), sum(f.duplicates for f in figures)
    return replace(figures[0], values=values, lost=lost, duplicates=twice, of=tuple(figures))


Prepare = Callable[[Place], Awaitable[None]]


async def _nothing(_: Place) -> None:
    pass


async def drain(
    servers: Servers,
    system: System,
    count: int,
    processes: int = 1,
    *,
    scenario: str = "drain",
    behaviour: Behaviour = Behaviour(),  # noqa: B008 - frozen
    prepare: Prepare = _nothing,
    also: Mapping[str, str] = NOTHING_ELSE,
) -> Figure:
    """A backlog of events to one recipient each. The rate from a tenth of the mails on to the last.

    `prepare`: done before there is any event; `also`: further addresses of each recipient, for as many further
    deliveries; the mail is what is counted.
    """
    async with running_on(servers, system, behaviour) as run:
        await prepare(run.place)
        await system.fill(run.place, [event(number, **also) for number in range(count)])
        async with run.consuming(processes):
            first = await run.sink.reached(1)
            began, before = await run.sink.reached(round(count * WINDOW)), run.cost()
            counted = run.sink.count
            ended = await run.sink.reached(count)
            values = _values(run, before, count - counted, ended - began) | {"first": first - run.started}
            if also:
                await _all_final(run.place.mongo, count * (1 + len(also)))
        lost, twice = await run.judged({f"u{number}@example.org" for number in range(count)})
    return Figure(scenario, system.name, processes, count * (1 + len(also)), values, lost, twice)


async def broadcast(servers: Servers, system: System, count: int) -> Figure:
    """One event to many recipients: from its publication to the last mail."""
    async with running_on(servers, system) as run, system.feeder(run.place) as feed, run.consuming():
        await feed(event(count))
        await run.sink.reached(1)
        before, began = run.cost(), time.monotonic()
        await feed(event(*range(count)))
        ended = await run.sink.reached(count + 1)
        values = _values(run, before, count, ended - began)
        lost, twice = await run.judged({f"u{number}@example.org" for number in range(count + 1)})
    return Figure("broadcast", system.name, 1, count, values, lost, twice)


async def steady(servers: Servers, system: System, seconds: int) -> Figure:
    """A hundred events a second: from the publication of each to its mail."""
    count, published = seconds * STEADY, {}
    async with running_on(servers, system) as run, system.feeder(run.place) as feed, run.consuming():
        await feed(event(count))
        await run.sink.reached(1)
        await asyncio.sleep(1)
        before, began = run.cost(), time.monotonic()
        async with asyncio.TaskGroup() as feeding:
            for number in range(count):
                await asyncio.sleep(max(0.0, began + number / STEADY - time.monotonic()))
                published[f"u{number}@example.org"] = time.monotonic()
                feeding.create_task(_feed(feed, event(number)))
        await run.sink.reached(count + 1)
        values = _values(run, before, count, time.monotonic() - began)
        received = await run.sink.received()
        lost, twice = await run.judged({*published, f"u{count}@example.org"})
    ranked = sorted((received.at[to] - at) * 1000 for to, at in published.items() if to in received.at)
    values |= {"p50": ranked[len(ranked) // 2], "p99": ranked[len(ranked) * 99 // 100]}
    return Figure("steady 100/s", system.name, 1, count, values, lost, twice)


async def _feed(feed: Feed, body: bytes) -> None:
    await feed(body)


async def idle(servers: Servers, system: System) -> Figure:
    """From the start to the first mail of a single event, and the CPU of doing nothing afterwards."""
    async with running_on(servers, system) as run, system.feeder(run.place) as feed:
        await feed(event(0))
        async with run.consuming():
            first = await run.sink.reached(1) - run.started
            await asyncio.sleep(3)
            before = run.cost().workers
            await asyncio.sleep(IDLE_SECONDS)
            values = {"first": first, "idle": (run.cost().workers - before) / IDLE_SECONDS, "rss": run.rss_mib()}
        lost, twice = await run.judged({"u0@example.org"})
    return Figure("idle", system.name, 1, 1, values, lost, twice)


def three_channels(folder: str) -> NotiPy:
    """NotiPy with an event told by mail, by SMS and over the inbox; the latter two written to files."""

    def file(channel: str) -> dict[str, Any]:
        return {"providers": [{"name": channel, "kind": "file", "directory": f"{folder}/{channel}"}]}

    return replace(
        NOTIPY,
        channels={"sms": file("sms"), "inbox": file("inbox")},
        content={"sms": {"text": "{{ order_id }}"}, "inbox": {"title": "Order", "text": "{{ order_id }}"}},
    )


def _values(run: Run, before: Any, count: int, seconds: float) -> dict[str, float]:
    after = run.cost()
    spent = {name: (getattr(after, name) - getattr(before, name)) / count * 1000 for name in vars(after)}
    return {"rate": count / seconds, "seconds": seconds, "rss": run.rss_mib(), **spent}


async def _all_final(mongo_url: str, count: int) -> None:
    client: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(mongo_url)
    try:
        async with asyncio.timeout(120):
            deliveries = client.get_default_database()["deliveries"]
            while await deliveries.count_documents({"state": str(State.SENT)}) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    finally:
        client.close()


def history(count: int) -> Prepare:
    """Events of the last days with a delivery each, sent under a claim; on disk and audited, as what is days old is."""

    async def remember(place: Place) -> None:
        await _remember(place.mongo, count)
        async with open_core(NOTIPY.settings_of(place)) as core:
            audited = await audit_of(core, MongoLedger(core.database))(Scope())
            if any(audited.counts.values()) or audited.sums.stored != count:
                raise RuntimeError(f"the history is not in order: {audited.counts}")

    return remember


async def _remember(mongo_url: str, count: int) -> None:
    client: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(mongo_url)
    try:
        database = client.get_default_database(write_concern=WriteConcern(w=1))
        past = _past(count)
        while batch := list(islice(past, 5000)):
            collections = (database["events"], database["deliveries"], database["attempts"])
            await asyncio.gather(
                *(
                    collection.insert_many(documents, ordered=False)
                    for collection, documents in zip(collections, zip(*batch, strict=True), strict=True)
                )
            )
        await client.admin.command("fsync")
    finally:
        client.close()


def _past(count: int) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    now = datetime.now(UTC)
    for number in range(count):
        key, at = (
            event_key("past", str(number)),
            now - timedelta(seconds=number / 2),
        )  # of six days: younger than what is deleted
        event = StoredEvent(
            key=key,
            body=b'{"recipients": [{"email": "p@example.org"}], "data": {}}',
            id=str(number),
            source="past",
            type="order.shipped",
            time=at,
            received_at=at,
            state=EventState.PLANNED,
            plan=(("bench", 1),),
            planned=1,
            token=unique_token(),
        )
        delivery = Delivery(
            id=delivery_id(key, "bench", "u", Channel.EMAIL),
            event_key=key,
            event_id=event.id,
            source=event.source,
            type=event.type,
            notification="bench",
            version=1,
            channel=Channel.EMAIL,
            lane=Lane.NORMAL,
            recipient={"email": f"p{number}@example.org"},
            recipient_key="u",
            state=State.QUEUED,
            reason=Reason.PLANNED,
            created_at=at,
            updated_at=at,
        )
        sent = delivery.changed(Change(State.SENT, at, Reason.ACCEPTED, 1, 1, "sink"), None)
        claim = Claim(delivery.claim_id(1), unique_token(), at, at + timedelta(minutes=2))
        yield event_document(event), delivery_document(sent), claim_document(claim)

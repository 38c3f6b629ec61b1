"""One run: NotiPy as processes under load, one fault, and what is found when everything has come to rest."""

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import aio_pika
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError

from config.settings import Settings
from consumers.topology import Topology
from domain.vocabulary import EventState, State
from tests.chaos.arena import Arena, OwnArena, ReplicaSet
from tests.chaos.fleet import Fleet
from tests.chaos.judge import Allowances, Evidence, Judgement, Measure, Parked, StoredDelivery, judge
from tests.chaos.load import CATALOG, SOURCE, Producer, Published, make_load
from tests.chaos.proxy import TcpProxy
from tests.chaos.sinks import FILES, HOOKS, MAIL, Arrivals, Certificates, Hooks, MailServer, count_files
from tests.running import Stack
from tests.waiting import eventually

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SETTLE_SECONDS = 75.0
"""How long NotiPy may take to come to rest after a fault before what is left counts as a violation."""
LEASE_SECONDS = 3.0
_NOT_FINAL = [str(state) for state in State if not state.final]
_SEMANTICS: Sequence[Mapping[str, str]] = ({}, {"webhook": "at_most_once"}, {"email": "at_most_once"})
_QUIET_SECONDS = 12.0
_MEGABYTES = 150.0
_TASKS = 15.0
_CONNECTIONS = 2
"""Of each process: one consumes, one publishes."""
_CHANNELS = 3
"""Of each process, beyond one for each queue: to publish, to count, and FastStream's own."""
_ROLES = ("--roles", "events,email,sweeper")


async def nothing(_run: "Run") -> None:
    """There is nothing to prepare, or to look at."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        inject: makes it happen and ends it; the recovery is timed from its return.
        prepare: what has to be there before NotiPy starts.
        failpoints: of the process `a`, if the fault is its own.
        settled: looks at the processes when everything has come to rest, before they are stopped.
        events, recipients: the load.
        rate: events a second.
        begins: which part of the deliveries has arrived when it begins, at least and at most.
        kills_servers: it needs servers of its own.
        vhost: the virtual host; one of the run's own if None.
        missing: why it cannot be had on this machine; None if it can.
    """

    name: str
    about: str
    inject: Callable[["Run"], Awaitable[None]]
    prepare: Callable[["Run"], Awaitable[None]] = nothing
    failpoints: Callable[["Run"], str] | None = None
    settled: Callable[["Run"], Awaitable[None]] = nothing
    events: int = 1000
    recipients: int = 1
    rate: float = 125.0
    begins: tuple[float, float] = (0.05, 0.35)
    kills_servers: bool = False
    vhost: str | None = None
    allowed: Allowances = field(default_factory=Allowances)
    missing: Callable[[], str | None] = lambda: None


@dataclass(frozen=True)
class Result:
    """One line."""

    fault: str
    seed: int
    judgement: Judgement
    recovery: float
    seconds: float
    notes: tuple[str, ...]
    phases: Mapping[str, float]
    kept: str | None = None

    @property
    def good(self) -> bool:
        """Nothing is wrong."""
        return not self.judgement.violations


@dataclass
class Run:
    """What a fault may take in hand."""

    fault: Fault
    seed: int
    arena: Arena
    directory: Path
    rng: Random
    resources: AsyncExitStack
    fleet: Fleet
    mail: MailServer
    hooks: Hooks
    arrivals: Arrivals
    load: list[Published]
    settings: dict[str, Any]
    vhost: str
    database_name: str
    mongo_url: str
    client: AsyncMongoClient[dict[str, Any]]
    """To the servers themselves, past any proxy."""
    producer: Producer
    scale: float = 1.0
    replica_set: ReplicaSet | None = None
    spare: MailServer | None = None
    """A second mail server, for those faults that have one."""
    certificates: Certificates | None = None
    proxies: dict[str, TcpProxy] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How a process is started otherwise than usual, by its name."""
    notes: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    publishing: asyncio.Task[None] | None = None
    begun: float = field(default_factory=time.monotonic)
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def own(self) -> OwnArena:
        """The servers, which this fault may kill."""
        assert isinstance(self.arena, OwnArena), "this fault needs servers of its own"
        return self.arena

    @property
    def second(self) -> MailServer:
        """The second mail server."""
        assert self.spare is not None, "this fault needs a second mail server"
        return self.spare

    @property
    def semantics(self) -> Mapping[str, str]:
        """What each channel does with an unknown outcome: by the seed, so that three in a row have all of them."""
        return _SEMANTICS[self.seed % len(_SEMANTICS)]

    @property
    def database(self) -> AsyncDatabase[dict[str, Any]]:
        """NotiPy's, over a client of the run's own."""
        return self.client[self.database_name]

    def use_mongo(self, url: str) -> None:
        """Another database server than the arena's."""
        base, _, query = url.partition("?")
        self.mongo_url = f"{base.rsplit('/', 1)[0]}/{self.database_name}?{query}"
        self.settings["mongo_url"] = self.mongo_url
        self.client = _client(self.mongo_url)
        self.resources.push_async_callback(self.client.close)

    async def proxied(self, port: int) -> TcpProxy:
        """A proxy to a port of the loopback interface, closed with the run."""
        return await self.resources.enter_async_context(TcpProxy(port))

    def phase(self, name: str) -> None:
        """It has come so far: seconds since its beginning."""
        self.phases[name] = round(time.monotonic() - self.begun, 1)

    def note(self, text: str) -> None:
        """Something to know about this run, shown at the end of its line."""
        self.notes.append(text)

    def expect(self, held: object, trouble: str) -> None:
        """A run whose fault did not take place proves nothing: that counts as a failure."""
        if not held:
            self.troubles.append(f"{trouble}")

    @property
    def countable(self) -> int:
        """Deliveries that the sinks can count as they come."""
        return sum(wanted.channel != "sms" and not wanted.fails for event in self.load for wanted in event.wanted)

    async def planned(self) -> None:
        """Wait until every event that was confirmed is planned, its deliveries stored."""

        async def all_planned() -> bool:
            ended = {"state": {"$in": [str(EventState.PLANNED), str(EventState.UNMATCHED)]}}
            return await self.database["events"].count_documents(ended) >= len(self.producer.confirmed)

        await eventually(all_planned, timeout=60)

    async def progressed(self, share: float, timeout: float = 60.0) -> None:
        """Wait until this part of the load has arrived."""
        await eventually(lambda: self.arrivals.count >= share * self.countable, timeout=timeout)

    def scaled(self, number: int) -> int:
        """A number that is meant for a load of full size."""
        return max(1, round(number * self.scale))

    async def some_progress(self, at_least: int = 20, timeout: float = 60.0) -> None:
        """Wait for so many more arrivals."""
        before = self.arrivals.count
        await eventually(lambda: self.arrivals.count >= min(before + at_least, self.countable), timeout=timeout)


async def execute(fault: Fault, seed: int, arena: Arena, home: Path, *, scale: float = 1.0) -> Result:
    """Run a fault once; what NotiPy logged is kept only if something is wrong."""
    assert not fault.kills_servers or isinstance(arena, OwnArena), "it must not kill servers that others use"
    begun = time.monotonic()
    directory = home / f"{fault.name}-{seed}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    async with AsyncExitStack() as resources:
        run = await _prepared(fault, seed, arena, directory, resources, scale)
        healed, measures = await _played(run)
        evidence = await _evidence(run, healed, measures)
    judgement = judge(evidence, fault.allowed)
    if not judgement.violations:
        shutil.rmtree(directory, ignore_errors=True)
    kept = str(directory) if judgement.violations else None
    return Result(
        fault.name, seed, judgement, evidence.recovery, time.monotonic() - begun, tuple(run.notes), run.phases, kept
    )


async def _prepared(
    fault: Fault, seed: int, arena: Arena, directory: Path, resources: AsyncExitStack, scale: float
) -> Run:
    rng = Random(f"{fault.name} {seed}")
    arrivals = Arrivals()
    mail = await resources.enter_async_context(MailServer(directory / "mail", arrivals))
    hooks = await resources.enter_async_context(Hooks(directory / "hooks", SECRET, arrivals))
    name = f"chaos-{uuid4().hex[:8]}"
    vhost = fault.vhost or name
    run = Run(
        fault=fault,
        seed=seed,
        arena=arena,
        directory=directory,
        rng=rng,
        resources=resources,
        fleet=Fleet(arena.processes, directory, {}),
        mail=mail,
        hooks=hooks,
        arrivals=arrivals,
        load=make_load(rng, round(fault.events * scale), hooks.url, recipients=fault.recipients),
        settings={},
        vhost=vhost,
        database_name=name,
        mongo_url=arena.database_url(name),
        client=_client(arena.database_url(name)),
        producer=Producer(arena.vhost_url(vhost)),
        scale=scale,
    )
    await _open_places(run)
    run.settings = _settings(run)
    await fault.prepare(run)
    await _apply(run)
    run.fleet.settings = run.settings
    resources.callback(run.fleet.kill_all)
    return run


async def _open_places(run: Run) -> None:
    """A virtual host and a database, removed with the run."""
    await asyncio.to_thread(run.arena.admin.delete_vhost, run.vhost)
    await asyncio.to_thread(run.arena.admin.create_vhost, run.vhost)

    async def remove() -> None:
        if isinstance(run.arena, OwnArena):
            await run.arena.restore()
        with suppress(OSError):
            await asyncio.to_thread(run.arena.admin.delete_vhost, run.vhost)
            if run.fault.vhost:
                await asyncio.to_thread(run.arena.admin.create_vhost, run.vhost)
        with suppress(PyMongoError):
            await run.client.drop_database(run.database_name)

    run.resources.push_async_callback(run.client.close)
    run.resources.push_async_callback(remove)
    run.resources.push_async_callback(run.producer.close)


def _client(url: str) -> AsyncMongoClient[dict[str, Any]]:
    return AsyncMongoClient(url, serverSelectionTimeoutMS=10_000, tz_aware=True)


def _settings(run: Run) -> dict[str, Any]:
    """Short times: what takes minutes in production takes tenths of a second here."""
    retry = ["200ms", "500ms", *["1s"] * 10]
    smtp = {"name": MAIL, "kind": "smtp", "url": run.mail.url, "from": "Shop <shop@example.org>", "timeout": "2s"}
    hook = {"name": HOOKS, "kind": "webhook", "secret": SECRET, "allow_private": True, "timeout": "2s"}
    sms = {"name": FILES, "kind": "file", "directory": str(run.directory / "sms")}
    channels = {"email": smtp, "webhook": hook, "sms": sms}
    return {
        "amqp_url": run.arena.vhost_url(run.vhost),
        "mongo_url": run.mongo_url,
        "channels": {
            channel: {
                "retry": retry,
                "concurrency": 40,
                "semantics": run.semantics.get(channel, "at_least_once"),
                "providers": [provider],
            }
            for channel, provider in channels.items()
        },
        "retry_tiers": ["200ms", "500ms", "1s"],
        "sweeper": {"interval": "300ms", "overdue": "2s"},
        "lease": f"{LEASE_SECONDS:g}s",
        "grace": "10s",
        "catalog_refresh": "1s",
        "status": {"publish": "final"},
        "logging": {"level": "info", "format": "json"},
    }


async def _apply(run: Run) -> None:
    """Declare everything and put the notifications in force, as an operator does before a first start."""
    direct = {**run.settings, "amqp_url": run.arena.vhost_url(run.vhost), "mongo_url": run.mongo_url}
    async with Stack.open(Settings.model_validate(direct)) as stack:
        await stack.apply(*CATALOG)


async def _played(run: Run) -> tuple[float, Sequence[Measure]]:
    """Start, load, break, mend, come to rest, stop; returns when the fault had ended, and what must not grow."""
    fault = run.fault
    failpoints = fault.failpoints(run) if fault.failpoints else ""
    run.fleet.start("a", failpoints=failpoints, **run.options.get("a", {}))
    run.fleet.start("b", *_ROLES, **run.options.get("b", {}))
    await run.fleet.ready()
    before = await _measured(run)
    run.phase("started")
    run.publishing = asyncio.create_task(run.producer.publish(run.load, rate=fault.rate))
    try:
        if not fault.failpoints:
            await run.progressed(run.rng.uniform(*fault.begins))
        async with asyncio.timeout(120):
            await fault.inject(run)
    except (AssertionError, TimeoutError) as error:
        run.troubles.append(f"the fault did not take its course: {type(error).__name__} {error}")
    healed = time.monotonic()
    run.phase("fault over")
    await _published(run)
    if not await _at_rest(run, SETTLE_SECONDS):
        run.note(f"not at rest after {SETTLE_SECONDS:g} s")
    run.phase("at rest")
    await fault.settled(run)
    measures = await _compared(run, before)
    run.phase("compared")
    await run.fleet.stop()
    run.phase("stopped")
    count_files(run.directory / "sms", run.arrivals)
    return healed, measures


async def _published(run: Run) -> None:
    assert run.publishing is not None
    try:
        await asyncio.wait_for(run.publishing, 60)
    except TimeoutError:
        run.troubles.append(f"{len(run.load) - len(run.producer.confirmed)} events were never confirmed")


def _recovery(run: Run, healed: float, deliveries: Sequence[StoredDelivery]) -> float:
    """From the end of the fault until the last delivery of an event from before it has arrived."""
    before = {event for event, at in run.producer.confirmed.items() if at <= healed}
    ids = {delivery.id for delivery in deliveries if delivery.event_id in before}
    return max([0.0, *(at - healed for key, at in run.arrivals.first.items() if key in ids)])


async def _at_rest(run: Run, timeout: float) -> bool:
    """Wait until every event is planned, every delivery final, no message in progress and every queue empty.

    In this order: what is in progress may yet publish a retry that has become superfluous.
    """

    async def resting() -> bool:
        try:
            if not await _database_rests(run) or await run.fleet.in_flight():
                return False
            return not any((await _left(run)).values())
        except (PyMongoError, aio_pika.exceptions.AMQPError, OSError, TimeoutError):
            return False

    deadline = time.monotonic() + timeout
    while not await resting():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.25)
    return True


async def _database_rests(run: Run) -> bool:
    ended = [str(EventState.PLANNED), str(EventState.UNMATCHED)]
    if await run.database["events"].count_documents({"state": {"$in": ended}}) < len(run.producer.confirmed):
        return False
    return not await run.database["deliveries"].count_documents({"state": {"$in": _NOT_FINAL}}, limit=1)


async def _left(run: Run) -> Mapping[str, int]:
    """Messages that are ready in each queue that is no dead-letter queue; -1 for a queue that is missing."""
    settings = Settings.model_validate(run.settings)
    names = [queue.name for queue in Topology(tuple(settings.channels), settings.retry_tiers).queues]
    excused = ("notipy.unrouted",) if run.fault.allowed.unrouted else ()
    left = {}
    connection = await aio_pika.connect(run.arena.vhost_url(run.vhost), timeout=5)
    async with connection:
        for name in names:
            if not name.startswith("notipy.dead.") and name not in excused:
                left[name] = await _ready(connection, name)
    return left


async def _ready(connection: aio_pika.abc.AbstractConnection, queue: str) -> int:
    channel = await connection.channel(publisher_confirms=False)
    try:
        found = await channel.declare_queue(queue, passive=True)
    except aio_pika.exceptions.ChannelNotFoundEntity:
        return -1
    else:
        await channel.close()
    return found.declaration_result.message_count or 0


async def _measured(run: Run) -> Mapping[str, float]:
    """What each process uses by itself."""
    found = {}
    for name, member in run.fleet.members.items():
        if member.runs:
            found[f"{name} tasks"] = await run.fleet.tasks(name)
            # another incarnation has another measure: what has just started says nothing of growth
            found[f"{name} MB of incarnation {member.incarnations}"] = run.fleet.memory(name)
    return found


async def _connections(run: Run) -> Sequence[Measure]:
    """NotiPy's connections and channels, as the broker sees them, against what its roles need."""
    listed = await asyncio.to_thread(run.arena.admin.list_connections, run.vhost)
    ours = [each for each in listed if "chaos" not in str(each.get("client_properties", {}))]
    queues = sum(member.queues for member in run.fleet.members.values())
    members = len(run.fleet.members)
    channels = sum(each.get("channels", 0) for each in ours)
    return (
        Measure("connections", members * _CONNECTIONS, len(ours)),
        Measure("channels", queues + members * _CHANNELS, channels),
    )


async def _compared(run: Run, before: Mapping[str, float]) -> Sequence[Measure]:
    """When everything has come to rest: what is still on its way down, or seen late, is given a little time."""
    slack = {"tasks": _TASKS, "MB": _MEGABYTES}
    found: list[Measure] = []
    deadline = time.monotonic() + _QUIET_SECONDS
    while True:
        after = await _measured(run)
        found = [
            Measure(what, value, after[what], next(slack[word] for word in slack if word in what))
            for what, value in before.items()
            if value and what in after
        ]
        with suppress(OSError):
            found += await _connections(run)
        if not any(each.after > each.before + each.slack for each in found) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.5)


async def _evidence(run: Run, healed: float, measures: Sequence[Measure]) -> Evidence:
    """Read after every process has stopped: what was un-acknowledged stands in its queue again."""
    confirmed = [event for event in run.load if event.id in run.producer.confirmed]
    events = {
        document["id"]: (document["state"], document.get("planned", 0))
        async for document in run.database["events"].find({"source": SOURCE}, {"body": 0})
    }
    deliveries = [_stored(document) async for document in run.database["deliveries"].find({}, {"history.detail": 0})]
    claims = Counter([d["_id"].partition("/")[0] async for d in run.database["attempts"].find({}, {"_id": 1})])
    ended_badly = [f"{name} ended with {code} when asked to stop" for name, code in run.fleet.exits.items() if code]
    return Evidence(
        published=confirmed,
        events=events,
        deliveries=deliveries,
        claims=claims,
        arrived=dict(run.arrivals.times),
        through=dict(run.arrivals.through),
        semantics=run.semantics,
        left=await _left(run),
        parked=await _parked(run),
        measures=measures,
        recovery=_recovery(run, healed, deliveries),
        troubles=[*run.troubles, *ended_badly],
    )


def _stored(document: Mapping[str, Any]) -> StoredDelivery:
    recipient = document["recipient"]
    channel = document["channel"]
    return StoredDelivery(
        id=document["_id"],
        event_id=document["event_id"],
        channel=channel,
        address=str(recipient.get("phone" if channel == "sms" else channel)),
        state=document["state"],
        reason=document["reason"],
        flagged=bool(document.get("possible_duplicate")),
        detail=str(document.get("detail") or ""),
        attempts=_attempts(document["history"]),
    )


def _attempts(history: Sequence[Mapping[str, Any]]) -> Mapping[str, int]:
    """How many of the attempts in a history are each provider's."""
    made = [each for each in history if "provider" in each and each["state"] != State.HELD]  # which makes none
    return Counter(provider for _, _, provider in {(each["epoch"], each["attempt"], each["provider"]) for each in made})


async def _parked(run: Run) -> list[Parked]:
    """Every message of the dead-letter queues, taken away."""
    found = []
    connection = await aio_pika.connect(run.arena.vhost_url(run.vhost), timeout=5)
    async with connection:
        for name in ("events", *run.settings["channels"]):
            channel = await connection.channel(publisher_confirms=False)
            try:
                queue = await channel.get_queue(f"notipy.dead.{name}")
            except aio_pika.exceptions.ChannelNotFoundEntity:
                continue
            while (message := await queue.get(no_ack=True, fail=False)) is not None:
                headers = message.headers
                found.append(
                    Parked(queue.name, _text(headers.get("x-notipy-delivery")), str(headers.get("x-notipy-reason")))
                )
    return found


def _text(value: Any) -> str | None:
    return None if value is None else str(value)

"""NotiPy on a RabbitMQ cluster and a MongoDB replica set, of which a node and the primary are killed under load.

Whether it works, not how fast: three nodes, three members, two processes of NotiPy and the mail server share one
machine. Two processes consume, each over a node of its own; a producer publishes over the third. The node that is
killed leads the queue of the mails, and one of the processes is connected to it. That process knows one address: either
the node's, and then the other process does the work until the node is back, or a balancer's, which leads it to another.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import aio_pika
from aio_pika.exceptions import DeliveryError
from motor.motor_asyncio import AsyncIOMotorClient

from benchmarks.nodes import MEMBERS, Balancer, Brokers, Members, amqp_url
from benchmarks.peers.feeding import Feed, feeding
from benchmarks.sink import Behaviour, Received, Sink, mail_sink
from benchmarks.systems import NotiPy, Place, event
from consumers.topology import EVENTS, channel_queue
from deploy.install import ensure_rabbitmq
from deploy.processes import LOOPBACK, Processes, stopped_at_exit
from deploy.workspace import Workspace, workspace
from domain.vocabulary import Channel, Lane, State

AHEAD = 1000
"""Events that the producer is ahead of the mails at most, or a third of all: both are under way at the kills."""
KILLED_AFTER = 0.4
"""The part of the mails after which the node is killed."""
A_MOMENT = 2.0
"""Seconds from the node's end to the primary's."""
BEHAVIOUR = Behaviour(delay=0.1, fail_every=10)
"""A mail server that takes its time, so that many mails are under way at any moment, and wants a tenth of them twice,
so that some wait in a retry queue."""
CONFIRM_SECONDS = 30.0
"""Without a confirmation, after which the producer publishes again."""
MENDED_AFTER = 60.0
"""Seconds after the kills at which what was killed is started again, though some mails may be missing."""
PATIENCE_SECONDS = 900.0
"""For the last mail: longer than the sweeper needs to find what was lost on the way."""
MENDING_SECONDS = 180.0
STOP_SECONDS = 30.0
COUNTS_SECONDS = 10.0
"""After which what the management tells of the queues is of now."""
QUIET_SECONDS = 60.0
"""For what was held up until all was back: orders that others have carried out by then, and retries of those."""
FIRST, SECOND = "first", "second"
"""The processes, and the names of their providers, by which the database tells who has sent what."""
MAILS = channel_queue(Channel.EMAIL, Lane.NORMAL)


@dataclass(frozen=True)
class Kills:
    """When the node and the primary were killed, on the clock `time.monotonic`, and after how many mails."""

    node: float
    node_mails: int
    primary: float
    primary_mails: int
    port: int


@dataclass(frozen=True)
class Arrivals:
    """What the mail server saw; seconds.

    Attributes:
        duplicates: mails beyond the first to a recipient.
        node_to_mail, primary_to_mail: from each kill to the next mail, which was under way mostly.
        node_silence: the longest time without a mail from the node's end to the primary's.
        primary_silence: the longest after that.
    """

    lost: int
    duplicates: int
    node_to_mail: float
    primary_to_mail: float
    node_silence: float
    primary_silence: float


@dataclass(frozen=True)
class Records:
    """What the database says.

    Attributes:
        sent_by: how many deliveries are `sent`, by the process that sent them.
        possible_duplicates: deliveries that are marked so.
        flagged: the duplicates at the mail server whose delivery is.
        audited: whether `notipy audit` finds everything in order.
    """

    sent_by: dict[str, int]
    possible_duplicates: int
    flagged: int
    audited: bool


@dataclass(frozen=True)
class Survived:
    """What became of `count` events to one recipient each; seconds.

    Attributes:
        queues: how many there are, all of them quorum queues with so many `members` at least; the node that was killed
            led `led` of them.
        mails_at_kills: how many had arrived when the node was killed, and when the primary was.
        mails_without: how many had when what was killed was started again: all, if nothing had to wait for that.
        slowest_confirm: how long the producer waited for one at most.
        repeated: publishes that were refused or not confirmed, so that the producer repeated them.
        left: the messages that are in queues in the end.
        node_back: from the node's new start until every queue has all its members and both processes consume.
        member_back: from the member's new start until the replica set is whole.
        seconds: from the first publish to the last mail.
    """

    count: int
    balanced: bool
    queues: int
    members: int
    led: int
    mails_at_kills: tuple[int, int]
    mails_without: int
    arrivals: Arrivals
    records: Records
    slowest_confirm: float
    repeated: int
    left: dict[str, int]
    node_back: float
    member_back: float
    seconds: float


async def cluster(folder: Path, count: int = 3000, *, balanced: bool = False) -> Survived:
    """Deliver `count` events, and kill a node and the primary meanwhile. Call it from the main thread.

    Args:
        folder: where the servers keep their data while they run, and their logs.
        count: how many events; below about 1,500 there may be nothing left for the second kill to meet.
        balanced: connect the process that loses its node to a balancer before all of them, not to the node.

    Raises:
        StartFailed: a server did not start.
        RuntimeError: everything was over before the kills, or a queue is no quorum queue.
        TimeoutError: something that was killed did not come back.
    """
    ensure_rabbitmq(_say)
    async with AsyncExitStack() as stack:
        space = stack.enter_context(workspace(folder, keep=False))
        servers = stack.enter_context(stopped_at_exit(timeout=1.0))
        brokers, members = Brokers(servers, space), Members(servers, space)
        await members.start()
        await brokers.start()
        _say(f"{MEMBERS} RabbitMQ nodes are one cluster, {MEMBERS} MongoDB servers one replica set")
        sink = await stack.enter_async_context(mail_sink(BEHAVIOUR))
        workers = stack.enter_context(stopped_at_exit(timeout=STOP_SECONDS))
        return await _Scene(brokers, members, sink, workers, space, count).play(balanced)


@dataclass(frozen=True)
class _Spread:
    """Where the queues are: `led` of them are led by the first of the `nodes`, as is the queue of the mails."""

    queues: int
    members: int
    led: int
    nodes: tuple[int, ...]


@dataclass
class _Published:
    """What the producer met: seconds that it waited for each confirmation, and how often there was none."""

    waits: list[float] = field(default_factory=list)
    repeated: int = 0

    async def confirmed(self, feed: Feed, number: int) -> None:
        """Publish until it is."""
        began = time.monotonic()
        while not await self._once(feed, number):
            self.repeated += 1
            await asyncio.sleep(0.2)
        self.waits.append(time.monotonic() - began)

    async def _once(self, feed: Feed, number: int) -> bool:
        try:
            async with asyncio.timeout(CONFIRM_SECONDS):
                await feed(event(number))
        except (DeliveryError, TimeoutError):
            return False
        return True


@dataclass(frozen=True)
class _Course:
    """What happened; see `Survived`."""

    began: float
    kills: Kills
    without: int
    published: _Published
    left: dict[str, int]
    node_back: float
    member_back: float


@dataclass(frozen=True)
class _Scene:
    """What runs, and what is done to it."""

    brokers: Brokers
    members: Members
    sink: Sink
    workers: Processes
    space: Workspace
    count: int

    async def play(self, balanced: bool) -> Survived:
        """Deliver, kill, mend, judge."""
        await self._declare()
        spread = await self._spread()
        led, other, third = spread.nodes
        _say(f"{spread.queues} queues with {spread.members} members; node {led + 1} leads {MAILS}")
        ports = [node.ports.amqp for node in self.brokers.nodes]
        async with Balancer([ports[led], ports[third], ports[other]]) as balancer:
            await self._start(FIRST, balancer.port if balanced else ports[led])
            second = await self._start(SECOND, ports[other])
            await _until(self._both_consume)
            course = await self._course(led, third)
            # in a thread, for they end in order only as long as the balancer works
            await asyncio.to_thread(self.workers.stop, timeout=STOP_SECONDS)
        return await self._judged(spread, course, second, balanced)

    async def _course(self, led: int, third: int) -> _Course:
        """From the first publish to the last mail, and until nothing more is to be expected."""
        began = time.monotonic()
        producing = asyncio.create_task(self._produce(third))
        kills = await self._kill(led)
        await self._last_mail(MENDED_AFTER)
        without = self.sink.count
        _say(f"{without} mails after {time.monotonic() - began:.0f} s; in the queues: {await self._waiting()}")
        node_back = await _timed(self._mend_node(led))
        member_back = await _timed(self._mend_member(kills.port))
        published = await producing
        await self._last_mail(PATIENCE_SECONDS)
        _say(f"{self.sink.count} mails after {time.monotonic() - began:.0f} s")
        return _Course(began, kills, without, published, await self._left(), node_back, member_back)

    async def _judged(self, spread: _Spread, course: _Course, place: Place, balanced: bool) -> Survived:
        received = await self.sink.received()
        kills = course.kills
        return Survived(
            count=self.count,
            balanced=balanced,
            queues=spread.queues,
            members=spread.members,
            led=spread.led,
            mails_at_kills=(kills.node_mails, kills.primary_mails),
            mails_without=course.without,
            arrivals=_arrivals(received, self.count, kills),
            records=await self._records(received, place),
            slowest_confirm=max(course.published.waits),
            repeated=course.published.repeated,
            left=course.left,
            node_back=course.node_back,
            member_back=course.member_back,
            seconds=max(received.at.values()) - course.began,
        )

    async def _declare(self) -> None:
        """The topology, when all nodes are there: a queue has members on those that were when it was declared."""
        await self._system("declaring").prepare(self._place("declaring", self.brokers.nodes[0].ports.amqp))

    async def _spread(self) -> _Spread:
        await _until(self._queues_are_whole)
        queues = await self.brokers.queues()
        if any(queue["type"] != "quorum" for queue in queues):
            raise RuntimeError("not all queues are quorum queues")
        leader = next(queue["leader"] for queue in queues if queue["name"] == MAILS)
        led = self.brokers.number(leader)
        return _Spread(
            queues=len(queues),
            members=min(len(queue["members"]) for queue in queues),
            led=sum(queue["leader"] == leader for queue in queues),
            nodes=(led, *(number for number in range(MEMBERS) if number != led)),
        )

    def _system(self, name: str) -> NotiPy:
        url = f"smtp://{LOOPBACK}:{self.sink.port}?tls=none"
        provider = {"name": name, "kind": "smtp", "url": url, "from": "bench@example.org"}
        return NotiPy(channels={"email": {"providers": [provider]}})

    def _place(self, name: str, port: int) -> Place:
        folder = self.space.data / name
        folder.mkdir()
        return Place(amqp_url(port), self.members.url, self.sink.port, folder)

    async def _start(self, name: str, port: int) -> Place:
        """A process of NotiPy that connects to this port."""
        system, place = self._system(name), self._place(name, port)
        await system.prepare(place)
        environment = {"PATH": os.environ.get("PATH", os.defpath)}
        log = self.space.log / f"notipy-{name}.log"
        self.workers.start(f"notipy-{name}", system.command(place, 1), env=environment, log=log)
        return place

    async def _both_consume(self) -> bool:
        return bool((await self.brokers.queue(MAILS)).get("consumers") == 2)

    async def _produce(self, node: int) -> _Published:
        """Publish every event until it is confirmed, as a producer should."""
        published, ahead = _Published(), min(AHEAD, self.count // 3)
        feeder = feeding(self.brokers.nodes[node].amqp_url, EVENTS, "bench.order.shipped", _message)
        async with feeder as feed, asyncio.TaskGroup() as publishing:
            for number in range(self.count):
                while number - self.sink.count >= ahead:  # noqa: ASYNC110 - another process's counter is looked at
                    await asyncio.sleep(0.01)
                publishing.create_task(published.confirmed(feed, number))
        return published

    async def _kill(self, led: int) -> Kills:
        await self.sink.reached(round(self.count * KILLED_AFTER))
        node, node_mails = time.monotonic(), self.sink.count
        self.brokers.kill(led)
        _say(f"node {led + 1} is killed after {node_mails} mails")
        port = await self.members.primary()
        await asyncio.sleep(A_MOMENT)
        primary, primary_mails = time.monotonic(), self.sink.count
        self.members.kill_member(port)
        _say(f"the primary is killed after {primary_mails} mails")
        if primary_mails >= self.count:
            raise RuntimeError(f"{self.count} events are too few: every mail had arrived before the primary was killed")
        return Kills(node, node_mails, primary, primary_mails, port)

    async def _last_mail(self, patience: float) -> None:
        """Wait until each recipient has one, but no longer than that."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if self.sink.count >= self.count and len((await self.sink.received()).times) >= self.count:
                return
            await asyncio.sleep(0.05)

    async def _mend_node(self, led: int) -> None:
        await self.brokers.restart(led)
        await _until(self._queues_are_whole)
        await _until(self._both_consume)

    async def _queues_are_whole(self) -> bool:
        return all(len(queue.get("online", ())) == MEMBERS for queue in await self.brokers.queues())

    async def _waiting(self) -> dict[str, int]:
        """The messages in the queues that have some, in a consumer's hands or not."""
        return {queue["name"]: queue["messages"] for queue in await self.brokers.queues() if queue.get("messages")}

    async def _left(self) -> dict[str, int]:
        """What still waits a while after everything is back: nothing, if all that was held up has come to its end."""
        deadline = time.monotonic() + QUIET_SECONDS
        await asyncio.sleep(COUNTS_SECONDS)
        while (left := await self._waiting()) and time.monotonic() < deadline:  # noqa: ASYNC110 - they are asked
            await asyncio.sleep(1)
        return left

    async def _mend_member(self, port: int) -> None:
        self.members.start_member(port)
        await _until(self._set_is_whole)

    async def _set_is_whole(self) -> bool:
        return await self.members.healthy() == MEMBERS

    async def _records(self, received: Received, place: Place) -> Records:
        twice = {to: times - 1 for to, times in received.times.items() if times > 1}
        async with _deliveries(self.members.url) as deliveries:
            marked = [found async for found in deliveries.find({"possible_duplicate": True})]
            sent = {
                name: await deliveries.count_documents({"state": str(State.SENT), "provider": name})
                for name in (FIRST, SECOND)
            }
        flagged = sum(twice.get(delivery["recipient"]["email"], 0) for delivery in marked)
        return Records(sent, len(marked), flagged, await _audit(place))


def _message(body: bytes) -> aio_pika.Message:
    """With an id that is the event's own, so that publishing it again is harmless."""
    named = uuid5(NAMESPACE_OID, body.decode()).hex
    return aio_pika.Message(body, message_id=named, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)


def _arrivals(received: Received, count: int, kills: Kills) -> Arrivals:
    expected = {f"u{number}@example.org" for number in range(count)}
    before = [at for at in sorted(received.at.values()) if kills.node < at <= kills.primary]
    after = [at for at in sorted(received.at.values()) if at > kills.primary]
    return Arrivals(
        lost=len(expected - set(received.times)),
        duplicates=sum(times - 1 for times in received.times.values()),
        node_to_mail=min([*before, *after], default=kills.node) - kills.node,
        primary_to_mail=min(after, default=kills.primary) - kills.primary,
        node_silence=_longest([kills.node, *before, kills.primary]),
        primary_silence=_longest([kills.primary, *after]),
    )


def _longest(times: Sequence[float]) -> float:
    return max((later - earlier for earlier, later in pairwise(times)), default=0.0)


@asynccontextmanager
async def _deliveries(mongo_url: str) -> AsyncIterator[Any]:
    client: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(mongo_url)
    try:
        yield client.get_default_database()["deliveries"]
    finally:
        client.close()


async def _audit(place: Place) -> bool:
    """Whether everything that was accepted is accounted for."""
    command = [sys.executable, "-m", "cli.main", "--config", str(place.folder / "notipy.yaml"), "audit"]
    process = await asyncio.create_subprocess_exec(*command, stdout=sys.stderr)
    return await process.wait() == 0


async def _until(holds: Callable[[], Awaitable[bool]], seconds: float = MENDING_SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while not await holds():  # noqa: ASYNC110 - servers tell nobody; they are asked
            await asyncio.sleep(0.2)


async def _timed(work: Awaitable[None]) -> float:
    began = time.monotonic()
    await work
    return time.monotonic() - began


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

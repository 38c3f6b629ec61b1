"""Confirmed publishes over a connection of their own: `domain.ports.DispatchQueue`.

Publishing and consuming are separate connections, because the broker throttles one that publishes under
an alarm, its acknowledgements too.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from time import monotonic
from typing import Any, Literal, TypeVar, cast
from uuid import uuid4

import aio_pika
import orjson
from aio_pika.abc import AbstractChannel, AbstractRobustConnection
from aio_pika.exceptions import AMQPError, DeliveryError, PublishError
from aiormq import spec
from aiormq.exceptions import ChannelInvalidStateError

from consumers import codec
from consumers.confirms import ConfirmedChannel
from consumers.outside import Outside, connected_apart
from consumers.topology import (
    CHANNELS,
    DEAD,
    EVENTS,
    INBOX,
    RECEIPTS,
    RECEIPTS_KEY,
    STATUS,
    Topology,
    channel_queue,
    retry_name,
)
from domain.backoff import wait_out
from domain.delivery import Change, Delivery
from domain.dispatch import Dispatch
from domain.event import Incoming
from domain.group_commit import GroupCommit, enough
from domain.ports import QueueFull, Waiting
from domain.text import MAX_FAULTS, Fault
from domain.vocabulary import Channel, Lane, Reason

T = TypeVar("T")
OUTAGES = (AMQPError, ConnectionError, TimeoutError, ChannelInvalidStateError, RuntimeError)
"""What a publish meets while the broker is away or refuses (a full queue): waited out, and told each time.

aio-pika raises RuntimeError for a connection that is being restored (its robust_connection.py).
"""
CONFIRM_TIMEOUT = 120.0
"""Seconds without a confirmation after which a publish is repeated; the client's own timeout does not end one.

Long, because under an alarm the broker confirms late, and what is repeated is there twice.
"""
WINDOW = 500
"""Publishes under way at once: confirmations are pipelined on one channel, and bounded."""
STATUS_LINGER = 0.03
"""Seconds that a status waits for others of its kind: of them one shows that nobody listens, as mostly nobody does.
What it tells of has happened and is on record."""
REFUSED_SECONDS = 5.0
"""That a delivery waits for room in a full queue. From then on none waits, until one has been taken: whoever waits
holds a place in the queue that it came from, and what it waits for may be the end of just such waiting."""
ROOM_SECONDS = 0.1
"""Between two looks whether there is room."""
NONE_TOGETHER: Mapping[Lane, int] = {}
NO_MORE: Mapping[str, Any] = {}
PERSISTENT = 2
MAX_DETAIL = 2000
"""Characters of a reason's detail in a header; the broker limits a message's headers to one frame."""


class TopologyDiffers(Exception):
    """Something of the same name exists with other arguments: `notipy topology --check` says what."""


class Publisher:
    """Publishes to the queues of NotiPy; each call returns after the confirmation and waits out outages.

    Attributes:
        outside: for exchanges that are not NotiPy's own; it waits out nothing.
    """

    def __init__(
        self,
        connection: AbstractRobustConnection,
        topology: Topology,
        status: Literal["final", "all", "none"] = "final",
        together: Mapping[Lane, int] = NONE_TOGETHER,
        in_progress: int = 1,
    ) -> None:
        self._connection = connection
        self._topology = topology
        self._status = status
        self._channel = ConfirmedChannel(self._opened)
        self.outside = Outside(lambda: connected_apart(cast("aio_pika.Connection", connection)))
        self._together = together
        self._statuses: GroupCommit[tuple[str, Delivery, Change], None] = GroupCommit(
            self._tell_all, linger=STATUS_LINGER, enough=enough(in_progress)
        )
        self._lanes: dict[str, GroupCommit[Dispatch, None]] = {}
        self._full_since: dict[tuple[str, str], float] = {}
        self._prefix, self._numbers = uuid4().hex, count(1)
        self._inspection: AbstractChannel | None = None
        self._asking = asyncio.Lock()
        self._window = asyncio.Semaphore(WINDOW)
        self.on_outage: Callable[[BaseException], None] = lambda _: None
        self.on_refused: Callable[[str], None] = lambda _: None
        self.on_dispatched: Callable[[str, str, int], None] = lambda _channel, _lane, _deliveries: None

    async def open(self, *, declare: bool = True) -> None:
        """Open the channel and, unless told not to, declare the topology."""
        channel = await self._channel.channel()
        if declare:
            await self._topology.declare(channel)

    async def close(self) -> None:
        """Close the channels; the connection is its owner's."""
        await self._channel.close()
        await self.outside.close()
        if self._inspection is not None and not self._inspection.is_closed:
            await self._inspection.close()

    async def dispatch(self, job: Dispatch, *, alone: bool = False) -> None:
        """To `notipy.channels` under `<channel>.<lane>`.

        At once where nothing of that lane is under way; otherwise together with whatever else comes until then.
        """
        key = _lane_key(job)
        if alone:
            (fault,) = await self._dispatch_all(key, [job], {codec.AGAIN: True})
            if fault is not None:
                raise fault
            return
        await self._lane(key, job.delivery.lane).submit(job)

    async def dispatch_all(self, jobs: Sequence[Dispatch]) -> Sequence[Exception | None]:
        """As `dispatch`, by one caller; those of a lane go together."""
        lanes: defaultdict[str, list[Dispatch]] = defaultdict(list)
        for job in jobs:
            lanes[_lane_key(job)].append(job)
        going = (self._lane(key, several[0].delivery.lane).submit_all(several) for key, several in lanes.items())
        found = zip(lanes.values(), await asyncio.gather(*going), strict=True)
        results = {id(job): result for several, own in found for job, result in zip(several, own, strict=True)}
        return [results[id(job)] for job in jobs]

    def _lane(self, key: str, lane: Lane) -> GroupCommit[Dispatch, None]:
        if key not in self._lanes:
            self._lanes[key] = GroupCommit(lambda jobs: self._dispatch_all(key, jobs), self._together.get(lane, 1))
        return self._lanes[key]

    async def _dispatch_all(
        self, key: str, jobs: Sequence[Dispatch], also: Mapping[str, Any] = NO_MORE
    ) -> Sequence[Exception | None]:
        """In one message, or some; for each order why it could not be published."""
        faults: dict[int, Exception] = {}
        for parcel in codec.parcels(jobs):
            if not isinstance(parcel, codec.Parcel):
                faults[id(parcel[0])] = parcel[1]
                continue
            try:
                await self._order(CHANNELS, key, parcel.body, {**parcel.headers, **also})
            except QueueFull as full:
                faults |= {id(job): full for job in parcel.jobs}
            else:
                channel, lane = key.split(".")
                self.on_dispatched(channel, lane, len(parcel.jobs))
        return [faults.get(id(job)) for job in jobs]

    async def _order(self, exchange: str, key: str, body: bytes, headers: Mapping[str, Any]) -> None:
        """Of a delivery that is on record, to a queue that may be full of others."""
        place = exchange, key
        while (refused := await self._publish(exchange, key, body, headers, insist=False)) is not None:
            if isinstance(refused, PublishError):  # there is no such queue: it will be declared anew
                await self._publish(exchange, key, body, headers)
                break
            self.on_outage(refused)
            if monotonic() - self._full_since.setdefault(place, monotonic()) >= REFUSED_SECONDS:
                raise QueueFull(f"{exchange} takes nothing under {key}")
            await asyncio.sleep(ROOM_SECONDS)
        self._full_since.pop(place, None)

    async def retry(self, job: Dispatch, tier: timedelta) -> None:
        """To the tier's exchange, under the key with which the broker hands it back to its channel."""
        await self._order(retry_name(tier), _lane_key(job), codec.dispatch_body(job), codec.dispatch_headers(job))

    async def relay(self, key: str, body: bytes, headers: dict[str, Any]) -> None:
        """A work order that found no queue, to `notipy.channels` once more."""
        await self._publish(CHANNELS, key, body, headers)

    async def park(self, job: Dispatch, reason: Reason, detail: str) -> None:
        """To `notipy.dead` under `<channel>`, with why in its headers."""
        headers = codec.dispatch_headers(job) | _why(reason, detail) | {codec.ATTEMPT: job.delivery.attempt}
        await self._order(DEAD, str(job.delivery.channel), codec.dispatch_body(job), headers)

    async def reject(
        self,
        incoming: Incoming,
        reason: Reason,
        faults: Sequence[Fault],
        where: str = "events",
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """To `notipy.dead` under `where`: the body as it came, every field's fault in a header."""
        told = [{"field": fault.field, "fault": fault.fault} for fault in faults[:MAX_FAULTS]]
        while len(told) > 1 and len(orjson.dumps(told)) > MAX_DETAIL:
            told.pop()
        headers = {**(about or {}), **_why(reason, orjson.dumps(told).decode())}
        origin = {codec.ROUTING_KEY: incoming.routing_key, codec.MESSAGE_ID: incoming.message_id}
        headers |= {name: value for name, value in origin.items() if value is not None}
        await self._publish(DEAD, where, incoming.body, headers)

    async def status(self, delivery: Delivery, change: Change, *, patient: bool = False) -> None:
        """To `notipy.status` under `<state>.<channel>.<source>.<type>`; whoever cares has bound a queue."""
        if self._tells(change):
            await self._statuses.submit((_status_key(delivery, change), delivery, change), hurry=not patient)

    async def statuses(self, changed: Sequence[tuple[Delivery, Change]]) -> None:
        """As `status`, by one caller."""
        told = [each for each in changed if self._tells(each[1])]
        for result in await self._statuses.submit_all([(_status_key(*each), *each) for each in told]):
            if isinstance(result, Exception):
                raise result

    def _tells(self, change: Change) -> bool:
        """Whether the settings say that this kind of change is told."""
        return self._status == "all" or (self._status == "final" and change.state.final)

    async def _tell_all(self, statuses: Sequence[tuple[str, Delivery, Change]]) -> Sequence[None]:
        alike: dict[str, list[tuple[Delivery, Change]]] = defaultdict(list)
        for key, delivery, change in statuses:
            alike[key].append((delivery, change))
        await asyncio.gather(*(self._tell(key, several) for key, several in alike.items()))
        return [None] * len(statuses)

    async def _tell(self, key: str, statuses: Sequence[tuple[Delivery, Change]]) -> None:
        """The first of several that came together shows whether a queue is bound at all; mostly none is."""
        if await self._tell_one(key, *statuses[0]):
            await asyncio.gather(*(self._tell_one(key, *status) for status in statuses[1:]))

    async def _tell_one(self, key: str, delivery: Delivery, change: Change) -> bool:
        headers = {codec.DELIVERY: delivery.id, codec.EPOCH: delivery.epoch}
        refused = await self._publish(STATUS, key, codec.status_body(delivery, change), headers, insist=False)
        if refused is not None and not isinstance(refused, PublishError):
            # somebody's own queue is full: that must not stop deliveries, and the database has it all
            self.on_refused(key)
        return not isinstance(refused, PublishError)

    async def event(self, key: str, body: bytes, message_id: str | None) -> None:
        """An event to `notipy.events`, as a producer would; for `notipy send` and for replays.

        Without a `message_id` the message says so: the client gives each one, which would pass for the event's id.
        """
        headers = {} if message_id else {codec.WITHOUT_ID: True}
        await self._publish(EVENTS, key, body, headers, message_id=message_id)

    async def receipt(self, key: str, body: bytes, content_type: str | None = None) -> None:
        """A receipt to `notipy.receipts`, as a gateway would; for replays."""
        await self._publish(RECEIPTS, key, body, {}, content_type=content_type or codec.JSON)

    async def receipt_later(self, body: bytes, waits: int, tier: timedelta) -> None:
        """A receipt that came too early, back to its queue after `tier`."""
        await self._publish(retry_name(tier), RECEIPTS_KEY, body, {codec.RECEIPT_WAITS: waits})

    async def inbox(self, key: str, body: bytes) -> None:
        """To `notipy.inbox`, for whoever looks at an inbox now; that is nobody, or somebody whose queue is full."""
        await self._publish(INBOX, key, body, {}, insist=False)

    async def waiting(self, channel: Channel, lane: Lane) -> Waiting:
        """By asking the broker; a queue that is gone has nothing waiting."""
        return Waiting(*(await self.counts(channel_queue(channel, lane)) or (0, 0)))

    async def declare(self) -> None:
        """Declare the topology anew: somebody has deleted a part of it, or the broker has lost it."""

        async def once() -> None:
            async with asyncio.timeout(CONFIRM_TIMEOUT):
                channel = await self._passing_channel()
                try:
                    await self._topology.declare_again(channel)
                except aio_pika.exceptions.ChannelPreconditionFailed as error:
                    raise TopologyDiffers(str(error)) from None
                finally:
                    await channel.close()

        await self._waited(once)

    async def counts(self, queue: str) -> tuple[int, int] | None:
        """The messages that wait in a queue and its consumers; None if there is no such queue."""
        return await self._waited(lambda: self._ask(queue))

    async def _ask(self, queue: str) -> tuple[int, int] | None:
        # on a channel apart from the publishes: a queue that is missing closes the channel that asks
        async with self._asking:
            if self._inspection is None or self._inspection.is_closed:
                self._inspection = await self._passing_channel()
            underlay = await self._inspection.get_underlay_channel()
            try:
                found = await underlay.queue_declare(queue, passive=True)
            except aio_pika.exceptions.ChannelNotFoundEntity:
                return None
        return found.message_count or 0, found.consumer_count or 0

    async def _passing_channel(self) -> AbstractChannel:
        """A channel that is gone when it is closed: a robust one would reopen itself, and one leak at each outage."""
        channel = aio_pika.Channel(self._connection, publisher_confirms=False)
        await channel.initialize()
        return channel

    async def _publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        headers: Mapping[str, Any],
        *,
        insist: bool = True,
        message_id: str | None = None,
        content_type: str = codec.JSON,
    ) -> DeliveryError | None:
        """Publish until it is confirmed. Without `insist`, once it is refused or has no queue, that is returned."""

        async def once() -> DeliveryError | None:
            properties = spec.Basic.Properties(
                content_type=content_type,
                headers=dict(headers),
                delivery_mode=PERSISTENT,
                # unique for each publish: two of the same id under way would swap their returns
                message_id=message_id or f"{self._prefix}-{next(self._numbers)}",
                timestamp=datetime.now(UTC),
                app_id="notipy",
            )
            async with self._window, asyncio.timeout(CONFIRM_TIMEOUT):
                try:
                    await self._channel.publish(
                        body, exchange=exchange, routing_key=key, properties=properties, mandatory=True
                    )
                except DeliveryError as refused:
                    if insist:
                        raise  # one of our own queues is full or missing: waited out like any outage
                    return refused
            return None

        return await self._waited(once)

    async def _opened(self) -> AbstractChannel:
        return await self._connection.channel(publisher_confirms=True, on_return_raises=True)

    async def _waited(self, operation: Callable[[], Awaitable[T]]) -> T:
        return await wait_out(lambda: _telling_a_lost_channel(operation), OUTAGES, self.on_outage)


async def _telling_a_lost_channel(operation: Callable[[], Awaitable[T]]) -> T:
    """The client ends what waits for an answer over a channel that is lost in a bare `Exception` (aiormq's base.py)."""
    try:
        return await operation()
    except Exception as error:
        if type(error) is Exception:
            raise ConnectionError("the channel was lost") from error
        raise


def _status_key(delivery: Delivery, change: Change) -> str:
    return f"{change.state}.{delivery.channel}.{delivery.source}.{delivery.type}"


def _lane_key(job: Dispatch) -> str:
    return f"{job.delivery.channel}.{job.delivery.lane}"


def _why(reason: Reason, detail: str) -> dict[str, Any]:
    return {
        codec.REASON: str(reason),
        codec.DETAIL: detail[:MAX_DETAIL],
        codec.PARKED_AT: datetime.now(UTC).isoformat(),
    }

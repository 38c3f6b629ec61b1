"""What a run publishes, made from its seed, and what must become of it; and a producer as a real one is."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange
from pamqp.common import FieldTable

from tests.waiting import eventually

SOURCE = "shop"
CATALOG: Sequence[Mapping[str, Any]] = (
    {
        "name": "order-shipped",
        "on": "shop.order.shipped",
        "required": ["order_id"],
        "channels": {"email": {"subject": "Order {{ order_id }}", "text": "It is on its way: {{ event.id }}"}},
    },
    {
        "name": "order-paid",
        "on": "shop.order.paid",
        "required": ["order_id"],
        "channels": {
            "email": {"subject": "Order {{ order_id }}", "text": "It is paid: {{ event.id }}"},
            "webhook": {"payload": '{"event": {{ event.id | tojson }}}'},
        },
    },
    {
        "name": "order-packed",
        "on": "shop.order.packed",
        "required": ["order_id"],
        "channels": {
            "email": {"subject": "Order {{ order_id }}", "text": "It is packed: {{ event.id }}"},
            "sms": {"text": "Packed: {{ event.id }}"},
        },
    },
)
_CHANNELS = {"order.shipped": ("email",), "order.paid": ("email", "webhook"), "order.packed": ("email", "sms")}
_MAILBOXES = (("fail-451-2", 4), ("refuse-452-1", 1), ("drop-1", 1), ("reject-550", 2))
"""How some recipients behave (deploy/smtp_sink.py), and how many in a hundred."""
_PATHS = (("fail/503/2", 6), ("gone", 3))
_ENDS = {"reject-550": "recipient_rejected", "gone": "endpoint_gone"}
_CONFIRM_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """One delivery that an event must lead to.

    Attributes:
        fails: the reason with which it ends `failed`; None if it must arrive.
        doubtful: its recipient cuts the connection after the content, so that nobody can know whether it arrived.
    """

    channel: str
    address: str
    fails: str | None = None
    doubtful: bool = False


@dataclass(frozen=True, slots=True)
class Published:
    """One event: what is published, and the deliveries that it must lead to."""

    id: str
    type: str
    body: bytes = field(repr=False)
    wanted: tuple[Wanted, ...]


def make_load(rng: Random, events: int, hooks: str, *, recipients: int = 1, unmatched: bool = True) -> list[Published]:
    """So many events; about three deliveries for two events of one recipient, of all channels and lanes."""
    types = rng.choices(tuple(_CHANNELS), weights=(2, 1, 1), k=events)
    load = [_event(rng, number, kind, hooks, recipients) for number, kind in enumerate(types)]
    if unmatched:
        load += [_nobody(number) for number in range(max(1, events // 100))]
    return load


def _event(rng: Random, number: int, kind: str, hooks: str, recipients: int) -> Published:
    wanted: list[Wanted] = []
    people = []
    for person in range(recipients):
        here = {
            "email": f"{_chosen(rng, _MAILBOXES, 'user')}@r{person}.e{number}.example.org",
            "webhook": f"{hooks}/{_chosen(rng, _PATHS, 'ok')}?e={number}.{person}",
            "phone": f"+49151{number:06d}{person:03d}",
        }
        people.append(here)
        wanted += [_wanted(channel, here) for channel in _CHANNELS[kind]]
    body: dict[str, Any] = {"recipients": people, "data": {"order_id": number}}
    lane = rng.choices((None, "high", "bulk"), weights=(8, 1, 1))[0]
    if lane:
        body["lane"] = lane
    return Published(f"ord-{number}", kind, json.dumps(body).encode(), tuple(wanted))


def _nobody(number: int) -> Published:
    body = json.dumps({"recipients": [{"email": "nobody@example.org"}], "data": {}}).encode()
    return Published(f"log-{number}", "order.viewed", body, ())


def _wanted(channel: str, here: Mapping[str, str]) -> Wanted:
    address = here["phone" if channel == "sms" else channel]
    script = address.partition("@")[0] if channel == "email" else address.partition("?")[0].rpartition("/")[2]
    return Wanted(channel, address, _ENDS.get(script), script == "drop-1")


def _chosen(rng: Random, odd: Sequence[tuple[str, int]], usual: str) -> str:
    names, weights = zip(*odd, strict=True)
    chosen: str = rng.choices((usual, *names), weights=(100 - sum(weights), *weights))[0]
    return chosen


class Producer:
    """Publishes events with confirms; what was not confirmed it publishes again, as a producer must.

    `confirmed` has the time of each event's confirmation.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._exchange: AbstractExchange | None = None
        self._opening = asyncio.Lock()
        self._going_on = asyncio.Event()
        self._going_on.set()
        self._under_way = 0
        self.confirmed: dict[str, float] = {}
        self.repeated = 0

    async def publish(self, load: Sequence[Published], *, rate: float, window: int = 50) -> None:
        """All of them, at `rate` a second at most; returns when each is confirmed."""
        places = asyncio.Semaphore(window)
        begun = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number, event in enumerate(load):
                await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
                await self._going_on.wait()
                await places.acquire()
                tasks.create_task(self._one(event)).add_done_callback(lambda _: places.release())

    async def pause(self) -> None:
        """Publish nothing more until `go_on`; returns when what was under way is confirmed."""
        self._going_on.clear()
        await eventually(lambda: not self._under_way, timeout=60)

    def go_on(self) -> None:
        """Publish again."""
        self._going_on.set()

    async def close(self) -> None:
        """Disconnect."""
        await self._hang_up()

    async def _one(self, event: Published) -> None:
        self._under_way += 1
        try:
            while not await self._tried(event):
                self.repeated += 1
                await asyncio.sleep(0.2)
            self.confirmed[event.id] = time.monotonic()
        finally:
            self._under_way -= 1

    async def _tried(self, event: Published) -> bool:
        exchange = None
        try:
            async with asyncio.timeout(_CONFIRM_SECONDS):
                exchange = await self._open()
                message = aio_pika.Message(
                    event.body, message_id=event.id, delivery_mode=aio_pika.DeliveryMode.PERSISTENT
                )
                await exchange.publish(message, f"{SOURCE}.{event.type}", mandatory=True)
        except aio_pika.exceptions.DeliveryError:  # refused, or there is no queue: the channel is as good as before
            return False
        except Exception:  # noqa: BLE001 - whatever it was, it was not confirmed
            if exchange is self._exchange:
                await self._hang_up()
            return False
        return True

    async def _open(self) -> AbstractExchange:
        async with self._opening:
            if self._exchange is None:
                properties: FieldTable = {"connection_name": "chaos producer"}
                self._connection = await aio_pika.connect(self._url, client_properties=properties, timeout=3)
                self._channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
                self._exchange = await self._channel.get_exchange("notipy.events", ensure=False)
            return self._exchange

    async def _hang_up(self) -> None:
        connection, self._connection, self._exchange = self._connection, None, None
        if connection is not None:
            with suppress(Exception):
                async with asyncio.timeout(1):
                    await connection.close()

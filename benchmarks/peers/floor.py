"""The floor: what the same hops cost without a notification system, with aio-pika, Motor and aiosmtplib alone.

One process consumes the events and the mails. As durable as NotiPy: quorum queues, confirmed persistent publishes,
majority writes before anything is acknowledged. Writes and acknowledgements are grouped. There are no retries: any
fault ends the process with exit code 1, and the broker hands out again what was not acknowledged.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, cast
from uuid import uuid4

import aio_pika
import aiosmtplib
import orjson
import uvloop
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage, AbstractQueue
from aiormq import Channel
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCollection, AsyncIOMotorDatabase
from pamqp.commands import Basic
from pymongo.errors import BulkWriteError

from benchmarks.peers.feeding import Feed, feeding, fill
from benchmarks.peers.grouping import Acks, Grouped
from benchmarks.peers.notification import (
    DURABLE,
    SENDER,
    Document,
    already_there,
    claim_document,
    delivery_documents,
    event_document,
    mail,
    prepare_database,
    sent,
)
from benchmarks.peers.processes import Addresses, arguments, supervise

EVENTS, MAILS = "floor.events", "floor.mails"
QUORUM: dict[str, Any] = {"x-queue-type": "quorum", "x-overflow": "reject-publish"}
PREFETCH = 200
"""Messages of each queue under way at once."""
CONNECTIONS = 30
"""To the SMTP server."""
WINDOW = 500
"""Publishes under way at once."""


# -- for the harness --------------------------------------------------------------------------------------------------


async def prepare(amqp_url: str, mongo_url: str) -> None:
    """Declare the queues and create the indexes."""
    await asyncio.to_thread(prepare_database, mongo_url)
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        for name in (EVENTS, MAILS):
            await channel.declare_queue(name, durable=True, arguments=QUORUM)


def feeder(amqp_url: str) -> AbstractAsyncContextManager[Feed]:
    """What publishes events one by one: `await feed(body)` returns when the event is confirmed."""
    return feeding(amqp_url, "", EVENTS, _event_message)


async def publish(amqp_url: str, bodies: Sequence[bytes]) -> None:
    """Fill the backlog."""
    await fill(feeder(amqp_url), bodies)


def _event_message(body: bytes) -> aio_pika.Message:
    return aio_pika.Message(body, message_id=uuid4().hex, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)


# -- hops -------------------------------------------------------------------------------------------------------------


class Smtp:
    """Kept connections, the last used first."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._idle: list[aiosmtplib.SMTP] = []
        self._slots = asyncio.Semaphore(CONNECTIONS)

    async def send(self, recipient: str, content: bytes) -> None:
        """Hand one mail over."""
        async with self._slots:
            client = self._idle.pop() if self._idle else None
            if client is None or not client.is_connected:
                client = await self._connect()
            await client.mail(SENDER)
            await client.rcpt(recipient)
            await client.data(content)
            self._idle.append(client)

    async def close(self) -> None:
        """Say goodbye."""
        await asyncio.gather(*(client.quit() for client in self._idle if client.is_connected), return_exceptions=True)

    async def _connect(self) -> aiosmtplib.SMTP:
        host, port = self._address
        client = aiosmtplib.SMTP(hostname=host, port=port, start_tls=False, local_hostname="localhost", timeout=30)
        await client.connect()
        await client.ehlo()
        return client


class Floor:
    """The two handlers: of an event, and of a mail."""

    def __init__(self, database: AsyncIOMotorDatabase[Document], publisher: Channel, smtp: Smtp) -> None:
        self._deliveries = database["deliveries"]
        self._publisher = publisher
        self._smtp = smtp
        self._window = asyncio.Semaphore(WINDOW)
        self._new_events = _grouped_inserts(database["events"])
        self._new_deliveries = _grouped_inserts(database["deliveries"])
        self._claims = _grouped_inserts(database["attempts"])
        self._sent: Grouped[str, Any] = Grouped(
            lambda ids: database["deliveries"].update_many({"_id": {"$in": ids}}, sent())
        )

    async def event(self, message: AbstractIncomingMessage) -> None:
        """Store the event and its deliveries, then dispatch each of them."""
        event, event_id = orjson.loads(message.body), message.message_id or ""
        stored = self._new_events.submit(event_document(event_id, event))
        for batch in delivery_documents(event_id, event["recipients"]):
            if len(batch) == 1:
                await asyncio.gather(stored, self._new_deliveries.submit(batch[0]))
                await self._dispatch(batch[0], event["data"])
            else:
                await asyncio.gather(stored, _insert(self._deliveries, batch))
                await asyncio.gather(*(self._dispatch(each, event["data"]) for each in batch))

    async def mail(self, message: AbstractIncomingMessage) -> None:
        """Claim → render → send → record."""
        job = orjson.loads(message.body)
        claim = claim_document(job["delivery"], 1)
        if claim["_id"] in await self._claims.submit(claim) and not await self._unsent(job["delivery"]):
            return
        await self._smtp.send(job["email"], mail(job["delivery"], job["email"], job["data"]))
        await self._sent.submit(job["delivery"])

    async def _dispatch(self, delivery: Document, data: Document) -> None:
        body = orjson.dumps({"delivery": delivery["_id"], "email": delivery["email"], "data": data})
        properties = Basic.Properties(delivery_mode=2, message_id=delivery["_id"])
        async with self._window:
            # not through aio-pika's exchange: that waits for each message to be written before it takes the next one
            await self._publisher.basic_publish(
                body, routing_key=MAILS, properties=properties, mandatory=True, wait=False
            )

    async def _unsent(self, delivery: str) -> bool:
        """Whether a claim that was made before has come to nothing: its process ended before it was recorded."""
        return await self._deliveries.find_one({"_id": delivery, "state": "queued"}) is not None


def _grouped_inserts(collection: AsyncIOMotorCollection[Document]) -> Grouped[Document, frozenset[str]]:
    return Grouped(lambda documents: _insert(collection, documents))


async def _insert(collection: AsyncIOMotorCollection[Document], documents: list[Document]) -> frozenset[str]:
    """Insert in one write; returns the ids that were there already."""
    try:
        await collection.insert_many(documents, ordered=False)
    except BulkWriteError as error:
        return already_there(error, documents)
    return frozenset()


# -- the process ------------------------------------------------------------------------------------------------------


class Consumer:
    """Handles what comes from one queue, until it is stopped or something goes wrong."""

    def __init__(
        self,
        queue: AbstractQueue,
        handle: Callable[[AbstractIncomingMessage], Awaitable[None]],
        end: Callable[[Any], None],
    ) -> None:
        self._queue = queue
        self._handle = handle
        self._end = end
        self._under_way = 0

    async def start(self) -> None:
        """Consume."""
        self._acks = Acks(await self._queue.channel.get_underlay_channel())
        self._tag = await self._queue.consume(self._receive)

    async def stop(self) -> None:
        """Take no more, end what is under way, acknowledge it."""
        await self._queue.cancel(self._tag)
        while self._under_way:  # noqa: ASYNC110 - on the way out only
            await asyncio.sleep(0.01)
        await self._acks.flush()

    async def _receive(self, message: AbstractIncomingMessage) -> None:
        self._under_way += 1
        try:
            await self._handle(message)
            self._acks.settled(message.delivery_tag or 0)
        except Exception as error:  # noqa: BLE001 - ends the process
            self._end(error)
        finally:
            self._under_way -= 1


@asynccontextmanager
async def _opened(addresses: Addresses, end: Callable[[Any], None]) -> AsyncIterator[list[Consumer]]:
    async with AsyncExitStack() as stack:
        client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(addresses.mongo)
        stack.callback(client.close)
        database = client.get_default_database(write_concern=DURABLE)
        smtp = Smtp(addresses.smtp)
        stack.push_async_callback(smtp.close)
        # apart, because the broker throttles a connection that publishes, its acknowledgements too
        publishing, consuming = [await stack.enter_async_context(await aio_pika.connect(addresses.amqp)) for _ in "pc"]
        for connection in (publishing, consuming):
            connection.close_callbacks.add(lambda _, error: end(error))
        channel = await publishing.channel(publisher_confirms=True, on_return_raises=True)
        floor = Floor(database, cast(Channel, await channel.get_underlay_channel()), smtp)
        handlers = ((EVENTS, floor.event), (MAILS, floor.mail))
        yield [Consumer(await _queue(consuming, name), handle, end) for name, handle in handlers]


async def _queue(connection: AbstractConnection, name: str) -> AbstractQueue:
    channel = await connection.channel(publisher_confirms=False)
    await channel.set_qos(PREFETCH)
    return await channel.get_queue(name, ensure=False)


async def run(addresses: Addresses) -> int:
    """Work until SIGTERM or SIGINT, or until something goes wrong; returns the exit code."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[BaseException | None] = loop.create_future()

    def end(error: BaseException | None = None) -> None:
        if not ended.done():
            ended.set_result(error)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    async with _opened(addresses, end) as consumers:
        await asyncio.gather(*(consumer.start() for consumer in consumers))
        if error := await ended:
            print(f"the floor has met {error!r}", file=sys.stderr)
            return 1
        await asyncio.gather(*(consumer.stop() for consumer in consumers))
    return 0


def main() -> int:
    """Run as many processes as asked for."""
    chosen = arguments(__doc__).parse_args()
    if chosen.processes > 1:
        return supervise("benchmarks.peers.floor", chosen.processes, sys.argv[1:])
    return uvloop.run(run(Addresses(chosen.amqp, chosen.mongo, chosen.smtp)))


if __name__ == "__main__":
    sys.exit(main())

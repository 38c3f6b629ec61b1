"""A real RabbitMQ as a provider's other side: a queue, and the network on the way to it, which can break."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from types import SimpleNamespace
from typing import Any, cast

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from pamqp.common import FieldTable
from yarl import URL

from channels.surroundings import Surroundings
from consumers.outside import Outside, connected_apart
from deploy.rabbit_admin import RabbitAdmin
from tests.conformance.over_http import absent_port
from tests.conformance.subject import Fault
from tests.contract.peers import serving

UNDER_WAY = b"d1/1"
"""What is in the message of every test, and in nothing that is said before it."""
FULL: FieldTable = {"x-max-length": 0, "x-overflow": "reject-publish"}


class Broker(Enum):
    """What becomes of a message that is published."""

    TAKES = auto()
    HAS_NO_EXCHANGE = auto()
    HAS_NO_QUEUE = auto()
    HAS_A_FULL_QUEUE = auto()
    FORBIDS = auto()


@dataclass
class BrokerPeer:
    """The exchange and a queue that is bound to it; NotiPy's own connections go there, the provider has none.

    Attributes:
        got: what was taken out of the queue so far.
    """

    surroundings: Surroundings
    queue: AbstractQueue | None
    url: str = ""
    connections: int = 0
    opened: int = 0
    got: list[AbstractIncomingMessage] = field(default_factory=list)

    async def taken(self) -> Sequence[Any]:
        """What was confirmed is in the queue already."""
        while self.queue and (message := await self.queue.get(fail=False, no_ack=True)) is not None:
            self.got.append(message)
        return self.got


@asynccontextmanager
async def broker_peer(
    broker: tuple[RabbitAdmin, str], exchange: str, answer: Broker | Fault
) -> AsyncIterator[BrokerPeer]:
    """The exchange as `answer` says, in a virtual host where nobody else uses one of this name at the time."""
    admin, url = broker
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(await aio_pika.connect(url))
        channel = await connection.channel()
        queue = await _declared(channel, exchange, answer)
        if answer is not Broker.HAS_NO_EXCHANGE:
            stack.push_async_callback(channel.exchange_delete, exchange)
        way = await stack.enter_async_context(_way(URL(url), admin, answer))
        outside = Outside(lambda: connected_apart(cast("aio_pika.Connection", SimpleNamespace(url=way))))
        stack.push_async_callback(outside.close)
        yield BrokerPeer(Surroundings(publish=outside.publish), queue)


async def _declared(channel: AbstractChannel, exchange: str, answer: Broker | Fault) -> AbstractQueue | None:
    if answer is Broker.HAS_NO_EXCHANGE:
        return None
    declared = await channel.declare_exchange(exchange, aio_pika.ExchangeType.TOPIC)
    if answer is Broker.HAS_NO_QUEUE:
        return None
    arguments = FULL if answer is Broker.HAS_A_FULL_QUEUE else None
    queue = await channel.declare_queue(exclusive=True, arguments=arguments)
    await queue.bind(declared, "#")
    return queue


@asynccontextmanager
async def _way(url: URL, admin: RabbitAdmin, answer: Broker | Fault) -> AsyncIterator[URL]:
    """The broker's URL as NotiPy has it."""
    if answer is Fault.ABSENT:
        async with absent_port() as port:
            yield url.with_host("127.0.0.1").with_port(port)
    elif answer is Fault.LOST:
        async with serving(lambda *client: _cut(url, *client)) as port:
            yield url.with_host("127.0.0.1").with_port(port)
    elif answer is Broker.FORBIDS:
        host, name = url.path.strip("/"), f"{url.path.strip('/')}-reader"
        admin._call("PUT", "users", name, body={"password": "reader", "tags": ""})
        admin._call("PUT", "permissions", host, name, body={"configure": "^$", "write": "^$", "read": ".*"})
        try:
            yield url.with_user(name).with_password("reader")
        finally:
            admin._call("DELETE", "users", name)
    else:
        yield url


async def _cut(url: URL, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass everything on in both directions, until the message is under way: then the connection is gone."""
    server_reader, server_writer = await asyncio.open_connection(url.host, url.port)
    back = asyncio.create_task(_pass(server_reader, writer))
    try:
        await _pass(reader, server_writer, until=UNDER_WAY)
    finally:
        back.cancel()
        await asyncio.gather(back, return_exceptions=True)
        server_writer.transport.abort()
        writer.transport.abort()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, until: bytes | None = None) -> None:
    with suppress(OSError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            if until is not None and until in chunk:
                return
            await writer.drain()

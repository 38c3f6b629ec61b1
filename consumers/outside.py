"""Confirmed publishes to exchanges that are not NotiPy's own, for the providers that hand messages to them."""

import asyncio
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import DeliveryError
from aiormq import spec
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity

from domain.failures import TransientFailure, UnknownOutcome, place_of
from domain.vocabulary import Reason

JSON: Final = "application/json"
TRANSIENT: Final = 1
PERSISTENT: Final = 2
CONNECT_SECONDS: Final = 10.0
OPEN_SECONDS: Final = 15.0
"""For a channel, with all that it waits for: when a lease is over, nobody can tell that nothing was sent."""
REFUSED_SECONDS: Final = 1.0
"""How long an exchange that was not there, or could not be reached, is not asked for again."""
AT_ONCE: Final = 16
"""Publishes to one exchange that are under way, each over a channel of its own."""


@dataclass(slots=True)
class _Line:
    """The way to one exchange: a connection, its channels that are free, and how many more may be in use."""

    connection: AbstractConnection | None = None
    free: list[AbstractChannel] = field(default_factory=list)
    left: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    refused: tuple[float, Reason, str] = (-math.inf, Reason.NOT_CONFIGURED, "")

    @property
    def alive(self) -> AbstractConnection | None:
        """The connection, unless it is lost."""
        connection = self.connection
        return connection if connection and not connection.is_closed and connection.connected.is_set() else None


class Outside:
    """Publishes where NotiPy declares nothing.

    Each exchange has a connection of its own. One that is not there closes the channel that it is named on, and in its
    wake the client may use the channel's number too early, for which the broker closes the connection (seen with
    aiormq 7.2: 504, expected or second 'channel.open'); that must be nobody else's. Each publish has a channel to
    itself, so that a channel that is closed leaves no doubt for which.
    """

    def __init__(self, connect: Callable[[], Awaitable[AbstractConnection]]) -> None:
        self._connect = connect
        self._lines: defaultdict[str, _Line] = defaultdict(_Line)

    async def publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        headers: Mapping[str, Any],
        *,
        mandatory: bool = False,
        persistent: bool = True,
    ) -> None:
        """Publish once and return after the confirmation; that no queue is bound is no failure, unless `mandatory`.

        Raises:
            TransientFailure: nothing was published: there is no such exchange, it may not be published to, or there
                is no connection, or none in time.
            UnknownOutcome: the connection was lost before the confirmation came; or the broker refused it, because a
                queue that is bound is full: others that are bound may have it (`PROVIDER_UNAVAILABLE`).
        """
        async with self._channel(exchange) as channel:
            try:
                underlay = await channel.get_underlay_channel()
                answer = await underlay.basic_publish(
                    body,
                    exchange=exchange,
                    routing_key=key,
                    properties=_properties(headers, persistent),
                    mandatory=mandatory,
                )
            except (ChannelNotFoundEntity, ChannelAccessRefused):
                raise
            except DeliveryError:
                detail = "RabbitMQ refused it: a queue that is bound is full; others may have it"
                raise UnknownOutcome(Reason.PROVIDER_UNAVAILABLE, detail, provider_fault=True) from None
            except Exception as error:
                # the client ends what waits for a confirmation in more kinds of exception than it documents
                detail = f"before RabbitMQ confirmed it: {place_of(error)}"
                raise UnknownOutcome(Reason.CONNECTION_LOST, detail, provider_fault=True) from error
        if isinstance(answer, DeliveredMessage):  # returned: it comes before its confirmation
            raise TransientFailure(Reason.NOT_CONFIGURED, f"no queue takes this message from the exchange {exchange!r}")

    async def close(self) -> None:
        """Close the connections; what is under way is no longer waited for."""
        lines = list(self._lines.values())
        self._lines.clear()
        await asyncio.gather(*map(_retire, lines))

    @asynccontextmanager
    async def _channel(self, exchange: str) -> AsyncIterator[AbstractChannel]:
        """One that nobody else uses; kept, unless something went wrong over it."""
        line = self._lines[exchange]
        channel = await self._in_time(line, exchange)
        try:
            yield channel
        except (ChannelNotFoundEntity, ChannelAccessRefused) as error:
            raise await _refused(line, exchange, error) from None
        except BaseException:
            await _closed(channel)
            raise
        else:
            line.free.append(channel)
        finally:
            line.left.release()

    async def _in_time(self, line: _Line, exchange: str) -> AbstractChannel:
        """A channel, and one of the line's places, which its user gives back."""
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await line.left.acquire()
                try:
                    return await self._usable(line, exchange)
                except BaseException:
                    line.left.release()
                    raise
        except TimeoutError:
            raise _fault(Reason.TIMEOUT, "no channel to RabbitMQ in time; nothing was published") from None

    async def _usable(self, line: _Line, exchange: str) -> AbstractChannel:
        if line.alive is None:
            line.free.clear()
        while line.free:
            if not (channel := line.free.pop()).is_closed:
                return channel
        async with line.opening:
            at, reason, told = line.refused
            if monotonic() - at < REFUSED_SECONDS:
                raise _fault(reason, told)
            return await self._opened(line, exchange)

    async def _opened(self, line: _Line, exchange: str) -> AbstractChannel:
        """A channel, when it is certain that the exchange is there; the default one (without a name) always is."""
        try:
            connection = line.connection = line.alive or await self._connect()
            channel = await connection.channel(publisher_confirms=True)
            if exchange:
                underlay = await channel.get_underlay_channel()
                await underlay.exchange_declare(exchange, passive=True)
        except (ChannelNotFoundEntity, ChannelAccessRefused) as error:
            raise await _refused(line, exchange, error) from None
        except Exception as error:
            line.refused = (monotonic(), Reason.CONNECTION_REFUSED, f"no channel to RabbitMQ: {place_of(error)}")
            raise _fault(*line.refused[1:]) from error
        return channel


async def connected_apart(connection: aio_pika.Connection) -> AbstractConnection:
    """A connection to the same broker that nothing restores: who uses it next makes another.

    Raises:
        OSError, AMQPError: the broker cannot be reached.
    """
    apart = aio_pika.Connection(connection.url, client_properties={"connection_name": "notipy outside"})
    try:
        await apart.connect(timeout=CONNECT_SECONDS)
    except BaseException:
        await apart.close()
        raise
    return apart


async def _refused(line: _Line, exchange: str, error: Exception) -> TransientFailure:
    """Close the connection, of which the client may have lost count, and remember why for a moment."""
    missing = isinstance(error, ChannelNotFoundEntity)
    told = f"there is no exchange {exchange!r}" if missing else f"NotiPy may not publish to the exchange {exchange!r}"
    line.refused = (monotonic(), Reason.NOT_CONFIGURED, told)
    await _retire(line)
    return _fault(Reason.NOT_CONFIGURED, told)


async def _retire(line: _Line) -> None:
    connection, line.connection = line.connection, None
    line.free.clear()
    if connection is not None:
        with suppress(Exception):  # it is lost already
            await connection.close()


def _fault(reason: Reason, detail: str) -> TransientFailure:
    return TransientFailure(reason, detail, provider_fault=True)


def _properties(headers: Mapping[str, Any], persistent: bool) -> spec.Basic.Properties:
    return spec.Basic.Properties(
        content_type=JSON,
        headers=dict(headers),
        delivery_mode=PERSISTENT if persistent else TRANSIENT,
        timestamp=datetime.now(UTC),
        app_id="notipy",
    )


async def _closed(channel: AbstractChannel) -> None:
    if not channel.is_closed:
        with suppress(Exception):  # it is lost already, or with its connection
            await channel.close()

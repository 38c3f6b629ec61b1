"""A TCP proxy on the loopback interface that is the network between NotiPy and a server, and fails as networks do."""

import asyncio
from contextlib import suppress
from enum import StrEnum
from types import TracebackType
from typing import Self

from deploy.processes import LOOPBACK

_CHUNK = 64 * 1024


class Mode(StrEnum):
    """What becomes of the packets."""

    PASS = "pass"
    CUT = "cut"
    """Connections are reset and new ones refused."""
    DROP = "drop"
    """Packets are swallowed: connections stand, new ones too, and nothing comes through. One that has lost a packet
    stays dead when the network is well again, as behind a firewall that has forgotten it."""
    SLOW = "slow"
    """Each packet takes a while."""


class TcpProxy:
    """`async with TcpProxy(port) as proxy`: listens on a free port and hands on to `port`, as `mode` says.

    Attributes:
        delay: seconds that each packet takes when it is slow, in each direction.
        swallowed: bytes so far, of connections that stood; `swallowed_connections` were made into the void.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.mode = Mode.PASS
        self.delay = 0.15
        self.port = 0
        self.swallowed = 0
        self.swallowed_connections = 0
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._transports: set[asyncio.WriteTransport] = set()

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self._connected, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening and reset what is connected."""
        if self._server is not None:
            self._server.close()
        self._reset()
        for pipe in list(self._pipes):
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    def set(self, mode: Mode) -> None:
        """From now on; `CUT` resets what is connected."""
        self.mode = mode
        if mode is Mode.CUT:
            self._reset()

    def _reset(self) -> None:
        for transport in list(self._transports):
            transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        self._transports.add(writer.transport)
        try:
            await self._serve(reader, writer)
        finally:
            writer.transport.abort()
            self._transports.discard(writer.transport)
            self._pipes.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode is Mode.CUT:
            return
        if self.mode is Mode.DROP:
            self.swallowed_connections += 1
            await self._swallow(reader)
            return
        with suppress(OSError):
            server_reader, server_writer = await asyncio.open_connection(LOOPBACK, self.target)
            self._transports.add(server_writer.transport)
            try:
                await self._both(reader, writer, server_reader, server_writer)
            finally:
                server_writer.transport.abort()
                self._transports.discard(server_writer.transport)

    async def _both(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
    ) -> None:
        lost = asyncio.Event()
        ways = [
            asyncio.create_task(self._pipe(reader, server_writer, lost)),
            asyncio.create_task(self._pipe(server_reader, writer, lost)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lost: asyncio.Event) -> None:
        """One direction, until its end or until a packet of the connection was lost."""
        with suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                if self.mode is Mode.DROP or lost.is_set():
                    lost.set()
                    self.swallowed += len(chunk)
                    await self._swallow(reader)
                    return
                if self.mode is Mode.SLOW:
                    await asyncio.sleep(self.delay)
                writer.write(chunk)
                await writer.drain()

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        """For as long as the client keeps it: a connection that has lost packets is dead for good."""
        with suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                self.swallowed += len(chunk)

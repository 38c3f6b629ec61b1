"""The proxy fails as it says."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from deploy.processes import LOOPBACK
from tests.chaos.proxy import Mode, TcpProxy
from tests.waiting import eventually


@pytest.fixture
async def proxy() -> AsyncIterator[TcpProxy]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, LOOPBACK, 0)
    async with TcpProxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy
    server.close()


async def connected(proxy: TcpProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(LOOPBACK, proxy.port)


async def said(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout: float = 5.0) -> bytes:
    writer.write(b"ping")
    return await asyncio.wait_for(reader.read(100), timeout)


async def ended(reader: asyncio.StreamReader) -> bool:
    with suppress(ConnectionError):
        return await asyncio.wait_for(reader.read(), 5) == b""
    return True


async def test_it_passes(proxy: TcpProxy) -> None:
    reader, writer = await connected(proxy)
    assert await said(reader, writer) == b"ping"
    writer.close()


async def test_cut_resets_and_refuses_until_it_is_well(proxy: TcpProxy) -> None:
    reader, writer = await connected(proxy)
    assert await said(reader, writer) == b"ping"
    proxy.set(Mode.CUT)
    assert await ended(reader)
    writer.close()
    again, other = await connected(proxy)
    assert await ended(again)
    other.close()
    proxy.set(Mode.PASS)
    reader, writer = await connected(proxy)
    assert await said(reader, writer) == b"ping"
    writer.close()


async def test_a_connection_that_has_lost_packets_stays_dead(proxy: TcpProxy) -> None:
    reader, writer = await connected(proxy)
    assert await said(reader, writer) == b"ping"
    proxy.set(Mode.DROP)
    writer.write(b"lost")
    await eventually(lambda: proxy.swallowed == 4)
    proxy.set(Mode.PASS)
    with pytest.raises(TimeoutError):
        await said(reader, writer, timeout=0.3)
    fresh_reader, fresh = await connected(proxy)
    assert await said(fresh_reader, fresh) == b"ping"
    fresh.close()
    writer.close()


async def test_slow_takes_its_time_in_both_directions(proxy: TcpProxy) -> None:
    reader, writer = await connected(proxy)
    proxy.delay = 0.1
    proxy.set(Mode.SLOW)
    begun = time.monotonic()
    assert await said(reader, writer) == b"ping"
    assert time.monotonic() - begun >= 0.2
    writer.close()

"""A mail server in a process of its own that costs little: it counts each recipient's mails and when the last came.

Not aiosmtpd: that costs as much as what is measured against it, on the same two cores. It checks nothing and keeps
nothing, and is of no use but this.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import uvloop

_SPAWN = get_context("spawn")
_ANSWERS = {
    b"EHLO": b"250-sink\r\n250-PIPELINING\r\n250 SIZE 33554432\r\n",
    b"DATA": b"354 go on\r\n",
    b"QUIT": b"221 bye\r\n",
}


@dataclass(frozen=True)
class Behaviour:
    """How the server answers.

    Attributes:
        delay: seconds before it accepts a message.
        fail_every: it refuses the first mail to each n-th recipient with 451; 0 for none.
    """

    delay: float = 0.0
    fail_every: int = 0


@dataclass(frozen=True)
class Received:
    """How often each recipient's mail was accepted, and when last, on the clock `time.monotonic`."""

    times: Counter[str]
    at: dict[str, float]


class Sink:
    """The server, seen from the harness."""

    def __init__(self, port: int, count: Any, pipe: Connection) -> None:
        self.port = port
        self._count = count
        self._pipe = pipe

    @property
    def count(self) -> int:
        """Mails accepted so far."""
        return int(self._count.value)

    async def reached(self, count: int, seconds: float = 300) -> float:
        """Wait until so many mails were accepted; returns the time."""
        async with asyncio.timeout(seconds):
            while self.count < count:  # noqa: ASYNC110 - another process's counter is looked at
                await asyncio.sleep(0.005)
        return time.monotonic()

    async def received(self) -> Received:
        """What came so far."""
        self._pipe.send(None)
        return Received(*await asyncio.to_thread(self._pipe.recv))


@asynccontextmanager
async def mail_sink(behaviour: Behaviour = Behaviour()) -> AsyncIterator[Sink]:
    """Serve in another process until left."""
    count = _SPAWN.Value("q", 0, lock=False)
    here, there = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_serve, args=(behaviour, count, there), daemon=True)
    process.start()
    try:
        yield Sink(await asyncio.to_thread(here.recv), count, here)
    finally:
        process.terminate()
        await asyncio.to_thread(process.join)


def _serve(behaviour: Behaviour, count: Any, pipe: Connection) -> None:
    uvloop.run(_serving(behaviour, count, pipe))


async def _serving(behaviour: Behaviour, count: Any, pipe: Connection) -> None:
    times: Counter[str] = Counter()
    at: dict[str, float] = {}
    failed: set[str] = set()

    def accepts(recipient: str) -> bool:
        number = int("".join(filter(str.isdigit, recipient)) or 0)
        if behaviour.fail_every and number % behaviour.fail_every == 0 and recipient not in failed:
            failed.add(recipient)
            return False
        times[recipient] += 1
        at[recipient] = time.monotonic()
        count.value += 1
        return True

    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Conversation(accepts, behaviour.delay), "127.0.0.1", 0)

    def asked() -> None:
        pipe.recv()
        os.set_blocking(pipe.fileno(), True)  # the loop has made it otherwise
        pipe.send((times, at))

    loop.add_reader(pipe.fileno(), asked)
    pipe.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


class _Conversation(asyncio.Protocol):
    """One client's; commands come one after another."""

    def __init__(self, accepts: Any, delay: float) -> None:
        self._accepts = accepts
        self._delay = delay
        self._buffer = b""
        self._in_message = False
        self._recipient = ""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(b"220 sink\r\n")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._message() if self._in_message else self._command():
            pass

    def _command(self) -> bool:
        line, end, rest = self._buffer.partition(b"\r\n")
        if not end:
            return False
        self._buffer, verb = rest, line[:4].upper()
        if verb == b"RCPT":
            self._recipient = line.partition(b"<")[2].partition(b">")[0].decode()
        self._in_message = verb == b"DATA"
        self._transport.write(_ANSWERS.get(verb, b"250 ok\r\n"))
        if verb == b"QUIT":
            self._transport.close()
        return True

    def _message(self) -> bool:
        _, end, rest = self._buffer.partition(b"\r\n.\r\n")
        if not end:
            return False
        self._buffer, self._in_message = rest, False
        if self._delay:
            asyncio.get_running_loop().call_later(self._delay, self._answer, self._recipient)
        else:
            self._answer(self._recipient)
        return True

    def _answer(self, recipient: str) -> None:
        self._transport.write(b"250 ok\r\n" if self._accepts(recipient) else b"451 4.3.0 try again\r\n")

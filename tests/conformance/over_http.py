"""A provider with an HTTP API, as the suite sees it, and the server on its other side."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from channels.surroundings import NOWHERE, Surroundings
from tests.conformance.subject import NO_GROUND, Fault, Ground, Serve, Subject
from tests.contract.peers import serving


@dataclass(frozen=True)
class Request:
    """One that the provider's server got."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return orjson.loads(self.body)


@dataclass(frozen=True)
class Response:
    """What the provider's server answers. `document`: JSON, in place of `text`."""

    status: int = 200
    document: Any = None
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """As it is written."""
        return orjson.dumps(self.document) if self.document is not None else self.text.encode()


@dataclass(frozen=True)
class BreaksOff:
    """This response as far as the first byte of a longer body; then the server hangs up."""

    response: Response


@dataclass
class HttpPeer:
    """The provider's server: answers requests that send a message with `response`, and remembers them.

    Attributes:
        url: of its root, without a slash at the end.
        requests: those that send, in order.
        hold: while it is set, requests that send are not answered.
    """

    url: str = ""
    response: Response = field(default_factory=Response)
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    opened: int = 0
    hold: bool = False
    surroundings: Surroundings = NOWHERE

    async def taken(self) -> Sequence[Request]:
        """The requests that send."""
        return self.requests


Aside = Callable[[Request], Response | None]


@asynccontextmanager
async def http_peer(
    subject: Subject, answer: Response | BreaksOff | Fault, _: Ground = NO_GROUND
) -> AsyncIterator[HttpPeer]:
    """A real server of HTTP/1.1, or what there is in place of one."""
    aside: Aside = getattr(subject, "aside", _none)
    match answer:
        case Fault.ABSENT:
            served = _absent()
        case Fault.SILENT_BEFORE:
            served = _unaccepting()
        case Fault.LOST | BreaksOff():
            served = _breaking(aside, answer)
        case Response():
            served = _answering(aside, HttpPeer(response=answer))
        case _:
            served = _answering(aside, HttpPeer(hold=True))
    async with served as peer:
        yield peer


def _none(_: Request) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class HttpSubject(Subject):
    """A kind of provider with an HTTP API of its own, whose answers are `Response`s.

    Attributes:
        aside: answers requests that send nothing (a token's endpoint); None for one that sends.
        body_tells: whether a status of success may be a refusal, as the body alone says.
    """

    serve: Serve = http_peer
    faults: tuple[Fault, ...] = (Fault.ABSENT, Fault.SILENT_BEFORE, Fault.SILENT, Fault.LOST)
    aside: Aside = _none
    body_tells: bool = False


@asynccontextmanager
async def absent_port() -> AsyncIterator[int]:
    """One on which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and not listening: nobody else gets it
        yield bound.getsockname()[1]


@asynccontextmanager
async def _absent() -> AsyncIterator[HttpPeer]:
    async with absent_port() as port:
        yield HttpPeer(f"http://127.0.0.1:{port}")


@asynccontextmanager
async def unaccepting_port() -> AsyncIterator[int]:
    """One whose queue of connections is full, and nobody takes one out: whoever connects now waits."""
    with socket.socket() as listener, socket.socket() as first:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        first.connect(listener.getsockname())
        yield listener.getsockname()[1]


@asynccontextmanager
async def _unaccepting() -> AsyncIterator[HttpPeer]:
    async with unaccepting_port() as port:
        yield HttpPeer(f"http://127.0.0.1:{port}")


@asynccontextmanager
async def _answering(aside: Aside, peer: HttpPeer) -> AsyncIterator[HttpPeer]:
    """The connections to it are counted."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        read = Request(request.method, request.path, request.query, request.headers, await request.read())
        told = aside(read)
        if told is None:
            peer.requests.append(read)
            while peer.hold:  # noqa: ASYNC110 - a test sets it whenever it likes
                await asyncio.sleep(0.02)
        response = told or peer.response
        kind = "application/json" if response.document is not None else "text/plain"
        headers = {"Content-Type": kind} | dict(response.headers)
        return web.Response(status=response.status, body=response.body, headers=headers)

    server = web.Server(answer, access_log=None)  # the secret of a webhook is in its URL
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: _counted(server(), peer), "127.0.0.1", 0)
    peer.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield peer
    finally:
        peer.hold = False
        listener.close()
        server.pre_shutdown()  # else one that is kept is waited for
        await server.shutdown(0.1)
        await listener.wait_closed()


def _counted(protocol: asyncio.Protocol, peer: HttpPeer) -> asyncio.Protocol:
    """The protocol, its connections counted."""

    class Counting:
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            peer.connections += 1
            peer.opened += 1
            protocol.connection_made(transport)

        def connection_lost(self, error: Exception | None) -> None:
            peer.connections -= 1
            protocol.connection_lost(error)

        def __getattr__(self, name: str) -> Any:
            return getattr(protocol, name)

    return Counting()  # type: ignore[return-value]


@asynccontextmanager
async def _breaking(aside: Aside, answer: BreaksOff | Fault) -> AsyncIterator[HttpPeer]:
    """Reads a request that sends, says what it has to say, and hangs up. Other requests it answers."""
    peer = HttpPeer()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (told := aside(request := await _read(reader))) is not None:
            head = f"Content-Type: application/json\r\nContent-Length: {len(told.body)}"
            writer.write(f"HTTP/1.1 {told.status} OK\r\n{head}\r\n\r\n".encode() + told.body)
            await writer.drain()
        peer.requests.append(request)
        if isinstance(answer, BreaksOff):
            writer.write(f"HTTP/1.1 {answer.response.status} OK\r\nContent-Length: 1000\r\n\r\n{{".encode())
            await writer.drain()

    async with serving(talk) as port:
        peer.url = f"http://127.0.0.1:{port}"
        yield peer


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    start, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    method, target, _ = start.split(" ")
    return Request(method, target.partition("?")[0], {}, headers, body)

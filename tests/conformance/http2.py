"""A provider's server that speaks HTTP/2 over TLS, as `HttpSubject.serve`, on the library h2, which has both sides."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import trustme

from tests.conformance.over_http import BreaksOff, HttpPeer, HttpSubject, Request, Response, http_peer
from tests.conformance.subject import NO_GROUND, Fault, Ground


@cache
def authority() -> trustme.CA:
    """Who signs the server's certificate."""
    return trustme.CA()


def ca_pem() -> str:
    """Its certificate, to be trusted."""
    return authority().cert_pem.bytes().decode()


@dataclass
class Http2Peer(HttpPeer):
    """An `HttpPeer` over HTTP/2.

    Attributes:
        breaks: what it does with a request that sends, instead of answering it: `reset` the stream, `close` the
            connection, `goaway` without having looked at the request, or answer the `status` alone and then reset.
    """

    breaks: str = ""
    transports: set["_Connection"] = field(default_factory=set)


class _Connection(asyncio.Protocol):
    def __init__(self, subject: HttpSubject, peer: Http2Peer) -> None:
        self._subject, self._peer = subject, peer
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self._heads: dict[int, dict[str, str]] = {}
        self._bodies: dict[int, bytes] = {}
        self._answering: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._peer.connections += 1
        self._peer.opened += 1
        self._peer.transports.add(self)
        self._h2.initiate_connection()
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._peer.connections -= 1
        self._peer.transports.discard(self)
        for task in self._answering:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        with suppress(h2.exceptions.ProtocolError):
            for event in self._h2.receive_data(data):
                self._handle(event)
        self._flush()

    def _handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived(stream_id=int(stream), headers=headers):
                self._heads[stream] = {str(name): str(value) for name, value in headers or []}
                self._bodies[stream] = b""
            case h2.events.DataReceived(stream_id=int(stream), data=data):
                self._bodies[stream] += data or b""
                self._h2.acknowledge_received_data(event.flow_controlled_length or 0, stream)
            case h2.events.StreamEnded(stream_id=int(stream)):
                task = asyncio.get_running_loop().create_task(self._answer(stream))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            case _:
                pass

    async def _answer(self, stream: int) -> None:
        head = self._heads.pop(stream)
        pseudo = {name: head.pop(name) for name in (":method", ":path", ":scheme", ":authority")}
        request = Request(pseudo[":method"], pseudo[":path"], {}, head, self._bodies.pop(stream))
        if self._peer.breaks:
            self._break(stream)
            return
        aside = self._subject.aside(request)
        if aside is None:
            self._peer.requests.append(request)
            while self._peer.hold:  # noqa: ASYNC110 - a test sets it whenever it likes
                await asyncio.sleep(0.02)
        with suppress(h2.exceptions.ProtocolError):  # the client has given the stream up
            self._send(stream, aside or self._peer.response)

    def _send(self, stream: int, response: Response) -> None:
        headers = [(":status", str(response.status)), *((k.lower(), v) for k, v in response.headers.items())]
        self._h2.send_headers(stream, headers, end_stream=not response.body)
        if response.body:
            self._h2.send_data(stream, response.body, end_stream=True)
        self._flush()

    def _break(self, stream: int) -> None:
        kind, self._peer.breaks = self._peer.breaks, ""
        match kind:
            case "reset":
                self._h2.reset_stream(stream)
            case "status":
                self._h2.send_headers(stream, [(":status", str(self._peer.response.status))])
                self._h2.send_data(stream, b"{")
                self._h2.reset_stream(stream)
            case "goaway":
                self._h2.close_connection(last_stream_id=max(stream - 2, 1))
        self._flush()
        if kind in {"close", "goaway"}:
            self.transport.close()

    def _flush(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self._h2.data_to_send())


@asynccontextmanager
async def http2_peer(
    subject: HttpSubject, answer: Response | BreaksOff | Fault, _: Ground = NO_GROUND
) -> AsyncIterator[HttpPeer]:
    """A real server of HTTP/2 over TLS, chosen by ALPN, or what there is in place of one."""
    match answer:
        case Fault.ABSENT | Fault.SILENT_BEFORE:
            served: AbstractAsyncContextManager[HttpPeer] = http_peer(subject, answer)
        case Fault.LOST:
            served = _serving(subject, Http2Peer(breaks="close"))
        case BreaksOff(response):
            served = _serving(subject, Http2Peer(breaks="status", response=response))
        case Response():
            served = _serving(subject, Http2Peer(response=answer))
        case _:
            served = _serving(subject, Http2Peer(hold=True))
    async with served as peer:
        yield peer


@asynccontextmanager
async def _serving(subject: HttpSubject, peer: Http2Peer) -> AsyncIterator[Http2Peer]:
    """The connections to it are counted."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority().issue_cert("127.0.0.1", "localhost").configure_cert(context)
    context.set_alpn_protocols(["h2"])
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: _Connection(subject, peer), "127.0.0.1", 0, ssl=context)
    peer.url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield peer
    finally:
        peer.hold = False
        listener.close()
        for connection in list(peer.transports):
            connection.transport.abort()
        await listener.wait_closed()

"""What the suite has to know of a provider: its settings, a message, and how the provider's own server answers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from channels.surroundings import NOWHERE, Surroundings
from channels.taxonomy import Meaning
from domain.message import Message
from domain.vocabulary import Channel

CREATED = datetime(2026, 11, 22, 17, 0, tzinfo=UTC)
TEXT = "Grüße, Ána 🚲 „42“"
"""What a message says in every test: it must arrive letter by letter."""


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


@dataclass
class Peer:
    """The provider's server: answers requests that send a message with `response`, and remembers them.

    Attributes:
        url: of its root, without a slash at the end.
        requests: those that send, in order.
        connections: that are open now, and `opened` ever.
        hold: while it is set, requests that send are not answered.
    """

    url: str = ""
    response: Response = field(default_factory=Response)
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    opened: int = 0
    hold: bool = False


Aside = Callable[[Request], Response | None]
Serve = Callable[["Subject", Response], AbstractAsyncContextManager[Peer]]


@dataclass(frozen=True)
class Subject:
    """One kind of provider.

    Attributes:
        kind: as the settings name it.
        options: its settings, given the root URL of its server and a folder for files that it needs.
        message: with `TEXT` in what it says, to a recipient whose address is `address`; or what makes one, given the
            root URL of the server, where that is in the recipient's address.
        success: how the server says that it took the message.
        failures: how it says that it did not; by a name for the test, with what that means. At least one `transient`,
            one `configuration`, one `rate_limited` with `Retry-After: 7` (if the provider has that), and one
            `recipient` or `message`.
        shared: whether all recipients are reached over one server; else each names one, whose faults are no fault of
            the provider's and pause nothing.
        requested: asserts what the provider's documentation asks of a request that sends `message`: method, path,
            authentication, fields, and that `TEXT` is in it.
        secrets: of the settings: they must appear in no error, no log and no `repr`.
        reference: what `success` calls the message.
        idempotency: reads the idempotency key out of a request; None: the provider takes none.
        aside: answers requests that send nothing (a token's endpoint); None for one that sends.
        too_long: a message that the adapter must refuse by itself (`message_too_large`), if it has a limit.
        serve: the server; by default one of HTTP/1.1.
        surroundings: what the provider is given of NotiPy.
    """

    kind: str
    channel: Channel
    options: Callable[[str, Path], Mapping[str, Any]]
    message: Message | Callable[[str], Message]
    address: str
    success: Response
    failures: Mapping[str, tuple[Response, Meaning]]
    requested: Callable[[Request], None]
    secrets: tuple[str, ...]
    reference: str | None = None
    idempotency: Callable[[Request], str | None] | None = None
    aside: Aside = lambda _: None
    too_long: Message | None = None
    serve: Serve | None = None
    shared: bool = True
    surroundings: Surroundings = NOWHERE

    def message_over(self, url: str) -> Message:
        """The message, where the server is at this URL."""
        return self.message if isinstance(self.message, Message) else self.message(url)

    def peer(self, response: Response | None = None) -> AbstractAsyncContextManager[Peer]:
        """Its server, running, that answers with this; by default with `success`."""
        return (self.serve or http_peer)(self, response or self.success)


def message(channel: Channel, recipient: Mapping[str, Any], **more: Any) -> Message:
    """One that says `TEXT`; `more`: other fields of `Message`."""
    content: Mapping[Channel, Mapping[str, str]] = {
        Channel.EMAIL: {"subject": f"{TEXT}!", "text": TEXT, "html": f"<p>{TEXT}</p>"},
        Channel.SMS: {"text": TEXT},
        Channel.WEBHOOK: {"payload": orjson.dumps({"said": TEXT}).decode()},
    }
    said = content.get(channel, {"title": f"{TEXT}!", "text": TEXT})
    made = Message("d1", "d1/1", channel, recipient, said, CREATED)
    return replace(made, **more)


@asynccontextmanager
async def http_peer(subject: Subject, response: Response) -> AsyncIterator[Peer]:
    """A real server of HTTP/1.1; the connections to it are counted."""
    peer = Peer(response=response)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        read = Request(request.method, request.path, request.query, request.headers, await request.read())
        aside = subject.aside(read)
        if aside is None:
            peer.requests.append(read)
            while peer.hold:  # noqa: ASYNC110 - a test sets it whenever it likes
                await asyncio.sleep(0.02)
        told = aside or peer.response
        kind = "application/json" if told.document is not None else "text/plain"
        return web.Response(status=told.status, body=told.body, headers={"Content-Type": kind} | dict(told.headers))

    server = web.Server(answer, access_log=None)  # the secret of a webhook is in its URL

    def connected() -> asyncio.Protocol:
        protocol = server()
        made, lost = protocol.connection_made, protocol.connection_lost

        def connection_made(transport: asyncio.BaseTransport) -> None:
            peer.connections += 1
            peer.opened += 1
            made(transport)

        def connection_lost(error: BaseException | None) -> None:
            peer.connections -= 1
            lost(error)

        class Counting:
            def __getattr__(self, name: str) -> Any:
                return getattr(protocol, name)

        counting = Counting()
        counting.connection_made = connection_made  # type: ignore[attr-defined]
        counting.connection_lost = connection_lost  # type: ignore[attr-defined]
        return counting  # type: ignore[return-value]

    listener = await asyncio.get_running_loop().create_server(connected, "127.0.0.1", 0)
    peer.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield peer
    finally:
        peer.hold = False
        listener.close()
        await server.shutdown(0.1)
        await listener.wait_closed()

"""The other side of a channel, as real servers on the loopback interface, each on a port of its own."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, ClassVar

from aiohttp import web
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

HOST = "127.0.0.1"


@dataclass
class ScriptedSmtp:
    """An SMTP server that answers what it is told to, or hangs up.

    `replies` maps a command (GREETING, EHLO, MAIL, RCPT, DATA, BODY, RSET, NOOP) to the answers that it gets one after
    the other, the last one from then on; an empty answer hangs up, None says nothing, and nothing more from then on.
    More than `most` open at once are greeted with 421; `pauses`: seconds before the answer to a command.
    """

    replies: dict[str, list[str | None]] = field(default_factory=dict)
    pipelining: bool = False
    port: int = 0
    connections: int = 0
    open: int = 0
    commands: list[str] = field(default_factory=list)
    mails: list[bytes] = field(default_factory=list)
    most: int = 1000
    most_seen: int = 0
    refused: int = 0
    pauses: dict[str, float] = field(default_factory=dict)

    DEFAULTS: ClassVar[dict[str, str]] = {
        "GREETING": "220 ready",
        "EHLO": "250-localhost\r\n250-SMTPUTF8\r\n250 SIZE 30000000",
        "DATA": "354 go ahead",
        "BODY": "250 2.0.0 queued as 42",
        "QUIT": "221 bye",
    }

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        conversation = _Conversation(writer)
        try:
            if self.open > self.most:
                self.refused += 1
                await conversation.say("GREETING", "421 4.7.0 too many connections from you")
                return
            self.most_seen = max(self.most_seen, self.open)
            await self._say(conversation, "GREETING")
            while line := await reader.readline():
                verb = line.split()[0].decode().upper()
                self.commands.append(line.decode().strip())
                await self._say(conversation, verb)
                if verb == "DATA" and conversation.last.startswith("354"):
                    await self._body(reader, conversation)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()

    def _default(self, conversation: "_Conversation", verb: str) -> str:
        if verb == "DATA" and (conversation.refused or not conversation.recipients):
            return "503 5.5.1 no valid recipients"
        default = self.DEFAULTS.get(verb, "250 2.0.0 OK")
        return default.replace("SMTPUTF8", "SMTPUTF8\r\n250-PIPELINING") if self.pipelining else default

    async def _body(self, reader: asyncio.StreamReader, conversation: "_Conversation") -> None:
        if self.replies.get("BODY_READ") == [""]:
            await reader.readline()
            raise ConnectionResetError
        self.mails.append(await reader.readuntil(b"\r\n.\r\n"))
        await self._say(conversation, "BODY")

    async def _say(self, conversation: "_Conversation", verb: str) -> None:
        if pause := self.pauses.get(verb):
            await asyncio.sleep(pause)
        answers = self.replies.get(verb, [self._default(conversation, verb)])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        await conversation.say(verb, answer)


@dataclass
class _Conversation:
    """One connection's."""

    writer: asyncio.StreamWriter
    last: str = ""
    refused: bool = False
    recipients: int = 0
    silent: bool = False

    async def say(self, verb: str, answer: str | None) -> None:
        self.last = answer or ""
        taken = self.last.startswith("2")
        if verb in {"MAIL", "RSET"}:
            self.recipients, self.refused = 0, not taken
        elif verb == "RCPT" and taken:
            self.recipients += 1
        if answer == "":
            raise ConnectionResetError
        self.silent = self.silent or answer is None
        if answer is not None and not self.silent:
            self.writer.write(answer.encode() + b"\r\n")
            await self.writer.drain()


@asynccontextmanager
async def serving(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """A TCP server; its connections are closed at the end."""
    tasks: set[asyncio.Task[Any]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await talk(reader, writer)
        except asyncio.CancelledError:
            writer.close()
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(connected, HOST, 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


@asynccontextmanager
async def scripted_smtp(*, pipelining: bool = False, **replies: list[str | None]) -> AsyncIterator[ScriptedSmtp]:
    """A scripted server, running."""
    script = ScriptedSmtp(replies, pipelining)
    async with serving(script.talk) as port:
        script.port = port
        yield script


class Mailbox:
    """The handler of a real SMTP server; keeps what it is given."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        self.envelopes.append(envelope)
        return "250 2.0.0 Kept"

    @property
    def mails(self) -> list[EmailMessage]:
        return [message_from_bytes(_content(e), policy=policy.default) for e in self.envelopes]


def _content(envelope: Envelope) -> bytes:
    assert isinstance(envelope.content, bytes)
    return envelope.content


@asynccontextmanager
async def real_smtp(implicit: ssl.SSLContext | None = None, **options: Any) -> AsyncIterator[tuple[int, Mailbox]]:
    """aiosmtpd, in this event loop."""
    mailbox = Mailbox()
    protocols: list[SMTP] = []

    def protocol() -> SMTP:
        protocols.append(SMTP(mailbox, enable_SMTPUTF8=True, **options))
        return protocols[-1]

    server = await asyncio.get_running_loop().create_server(protocol, HOST, 0, ssl=implicit)
    try:
        yield server.sockets[0].getsockname()[1], mailbox
    finally:
        server.close()
        for running in protocols:
            if running.transport is not None:
                running.transport.close()
            handler = running._handler_coroutine
            if handler is not None:
                handler.cancel()
                with suppress(asyncio.CancelledError):
                    await handler
        await server.wait_closed()


def password_is(username: bytes, password: bytes) -> Callable[..., AuthResult]:
    """An authenticator that knows one user."""

    def check(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        good = (data.login, data.password) == (username, password)
        return AuthResult(success=good, handled=False)

    return check


@asynccontextmanager
async def http_server(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """A real HTTP server; the URL of its root."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, HOST, 0)
    await site.start()
    try:
        yield f"http://{HOST}:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()

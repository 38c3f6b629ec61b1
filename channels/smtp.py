"""E-mail over SMTP, with kept connections.

A conversation goes through named stages (`channels.classify.Stage`). Until the message itself is on its way, a broken
connection means that nothing was sent: transient. From then on only the server's answer tells: unknown.
"""

import asyncio
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import aiosmtplib
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from channels.classify import Stage, connection_failure, connection_reason, scrub, smtp_failure
from channels.fetch import AttachmentFetcher, Limits
from channels.mail import Address, Mail, compose, parse_sender
from domain.duration import Duration
from domain.failures import DeliveryFailure, PermanentFailure, TransientFailure, UnknownOutcome
from domain.message import Message
from domain.vocabulary import Reason

Tls = Literal["none", "starttls", "implicit"]

PROBE_AFTER: Final = 30.0
"""Seconds after which a kept connection is asked (NOOP) before it is used again."""
GOODBYE: Final = 2.0
"""Seconds that a server has to answer QUIT."""
MEBIBYTE: Final = 1024 * 1024

_DOTS = re.compile(rb"(?m)^\.")
_LINE_ENDS = re.compile(rb"\r\n|\r|\n")
_PORTS: Final = {"smtp": 25, "smtps": 465}
_TLS_OF_PORT: Final[dict[int, Tls]] = {465: "implicit", 587: "starttls"}


@dataclass(frozen=True, slots=True)
class Server:
    """What the URL says."""

    host: str
    port: int
    tls: Tls
    username: str | None
    password: str | None

    def __repr__(self) -> str:
        return f"Server({self.host}:{self.port}, tls={self.tls})"


def parse_url(url: str) -> Server:
    """Read `smtp://user:password@host:587?tls=none|starttls|implicit`; `smtps://` is implicit TLS.

    Without `tls`, port 587 means STARTTLS and port 465 implicit TLS.

    Raises:
        ValueError: what is wrong with it, without a word of the URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError):
        raise ValueError("should be smtp://user:password@host:port?tls=starttls, special characters as %XX") from None
    if not parts.hostname or parts.path not in {"", "/"} or parts.fragment:
        raise ValueError("should be smtp://user:password@host:port: special characters of the password as %XX")
    tls = _tls(parts.query, parts.scheme, port)
    username = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password is not None else None
    if username is not None and tls == "none" and not parts.query:
        raise ValueError("would send the password unencrypted: add ?tls=starttls or ?tls=implicit (or ?tls=none)")
    return Server(parts.hostname, port, tls, username, password)


def _tls(query: str, scheme: str, port: int) -> Tls:
    options = parse_qs(query, keep_blank_values=True)
    default: Tls = "implicit" if scheme == "smtps" else _TLS_OF_PORT.get(port, "none")
    if set(options) - {"tls"}:
        raise ValueError("has an unknown option after ?: only tls is known")
    match options.get("tls", [default]):
        case ["none" | "starttls" | "implicit" as tls] if scheme == "smtp" or tls == "implicit":
            return tls
        case _:
            raise ValueError("has a wrong tls: none, starttls or implicit (smtps:// is always implicit)")


def _valid_url(value: SecretStr) -> SecretStr:
    parse_url(value.get_secret_value())
    return value


def _valid_sender(value: str) -> str:
    parse_sender(value)
    return value


class SmtpOptions(BaseModel):
    """Settings of one SMTP provider.

    Attributes:
        url: see `parse_url`.
        from_address: `from` in the settings.
        timeout: for each step of a conversation, and for each attachment.
        connections: kept and used at once, at most.
        ca_file: certificate authorities to trust instead of the system's.
        verify: whether the server's certificate is checked.
        allow_private: whether attachments may be fetched from private addresses.
        local_hostname: for EHLO, instead of this machine's name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    url: Annotated[SecretStr, AfterValidator(_valid_url)]
    from_address: Annotated[str, Field(alias="from"), AfterValidator(_valid_sender)]
    timeout: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(seconds=30)
    connections: Annotated[int, Field(ge=1, le=1000)] = 20
    ca_file: Path | None = None
    verify: bool = True
    local_hostname: Annotated[str, Field(pattern=r"^[A-Za-z0-9.\[\]:-]+$")] | None = None
    max_attachments: Annotated[int, Field(ge=0)] = 10
    max_attachment_bytes: Annotated[int, Field(ge=0)] = 10 * MEBIBYTE
    max_message_bytes: Annotated[int, Field(ge=1024)] = 25 * MEBIBYTE
    allow_private: bool = False

    @model_validator(mode="after")
    def _certificates(self) -> "SmtpOptions":
        if self.ca_file is not None:
            try:
                ssl.create_default_context(cafile=str(self.ca_file))
            except OSError:
                raise ValueError("ca_file should be a readable file with certificates in PEM form") from None
        return self

    @cached_property
    def server(self) -> Server:
        """The URL, read."""
        return parse_url(self.url.get_secret_value())

    @property
    def limits(self) -> Limits:
        """Of attachments. Base64 makes three bytes four, and a little for line ends."""
        room = self.max_message_bytes * 72 // 100
        return Limits(self.max_attachments, self.max_attachment_bytes, room, self.timeout)


class SmtpProvider:
    """Sends mail through one server."""

    def __init__(self, name: str, options: SmtpOptions) -> None:
        self.name = name
        self._options = options
        self._sender: Address = parse_sender(options.from_address)
        self._files = AttachmentFetcher(options.limits, allow_private=options.allow_private)
        self._pool = _Pool(options)

    def __repr__(self) -> str:
        return f"SmtpProvider({self.name!r}, {self._options.server!r})"

    async def send(self, message: Message) -> str:
        """Send once, over a kept connection where there is one.

        Raises:
            TransientFailure: nothing was sent; wrong credentials among the reasons, which an operator puts right.
            PermanentFailure: the server, or the message itself, rules it out.
            UnknownOutcome: the connection broke, or time ran out, after the message was on its way.
        """
        files = await self._files.fetch(message.attachments) if message.attachments else []
        mail = compose(message, self._sender, files)
        if len(mail.body) > self._options.max_message_bytes:
            detail = f"{len(mail.body)} bytes; the limit is {self._options.max_message_bytes}"
            raise PermanentFailure(Reason.MESSAGE_TOO_LARGE, detail)
        return await self._pool.send(mail)

    async def check(self) -> str:
        """Connect, encrypt and log in as set; send nothing."""
        server = self._options.server
        await self._pool.probe()
        login = "logged in" if server.username is not None else "without login"
        return f"{server.host}:{server.port} answers (tls: {server.tls}, {login})"

    async def close(self) -> None:
        """Close the kept connections; those in use are closed when their message is through."""
        await self._pool.close()
        await self._files.close()


@dataclass(slots=True)
class _Kept:
    """A connection that waits to be used again."""

    client: aiosmtplib.SMTP
    since: float


class _Pool:
    """The connections to one server: at most `connections`, the last used first."""

    def __init__(self, options: SmtpOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._clock = clock
        self._slots = asyncio.Semaphore(options.connections)
        self._idle: list[_Kept] = []
        self._closed = False
        self._hostname: str | None = options.local_hostname
        self._tls: ssl.SSLContext | None = None

    async def send(self, mail: Mail) -> str:
        """Hand the mail over.

        A kept connection may have been closed by the server meanwhile. That shows before the server has accepted
        `MAIL`, so nothing was sent, and a fresh connection is tried once.
        """
        async with self._slots:
            kept = await self._take()
            if kept is not None:
                try:
                    return await self._conversation(kept, mail)
                except _Stale:
                    pass
            return await self._conversation(await self._connect(), mail)

    async def probe(self) -> None:
        """Make a connection and keep it."""
        async with self._slots:
            await self._give_back(await self._connect())

    async def close(self) -> None:
        """Close what is kept and keep nothing from now on."""
        self._closed = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*(_quit(kept.client) for kept in idle))

    async def _take(self) -> aiosmtplib.SMTP | None:
        """A kept connection that is alive as far as can be told."""
        while self._idle:
            kept = self._idle.pop()
            if kept.client.is_connected and await self._fresh(kept):
                return kept.client
            kept.client.close()
        return None

    async def _fresh(self, kept: _Kept) -> bool:
        if self._clock() - kept.since < PROBE_AFTER:
            return True
        with suppress(aiosmtplib.SMTPException, OSError), _closing_on_error(kept.client):
            await kept.client.noop()
            return True
        return False

    async def _give_back(self, client: aiosmtplib.SMTP) -> None:
        if self._closed:
            await _quit(client)
        elif client.is_connected:
            self._idle.append(_Kept(client, self._clock()))

    async def _connect(self) -> aiosmtplib.SMTP:
        """A connection on which EHLO, STARTTLS and AUTH are done as set."""
        client = self._client(await self._local_hostname())
        stage = Stage.CONNECT
        try:
            with _closing_on_error(client):
                await client.connect()
                # The reply to EHLO is kept, and says what the server can do.
                await client._ehlo_or_helo_if_needed()
                stage = Stage.AUTH
                await self._login(client)
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            raise self._connect_failure(error, stage) from None
        return client

    async def _login(self, client: aiosmtplib.SMTP) -> None:
        server = self._options.server
        if server.username is not None:
            await client.login(server.username, server.password or "")

    def _client(self, hostname: str) -> aiosmtplib.SMTP:
        server = self._options.server
        return aiosmtplib.SMTP(
            hostname=server.host,
            port=server.port,
            use_tls=server.tls == "implicit",
            start_tls=server.tls == "starttls",
            tls_context=None if server.tls == "none" else self._context(),
            timeout=self._options.timeout.total_seconds(),
            local_hostname=hostname,
        )

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            path = self._options.ca_file
            self._tls = ssl.create_default_context(cafile=str(path) if path else None)
            if not self._options.verify:
                self._tls.check_hostname = False
                self._tls.verify_mode = ssl.CERT_NONE
        return self._tls

    async def _local_hostname(self) -> str:
        if self._hostname is None:
            name = await asyncio.to_thread(socket.getfqdn)
            self._hostname = name if re.fullmatch(r"[A-Za-z0-9.-]+", name) else "localhost"
        return self._hostname

    def _connect_failure(self, error: Exception, stage: Stage) -> DeliveryFailure:
        server = self._options.server
        if isinstance(error, aiosmtplib.SMTPResponseException):
            return smtp_failure(error.code, error.message, stage, _secrets(server))
        if isinstance(error, OSError | aiosmtplib.SMTPServerDisconnected):
            return connection_failure(error, f"connecting to {server.host}:{server.port}")
        reason = Reason.AUTHENTICATION if stage is Stage.AUTH else Reason.TLS
        return TransientFailure(reason, scrub(str(error), _secrets(server)))

    async def _conversation(self, client: aiosmtplib.SMTP, mail: Mail) -> str:
        """MAIL, RCPT, DATA and the message; afterwards the connection is kept, unless it is of no more use."""
        with _closing_on_error(client):
            try:
                answer = await _transaction(client, mail, self._options.timeout.total_seconds())
            except _Refused as refused:
                await _reset(client, refused.stage)
                await self._give_back(client)
                raise refused.failure from None
        await self._give_back(client)
        return answer


class _Stale(Exception):
    """The connection was dead before MAIL was accepted."""


class _Refused(Exception):
    """The server said no, and the conversation can go on."""

    def __init__(self, failure: DeliveryFailure, stage: Stage) -> None:
        super().__init__(stage)
        self.failure = failure
        self.stage = stage


async def _transaction(client: aiosmtplib.SMTP, mail: Mail, timeout: float) -> str:
    """One mail transaction (RFC 5321 §3.3); returns the last answer.

    Raises:
        _Stale, _Refused, TransientFailure, PermanentFailure, UnknownOutcome: by how far it had come.
    """
    hide = (mail.recipient, mail.sender, mail.recipient.rpartition("@")[0])
    stage = Stage.MAIL
    try:
        await _envelope_sender(client, mail)
        stage = Stage.RCPT
        await client.rcpt(mail.recipient, encoding="utf-8")
        stage = Stage.DATA
        await _expect(client, 354, await client.execute_command(b"DATA"))
        stage = Stage.BODY
        return await _message(client, mail.body, timeout, hide)
    except aiosmtplib.SMTPResponseException as error:
        raise _answered(error, stage, hide) from None
    except (aiosmtplib.SMTPException, OSError) as error:
        raise _broken(error, stage) from None


async def _envelope_sender(client: aiosmtplib.SMTP, mail: Mail) -> None:
    options = [f"SIZE={len(mail.body)}"] if client.supports_extension("size") else []
    if mail.needs_utf8:
        if not client.supports_extension("smtputf8"):
            detail = "the address has letters outside ASCII before the @, and the server has no SMTPUTF8"
            raise _Refused(PermanentFailure(Reason.BAD_ADDRESS, detail), Stage.CONNECT)
        options.append("SMTPUTF8")
    await client.mail(mail.sender, options=options, encoding="utf-8")


async def _expect(client: aiosmtplib.SMTP, code: int, reply: aiosmtplib.SMTPResponse) -> None:
    if reply.code != code:
        raise aiosmtplib.SMTPDataError(reply.code, reply.message)


async def _message(client: aiosmtplib.SMTP, body: bytes, timeout: float, hide: tuple[str, ...]) -> str:
    """The message, and the server's answer to it."""
    protocol = client.protocol
    if protocol is None:
        raise aiosmtplib.SMTPServerDisconnected("Connection lost")
    protocol.write(_stuffed(body))
    # aiosmtplib's own DATA does not tell a connection lost before the message from one lost after it.
    reply = await protocol.read_response(timeout=timeout)
    await _expect(client, 250, reply)
    return scrub(f"{reply.code} {reply.message}", hide)


def _stuffed(body: bytes) -> bytes:
    """Line ends as CRLF, dots doubled at the start of lines, and the dot that ends it (RFC 5321 §4.5.2)."""
    lines = _LINE_ENDS.sub(b"\r\n", body)
    return _DOTS.sub(b"..", lines) + (b".\r\n" if lines.endswith(b"\r\n") else b"\r\n.\r\n")


def _answered(error: aiosmtplib.SMTPResponseException, stage: Stage, hide: tuple[str, ...]) -> Exception:
    if error.code == 421 and stage is Stage.MAIL:
        return _Stale(stage)
    if stage is Stage.BODY and not 400 <= error.code <= 599:
        return UnknownOutcome(Reason.OUTCOME_UNKNOWN, "the server's answer to the message is no SMTP")
    return _Refused(smtp_failure(error.code, error.message, stage, hide), stage)


def _broken(error: Exception, stage: Stage) -> Exception:
    lost = isinstance(error, OSError) and not isinstance(error, TimeoutError)
    if stage is Stage.MAIL and lost:
        return _Stale(stage)
    failure = connection_failure(error, f"waiting for the answer to {_COMMANDS[stage]}")
    if stage is Stage.BODY:
        return UnknownOutcome(connection_reason(error), failure.detail)
    return failure


_COMMANDS: Final = {Stage.MAIL: "MAIL", Stage.RCPT: "RCPT", Stage.DATA: "DATA", Stage.BODY: "the message"}


async def _reset(client: aiosmtplib.SMTP, stage: Stage) -> None:
    """End a transaction that the server has refused a part of. After the message itself there is none to end."""
    if stage in {Stage.RCPT, Stage.DATA} and client.is_connected:
        try:
            await client.rset()
        except (aiosmtplib.SMTPException, OSError):
            client.close()


async def _quit(client: aiosmtplib.SMTP) -> None:
    with suppress(aiosmtplib.SMTPException, OSError), _closing(client):
        await client.quit(timeout=GOODBYE)


def _secrets(server: Server) -> tuple[str, ...]:
    return tuple(filter(None, (server.username, server.password)))

"""Kept SMTP connections, and one mail transaction over one of them.

A conversation goes through named stages (`channels.classify.Stage`). Until the message itself is on its way, a broken
connection means that nothing was sent: transient. From then on only the server's answer tells: unknown.
"""

import asyncio
import re
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, cast

import aiosmtplib

from channels.classify import Stage, connection_failure, connection_reason, scrub, smtp_failure
from channels.mail import Mail
from channels.smtp_session import NO_SMTP, Interrupted, Reply, Session
from channels.smtp_settings import Server, SmtpOptions
from domain.duration import format_duration
from domain.failures import UNSENT, DeliveryFailure, PermanentFailure, TransientFailure, UnknownOutcome
from domain.vocabulary import Reason

PROBE_AFTER: Final = 30.0
"""Seconds after which a kept connection is asked (NOOP) before it is used again."""
GOODBYE: Final = 2.0
"""Seconds that a server has to answer QUIT."""
MORE_AFTER: Final = 60.0
"""Seconds after which a server that took no more connections is asked for more again."""
SLOWEST: Final = 1024 * 1024
"""Bytes a second at which a large message is given more time than `timeout`."""

_DOTS = re.compile(rb"(?m)^\.")
_LINE_ENDS = re.compile(rb"\r\n|\r|\n")


@dataclass(slots=True)
class _Kept:
    """A connection that waits to be used again."""

    session: Session
    since: float


class SmtpPool:
    """The connections to one server: at most `connections`, the last used first.

    At most as many as the server takes, too, where that is fewer (Exim's default is 20 from everybody together, and
    many a hosted server takes three from one user): whose connection is refused with 421 while others stand waits for
    one of them, and its place is withheld from then on.
    """

    def __init__(self, options: SmtpOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._clock = clock
        self._slots = asyncio.Semaphore(options.connections)
        self._idle: list[_Kept] = []
        self._talking = 0
        self._through = 0
        self._coming = 0
        self._came = asyncio.Event()
        self._withheld = 0
        self._more_at = 0.0
        self._closed = False
        self._hostname: str | None = options.local_hostname
        self._tls: ssl.SSLContext | None = None
        self._timeout = options.timeout.total_seconds()

    async def send(self, mail: Mail) -> str:
        """Hand the mail over.

        A kept connection may have been closed by the server meanwhile. That shows before the server has accepted
        `MAIL`, so nothing was sent, and a fresh connection is tried once.
        """
        with UNSENT:
            if self._withheld and self._clock() >= self._more_at:
                self._give_out()
            if self._slots.locked():
                await self._wait()
            else:
                await self._slots.acquire()
        try:
            return await self._sent(mail)
        finally:
            self._slots.release()

    async def _sent(self, mail: Mail) -> str:
        session: Session | None = None
        while session is None:
            with UNSENT:
                kept = await self._take()
            if kept is not None:
                with suppress(_Stale):
                    return await self._conversation(kept, mail)
            with UNSENT:
                session = await self._another()
        try:
            return await self._conversation(session, mail)
        except _Stale as stale:
            raise stale.failure from None

    async def _another(self) -> Session | None:
        """A further connection; None where the server takes no more, once one of the others is free.

        Which of those that are being opened, or asked, together it takes is known when they all are, or one is.
        """
        try:
            return await self._connect()
        except _Full as full:
            refused = full
        while self._coming and not self._stands:
            self._came.clear()
            await self._came.wait()
        if not self._stands:
            raise refused.failure
        self._more_at = self._clock() + MORE_AFTER
        if not (self._idle and self._slots.locked()):  # else the last place is its own, and the connection is, too
            await self._wait()  # and so holds two places, of which it gives back one
            self._withheld += 1
        return None

    @property
    def _stands(self) -> bool:
        """Whether there is a connection that mails go over."""
        return bool(self._talking or self._idle)

    @contextmanager
    def _on_its_way(self) -> Iterator[None]:
        """A connection of which it is not known yet whether mails go over it."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
            self._came.set()

    def _give_out(self) -> None:
        """The places that were withheld: the server may take more connections by now."""
        while self._withheld:
            self._withheld -= 1
            self._slots.release()

    async def _wait(self) -> None:
        """For a place among the connections, so long as mails get through; nothing was sent when none do."""
        while True:
            through = self._through
            try:
                async with asyncio.timeout(self._timeout):
                    await self._slots.acquire()
            except TimeoutError:
                if self._through == through:
                    number, wait = self._talking + self._coming, format_duration(self._options.timeout)
                    detail = f"all {number} connections were busy for {wait}"
                    raise TransientFailure(Reason.PROVIDER_UNAVAILABLE, detail, provider_fault=True) from None
            else:
                return

    async def probe(self) -> None:
        """Make a connection and keep it. Where the server takes no further one, one that stands has to answer."""
        async with self._slots:
            try:
                session: Session | None = await self._connect()
            except _Full as full:
                session = await self._take(probe_after=0.0)
                if session is None and not self._talking:
                    raise full.failure from None
            if session is not None:
                await self._give_back(session)

    async def close(self) -> None:
        """Close what is kept and keep nothing from now on."""
        self._closed = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*(kept.session.quit(timeout=GOODBYE) for kept in idle))

    async def _take(self, probe_after: float | None = None) -> Session | None:
        """A kept connection that is alive as far as can be told.

        Where one turns out to be dead, none of the others is asked: they have been idle for longer, and a server that
        is gone without a word would cost a time-out for each.
        """
        while self._idle:
            kept = self._idle.pop()
            if kept.session.usable:
                if await self._fresh(kept, PROBE_AFTER if probe_after is None else probe_after):
                    return kept.session
                self._let_go()
            kept.session.close()
        return None

    def _let_go(self) -> None:
        while self._idle:
            self._idle.pop().session.close()

    async def _fresh(self, kept: _Kept, probe_after: float) -> bool:
        if self._clock() - kept.since < probe_after:
            return True
        with suppress(Interrupted), self._on_its_way():
            (reply,) = await kept.session.ask(b"NOOP\r\n", timeout=self._timeout)
            return reply.code == 250
        return False

    async def _give_back(self, session: Session) -> None:
        if not session.usable:
            session.close()
        elif self._closed:
            await session.quit(timeout=GOODBYE)
        else:
            self._idle.append(_Kept(session, self._clock()))

    async def _connect(self) -> Session:
        """A connection on which EHLO, STARTTLS and AUTH are done as set.

        Raises:
            _Full: the server does not take it, nor perhaps any other; by 421.
            DeliveryFailure: whatever else went wrong.
        """
        client = self._client(await self._local_hostname())
        stage = Stage.CONNECT
        try:
            with _closing_on_error(client), self._on_its_way():
                await client.connect()
                await _greet(client)
                stage = Stage.AUTH
                await self._login(client)
                return Session.over(client)
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            failure = self._connect_failure(error, stage)
            full = isinstance(error, aiosmtplib.SMTPResponseException) and error.code == 421 and stage is Stage.CONNECT
            raise (_Full(failure) if full else failure) from None

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
            timeout=self._timeout,
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
        if stage is Stage.AUTH and isinstance(error, aiosmtplib.SMTPServerDisconnected):
            # with several mechanisms tried, a server's last word on wrong credentials is often to hang up
            detail = "the server hung up while we logged in"
            return TransientFailure(Reason.AUTHENTICATION, detail, provider_fault=True)
        if isinstance(error, OSError | aiosmtplib.SMTPServerDisconnected):
            return connection_failure(error, f"connecting to {server.host}:{server.port}", provider_fault=True)
        reason = Reason.AUTHENTICATION if stage is Stage.AUTH else Reason.TLS
        return TransientFailure(reason, scrub(str(error), _secrets(server)), provider_fault=True)

    async def _conversation(self, session: Session, mail: Mail) -> str:
        """MAIL, RCPT, DATA and the message; afterwards the connection is kept, unless it is of no more use."""
        refused: _Refused | None = None
        answer = ""
        self._talking += 1
        try:
            with _closing_on_error(session):
                try:
                    answer = await _transaction(session, mail, self._timeout)
                except _Refused as error:
                    refused = error
                    await self._reset(session, error)
            self._through += 1
            await self._give_back(session)
        finally:
            self._talking -= 1
        if refused is not None:
            raise refused.failure
        return answer

    async def _reset(self, session: Session, refused: "_Refused") -> None:
        """End a transaction that the server has refused a part of. After the message itself there is none to end."""
        if refused.hopeless:
            session.close()
        elif refused.stage in {Stage.RCPT, Stage.DATA}:
            with suppress(Interrupted):
                await session.ask(b"RSET\r\n", timeout=self._timeout)


@contextmanager
def _closing_on_error(connection: aiosmtplib.SMTP | Session) -> Iterator[None]:
    """A connection on which something went wrong, or was cancelled, is in no state that could be gone on from."""
    try:
        yield
    except BaseException:
        if isinstance(connection, aiosmtplib.SMTP) and connection.transport is not None:
            # at once: a graceful end of TLS waits for the server's, for up to 30 s
            cast("asyncio.Transport", connection.transport).abort()
        connection.close()
        raise


async def _greet(client: aiosmtplib.SMTP) -> None:
    """EHLO, or HELO where the server is that old. aiosmtplib keeps what the server can do."""
    if client.is_ehlo_or_helo_needed:
        try:
            await client.ehlo()
        except aiosmtplib.SMTPHeloError:
            if not client.is_connected:
                raise
            await client.helo()


class _Stale(Exception):
    """The connection was dead before MAIL was accepted."""

    def __init__(self, failure: DeliveryFailure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class _Full(Exception):
    """The server greeted the connection with 421, or its EHLO: it takes no more of them, or none at all."""

    def __init__(self, failure: DeliveryFailure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class _Refused(Exception):
    """The server said no, and the conversation can go on, unless it is `hopeless`."""

    def __init__(self, failure: DeliveryFailure, stage: Stage, *, hopeless: bool = False) -> None:
        super().__init__(stage)
        self.failure = failure
        self.stage = stage
        self.hopeless = hopeless


async def _transaction(session: Session, mail: Mail, timeout: float) -> str:  # noqa: ASYNC109 - each answer's
    """One mail transaction (RFC 5321 §3.3); returns the last answer.

    Raises:
        _Stale, _Refused, TransientFailure, PermanentFailure, UnknownOutcome: by how far it had come.
    """
    hide = _private_words(mail)
    with UNSENT:
        copies = await _envelope(session, mail, hide, timeout)
    try:
        (reply,) = await session.ask(_stuffed(mail.body), timeout=timeout + len(mail.body) / SLOWEST)
    except Interrupted as interrupted:
        raise _broken(interrupted, Stage.BODY) from None
    if reply.code != 250:
        raise _answered(reply, Stage.BODY, hide)
    return scrub(f"{reply.code} {reply.text}", hide) + _told(mail, copies)


async def _envelope(session: Session, mail: Mail, hide: tuple[str, ...], timeout: float) -> Sequence[Reply]:  # noqa: ASYNC109
    """MAIL, RCPT and DATA, until the server asks for the message; returns what it said of each copy.

    Only whom the mail is for decides whether it is sent. With copies DATA waits for the answers, also where the
    server takes commands together: it would ask for the message if it has taken a copy and refused the recipient.
    """
    mail_from, rcpt = _opening(session, mail)
    copies = [f"RCPT TO:<{copy}>\r\n".encode() for copy in mail.copies]
    if "pipelining" not in session.extensions:
        groups = [[mail_from], [rcpt], *([copy] for copy in copies), [b"DATA\r\n"]]
    elif copies:
        groups = [[mail_from, rcpt, *copies], [b"DATA\r\n"]]
    else:
        groups = [[mail_from, rcpt, b"DATA\r\n"]]
    stages = [Stage.MAIL, Stage.RCPT, *(None for _ in copies), Stage.DATA]
    replies: list[Reply] = []
    for group in groups:
        interrupted = await _ask(session, group, replies, timeout)
        # a server that refuses and hangs up has refused
        _check(stages, replies, hide)
        if interrupted is not None:
            raise _broken(interrupted, stages[len(replies)] or Stage.RCPT) from None
    return replies[2:-1]


async def _ask(session: Session, group: Sequence[bytes], replies: list[Reply], timeout: float) -> Interrupted | None:  # noqa: ASYNC109
    """Add the replies to these commands, also those that came before it was interrupted."""
    try:
        replies += await session.ask(*group, timeout=timeout)
    except Interrupted as interrupted:
        replies += interrupted.replies
        return interrupted
    return None


def _check(stages: Sequence[Stage | None], replies: Sequence[Reply], hide: tuple[str, ...]) -> None:
    """Whether all that matters was accepted so far; no stage: the copies, which do not."""
    for stage, reply in zip(stages, replies, strict=False):
        if stage is None and reply.code not in {421, NO_SMTP}:
            continue
        if reply.code not in _EXPECTED[stage or Stage.RCPT]:
            # it may have asked for the message in spite of that, and would wait for it
            waits = len(replies) == len(stages) and replies[-1].code in _EXPECTED[Stage.DATA]
            raise _answered(reply, stage or Stage.RCPT, hide, hopeless=waits)


def _told(mail: Mail, copies: Sequence[Reply]) -> str:
    """What is to be said of copies that nobody gets."""
    refused = [str(reply.code) for reply in copies if reply.code not in _EXPECTED[Stage.RCPT]]
    if not refused and not mail.left_out:
        return ""
    asked = len(copies) + mail.left_out
    codes = [f"refused with {', '.join(sorted(set(refused)))}"] if refused else []
    none = [f"{mail.left_out} no e-mail address"] if mail.left_out else []
    return f" ({len(refused) + mail.left_out} of {asked} copies not sent: {'; '.join([*codes, *none])})"


def _opening(session: Session, mail: Mail) -> tuple[bytes, bytes]:
    options = f" SIZE={len(mail.body)}" if "size" in session.extensions else ""
    if mail.needs_utf8:
        if "smtputf8" not in session.extensions:
            detail = "an address has letters outside ASCII before the @, and the server has no SMTPUTF8"
            raise _Refused(PermanentFailure(Reason.BAD_ADDRESS, detail), Stage.CONNECT)
        options += " SMTPUTF8"
    return f"MAIL FROM:<{mail.sender}>{options}\r\n".encode(), f"RCPT TO:<{mail.recipient}>\r\n".encode()


def _stuffed(body: bytes) -> bytes:
    """Line ends as CRLF, dots doubled at the start of lines, and the dot that ends it (RFC 5321 §4.5.2)."""
    if not body.count(b"\r\n") == body.count(b"\r") == body.count(b"\n"):
        body = _LINE_ENDS.sub(b"\r\n", body)
    if body.startswith(b".") or b"\n." in body:
        body = _DOTS.sub(b"..", body)
    return body + (b".\r\n" if body.endswith(b"\r\n") else b"\r\n.\r\n")


def _answered(reply: Reply, stage: Stage, hide: tuple[str, ...], *, hopeless: bool = False) -> Exception:
    if stage is Stage.BODY and not 400 <= reply.code <= 599:
        detail = "the server's answer to the message is no SMTP"
        return UnknownOutcome(Reason.OUTCOME_UNKNOWN, detail, provider_fault=True)
    failure = smtp_failure(reply.code, reply.text, stage, hide)
    if reply.code == 421 and stage is Stage.MAIL:
        return _Stale(failure)
    return _Refused(failure, stage, hopeless=hopeless or reply.code in {421, NO_SMTP})


def _broken(interrupted: Interrupted, stage: Stage) -> Exception:
    cause = interrupted.__cause__ or interrupted
    failure = connection_failure(cause, f"waiting for the answer to {_COMMANDS[stage]}", provider_fault=True)
    if stage is Stage.BODY:
        return UnknownOutcome(connection_reason(cause), failure.detail, provider_fault=True)
    if stage is Stage.MAIL and failure.reason is Reason.CONNECTION_LOST:
        return _Stale(failure)
    return failure


_EXPECTED: Final = {Stage.MAIL: {250}, Stage.RCPT: {250, 251, 252}, Stage.DATA: {354}}
_COMMANDS: Final = {Stage.MAIL: "MAIL", Stage.RCPT: "RCPT", Stage.DATA: "DATA", Stage.BODY: "the message"}


def _private_words(mail: Mail) -> tuple[str, ...]:
    """What a server's answer may repeat. A local part of a few letters would be found in any word."""
    locals_ = (recipient.rpartition("@")[0] for recipient in mail.recipients)
    return (*mail.recipients, mail.sender, *(local for local in locals_ if len(local) >= 4))


def _secrets(server: Server) -> tuple[str, ...]:
    """The credentials, as they are and as AUTH writes them."""
    plain = [text for text in (server.username, server.password) if text]
    combined = f"\0{server.username or ''}\0{server.password or ''}"
    return (*plain, *(b64encode(text.encode()).decode() for text in (*plain, combined)))

"""Where NotiPy's messages arrive, counted by delivery; they can be told to fail as real providers do."""

import asyncio
import re
import ssl
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import trustme
from aiohttp import web
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

from deploy.smtp_sink import SmtpSink
from deploy.webhook_sink import Call, WebhookSink

_MESSAGE_ID = re.compile(rb"^Message-ID: <([0-9a-f-]{36})\.(\d+)@", re.M)
_SMS_DELIVERY = re.compile(r"^Delivery: (\S+)$", re.M)
USER, PASSWORD = "shop", "right-password"
MAIL, HOOKS, FILES = "mail", "hooks", "files"
"""The providers' names in NotiPy's settings."""


@dataclass
class Arrivals:
    """Every message that a sink took, by delivery: how often, through which providers, and when first."""

    times: dict[str, int] = field(default_factory=dict)
    through: dict[str, Counter[str]] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)

    def add(self, delivery: str, provider: str) -> None:
        self.times[delivery] = self.times.get(delivery, 0) + 1
        self.through.setdefault(delivery, Counter())[provider] += 1
        self.first.setdefault(delivery, time.monotonic())

    @property
    def count(self) -> int:
        """How many deliveries have arrived."""
        return len(self.times)


class Mood(StrEnum):
    """How a mail server behaves towards everybody."""

    GOOD = "good"
    HANGS_AT_MAIL = "hangs_at_mail"
    HANGS_AFTER_DATA = "hangs_after_data"
    CLOSES_AFTER_DATA = "closes_after_data"
    REFUSES_MAIL = "refuses_mail"
    """421 to MAIL."""
    REFUSES_DATA = "refuses_data"
    """451 to the content."""


class MailServer(SmtpSink):
    """A mail server that counts what it took by the delivery in its Message-ID.

    Attributes:
        name: the provider's, in NotiPy's settings.
        mood: how it behaves; `None` of the moods holds for recipients alone, whose names script them.
        on_content: told the client's name (EHLO) and the stage, `rcpt` before the content, `data` after it.
        password: what it wants, if `authenticates`.
        certificate: what it shows, if not None.
    """

    def __init__(self, directory: Path, arrivals: Arrivals, *, name: str = MAIL, authenticates: bool = False) -> None:
        super().__init__(directory)
        self.name = name
        self.arrivals = arrivals
        self.mood = Mood.GOOD
        self.on_content: Callable[[str, str], None] = lambda _name, _stage: None
        self.authenticates = authenticates
        self.password = PASSWORD
        self.certificate: ssl.SSLContext | None = None
        self.refused_logins = 0

    async def handle_MAIL(
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        await self._hang_while(Mood.HANGS_AT_MAIL)
        if self.mood is Mood.REFUSES_MAIL:
            return "421 4.3.2 Not now"
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 OK"

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        self.on_content(str(session.host_name), "rcpt")
        return await super().handle_RCPT(server, session, envelope, address, options)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if self.mood is Mood.REFUSES_DATA:
            return "451 4.3.0 Not now"
        answer = await super().handle_DATA(server, session, envelope)
        self.on_content(str(session.host_name), "data")
        await self._hang_while(Mood.HANGS_AFTER_DATA)
        if self.mood is Mood.CLOSES_AFTER_DATA and server.transport is not None:
            server.transport.close()
        return answer

    async def _hang_while(self, mood: Mood) -> None:
        while self.mood is mood:  # noqa: ASYNC110 - a mood is a plain value that faults set
            await asyncio.sleep(0.1)

    def _conversation(self) -> SMTP:
        loop = asyncio.get_running_loop()
        conversation = SMTP(
            self,
            hostname="localhost",
            ident="chaos",
            loop=loop,
            tls_context=self.certificate,
            require_starttls=self.certificate is not None,
            auth_required=self.authenticates,
            auth_require_tls=False,
            authenticator=self._authenticate if self.authenticates else None,
        )
        self._conversations = [each for each in self._conversations if each.transport is not None]
        self._conversations.append(conversation)
        return conversation

    def hang_up(self) -> None:
        """Close every connection, so that each client has to greet and log in anew."""
        for conversation in self._conversations:
            if conversation.transport is not None:
                conversation.transport.close()

    def _authenticate(self, _server: SMTP, _session: Session, _envelope: Envelope, _how: str, given: Any) -> AuthResult:
        right: bool = given.login.decode() == USER and given.password.decode() == self.password
        self.refused_logins += not right
        return AuthResult(success=right, handled=right)

    def _keep(self, envelope: Envelope) -> None:
        found = _MESSAGE_ID.search(bytes(envelope.original_content or b""))
        self.arrivals.add(found[1].decode() if found else "a mail without a delivery's Message-ID", self.name)


class Hooks(WebhookSink):
    """A webhook endpoint that counts what it took by the delivery in `webhook-id`.

    Attributes:
        hangs: whether it takes calls and does not answer.
    """

    def __init__(self, directory: Path, secret: str, arrivals: Arrivals) -> None:
        super().__init__(directory, secret)
        self.arrivals = arrivals
        self.hangs = False
        self.refuses = False

    async def _answer(self, request: web.Request, status: int) -> web.Response:
        if self.refuses:
            status = 503
        answer = await super()._answer(request, status)
        while self.hangs:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        return answer

    def _record(self, call: Call) -> None:
        if call.status < 300:
            self.arrivals.add(call.webhook_id.partition("/")[0], HOOKS)


def count_files(directory: Path, arrivals: Arrivals) -> None:
    """Add the messages of a `file` provider, which writes a repetition over the first."""
    ahead = time.monotonic() - time.time()
    for path in directory.glob("*/*.txt"):
        with suppress(OSError):
            found = _SMS_DELIVERY.search(path.read_text(encoding="utf-8"))
            if found and found[1] not in arrivals.times:
                arrivals.add(found[1], FILES)
                arrivals.first[found[1]] = path.stat().st_mtime + ahead


@dataclass(frozen=True)
class Certificates:
    """One authority, and two certificates of it: one in force, one expired."""

    ca_file: Path
    valid: ssl.SSLContext
    expired: ssl.SSLContext

    @staticmethod
    def make(directory: Path) -> "Certificates":
        """Write the authority's certificate into `directory`."""
        authority = trustme.CA()
        ca_file = directory / "ca.pem"
        authority.cert_pem.write_to_path(str(ca_file))
        yesterday = datetime.now(UTC) - timedelta(days=1)
        valid = authority.issue_cert("localhost", "127.0.0.1")
        expired = authority.issue_cert("localhost", "127.0.0.1", not_after=yesterday)
        return Certificates(ca_file, _context(valid), _context(expired))


def _context(leaf: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    leaf.configure_cert(context)
    return context

"""An SMTP server on the loopback interface that keeps what it is sent, and misbehaves as recipients' names tell it to.

The local part of a recipient scripts the replies; the count is kept per recipient, for as long as the sink runs:

| recipient            | behaviour                                                                                |
| -------------------- | ---------------------------------------------------------------------------------------- |
| `fail-451-2@…`       | RCPT is answered 451 twice, then accepted; any 4xx or 5xx code, any count                |
| `reject-550@…`       | RCPT is always answered 550                                                              |
| `refuse-552-1@…`     | the content (after DATA) is answered 552 once, then accepted                             |
| `drop-1@…`           | the mail is kept, but the connection is cut instead of an answer, once: outcome unknown  |
| anything else        | accepted                                                                                 |
"""

import asyncio
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from types import TracebackType
from typing import Self

from aiosmtpd.smtp import SMTP, Envelope, Session

_HOST = "127.0.0.1"
_SCRIPT = re.compile(r"(?P<verb>fail|reject|refuse|drop)(-(?P<code>[45]\d\d))?(-(?P<times>\d+))?@", re.ASCII)
_ACCEPTED = "250 2.0.0 Kept"
_ENHANCED = {"550": "5.1.1", "552": "5.2.2", "450": "4.2.0", "452": "4.2.2", "421": "4.3.2"}


@dataclass(frozen=True)
class Mail:
    """A mail as it was accepted; `path` is the same content as a file."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    path: Path

    @property
    def message(self) -> EmailMessage:
        """The content, parsed."""
        return message_from_bytes(self.content, policy=policy.default)


class SmtpSink:
    """`async with SmtpSink(directory) as sink`: listens on a free port, stores every accepted mail as `NNNN.eml`.

    It runs in the caller's event loop. On leaving, open connections are closed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mails: list[Mail] = []
        self.refusals: Counter[str] = Counter()
        self._server: asyncio.Server | None = None
        self._conversations: list[SMTP] = []

    @property
    def port(self) -> int:
        """Port on the loopback interface; the sink must have been entered."""
        if self._server is None:
            raise RuntimeError("The SMTP sink is not listening: use it as `async with SmtpSink(…) as sink`.")
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """Address as a provider's `url` takes it."""
        return f"smtp://{_HOST}:{self.port}?tls=none"

    async def __aenter__(self) -> Self:
        """Start listening."""
        await asyncio.to_thread(self.directory.mkdir, parents=True, exist_ok=True)
        self._server = await asyncio.get_running_loop().create_server(self._conversation, _HOST, 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening and hang up on whoever is still connected."""
        if self._server is None:
            return
        self._server.close()
        for conversation in self._conversations:
            if conversation.transport is not None:
                conversation.transport.close()
        await self._server.wait_closed()
        await asyncio.sleep(0)  # let the transports report their end to the conversations
        self._server = None

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """Accept a recipient, or answer as its name says."""
        code = self._scripted(address, "fail") or self._scripted(address, "reject")
        if code:
            return _refusal(code, address)
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        """Keep the mail, or answer as a recipient's name says."""
        for address in envelope.rcpt_tos:
            if code := self._scripted(address, "refuse"):
                return _refusal(code, address)
        self._keep(envelope)
        if any(self._scripted(address, "drop") for address in envelope.rcpt_tos) and server.transport is not None:
            server.transport.close()
        return _ACCEPTED

    def _conversation(self) -> SMTP:
        """Protocol of one connection."""
        conversation = SMTP(
            self, hostname="localhost", ident="NotiPy sink", enable_SMTPUTF8=True, loop=asyncio.get_running_loop()
        )
        self._conversations = [each for each in self._conversations if each.transport is not None]
        self._conversations.append(conversation)
        return conversation

    def _scripted(self, address: str, verb: str) -> str | None:
        """Code to answer this time, if the address asks for this behaviour and has not had it often enough."""
        script = _SCRIPT.match(address)
        if script is None or script["verb"] != verb:
            return None
        if script["times"] and self.refusals[address] >= int(script["times"]):
            return None
        self.refusals[address] += 1
        return script["code"] or "451"

    def _keep(self, envelope: Envelope) -> None:
        content = envelope.original_content or b""
        path = self.directory / f"{len(self.mails) + 1:04d}.eml"
        path.write_bytes(content)
        self.mails.append(Mail(envelope.mail_from or "", _texts(envelope.rcpt_tos), content, path))


def _texts(recipients: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(recipient for recipient in recipients if recipient)


def _refusal(code: str, address: str) -> str:
    enhanced = _ENHANCED.get(code, f"{code[0]}.0.0")
    return f"{code} {enhanced} Scripted by the recipient {address}"

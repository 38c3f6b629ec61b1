"""E-mail over SMTP."""

from collections.abc import Mapping
from typing import Any

from channels.dkim_signature import DkimSigner
from channels.fetch import AttachmentFetcher
from channels.limits import check_length
from channels.mail import compose
from channels.smtp_pool import SmtpPool
from channels.smtp_settings import SmtpOptions
from channels.surroundings import NOWHERE, Surroundings
from domain.message import Accepted, Message

__all__ = ["SmtpOptions", "SmtpProvider"]


class SmtpProvider:
    """Sends mail through one server."""

    def __init__(self, name: str, options: SmtpOptions, surroundings: Surroundings = NOWHERE) -> None:
        self.name = name
        self._options = options
        self._sender = options.sender
        self._files = AttachmentFetcher(options.limits, allow_private=options.allow_private, files=surroundings.files)
        self._signer = DkimSigner(options.dkim) if options.dkim is not None else None
        self._pool = SmtpPool(options)

    def __repr__(self) -> str:
        return f"SmtpProvider({self.name!r}, {self._options.server!r})"

    @property
    def at_once(self) -> int:
        """How many mails it can have use for at a time; the next one waits for a connection."""
        return self._options.connections

    def takes(self, recipient: Mapping[str, Any]) -> bool:
        """Whoever has an address."""
        return bool(recipient.get("email"))

    async def send(self, message: Message) -> Accepted:
        """Send once, over a kept connection where there is one.

        Raises:
            TransientFailure: nothing was sent; wrong credentials among the reasons, which an operator puts right.
            PermanentFailure: the server, or the message itself, rules it out.
            UnknownOutcome: the connection broke, or time ran out, after the message was on its way.
        """
        files = await self._files.of(message, self._options.timeout)
        mail = compose(message, self._sender, files)
        if self._signer is not None:
            mail = await self._signer.signed(mail, message.created_at)
        check_length(len(mail.body), self._options.max_message_bytes, "bytes")
        return Accepted(await self._pool.send(mail), message.idempotency_key)

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

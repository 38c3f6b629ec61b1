"""A connection to a mail server that is ready for mails: commands that are written together, and their replies.

aiosmtplib opens it (EHLO, STARTTLS, AUTH) and is then done: it waits for each reply before it writes the next command.
A server with PIPELINING (RFC 2920) takes MAIL, RCPT and DATA at once, which saves two of four round trips of a mail,
and half of what a mail costs here.
"""

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import NamedTuple, Self, cast

import aiosmtplib

MAX_REPLY = 32 * 1024
"""Bytes of replies that have not been understood yet; more is no SMTP."""
NO_SMTP = -1
"""The code of what is no SMTP reply."""

_MARKS = frozenset({b"", b" ", b"-"})
"""Behind a reply's code: in its only line, in its last, in one that is followed by others."""


class Reply(NamedTuple):
    """What a server says: a code, and words for people."""

    code: int
    text: str


class Interrupted(Exception):
    """The connection broke or time ran out, as its cause tells; `replies` had come by then."""

    def __init__(self, replies: Sequence[Reply]) -> None:
        super().__init__(f"after {len(replies)} replies")
        self.replies = replies


class Session(asyncio.Protocol):
    """Such a connection; one caller at a time.

    Attributes:
        extensions: what the server can do, in lower case, as its EHLO says.
    """

    def __init__(self, transport: asyncio.Transport, extensions: Collection[str]) -> None:
        self.extensions = frozenset(extensions)
        self._transport = transport
        self._buffer = bytearray()
        self._lines: list[str] = []
        self._replies: list[Reply] = []
        self._expected = 0
        self._answered: asyncio.Future[None] | None = None
        self._spoke_unasked = False
        transport.set_protocol(self)

    @classmethod
    def over(cls, client: aiosmtplib.SMTP) -> Self:
        """Take the connection of a client that has done its part.

        Raises:
            SMTPServerDisconnected: it is lost already.
        """
        if client.transport is None:
            raise aiosmtplib.SMTPServerDisconnected("Connection lost")
        return cls(cast("asyncio.Transport", client.transport), client.esmtp_extensions)

    @property
    def usable(self) -> bool:
        """Whether it is open as far as can be told; a server that speaks unasked is about to close it."""
        return not self._transport.is_closing() and not self._spoke_unasked

    async def ask(self, *commands: bytes, timeout: float) -> Sequence[Reply]:  # noqa: ASYNC109 - with what came by then
        """Write these, line ends included, and return the reply to each; fewer, if the last one is no SMTP.

        Raises:
            Interrupted: before all of them had come. The connection is closed: a reply that comes late would be taken
                for the next command's.
        """
        loop = asyncio.get_running_loop()
        self._replies, self._expected, self._answered = [], len(commands), loop.create_future()
        late = loop.call_later(timeout, self._end, TimeoutError("no reply in time"))
        try:
            if self._transport.is_closing():
                raise ConnectionResetError("Connection lost")
            self._transport.write(b"".join(commands))
            await self._answered
        except (OSError, TimeoutError) as error:
            self.close()
            raise Interrupted(self._replies) from error
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            late.cancel()
            self._answered, self._expected = None, 0
        return self._replies

    async def quit(self, *, timeout: float) -> None:  # noqa: ASYNC109
        """Say goodbye and close the connection."""
        with suppress(Interrupted):
            await self.ask(b"QUIT\r\n", timeout=timeout)
        self._transport.close()

    def close(self) -> None:
        """Close the connection at once. What was not written yet is never sent: the end of a message least of all."""
        self._transport.abort()

    # -- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Replies, or parts of them."""
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = rest
        for line in lines:
            self._read(bytes(line).rstrip(b"\r"))
        if len(self._buffer) + sum(len(line) + len("250-\r\n") for line in self._lines) > MAX_REPLY:
            self._reply(Reply(NO_SMTP, "a reply without end"))

    def eof_received(self) -> None:
        """The server has hung up."""
        self.connection_lost(None)

    def connection_lost(self, error: Exception | None) -> None:
        """Whoever waits for a reply waits no more."""
        lost = ConnectionResetError("Connection lost")
        lost.__cause__ = error
        self._end(lost)

    def _end(self, error: Exception) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)

    def _read(self, line: bytes) -> None:
        code, mark = line[:3], line[3:4]
        if len(code) < 3 or not code.isdigit() or mark not in _MARKS:
            self._reply(Reply(NO_SMTP, f"no SMTP: {line.decode(errors='replace')}"))
            return
        self._lines.append(line[4:].decode(errors="replace").strip())
        if mark != b"-":
            self._reply(Reply(int(code), "\n".join(self._lines)))

    def _reply(self, reply: Reply) -> None:
        self._lines.clear()
        if reply.code == NO_SMTP:
            self._spoke_unasked = True  # who knows what comes next
        if self._answered is None or self._answered.done():
            self._spoke_unasked = True
            return
        self._replies.append(reply)
        if len(self._replies) == self._expected or reply.code == NO_SMTP:
            self._answered.set_result(None)

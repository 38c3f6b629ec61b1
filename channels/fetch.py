"""The files that go along with a mail: given inline, or fetched from a URL under limits of number, size and time."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import aiohttp

from channels.classify import connection_failure
from channels.guard import address_refused, guarded_session
from domain.event import Attachment
from domain.failures import DeliveryFailure, PermanentFailure, TransientFailure
from domain.vocabulary import Reason

_CHUNK: Final = 64 * 1024
_RETRYABLE: Final = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class File:
    """An attachment with its bytes."""

    filename: str
    content_type: str
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Limits:
    """What attachments may cost.

    Attributes:
        each: bytes of one.
        total: bytes of all of a message.
        timeout: for one, from the connection to the last byte.
    """

    count: int
    each: int
    total: int
    timeout: timedelta


class AttachmentFetcher:
    """Gets attachments. Redirects are not followed; private addresses are refused unless allowed."""

    def __init__(self, limits: Limits, *, allow_private: bool) -> None:
        self._limits = limits
        self._allow_private = allow_private
        self._session: aiohttp.ClientSession | None = None

    async def fetch(self, attachments: Sequence[Attachment]) -> list[File]:
        """Get all, one after the other: a message holds at most `total` bytes of them in memory.

        Raises:
            TransientFailure: `attachment_unavailable`; it may be there later.
            PermanentFailure: `attachment_rejected` (too many, too large, 4xx, a redirect) or `address_refused`.
        """
        if len(attachments) > self._limits.count:
            raise _rejected(f"{len(attachments)} attachments; at most {self._limits.count} are sent")
        files: list[File] = []
        room = self._limits.total
        for position, attachment in enumerate(attachments, start=1):
            content = await self._content(attachment, f"attachment {position}", min(room, self._limits.each))
            room -= len(content)
            files.append(File(attachment.filename, attachment.content_type, content))
        return files

    async def close(self) -> None:
        """Give back the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _content(self, attachment: Attachment, name: str, most: int) -> bytes:
        if attachment.url is None:
            content = bytes(attachment.content or b"")
            if len(content) > most:
                raise _too_large(name, most)
            return content
        return await self._download(attachment.url, name, most)

    async def _download(self, url: str, name: str, most: int) -> bytes:
        try:
            async with (
                asyncio.timeout(self._limits.timeout.total_seconds()),
                self._open().get(url, allow_redirects=False) as response,
            ):
                _check_status(response.status, name)
                return await _read(response, name, most)
        except DeliveryFailure:
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _failure(error, name) from None

    def _open(self) -> aiohttp.ClientSession:
        """The session, made where there is a running loop."""
        if self._session is None:
            self._session = guarded_session(
                allow_private=self._allow_private,
                timeout=aiohttp.ClientTimeout(total=None),
                headers={"Accept-Encoding": "identity"},
            )
        return self._session


async def _read(response: aiohttp.ClientResponse, name: str, most: int) -> bytes:
    if (response.content_length or 0) > most:
        raise _too_large(name, most)
    content = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK):
        content += chunk
        if len(content) > most:
            raise _too_large(name, most)
    return bytes(content)


def _check_status(status: int, name: str) -> None:
    if status == 200:
        return
    if status >= 500 or status in _RETRYABLE:
        raise TransientFailure(Reason.ATTACHMENT_UNAVAILABLE, f"{name}: HTTP {status}")
    raise _rejected(f"{name}: HTTP {status}")


def _failure(error: Exception, name: str) -> DeliveryFailure:
    if address_refused(error):
        return PermanentFailure(Reason.ADDRESS_REFUSED, f"{name}: its URL leads into a private or reserved network")
    detail = connection_failure(error, f"fetching {name}").detail
    return TransientFailure(Reason.ATTACHMENT_UNAVAILABLE, detail)


def _too_large(name: str, most: int) -> PermanentFailure:
    return _rejected(f"{name}: larger than the {most} bytes that are left for it")


def _rejected(detail: str) -> PermanentFailure:
    return PermanentFailure(Reason.ATTACHMENT_REJECTED, detail)

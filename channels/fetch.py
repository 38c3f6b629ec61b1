"""The files that go along with a mail: given inline, or fetched from a URL under limits of number, size and time.

The HTTP client is read with the first URL: it is a tenth of a worker's start, and most never meet one.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import AfterValidator

from channels.classify import connection_failure
from domain.event import Attachment
from domain.failures import UNBLAMED, DeliveryFailure, PermanentFailure, TransientFailure, place_of
from domain.message import Message
from domain.ports import Files
from domain.vocabulary import Reason

if TYPE_CHECKING:
    import aiohttp

_CHUNK: Final = 64 * 1024
_MEDIA_RANGE: Final = re.compile(r"[\w!#$&^.+-]+/(\*|[\w!#$&^.+-]+)")
_RETRYABLE: Final = frozenset({408, 425, 429})


def _media_range(text: str) -> str:
    if not _MEDIA_RANGE.fullmatch(text):
        raise ValueError("should be a media type such as application/pdf, or image/* for all of a kind")
    return text.lower()


MediaRanges = tuple[Annotated[str, AfterValidator(_media_range)], ...]
"""As `attachment_types` in the settings of a provider."""


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
        types: of content that are sent, such as `application/pdf` or `image/*`, in lower case; none: any.
    """

    count: int
    each: int
    total: int
    timeout: timedelta
    types: tuple[str, ...] = ()


class AttachmentFetcher:
    """Gets attachments. Redirects are not followed; private addresses are refused unless allowed.

    Those of a URL are fetched once for all deliveries of an event where there is somewhere to keep them (`files`).
    """

    def __init__(self, limits: Limits, *, allow_private: bool, files: Files | None = None) -> None:
        self._limits = limits
        self._allow_private = allow_private
        self._files = files
        self._session: aiohttp.ClientSession | None = None

    async def of(self, message: Message, within: timedelta) -> list[File]:
        """A message's attachments; all of them together take no longer than `within`.

        Raises:
            TransientFailure: `attachment_unavailable`; they may be there later.
            PermanentFailure: `attachment_rejected` or `address_refused`.
        """
        if not message.attachments:
            return []
        try:
            with UNBLAMED:
                async with asyncio.timeout(within.total_seconds()):
                    return await self.fetch(message.attachments, message.event_key)
        except TimeoutError:
            raise TransientFailure(Reason.ATTACHMENT_UNAVAILABLE, "the attachments were not read in time") from None
        except DeliveryFailure:
            raise
        except Exception as error:  # nothing was sent yet, whatever it is
            raise TransientFailure(Reason.INTERNAL_ERROR, place_of(error)) from error

    async def fetch(self, attachments: Sequence[Attachment], event_key: str = "") -> list[File]:
        """Get all, one after the other: a message holds at most `total` bytes of them in memory.

        Raises:
            TransientFailure: `attachment_unavailable`; it may be there later.
            PermanentFailure: `attachment_rejected` (too many, too large, of another type, 4xx, a redirect) or
                `address_refused`.
        """
        if len(attachments) > self._limits.count:
            raise _rejected(f"{len(attachments)} attachments; at most {self._limits.count} are sent")
        for position, attachment in enumerate(attachments, start=1):
            self._check_type(attachment.content_type, f"attachment {position}")
        files: list[File] = []
        room = self._limits.total
        for position, attachment in enumerate(attachments, start=1):
            content = await self._content(attachment, f"attachment {position}", room, event_key)
            room -= len(content)
            files.append(File(attachment.filename, attachment.content_type, content))
        return files

    async def close(self) -> None:
        """Give back the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _check_type(self, kind: str, name: str) -> None:
        types = self._limits.types
        if types and not any(fnmatchcase(kind.lower(), allowed) for allowed in types):
            raise _rejected(f"{name}: {kind} is none of the types that are sent ({', '.join(types)})")

    async def _content(self, attachment: Attachment, name: str, room: int, event_key: str) -> bytes:
        most = min(room, self._limits.each)
        if attachment.url is None:
            content = bytes(attachment.content or b"")
        elif self._files is None or not event_key:
            return await self._download(attachment.url, name, most)
        else:
            content = await self._once(self._files, event_key, attachment.url, name)
        if len(content) > most:
            raise _too_large(name, most)
        return content

    async def _once(self, files: Files, event_key: str, url: str, name: str) -> bytes:
        """For all that ask under the same rules: where they differ, so may the answer."""
        each = self._limits.each
        source = sha256(f"{each} {self._allow_private} {url}".encode()).hexdigest()
        return await files.once(event_key, source, lambda: self._download(url, name, each), self._limits.timeout)

    async def _download(self, url: str, name: str, most: int) -> bytes:
        import aiohttp

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

    def _open(self) -> "aiohttp.ClientSession":
        """The session, made where there is a running loop."""
        import aiohttp

        from channels.guard import guarded_session

        if self._session is None:
            self._session = guarded_session(
                allow_private=self._allow_private,
                timeout=aiohttp.ClientTimeout(total=None),
                headers={"Accept-Encoding": "identity"},
            )
        return self._session


async def _read(response: "aiohttp.ClientResponse", name: str, most: int) -> bytes:
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
    from channels.guard import address_refused

    if address_refused(error):
        return PermanentFailure(Reason.ADDRESS_REFUSED, f"{name}: its URL leads into a private or reserved network")
    detail = connection_failure(error, f"fetching {name}").detail
    return TransientFailure(Reason.ATTACHMENT_UNAVAILABLE, detail)


def _too_large(name: str, most: int) -> PermanentFailure:
    return _rejected(f"{name}: larger than the {most} bytes that are left for it")


def _rejected(detail: str) -> PermanentFailure:
    return PermanentFailure(Reason.ATTACHMENT_REJECTED, detail)

"""Any channel into files: for development, and for a look at what would be sent. One readable file per message."""

import asyncio
import errno
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from channels.classify import scrub
from channels.surroundings import NOWHERE, Surroundings
from domain.event import Recipient
from domain.failures import TransientFailure
from domain.message import Accepted, Message
from domain.vocabulary import Reason

_BODIES: Final = ("text", "html", "payload")
_OPERATORS: Final = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ELOOP,
    }
)
"""Of the directory, until an operator puts it right; the rest (a full disk, too many open files) passes by itself."""


class FileOptions(BaseModel):
    """Settings of one file provider.

    Attributes:
        directory: where the channels' directories are made.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: Path


class FileProvider:
    """Writes each message to `<directory>/<channel>/<created>-<delivery>-<epoch>.txt`.

    A file appears whole or not at all; the same delivery and epoch writes the same file again.
    """

    def __init__(self, name: str, options: FileOptions, _: Surroundings = NOWHERE) -> None:
        self.name = name
        self._directory = options.directory

    def __repr__(self) -> str:
        return f"FileProvider({self.name!r}, {str(self._directory)!r})"

    def takes(self, recipient: Mapping[str, Any]) -> bool:  # noqa: ARG002
        """Anybody."""
        return True

    async def send(self, message: Message) -> Accepted:
        """Write it, off the event loop.

        Raises:
            TransientFailure: the file cannot be written; `not_configured` if the directory has to be put right first.
        """
        path = self._directory / message.channel / _filename(message)
        try:
            await asyncio.to_thread(_write, path, readable(message))
        except OSError as error:
            raise _unwritable(error) from None
        return Accepted(f"written to {message.channel}/{path.name}")

    async def check(self) -> str:
        """Write a file and take it away again."""
        try:
            await asyncio.to_thread(_probe, self._directory)
        except OSError as error:
            raise _unwritable(error) from None
        return f"{self._directory} can be written"

    async def close(self) -> None:
        """Nothing is kept open."""


def _filename(message: Message) -> str:
    created = message.created_at.strftime("%Y%m%dT%H%M%S")
    return f"{created}-{message.idempotency_key.replace('/', '-')}.txt"


def readable(message: Message) -> str:
    """Header lines, an empty line, and the content; several bodies are told apart by a line each."""
    address = message.recipient.get(Recipient.ADDRESS_FIELDS[message.channel], "")
    headers = {
        "Channel": str(message.channel),
        "To": str(address),
        "Name": str(message.recipient.get("name", "")),
        "Delivery": message.delivery_id,
        "Idempotency-Key": message.idempotency_key,
        "Created": message.created_at.isoformat(),
    } | {field.capitalize(): text for field, text in message.content.items() if field not in _BODIES}
    lines = [f"{name}: {' '.join(text.split())}" for name, text in headers.items() if text]
    lines += [f"Attachment: {item.filename} ({item.content_type})" for item in message.attachments]
    bodies = [(field, message.content[field]) for field in _BODIES if field in message.content]
    if len(bodies) == 1:
        return "\n".join([*lines, "", bodies[0][1], ""])
    return "\n".join([*lines, *(f"\n--- {field} ---\n{text}" for field, text in bodies), ""])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile("w", encoding="utf-8", newline="", dir=path.parent, prefix=".", delete=False) as file:
        try:
            file.write(text)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _probe(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=directory, prefix="."):
        pass


def _unwritable(error: OSError) -> TransientFailure:
    detail = scrub(f"cannot write the file: {error.strerror or error}")
    reason = Reason.NOT_CONFIGURED if error.errno in _OPERATORS else Reason.PROVIDER_UNAVAILABLE
    return TransientFailure(reason, detail, provider_fault=True)

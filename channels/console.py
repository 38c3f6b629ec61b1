"""Any channel onto standard output: for development."""

import asyncio
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from channels.file import readable
from channels.surroundings import NOWHERE, Surroundings
from domain.failures import TransientFailure
from domain.message import Accepted, Message
from domain.vocabulary import Reason

_RULE: Final = "─" * 72


class ConsoleOptions(BaseModel):
    """Settings of one console provider.

    Attributes:
        max_chars: of one message; what is longer is cut, and says so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_chars: Annotated[int, Field(ge=100, le=1_000_000)] = 4000


class ConsoleProvider:
    """Writes one readable block for each message, whole, without what a terminal would obey or could not show."""

    def __init__(self, name: str, options: ConsoleOptions, _: Surroundings = NOWHERE) -> None:
        self.name = name
        self._most = options.max_chars
        self._writing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"ConsoleProvider({self.name!r})"

    def takes(self, recipient: Mapping[str, Any]) -> bool:  # noqa: ARG002
        """Anybody."""
        return True

    async def send(self, message: Message) -> Accepted:
        """Write it, off the event loop: a pipe that nobody reads must not stop everything else.

        Raises:
            TransientFailure: nothing can be written to standard output.
        """
        block = f"{_RULE}\n{_shown(readable(message), self._most)}\n"
        async with self._writing:
            try:
                await asyncio.to_thread(_write, block)
            except (OSError, ValueError):
                told = "standard output is closed"
                raise TransientFailure(Reason.PROVIDER_UNAVAILABLE, told, provider_fault=True) from None
        return Accepted("written to standard output")

    async def check(self) -> str:
        """Nothing is asked."""
        return "writes to standard output"

    async def close(self) -> None:
        """Standard output is not ours to close."""


def _shown(text: str, most: int) -> str:
    plain = "".join(character if character.isprintable() or character == "\n" else "�" for character in text)
    return plain if len(plain) <= most else f"{plain[:most]}\n… and {len(plain) - most} characters more"


def _write(block: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(block.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()

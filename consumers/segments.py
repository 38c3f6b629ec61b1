"""Counts the segments of SMS: what providers are paid by."""

from collections.abc import Callable, Mapping
from typing import Any

from channels.segments import segments
from domain.message import Accepted, Message
from domain.ports import Provider

Count = Callable[[str, str, int], None]
"""A provider's name, an encoding and a number of segments."""


class CountingSegments:
    """A provider of SMS; tells of each message that it has taken how many segments that was."""

    def __init__(self, provider: Provider, count: Count) -> None:
        self.name = provider.name
        self._provider = provider
        self._count = count

    def __repr__(self) -> str:
        return repr(self._provider)

    def takes(self, recipient: Mapping[str, Any]) -> bool:
        """As the provider does."""
        return self._provider.takes(recipient)

    async def send(self, message: Message) -> Accepted:
        """As the provider does; a message that is refused, or of which nobody knows, is not counted."""
        answer = await self._provider.send(message)
        sent = segments(message.content.get("text", ""))
        self._count(self.name, str(sent.encoding), sent.count)
        return answer

    async def check(self) -> str:
        """As the provider does."""
        return await self._provider.check()

    async def close(self) -> None:
        """As the provider does."""
        await self._provider.close()

"""The use case of the commands about inboxes."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from domain.inbox import Marking, change_body, inbox_key
from domain.ports import Inbox

Publish = Callable[[str, bytes], Awaitable[None]]
"""A routing key and a body, to `notipy.inbox`; returns after the confirmation, whether anybody listens or not."""


@dataclass(frozen=True, slots=True)
class MarkInbox:
    """The use case of the commands `inbox.…`. Returning means that it is committed and told; repeating is harmless."""

    inbox: Inbox
    publish: Publish

    async def __call__(self, marking: Marking) -> None:
        """Mark → tell."""
        await self.inbox.mark(marking)
        await self.publish(inbox_key(marking.recipient), change_body(marking))

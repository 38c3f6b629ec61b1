"""An inbox inside an application: each message is kept in the database and told to whoever looks at this moment."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from channels.http import utc_now
from channels.surroundings import NOWHERE, Surroundings
from domain.failures import TransientFailure, UnknownOutcome
from domain.inbox import EXCHANGE, InboxItem, inbox_key, item_body
from domain.message import Accepted, Message
from domain.vocabulary import Reason


class InboxOptions(BaseModel):
    """Settings of one inbox provider: none."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class InboxProvider:
    """Puts messages into inboxes. The same delivery and epoch is one item, however often it is sent."""

    def __init__(
        self,
        name: str,
        _: InboxOptions,
        surroundings: Surroundings = NOWHERE,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.name = name
        self._surroundings = surroundings
        self._now = now

    def __repr__(self) -> str:
        return f"InboxProvider({self.name!r})"

    def takes(self, recipient: Mapping[str, Any]) -> bool:
        """Whoever has an id."""
        return bool(recipient.get("id"))

    async def send(self, message: Message) -> Accepted:
        """Store it, then publish it to `notipy.inbox`; that nobody listens there is no failure.

        Raises:
            TransientFailure: it could not be published. It is stored, and repeating this stores it no second time.
        """
        item = InboxItem(message.idempotency_key, str(message.recipient["id"]), dict(message.content), self._now())
        if self._surroundings.inbox is None:
            raise RuntimeError("there is no database here")
        added = await self._surroundings.inbox.add(item)
        await self._tell(item, message.delivery_id)
        return Accepted("stored" if added else "stored before", item.id)

    async def _tell(self, item: InboxItem, delivery_id: str) -> None:
        headers = {"x-notipy-delivery": delivery_id}
        try:
            await self._surroundings.publish(EXCHANGE, inbox_key(item.recipient), item_body(item), headers)
        except UnknownOutcome as failure:
            if failure.reason is Reason.PROVIDER_UNAVAILABLE:
                return  # a listener's own queue is full: that must stop nobody's inbox, and the database has the item
            # published twice is harmless: an item is told from another by its id
            raise TransientFailure(failure.reason, failure.detail, provider_fault=True) from failure

    async def check(self) -> str:
        """Nothing but NotiPy's own database and broker is needed."""
        return "kept in NotiPy's own database"

    async def close(self) -> None:
        """Nothing is kept open."""

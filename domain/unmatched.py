"""What an operator does to an event that met no notification when it came: have it planned now that there is one."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from domain.audit import hour_of
from domain.event import EventRejected
from domain.notification import Notification
from domain.operate import Refused
from domain.plan import sources
from domain.ports import Catalog, Events, Now, StoredEvent
from domain.stored import read_event
from domain.token import unique_token
from domain.vocabulary import EventState

INSTEAD: Final[Mapping[EventState, str]] = {
    EventState.ACCEPTED: "its deliveries are being planned",
    EventState.PLANNED: "replay its deliveries, with `notipy dead replay`",
    EventState.FAILED: "publish it again, with `notipy dead replay --channel events`: its planning is taken up then",
}
"""Why an event in one of these states is not replayed, and what is done instead."""


@dataclass(frozen=True, slots=True)
class PlanAgain:
    """Plans unmatched events with the notifications that are in force now. Of two operators at once, one does it.

    Nothing is sent twice: an unmatched event has never had a delivery. It is made due, and the sweeper plans it as an
    event whose planning was cut short, so that a process that ends anywhere leaves nothing behind.

    Attributes:
        audit_anew: forgets that these hours were found in order: what is planned of them was not there then.
    """

    events: Events
    catalog: Catalog
    audit_anew: Callable[[Sequence[datetime]], Awaitable[None]]
    now: Now

    async def replay(self, key: str) -> StoredEvent | Refused:
        """Have it planned: the event as it is stored now, with the versions that its deliveries will pin."""
        event = await self.replayable(key)
        if isinstance(event, Refused):
            return event
        after = replace(event, state=EventState.ACCEPTED, resumed=0, token=unique_token())
        if not await self.events.reopen(after, self.now()):
            return Refused("somebody else has just replayed it")
        await self.audit_anew([hour_of(after.received_at)])  # after it: no hour is in order while one is being planned
        return after

    async def replayable(self, key: str) -> StoredEvent | Refused:
        """The event as it would be planned; or why it would not be replayed."""
        stored = await self.events.get(key)
        if stored is None:
            return Refused("it is no longer stored")
        if stored.state in INSTEAD:
            return Refused(f"it is {stored.state}: {INSTEAD[stored.state]}")
        found = await self._notifications(stored)
        if isinstance(found, Refused):
            return found
        return replace(stored, plan=tuple((each.name, each.version) for each in found))

    async def _notifications(self, stored: StoredEvent) -> Sequence[Notification] | Refused:
        """Those that it is planned with; none where it brings its own content."""
        try:
            event = await asyncio.to_thread(read_event, stored)
        except EventRejected as fault:
            return Refused(f"this version cannot use it: {fault.reason}")
        found = () if event.content else tuple(self.catalog.matching(event.topic))
        if not event.content and not found:
            return Refused(f"no notification is on {event.topic}: `notipy apply` defines one")
        if not sources(event, found):
            return Refused("none of the channels that it names is one of its content")
        return found

"""From an event and the notifications on it to deliveries. Pure: planning twice comes to the same."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from domain.delivery import Change, Delivery, delivery_id
from domain.event import Event, FaultyRecipient, Recipient
from domain.locales import chosen
from domain.notification import INLINE, Definition, Notification, check_content
from domain.ports import NotANumber, Numbers, Renderer, SchemaCheck
from domain.text import describe, told_over
from domain.vocabulary import Channel, Lane, Reason, State


@dataclass(frozen=True, slots=True)
class Source:
    """Where a delivery's words come from: a notification's version, or the event itself (`inline`, version 0)."""

    channels: Mapping[Channel, Mapping[str, Any]]
    name: str = INLINE
    version: int = 0
    definition: Definition | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """How every delivery of one source, channel and locale starts: queued, held, or final at once."""

    state: State
    reason: Reason
    detail: str | None = None


class Verdicts:
    """How the deliveries of one source start: alike for all of a channel that are told in the same locale's words."""

    def __init__(self, renderer: Renderer, event: Event, source: Source, verdict: Callable[[Channel], Verdict]) -> None:
        self._renderer = renderer
        self._data = event.data
        self._channels = source.channels
        self._verdict = verdict
        self._usual: dict[Channel, Verdict] = {}
        self._found: dict[tuple[Channel, str | None], Verdict] = {}

    def of(self, channel: Channel, locale: str | None) -> Verdict:
        """For a recipient of this locale. What an event lacks for others' words does not matter to these."""
        words = chosen(self._channels[channel], locale)
        found = self._found.get((channel, words))
        if found is None:
            found = self._found[channel, words] = self._decide(channel, words)
        return found

    def _decide(self, channel: Channel, locale: str | None) -> Verdict:
        usual = self._usual.get(channel)
        if usual is None:
            usual = self._usual[channel] = self._verdict(channel)
        if usual.state.final:
            return usual
        missing = self._renderer.missing(channel, self._channels[channel], self._data, locale)
        return Verdict(State.FAILED, Reason.TEMPLATE_ERROR, f"data lacks {', '.join(missing)}") if missing else usual


class _AsPublished:
    """`domain.ports.Numbers` that takes every number as it came."""

    def normalised(self, number: str) -> str:
        return number


_AS_PUBLISHED = _AsPublished()


@dataclass(frozen=True, slots=True)
class When:
    """When the event was received, and when it is planned: later, where a process died in between."""

    received_at: datetime
    now: datetime


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans deliveries.

    Attributes:
        configured: the channels that have a provider.
        overdue: how long a queued delivery may stay untouched before the sweeper looks after it.
        numbers: which phone numbers can be dialled; by default each is taken as it was published.
    """

    renderer: Renderer
    schemas: SchemaCheck
    configured: frozenset[Channel]
    overdue: timedelta
    numbers: Numbers = _AS_PUBLISHED

    def plan(
        self, event: Event, notifications: Sequence[Notification], received_at: datetime, now: datetime
    ) -> Iterator[Delivery]:
        """Each delivery of the event, one by one: memory does not grow with the number of recipients.

        A delivery is created when its event was received, whenever that is planned, so that the sums of any span of
        time agree (`domain/audit.py`). What is due, and what is too late, is decided by `now`.
        """
        when = When(received_at, now)
        for source in sources(event, notifications):
            verdicts = Verdicts(self.renderer, event, source, partial(self._verdict, event, source, now=now))
            seen: set[str] = set()
            for recipient in event.recipients:
                for delivery in self._for_recipient(event, source, verdicts, recipient, when):
                    if delivery.id not in seen:
                        seen.add(delivery.id)
                        yield delivery

    def _for_recipient(
        self,
        event: Event,
        source: Source,
        verdicts: "Verdicts",
        recipient: Recipient | FaultyRecipient,
        when: When,
    ) -> Iterator[Delivery]:
        for channel in source.channels:
            for reached in recipient.each(channel):
                own = _reachable(reached, channel, self.numbers) or verdicts.of(channel, _locale_of(reached))
                yield self._delivery(event, source, channel, own, reached, when)

    def _delivery(
        self,
        event: Event,
        source: Source,
        channel: Channel,
        verdict: Verdict,
        recipient: Recipient | FaultyRecipient,
        when: When,
    ) -> Delivery:
        usable = recipient.usable if isinstance(recipient, FaultyRecipient) else recipient
        expires = expiry(event, source)
        change = Change(verdict.state, when.now, verdict.reason, epoch=1, attempt=0, detail=verdict.detail)
        return Delivery(
            id=delivery_id(event.key, source.name, recipient.at(channel), channel),
            event_key=event.key,
            event_id=event.id,
            source=event.source,
            type=event.type,
            notification=source.name,
            version=source.version,
            channel=channel,
            lane=event.lane or (source.definition and source.definition.lane) or Lane.NORMAL,
            recipient=_document(usable, channel, self.numbers) if usable else {},
            recipient_key=recipient.key,
            state=verdict.state,
            reason=verdict.reason,
            created_at=when.received_at,
            updated_at=when.now,
            detail=change.detail,
            due_at=self._due(event, verdict.state, expires, when.now),
            # to be parked: by the sweeper, should neither this planning nor one that takes it up again have done so
            tell_at=when.now + 2 * self.overdue if verdict.state is State.FAILED else None,
            expires_at=expires,
            history=(change,),
            send_at=event.send_at if verdict.reason is Reason.SCHEDULED else None,
        )

    def _due(self, event: Event, state: State, expires: datetime | None, now: datetime) -> datetime | None:
        if state.final:
            return None
        if state is State.HELD and event.send_at is not None:
            return min(event.send_at, expires) if expires else event.send_at
        return now + self.overdue

    def _verdict(self, event: Event, source: Source, channel: Channel, now: datetime) -> Verdict:
        expires = expiry(event, source)
        if expires is not None and expires <= now:
            return Verdict(State.EXPIRED, Reason.EXPIRED, told_over(expires))
        if problem := self._problem(event, source, channel):
            return problem
        if channel not in self.configured:  # after what is wrong with the event itself, for this one can be replayed
            return Verdict(State.FAILED, Reason.NOT_CONFIGURED, f"no provider: set channels.{channel}.providers")
        if event.send_at is not None and event.send_at > now:
            return Verdict(State.HELD, Reason.SCHEDULED, f"until {event.send_at.isoformat()}")
        return Verdict(State.QUEUED, Reason.PLANNED)

    def _problem(self, event: Event, source: Source, channel: Channel) -> Verdict | None:
        content = source.channels[channel]
        if faults := self._data_faults(event, source.definition):
            return Verdict(State.FAILED, Reason.DATA_INVALID, faults)
        # A notification's content has been checked when it was read; what it shares is no field of it.
        inline = () if source.definition else check_content(channel, content)
        if wrong := inline or tuple(self.renderer.check(channel, content)):
            return Verdict(State.FAILED, Reason.TEMPLATE_ERROR, describe(wrong))
        expected = content.get("attachments")
        if expected is not None and expected != len(event.attachments):
            detail = f"expected {expected} attachments, the event has {len(event.attachments)}"
            return Verdict(State.FAILED, Reason.ATTACHMENT_REJECTED, detail)
        return None

    def _data_faults(self, event: Event, definition: Definition | None) -> str | None:
        if definition is None:
            return None
        if lacking := [name for name in definition.required if name not in event.data]:
            return f"data lacks {', '.join(lacking)}"
        return describe(self.schemas.faults(definition, event.data)) or None


def sources(event: Event, notifications: Sequence[Notification]) -> list[Source]:
    """What the event is told with: its own content if it brings any, else the notifications on it.

    An event that names `channels` is told over those alone.
    """
    if event.content:
        found = [Source(_chosen(event.content, event.channels))]
    else:
        found = [
            Source(_chosen(n.definition.contents, event.channels), n.name, n.version, n.definition)
            for n in notifications
        ]
    return [source for source in found if source.channels]


def expiry(event: Event, source: Source) -> datetime | None:
    """When it is too late: the event's own word, else the notification's, counted from the event's time."""
    if event.expires_at is not None:
        return event.expires_at
    after = source.definition.expires_after if source.definition else None
    return event.time + after if after is not None else None


def _chosen(
    channels: Mapping[Channel, Mapping[str, Any]], wanted: Sequence[Channel] | None
) -> dict[Channel, Mapping[str, Any]]:
    return {channel: content for channel, content in channels.items() if wanted is None or channel in wanted}


def _locale_of(recipient: Recipient | FaultyRecipient) -> str | None:
    usable = recipient.usable if isinstance(recipient, FaultyRecipient) else recipient
    return usable.locale if usable else None


def _reachable(recipient: Recipient | FaultyRecipient, channel: Channel, numbers: Numbers) -> Verdict | None:
    if isinstance(recipient, FaultyRecipient) and (fault := recipient.fault_for(channel)):
        return Verdict(State.FAILED, Reason.BAD_ADDRESS, fault)
    usable = recipient.usable if isinstance(recipient, FaultyRecipient) else recipient
    if usable is None or not usable.has_address(channel):
        needed = Recipient.ADDRESS_FIELDS[channel]
        return Verdict(State.SUPPRESSED, Reason.NO_ADDRESS, f"the recipient has no {needed}")
    if channel is Channel.SMS and (wrong := _wrong_number(usable, numbers)):
        return Verdict(State.FAILED, Reason.BAD_ADDRESS, f"phone: {wrong}")
    return None


def _wrong_number(recipient: Recipient, numbers: Numbers) -> str | None:
    try:
        numbers.normalised(recipient.phone or "")
    except NotANumber as fault:
        return str(fault)
    return None


def _document(recipient: Recipient, channel: Channel, numbers: Numbers) -> dict[str, Any]:
    """The recipient as its delivery keeps it: with the number as it is dialled, where it is dialled."""
    document = recipient.document()
    if channel is Channel.SMS and recipient.phone:
        with suppress(NotANumber):  # the delivery has ended by that already
            document["phone"] = numbers.normalised(recipient.phone)
    return document

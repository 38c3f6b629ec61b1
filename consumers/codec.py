"""How a dispatch, a status and a parked message are written on the wire.

A dispatch's number, epoch and reasons are headers, where the management UI shows them; the body is the
delivery and the event's data. Under load, deliveries of one channel and lane travel together: `x-notipy-deliveries`
says how many.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any

import orjson

from domain.delivery import Change, Delivery
from domain.dispatch import Dispatch, EventData
from domain.event import Attachment
from domain.vocabulary import Channel, Lane, Reason, State

JSON = "application/json"
DELIVERY, EPOCH, ATTEMPT, DELIVERIES = "x-notipy-delivery", "x-notipy-epoch", "x-notipy-attempt", "x-notipy-deliveries"
REASON, DETAIL, DUPLICATE = "x-notipy-reason", "x-notipy-detail", "x-notipy-possible-duplicate"
EVENT_ID, SOURCE, TYPE, PARKED_AT = "x-notipy-event-id", "x-notipy-source", "x-notipy-type", "x-notipy-parked-at"
WITHOUT_ID = "x-notipy-without-id"
AGAIN = "x-notipy-again"
CONTENT_TYPE, RECEIPT_WAITS = "x-notipy-content-type", "x-notipy-waits"
ROUTING_KEY, MESSAGE_ID = "x-notipy-routing-key", "x-notipy-message-id"

PARCEL_BYTES = 256 * 1024
"""Of a message that several deliveries share: more would cost a broker's memory and save nothing more."""

Headers = Mapping[str, Any]


_CHANNELS: Mapping[str, Channel] = {str(channel): channel for channel in Channel}  # a fifth of what the class costs
_LANES: Mapping[str, Lane] = {str(lane): lane for lane in Lane}
_STATES: Mapping[str, State] = {str(state): state for state in State}
_REASONS: Mapping[str, Reason] = {str(reason): reason for reason in Reason}
_LEFT = {"history", "detail", "due_at", "tell_at", "reference"}
_TRAVELLING = [name for name in Delivery.__dataclass_fields__ if name not in _LEFT]
_travelling = attrgetter(*_TRAVELLING)


class NotADispatch(Exception):
    """The message on a channel's queue was not written by NotiPy, or by another version of it."""


def dispatch_body(job: Dispatch) -> bytes:
    """The delivery, without its history, and the event's data where it travels along."""
    return orjson.dumps({"delivery": _delivery_values(job.delivery), "event": _event_values(job.event)})


@dataclass(frozen=True, slots=True)
class Parcel:
    """One message that orders an attempt at each of some deliveries of one channel and lane."""

    jobs: Sequence[Dispatch]
    body: bytes
    headers: Mapping[str, Any]


def parcels(jobs: Sequence[Dispatch]) -> Iterator[Parcel | tuple[Dispatch, Exception]]:
    """The orders in as few messages as their size allows; one that cannot be written comes with the reason.

    An event's data is in a message once, however many of its deliveries are.
    """
    if len(jobs) == 1:
        yield from _alone(jobs[0])
        return
    taken: list[Dispatch] = []
    deliveries: list[orjson.Fragment] = []
    events: dict[str, orjson.Fragment] = {}
    size = 0
    for job in jobs:
        try:
            delivery = orjson.dumps(_delivery_values(job.delivery))
            event = b"" if job.event is None or job.event.key in events else orjson.dumps(_event_values(job.event))
        except (TypeError, ValueError) as error:
            yield job, error
            continue
        if taken and size + len(delivery) + len(event) > PARCEL_BYTES:
            yield _together(taken, deliveries, events)
            taken, deliveries, events, size = [], [], {}, 0
            event = b"" if job.event is None else orjson.dumps(_event_values(job.event))
        taken.append(job)
        deliveries.append(orjson.Fragment(delivery))
        if job.event is not None and event:
            events[job.event.key] = orjson.Fragment(event)
        size += len(delivery) + len(event)
    if taken:
        yield _together(taken, deliveries, events)


def _alone(job: Dispatch) -> Iterator[Parcel | tuple[Dispatch, Exception]]:
    try:
        yield Parcel([job], dispatch_body(job), dispatch_headers(job))
    except (TypeError, ValueError) as error:
        yield job, error


def _together(
    jobs: Sequence[Dispatch], deliveries: Sequence[orjson.Fragment], events: Mapping[str, orjson.Fragment]
) -> Parcel:
    if len(jobs) == 1:
        return Parcel(jobs, dispatch_body(jobs[0]), dispatch_headers(jobs[0]))
    first = jobs[0].delivery
    headers: dict[str, Any] = {DELIVERIES: len(jobs)}
    if all(job.delivery.event_key == first.event_key for job in jobs):
        headers |= {EVENT_ID: first.event_id, SOURCE: first.source, TYPE: first.type}
    # a consumer of a version that knows nothing of `more` delivers the first; the others are due, and come again alone
    own = events.get(first.event_key)
    others = {key: event for key, event in events.items() if key != first.event_key}
    more = {"deliveries": deliveries[1:], "events": others}
    return Parcel(jobs, orjson.dumps({"delivery": deliveries[0], "event": own, "more": more}), headers)


def dispatch_headers(job: Dispatch) -> dict[str, Any]:
    """What an operator reads in the management UI, and what distinguishes one attempt's order from the next's."""
    delivery = job.delivery
    headers = {
        DELIVERY: delivery.id,
        EPOCH: delivery.epoch,
        ATTEMPT: job.attempt,
        DELIVERIES: 1,
        EVENT_ID: delivery.event_id,
        SOURCE: delivery.source,
        TYPE: delivery.type,
    }
    return headers | ({DUPLICATE: True} if delivery.possible_duplicate else {})


def orders(headers: Headers) -> int:
    """How many deliveries a message on a channel's queue orders an attempt for."""
    several = headers.get(DELIVERIES)
    return several if isinstance(several, int) else 1


def read_dispatch(body: bytes) -> Sequence[Dispatch]:
    """The orders of a message: one, or those that travel together.

    Raises:
        NotADispatch: it is none; the message says why, without the body.
    """
    try:
        document = orjson.loads(body)
        event = document["event"]
        jobs: list[Dispatch] = [_read_job(document["delivery"], _read_event(event) if event else None)]
        if more := document.get("more"):
            events: dict[str, EventData | None] = {key: _read_event(values) for key, values in more["events"].items()}
            events[jobs[0].delivery.event_key] = jobs[0].event
            jobs += [_read_job(values, events.get(values["event_key"])) for values in more["deliveries"]]
        return jobs
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotADispatch(f"not a dispatch: {type(error).__name__}") from None


def _read_job(values: dict[str, Any], event: EventData | None) -> Dispatch:
    delivery = _read_delivery(values)
    return Dispatch(delivery, delivery.attempt + 1, event)


def status_body(delivery: Delivery, change: Change) -> bytes:
    """What became of a delivery: ids, state and reason; neither address nor content."""
    return orjson.dumps(
        {
            "id": delivery.id,
            "event_id": delivery.event_id,
            "source": delivery.source,
            "type": delivery.type,
            "notification": delivery.notification,
            "version": delivery.version,
            "channel": delivery.channel,
            "recipient": delivery.recipient.get("id"),
            "state": change.state,
            "reason": change.reason,
            "detail": change.detail,
            "provider": change.provider,
            "epoch": change.epoch,
            "attempt": change.attempt,
            "possible_duplicate": delivery.possible_duplicate,
            "address_suppressed": change.address_suppressed,
            "at": change.at,
        },
        option=orjson.OPT_UTC_Z,
    )


def _delivery_values(delivery: Delivery) -> dict[str, Any]:
    return dict(zip(_TRAVELLING, _travelling(delivery), strict=True))


def _event_values(event: EventData | None) -> dict[str, Any] | None:
    if event is None:
        return None
    values: dict[str, Any] = {
        "key": event.key,
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "time": event.time,
        "data": event.data,
    }
    if event.content:
        values["content"] = {str(channel): content for channel, content in event.content.items()}
    if event.attachments:
        values["attachments"] = [_attachment_values(attachment) for attachment in event.attachments]
    return values


def _attachment_values(attachment: Attachment) -> dict[str, Any]:
    values: dict[str, Any] = {"filename": attachment.filename, "content_type": attachment.content_type}
    if attachment.content is not None:
        return values | {"content": base64.b64encode(attachment.content).decode()}
    return values | {"url": attachment.url}


def _read_delivery(values: dict[str, Any]) -> Delivery:
    """Of the values just read, which are changed."""
    # a newer version's fields are not ours to read; old and new consumers run side by side in a deploy
    for unknown in values.keys() - Delivery.__dataclass_fields__.keys():
        del values[unknown]
    values["channel"], values["lane"] = _CHANNELS[values["channel"]], _LANES[values["lane"]]
    values["state"], values["reason"] = _STATES[values["state"]], _REASONS[values["reason"]]
    values["created_at"] = datetime.fromisoformat(values["created_at"])
    values["updated_at"] = datetime.fromisoformat(values["updated_at"])
    values["expires_at"] = datetime.fromisoformat(expires) if (expires := values["expires_at"]) else None
    values["send_at"] = datetime.fromisoformat(send_at) if (send_at := values.get("send_at")) else None
    return Delivery(**values)


def _read_event(values: dict[str, Any]) -> EventData:
    content = values.get("content")
    return EventData(
        key=values["key"],
        id=values["id"],
        source=values["source"],
        type=values["type"],
        time=datetime.fromisoformat(values["time"]),
        data=values["data"],
        content={Channel(name): item for name, item in content.items()} if content else None,
        attachments=tuple(Attachment.model_validate(item) for item in values.get("attachments", ())),
    )

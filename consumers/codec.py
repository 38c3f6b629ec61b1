"""How a dispatch, a status and a parked message are written on the wire.

A dispatch's number, epoch and reasons are headers, where the management UI shows them; the body is the
delivery and the event's data.
"""

import base64
from collections.abc import Mapping
from datetime import datetime
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
ROUTING_KEY, MESSAGE_ID = "x-notipy-routing-key", "x-notipy-message-id"

Headers = Mapping[str, Any]


class NotADispatch(Exception):
    """The message on a channel's queue was not written by NotiPy, or by another version of it."""


def dispatch_body(job: Dispatch) -> bytes:
    """The delivery, without its history, and the event's data where it travels along."""
    return orjson.dumps({"delivery": _delivery_values(job.delivery), "event": _event_values(job.event)})


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


def read_dispatch(body: bytes) -> Dispatch:
    """The order of a message.

    Raises:
        NotADispatch: it is none; the message says why, without the body.
    """
    try:
        document = orjson.loads(body)
        delivery = _read_delivery(document["delivery"])
        event = document["event"]
        return Dispatch(delivery, delivery.attempt + 1, _read_event(event) if event else None)
    except (ValueError, KeyError, TypeError) as error:
        raise NotADispatch(f"not a dispatch: {type(error).__name__}") from None


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
            "at": change.at,
        },
        option=orjson.OPT_UTC_Z,
    )


def _delivery_values(delivery: Delivery) -> dict[str, Any]:
    return {
        name: getattr(delivery, name)
        for name in Delivery.__dataclass_fields__
        if name not in {"history", "detail", "due_at", "tell_at"}
    }


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
    expires = values["expires_at"]
    typed = {
        "channel": Channel(values["channel"]),
        "lane": Lane(values["lane"]),
        "state": State(values["state"]),
        "reason": Reason(values["reason"]),
        "created_at": datetime.fromisoformat(values["created_at"]),
        "updated_at": datetime.fromisoformat(values["updated_at"]),
        "expires_at": datetime.fromisoformat(expires) if expires else None,
    }
    # a newer version's fields are not ours to read; old and new consumers run side by side in a deploy
    known = {name: value for name, value in (values | typed).items() if name in Delivery.__dataclass_fields__}
    return Delivery(**known)


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

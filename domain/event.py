"""What a producer publishes: parsed, validated, every fault named."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    AwareDatetime,
    Base64Bytes,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
    validate_email,
)
from pydantic_core import from_json

from domain.identity import named_uuid
from domain.text import MAX_FAULTS, Fault, SingleLine, faults_of
from domain.vocabulary import Channel, Lane, Reason

MAX_DEPTH = 32
"""Levels of nesting in `data`; a template needs few, and BSON and parsers have limits of their own (100 and 200)."""
MAX_TOPIC = 200
"""Characters of `<source>.<type>`: with the state and the channel before it, a routing key holds 255 bytes."""

MAX_RECIPIENTS = 100_000
"""Of one event; more are published as several events."""
MAX_PUSH_TARGETS = 50

_HOPELESS = 1000
"""Recipients none of which is usable, after which the rest is not looked at."""
_FIRST_YEAR, _LAST_YEAR = 1970, 3000
_INT64 = 2**63
_PHONE = re.compile(r"\+[1-9]\d{6,14}")
_PLAIN_LOCAL = re.compile(r"[a-z0-9_+-]{1,64}(?:\.[a-z0-9_+-]{1,64}){0,4}")
"""What stands before the @ in nearly every address: it is right as it is, whatever the domain (RFC 5322 dot-atom)."""
_PLAIN_LENGTH = 64
_LOCALE = re.compile(r"[A-Za-z]{2,8}(?:[-_][A-Za-z0-9]{1,8})*")
_TOPIC_WORDS = re.compile(r"[^\s*#\x00-\x1f]+")
_MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+")


class EventRejected(Exception):
    """The message is no event; `reason` is for machines, `faults` say what is wrong where."""

    def __init__(self, reason: Reason, *faults: Fault) -> None:
        super().__init__(f"{reason}: " + "; ".join(map(str, faults)))
        self.reason = reason
        self.faults = faults


def _email(value: str) -> str:
    if not value.isprintable():
        raise ValueError("is not an e-mail address: it contains a control character")
    local, _, domain = value.rpartition("@")
    if len(value) <= _PLAIN_LENGTH and _PLAIN_LOCAL.fullmatch(local):
        return f"{local}@{_email_domain(domain)}"
    return validate_email(value)[1]


@lru_cache(maxsize=4096)
def _email_domain(domain: str) -> str:
    """The domain as it is normalised: most of what checking an address costs, and the same for many of them."""
    return validate_email(f"a@{domain}")[1].removeprefix("a@")


def mail_address(value: str) -> str:
    """An e-mail address as it is kept: its domain in one form; what is none as it is."""
    try:
        return _email(value.strip())
    except ValueError:
        return value


def phone_number(value: str) -> str:
    """A number as it is kept: without what only helps to read it."""
    return re.sub(r"[ ()./-]", "", value)


def _phone(value: str) -> str:
    number = phone_number(value)
    if not _PHONE.fullmatch(number):
        raise ValueError("is not a phone number in international form, such as +4915112345678")
    return number


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or not value.isprintable() or " " in value:
        raise ValueError("is not an http:// or https:// URL")
    return value


def _locale(value: str) -> str:
    if not _LOCALE.fullmatch(value):
        raise ValueError("is not a locale such as de or pt-BR")
    return value


@lru_cache(maxsize=1024)
def _timezone(value: str) -> str:
    try:
        return ZoneInfo(value).key
    except (KeyError, OSError, ValueError):
        raise ValueError("is not a time zone such as Europe/Berlin") from None


def _words(value: str) -> str:
    if not _TOPIC_WORDS.fullmatch(value) or "" in value.split("."):
        raise ValueError("should be words joined by dots, without spaces, * or #")
    return value


def _media_type(value: str) -> str:
    if not _MEDIA_TYPE.fullmatch(value):
        raise ValueError("is not a media type such as application/pdf")
    return value


def _utc(value: datetime) -> datetime:
    if not _FIRST_YEAR <= value.year < _LAST_YEAR:  # outside of it, zones and expiries overflow
        raise ValueError(f"should be a time between the years {_FIRST_YEAR} and {_LAST_YEAR}")
    return value.astimezone(UTC)


Time = Annotated[AwareDatetime, AfterValidator(_utc)]
HttpUrl = Annotated[str, Field(max_length=2048), AfterValidator(_http_url)]
TopicWords = Annotated[str, Field(min_length=1, max_length=MAX_TOPIC), AfterValidator(_words)]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PushTarget(_Document):
    """One app installation of a recipient."""

    provider: Annotated[SingleLine, Field(min_length=1, max_length=64)]
    token: Annotated[SingleLine, Field(min_length=1, max_length=4096)]


class Recipient(_Document):
    """Whom to tell, and where. At least an `id` or one address is given."""

    id: Annotated[SingleLine, Field(min_length=1, max_length=255)] | None = None
    name: Annotated[SingleLine, Field(max_length=255)] | None = None
    email: Annotated[str, Field(max_length=320), AfterValidator(_email)] | None = None
    phone: Annotated[str, Field(max_length=64), AfterValidator(_phone)] | None = None
    locale: Annotated[str, Field(max_length=64), AfterValidator(_locale)] | None = None
    timezone: Annotated[str, Field(max_length=64), AfterValidator(_timezone)] | None = None
    push: Annotated[tuple[PushTarget, ...], Field(max_length=MAX_PUSH_TARGETS)] = ()
    webhook: HttpUrl | None = None
    chat: Annotated[SingleLine, Field(min_length=1, max_length=2048)] | None = None

    ADDRESS_FIELDS: ClassVar[Mapping[Channel, str]] = {
        Channel.EMAIL: "email",
        Channel.SMS: "phone",
        Channel.PUSH: "push",
        Channel.CHAT: "chat",
        Channel.WEBHOOK: "webhook",
        Channel.INBOX: "id",
    }

    @model_validator(mode="after")
    def _reachable(self) -> "Recipient":
        if not any(getattr(self, name) for name in self.ADDRESS_FIELDS.values()):
            raise ValueError("needs an id or an address (email, phone, push, chat or webhook)")
        return self

    def has_address(self, channel: Channel) -> bool:
        """Whether the channel can reach this recipient."""
        return bool(getattr(self, self.ADDRESS_FIELDS[channel]))

    def each(self, channel: Channel) -> Iterator["Recipient"]:
        """The recipient once for each place where the channel reaches it: of several devices, each with one of them."""
        if channel is not Channel.PUSH or len(self.push) < 2:
            yield self
            return
        for target in dict.fromkeys(self.push):
            yield self.model_copy(update={"push": (target,)})

    def at(self, channel: Channel) -> str:
        """Who it is and where the channel reaches it: what makes two entries of an event the same delivery."""
        return f"{self.id or ''}\n{getattr(self, self.ADDRESS_FIELDS[channel]) or ''}"

    @property
    def key(self) -> str:
        """What it is called by: the id, else the first address."""
        token = self.push[0].token if self.push else None
        return str(self.id or self.email or self.phone or self.webhook or self.chat or token)

    def document(self) -> dict[str, Any]:
        """The fields that are set, as JSON values."""
        return self.model_dump(mode="json", exclude_defaults=True)


_ADDRESSES = frozenset(Recipient.ADDRESS_FIELDS.values())
"""The fields whose faults concern one channel; any other's concern the recipient as a whole."""


@dataclass(frozen=True, slots=True)
class FaultyRecipient:
    """A recipient of an otherwise usable event that cannot be used, or not on every channel.

    Attributes:
        position: its index in the event.
        faults: what is wrong, by field.
        usable: the recipient without the faulty addresses; None if nothing usable remains.
    """

    position: int
    faults: tuple[Fault, ...]
    usable: Recipient | None

    @property
    def key(self) -> str:
        """The id where it has one, else its position."""
        return self.usable.key if self.usable else f"#{self.position}"

    @property
    def reachable(self) -> bool:
        """Whether a usable address is left; an id alone is none."""
        usable = self.usable
        return usable is not None and any(
            usable.has_address(channel) for channel in Channel if channel != Channel.INBOX
        )

    def each(self, channel: Channel) -> Iterator["Recipient | FaultyRecipient"]:
        """As `Recipient.each`; what cannot be used on the channel is one more, and stops no device that can."""
        fault = self.fault_for(channel)
        if self.usable is not None and (fault is None or (channel is Channel.PUSH and self.usable.push)):
            yield from self.usable.each(channel)
        if self.usable is None or fault is not None:
            yield self._without_devices()

    def _without_devices(self) -> "FaultyRecipient":
        """What is left of it when its usable devices have deliveries of their own."""
        if self.usable is None or not self.usable.push:
            return self
        left = self.usable.model_copy(update={"push": ()})
        return replace(self, usable=left if any(map(left.has_address, Channel)) else None)

    def at(self, channel: Channel) -> str:
        """As `Recipient.at`; what cannot be used is told from others by its position."""
        reached = self.usable is not None and self.fault_for(channel) is None
        return self.usable.at(channel) if reached and self.usable else f"#{self.position}"

    def fault_for(self, channel: Channel) -> str | None:
        """Why the channel cannot be used; None where it can, or where the recipient gives no address for it."""
        address, fields = Recipient.ADDRESS_FIELDS[channel], [fault.field.split(".")[0] for fault in self.faults]
        hopeless = not _ADDRESSES.issuperset(fields)
        told = [str(fault) for fault, field in zip(self.faults, fields, strict=True) if hopeless or field == address]
        return "; ".join(told[:MAX_FAULTS]) or None


class Attachment(_Document):
    """A file to send along: fetched from `url`, or given in base64 as `content`."""

    filename: Annotated[SingleLine, Field(min_length=1, max_length=255, pattern=r"^[^/\\]+$")]
    content_type: Annotated[str, AfterValidator(_media_type)] = "application/octet-stream"
    url: HttpUrl | None = None
    content: Base64Bytes | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "Attachment":
        if (self.url is None) == (self.content is None):
            raise ValueError("needs either url or content (base64)")
        return self


class _Envelope(_Document):
    """The event as published, its recipients not yet looked at one by one."""

    id: Annotated[SingleLine, Field(min_length=1, max_length=255)]
    source: TopicWords
    type: TopicWords
    time: Time
    recipients: Annotated[list[Any], Field(min_length=1, max_length=MAX_RECIPIENTS)]
    data: dict[str, Any] = Field(default_factory=dict)
    attachments: tuple[Attachment, ...] = ()
    channels: tuple[Channel, ...] | None = None
    lane: Lane | None = None
    send_at: Time | None = None
    expires_at: Time | None = None
    content: dict[Channel, dict[str, Any]] | None = None

    @model_validator(mode="after")
    def _topic(self) -> "_Envelope":
        if len(f"{self.source}.{self.type}".encode()) > MAX_TOPIC:
            raise ValueError(f"source and type together are longer than {MAX_TOPIC} bytes")
        for name, values in (("data", self.data), ("content", self.content)):
            if values and (fault := _fault_in(values)):
                raise ValueError(f"{name} {fault}")
        return self


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message as it came from the broker.

    Attributes:
        routing_key: of the topic exchange; None if it was published straight to the queue.
        redelivered: the broker has handed it out before.
        source, type: of an event that was accepted before, in place of the routing key's words.
    """

    body: bytes
    routing_key: str | None = None
    message_id: str | None = None
    timestamp: datetime | None = None
    redelivered: bool = False
    source: str | None = None
    type: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A usable event. `key` identifies it in the database: a UUIDv5 of source and id."""

    key: str
    id: str
    source: str
    type: str
    time: datetime
    recipients: tuple[Recipient | FaultyRecipient, ...]
    data: Mapping[str, Any]
    body: bytes = field(repr=False)
    attachments: tuple[Attachment, ...] = ()
    channels: tuple[Channel, ...] | None = None
    lane: Lane | None = None
    send_at: datetime | None = None
    expires_at: datetime | None = None
    content: Mapping[Channel, Mapping[str, Any]] | None = None

    @property
    def topic(self) -> str:
        """`<source>.<type>`, what a notification's `on` is matched against."""
        return f"{self.source}.{self.type}"


def event_key(source: str, event_id: str) -> str:
    """The database key of an event; `id` is unique per `source`."""
    return named_uuid(f"{source}\n{event_id}")


def parse_event(incoming: Incoming, now: datetime, max_bytes: int) -> Event:
    """Read a message as an event: plain JSON or CloudEvents 1.0 in structured mode.

    What the body leaves out comes from the message: `source` and `type` from the routing key,
    `id` from `message_id`, `time` from its timestamp. A recipient with a fault does not stop the
    others; an event in which no recipient has a usable address is rejected.

    Raises:
        EventRejected: it cannot be used; every fault is named.
    """
    if len(incoming.body) > max_bytes:
        raise EventRejected(Reason.TOO_LARGE, Fault("", f"{len(incoming.body)} bytes; the limit is {max_bytes}"))
    document = _with_defaults(_plain(_load(incoming.body)), incoming, now)
    try:
        envelope = _Envelope.model_validate(document)
    except ValidationError as error:
        raise EventRejected(Reason.INVALID, *faults_of(error)) from None
    del document  # so that only the envelope holds what was read
    recipients = tuple(_some_usable(_recipients(envelope.recipients)))
    return _event(envelope, recipients, incoming.body)


def _event(envelope: _Envelope, recipients: tuple[Recipient | FaultyRecipient, ...], body: bytes) -> Event:
    return Event(
        key=event_key(envelope.source, envelope.id),
        id=envelope.id,
        source=envelope.source,
        type=envelope.type,
        time=envelope.time,
        recipients=recipients,
        data=envelope.data,
        body=body,
        attachments=envelope.attachments,
        channels=envelope.channels,
        lane=envelope.lane,
        send_at=envelope.send_at,
        expires_at=envelope.expires_at,
        content=envelope.content,
    )


def _load(body: bytes) -> dict[str, Any]:
    try:
        document = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        reason = Reason.TOO_DEEP if "recursion limit" in str(error) else Reason.NOT_JSON
        raise EventRejected(reason, Fault("", str(error)[:200])) from None
    if not isinstance(document, dict):
        raise EventRejected(Reason.INVALID, Fault("", "should be a JSON object"))
    return document


_CLOUD_ATTRIBUTES = frozenset({"specversion", "id", "source", "type", "time", "data"})


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    """Turn a CloudEvent into a plain event; its other attributes and extensions are not NotiPy's."""
    if "specversion" not in document:
        return document
    if document["specversion"] != "1.0":
        raise EventRejected(
            Reason.INVALID, Fault("specversion", "should be 1.0, the CloudEvents version that is understood")
        )
    data = document.get("data")
    if not isinstance(data, dict):
        raise EventRejected(
            Reason.INVALID, Fault("data", "of a CloudEvent should be an object with recipients and data")
        )
    if clash := data.keys() & (_CLOUD_ATTRIBUTES - {"data"}):
        raise EventRejected(
            Reason.INVALID, *(Fault(f"data.{name}", "belongs to the CloudEvent itself") for name in sorted(clash))
        )
    attributes: dict[str, Any] = {
        name: document[name] for name in _CLOUD_ATTRIBUTES - {"specversion", "data"} if name in document
    }
    return attributes | data


def _with_defaults(document: dict[str, Any], incoming: Incoming, now: datetime) -> dict[str, Any]:
    source, _, kind = (incoming.routing_key or "").partition(".")
    source, kind = incoming.source or source, incoming.type or kind
    defaults: dict[str, Any] = {
        "id": incoming.message_id,
        "source": source,
        "type": kind,
        "time": incoming.timestamp or now,
    }
    missing: dict[str, Any] = {name: value for name, value in defaults.items() if value and document.get(name) is None}
    return document | missing


def _recipients(raw: list[Any]) -> Iterator[Recipient | FaultyRecipient]:
    """Each as it was read; ten thousand of them are megabytes, so `raw` lets each go when its turn has come."""
    for position, item in enumerate(raw):
        raw[position] = None
        try:
            yield Recipient.model_validate(item)
        except ValidationError as error:
            yield _faulty(position, item, error)


def _some_usable(recipients: Iterator[Recipient | FaultyRecipient]) -> Iterator[Recipient | FaultyRecipient]:
    """The recipients, if any of them can be reached; after very many that cannot, the rest is not read."""
    hopeless: list[FaultyRecipient] = []
    for recipient in recipients:
        if isinstance(recipient, Recipient) or recipient.reachable:
            yield from hopeless
            yield recipient
            yield from recipients
            return
        hopeless.append(recipient)
        if len(hopeless) >= _HOPELESS:
            break
    raise EventRejected(Reason.INVALID, *(fault for recipient in hopeless for fault in _placed(recipient)))


def _faulty(position: int, item: Any, error: ValidationError) -> FaultyRecipient:
    """Keep what is usable: a bad phone number does not stop the e-mail; a bad name stops everything."""
    faults = faults_of(error)
    bad = {fault.field.split(".")[0] for fault in faults}
    if not bad <= _ADDRESSES:
        return FaultyRecipient(position, faults, None)
    try:
        kept = {name: value for name, value in item.items() if name not in bad}
        usable = Recipient.model_validate(kept | _usable_devices(item, faults))
    except ValidationError:
        return FaultyRecipient(position, faults, None)
    return FaultyRecipient(position, faults, usable)


def _usable_devices(item: Mapping[str, Any], faults: Sequence[Fault]) -> dict[str, Any]:
    """The `push` of a recipient, without those of its devices that have a fault; nothing if the list itself has one."""
    places = [place for fault in faults if (place := fault.field.split("."))[0] == "push"]
    if not places or any(len(place) < 2 or not place[1].isdecimal() for place in places):
        return {}
    wrong = {int(place[1]) for place in places}
    return {"push": [target for position, target in enumerate(item["push"]) if position not in wrong]}


def _placed(recipient: FaultyRecipient) -> Iterator[Fault]:
    place = f"recipients.{recipient.position}"
    for fault in recipient.faults[:MAX_FAULTS]:
        yield Fault(f"{place}.{fault.field}" if fault.field else place, fault.fault)


def _fault_in(data: Any) -> str | None:
    """What makes the value unusable: nested too deep, or a number that no database or JSON reader keeps exactly."""
    level, depth = [data], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            return f"is nested more than {MAX_DEPTH} levels deep"
        inner: list[Any] = []
        for value in level:
            values = value.values() if isinstance(value, dict) else value
            inner.extend(item for item in values if isinstance(item, dict | list))
            if any(isinstance(item, int) and not -_INT64 <= item < _INT64 for item in values):
                return "has an integer of more than 64 bits: send it as a string"
        level = inner
    return None

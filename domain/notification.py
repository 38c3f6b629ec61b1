"""What an operator defines: on which events, what their data must hold, and the words for each channel."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from domain.duration import Duration
from domain.locales import LOCALES, SHARED, Shared, canonical, check_locale, variant
from domain.pattern import check_pattern, matches
from domain.text import Fault, SingleLine, faults_of
from domain.vocabulary import Channel, Lane

INLINE = "inline"
"""The name under which content that came with the event itself is planned."""

LONGEST_EXPIRY = timedelta(days=3653)
MAX_PARTIALS = 50
"""Files that the templates of one notification extend, include and import."""
MAX_PARTIALS_TEXT = 512 * 1024
"""Characters of all of them: a definition is one document, and MongoDB's hold 16 MiB."""
MAX_LOCALES = 100
"""Of one channel."""
_PARTIAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ /-]{0,199}")

LocaleTag = Annotated[str, Field(max_length=64), AfterValidator(check_locale)]


def check_partial_name(name: str) -> str:
    """Return the name of a partial, as templates write it: the path of a file below a folder of the catalog.

    Raises:
        ValueError: it is none, or leads somewhere else.
    """
    parts = PurePosixPath(name).parts
    if not _PARTIAL.fullmatch(name) or ".." in parts or "/".join(parts) != name:
        raise ValueError("should be the path of a file below the folder of the catalog, without . and ..")
    return name


class _Content(BaseModel):
    """Templates of one channel. Each string is a template; `attachments` is a number.

    `locales` has the fields that differ for recipients of another locale (`domain/locales.py`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attachments: Annotated[int, Field(ge=0)] | None = None
    """How many attachments the event must bring; None: any number."""
    locales: Annotated[dict[LocaleTag, dict[str, Any]], Field(max_length=MAX_LOCALES)] | None = None

    def templates(self) -> dict[str, str]:
        """The templates by field, those that are set."""
        values = self.model_dump(exclude={"attachments", LOCALES}, exclude_none=True)
        return {name: value for name, value in values.items() if isinstance(value, str)}


Templates = str | Annotated[tuple[str, ...], Field(min_length=1, max_length=50)]
"""One template, or several whose texts belong together."""
PRIORITIES = ("high", "normal", "low")
"""Of a mail."""
HEADERS = "headers."
"""What the names of a mail's own header fields begin with among its templates."""
_EXTRA_HEADER = re.compile(r"X-[A-Za-z0-9-]{1,60}|List-[A-Za-z-]{1,30}|Feedback-ID", re.IGNORECASE | re.ASCII)
_TAKEN = frozenset({"x-priority", "list-unsubscribe", "list-unsubscribe-post"})
"""They follow from `priority` and `unsubscribe`."""


def extra_header(name: str) -> bool:
    """Whether a notification may set this header field of a mail: none that says who sends what to whom."""
    return bool(_EXTRA_HEADER.fullmatch(name)) and name.lower() not in _TAKEN


def _header_name(name: str) -> str:
    if not extra_header(name):
        raise ValueError("should be X-…, List-… or Feedback-ID; unsubscribe and priority are fields of their own")
    return name


def _priority(text: str) -> str:
    if "{" not in text and text not in PRIORITIES:
        raise ValueError(f"should be one of {', '.join(PRIORITIES)}, or a template that renders to one")
    return text


def templates(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The templates of a content as it was written, by the name under which each is rendered.

    Several for one field are one template of as many lines; a mail's `headers` are `headers.<Name>`.
    """
    for name, value in content.items():
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, list | tuple):
            yield name, "\n".join(item for item in value if isinstance(item, str))
        elif name == "headers" and isinstance(value, Mapping):
            yield from ((f"{HEADERS}{key}", text) for key, text in value.items() if isinstance(text, str))


class EmailContent(_Content):
    """A mail: `text`, `html` or both.

    Attributes:
        reply_to, cc, bcc: each a template, or several, that render to addresses divided by commas.
        priority: renders to `high`, `normal` or `low`.
        unsubscribe: a template, or several, that render to URLs and mailto: addresses divided by spaces.
        headers: more header fields, by name: `X-…`, `List-…` and `Feedback-ID`.
    """

    subject: str
    text: str | None = None
    html: str | None = None
    reply_to: Templates | None = None
    cc: Templates | None = None
    bcc: Templates | None = None
    priority: Annotated[str, AfterValidator(_priority)] | None = None
    unsubscribe: Templates | None = None
    headers: Annotated[dict[Annotated[str, AfterValidator(_header_name)], str], Field(max_length=20)] | None = None

    @model_validator(mode="after")
    def _body(self) -> "EmailContent":
        if self.text is None and self.html is None:
            raise ValueError("needs text, html or both")
        return self


class TextContent(_Content):
    """A short message: SMS.

    Attributes:
        max_segments: how many parts it may take, and be paid for; 10 where it is not set.
    """

    text: str
    max_segments: Annotated[int, Field(ge=1, le=255)] | None = None


class TitledContent(_Content):
    """A short message with an optional title: push, chat and inbox."""

    title: str | None = None
    text: str


class PushContent(TitledContent):
    """A push message.

    Attributes:
        image, url: what is shown along with it, and what a tap opens.
        badge: renders to the number at the app's icon.
        sound: the name of one that the app has, or `default`.
        data: renders to a JSON object, for the app.
        collapse: a later message with the same word takes this one's place.
        ttl: renders to a duration: how long it is kept for a device that is away.
        priority: renders to `high` or `normal`.
    """

    image: str | None = None
    url: str | None = None
    badge: str | None = None
    sound: str | None = None
    data: str | None = None
    collapse: str | None = None
    ttl: str | None = None
    priority: str | None = None


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_OWN_HEADERS = frozenset({"content-type", "content-length", "transfer-encoding", "host", "connection", "expect"})


def webhook_header(name: str) -> str:
    """Return the name of a header that settings or a notification may give a webhook.

    Raises:
        ValueError: it cannot be one, or is NotiPy's own.
    """
    if not _TOKEN.fullmatch(name):
        raise ValueError("has a name or a value that cannot be a header")
    if name.lower() in _OWN_HEADERS or name.lower().startswith("webhook-"):
        raise ValueError(f"cannot set {name.lower()}: it is NotiPy's own")
    return name


class ChatContent(TitledContent):
    """A chat message.

    Attributes:
        url: where the title leads; without a title, a line of its own.
        format: of `text`: `plain`, or the service's own markup.
        payload: renders to a JSON object: fields of the request (blocks, a card, embeds), over the usual ones.
    """

    url: str | None = None
    format: Literal["plain", "markdown"] = "plain"
    payload: str | None = None


class WebhookContent(_Content):
    """A JSON body; by default `{"type", "timestamp", "data"}` of the event, as Standard Webhooks suggests.

    Attributes:
        headers: of the request, by name, beside those of the settings, before which they go.
    """

    payload: str | None = None
    headers: Annotated[dict[Annotated[str, AfterValidator(webhook_header)], str], Field(max_length=20)] | None = None


CONTENT: Mapping[Channel, type[_Content]] = {
    Channel.EMAIL: EmailContent,
    Channel.SMS: TextContent,
    Channel.PUSH: PushContent,
    Channel.CHAT: ChatContent,
    Channel.INBOX: TitledContent,
    Channel.WEBHOOK: WebhookContent,
}


def check_content(channel: Channel, content: Mapping[str, Any]) -> tuple[Fault, ...]:
    """What is wrong with a channel's content; nothing if it is usable. Template syntax is the renderer's to check.

    A locale's words must make a usable content together with the channel's own.
    """
    faults = _faults_in(channel, content, str(channel))
    locales = content.get(LOCALES)
    if not isinstance(locales, Mapping) or any(not isinstance(words, Mapping) for words in locales.values()):
        return faults
    known = {(fault.field.removeprefix(f"{channel}."), fault.fault) for fault in faults}
    own = (each for tag, words in locales.items() for each in _locale_faults(channel, content, str(tag), words))
    return (*faults, *_same_locale(channel, locales), *(f for f, field in own if (field, f.fault) not in known))


def _faults_in(channel: Channel, content: Mapping[str, Any], place: str) -> tuple[Fault, ...]:
    try:
        CONTENT[channel].model_validate(content)
    except ValidationError as error:
        return faults_of(error, place)
    return ()


def _locale_faults(
    channel: Channel, content: Mapping[str, Any], tag: str, words: Mapping[str, Any]
) -> Iterator[tuple[Fault, str]]:
    """The faults of what a locale makes of a content, each with the name of the field in it."""
    place = f"{channel}.{LOCALES}.{tag}"
    for name in ("attachments", LOCALES):
        if name in words:
            yield Fault(f"{place}.{name}", "is the same for all locales: set it in the channel itself"), name
    for fault in _faults_in(channel, variant(content, tag), place):
        yield fault, fault.field.removeprefix(place).lstrip(".")


def _same_locale(channel: Channel, locales: Mapping[str, Any]) -> Iterator[Fault]:
    seen: dict[str, str] = {}
    for tag in locales:
        first = seen.setdefault(canonical(tag), tag)
        if first != tag:
            yield Fault(f"{channel}.{LOCALES}.{tag}", f"is the same locale as {first}")


class Definition(BaseModel):
    """A notification as it stands in the catalog, its files read in.

    `channels` maps each channel to its content; `required` names fields of `data` that must be there,
    `schema` is a JSON Schema for all of it (one of the two). `default_locale` is that of the words outside of
    `locales`; `partials` are the templates that the channels' templates use, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,99}$")]
    description: Annotated[SingleLine, Field(max_length=500)] = ""
    on: Annotated[str, AfterValidator(check_pattern)]
    required: tuple[str, ...] = ()
    data_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    lane: Lane | None = None
    expires_after: Duration | None = None
    default_locale: LocaleTag | None = None
    channels: Annotated[dict[Channel, dict[str, Any]], Field(min_length=1)]
    partials: Annotated[
        dict[Annotated[str, AfterValidator(check_partial_name)], str], Field(max_length=MAX_PARTIALS)
    ] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> "Definition":
        if self.name == INLINE:
            raise ValueError(f"the name {INLINE!r} is reserved for content that comes with an event")
        if self.required and self.data_schema is not None:
            raise ValueError("has both required and schema: use required inside the schema")
        if self.expires_after is not None and not timedelta(0) < self.expires_after <= LONGEST_EXPIRY:
            raise ValueError("expires_after should be longer than nothing, and ten years at most")
        faults = [fault for channel, content in self.channels.items() for fault in check_content(channel, content)]
        if faults:
            raise ValueError("; ".join(f"channels.{fault}" for fault in faults))
        if sum(map(len, self.partials.values())) > MAX_PARTIALS_TEXT:
            raise ValueError(f"has partials of more than {MAX_PARTIALS_TEXT} characters together")
        return self

    @cached_property
    def contents(self) -> Mapping[Channel, Mapping[str, Any]]:
        """Each channel's content as a renderer takes it: together with what all of them share."""
        if not self.partials and self.default_locale is None:
            return self.channels
        shared = Shared(tuple(sorted(self.partials.items())), self.default_locale)
        return {channel: {**content, SHARED: shared} for channel, content in self.channels.items()}

    def document(self) -> dict[str, Any]:
        """The definition as JSON values, the same for the same definition."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)


class Notification(BaseModel):
    """One immutable version of a definition, as deliveries pin it."""

    model_config = ConfigDict(frozen=True)

    version: Annotated[int, Field(ge=0)]
    definition: Definition

    @property
    def name(self) -> str:
        """The definition's name."""
        return self.definition.name


def matching(notifications: Sequence[Notification], topic: str) -> list[Notification]:
    """Those whose pattern names the topic, in the catalog's order."""
    return [notification for notification in notifications if matches(notification.definition.on, topic)]

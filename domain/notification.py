"""What an operator defines: on which events, what their data must hold, and the words for each channel."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from domain.duration import Duration
from domain.pattern import check_pattern, matches
from domain.text import Fault, SingleLine, faults_of
from domain.vocabulary import Channel, Lane

INLINE = "inline"
"""The name under which content that came with the event itself is planned."""

LONGEST_EXPIRY = timedelta(days=3653)


class _Content(BaseModel):
    """Templates of one channel. Each string is a template; `attachments` is a number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attachments: Annotated[int, Field(ge=0)] | None = None
    """How many attachments the event must bring; None: any number."""

    def templates(self) -> dict[str, str]:
        """The templates by field, those that are set."""
        values = self.model_dump(exclude={"attachments"}, exclude_none=True)
        return {name: value for name, value in values.items() if isinstance(value, str)}


class EmailContent(_Content):
    """A mail: `text`, `html` or both."""

    subject: str
    text: str | None = None
    html: str | None = None

    @model_validator(mode="after")
    def _body(self) -> "EmailContent":
        if self.text is None and self.html is None:
            raise ValueError("needs text, html or both")
        return self


class TextContent(_Content):
    """A short message: SMS."""

    text: str


class TitledContent(_Content):
    """A short message with an optional title: push, chat and inbox."""

    title: str | None = None
    text: str


class WebhookContent(_Content):
    """A JSON body; by default `{"type", "timestamp", "data"}` of the event, as Standard Webhooks suggests."""

    payload: str | None = None


CONTENT: Mapping[Channel, type[_Content]] = {
    Channel.EMAIL: EmailContent,
    Channel.SMS: TextContent,
    Channel.PUSH: TitledContent,
    Channel.CHAT: TitledContent,
    Channel.INBOX: TitledContent,
    Channel.WEBHOOK: WebhookContent,
}


def check_content(channel: Channel, content: Mapping[str, Any]) -> tuple[Fault, ...]:
    """What is wrong with a channel's content; nothing if it is usable. Template syntax is the renderer's to check."""
    try:
        CONTENT[channel].model_validate(content)
    except ValidationError as error:
        return faults_of(error, str(channel))
    return ()


class Definition(BaseModel):
    """A notification as it stands in the catalog, its files read in.

    `channels` maps each channel to its content; `required` names fields of `data` that must be there,
    `schema` is a JSON Schema for all of it (one of the two).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,99}$")]
    description: Annotated[SingleLine, Field(max_length=500)] = ""
    on: Annotated[str, AfterValidator(check_pattern)]
    required: tuple[str, ...] = ()
    data_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    lane: Lane | None = None
    expires_after: Duration | None = None
    channels: Annotated[dict[Channel, dict[str, Any]], Field(min_length=1)]

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
        return self

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

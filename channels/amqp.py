"""Hands rendered messages to another exchange of the same virtual host, for whoever sends them from there."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import to_json

from channels.placeholders import Placeholders, placeholder_faults
from channels.surroundings import NOWHERE, Surroundings
from domain.failures import PermanentFailure
from domain.inbox import inbox_key
from domain.message import Accepted, Message
from domain.vocabulary import Reason

OWN: Final = "notipy."
"""How NotiPy's own exchanges begin: what is handed to them would come back."""
MAX_KEY: Final = 255
"""Bytes of a routing key, by AMQP 0-9-1."""


class AmqpOptions(BaseModel):
    """Settings of one exchange.

    Attributes:
        exchange: which has to be there; NotiPy declares nothing of others.
        routing_key: a template; each value in it becomes one word (`domain.inbox.inbox_key`).
        headers: templates, beside NotiPy's own.
        persistent: whether the broker writes it to disk.
        mandatory: whether it is a failure that no queue takes it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    exchange: Annotated[str, Field(min_length=1, max_length=127)]
    routing_key: Annotated[str, Field(max_length=1000)] = "{{ channel }}"
    headers: dict[str, str] = Field(default_factory=dict)
    persistent: bool = True
    mandatory: bool = True

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.exchange.startswith(OWN):
            raise ValueError("exchange should be none of NotiPy's own: what is handed to them would come back")
        sources = {f"headers.{name}": source for name, source in self.headers.items()}
        if wrong := placeholder_faults({"routing_key": self.routing_key, **sources}):
            raise ValueError(f"{', '.join(wrong)}: is no template that can be read")
        return self


class AmqpProvider:
    """Publishes over NotiPy's own connection, and is done when the broker has confirmed it."""

    def __init__(self, name: str, options: AmqpOptions, surroundings: Surroundings = NOWHERE) -> None:
        self.name = name
        self._options = options
        self._publish = surroundings.publish
        self._key = Placeholders({"routing_key": options.routing_key})
        self._headers = Placeholders(options.headers)

    def __repr__(self) -> str:
        return f"AmqpProvider({self.name!r}, {self._options.exchange!r})"

    def takes(self, recipient: Mapping[str, Any]) -> bool:  # noqa: ARG002
        """Anybody: what the address is good for is the next one's to know."""
        return True

    async def send(self, message: Message) -> Accepted:
        """Publish it once.

        Raises:
            TransientFailure: there is no such exchange, no queue takes it, or the broker has no room or is away.
            PermanentFailure: the key or a header cannot be made of this message.
            UnknownOutcome: the connection was lost before the confirmation.
        """
        key = self._key.rendered(message, inbox_key)["routing_key"]
        if len(key.encode()) > MAX_KEY:
            raise PermanentFailure(Reason.MESSAGE_REJECTED, f"the routing key has more than {MAX_KEY} bytes")
        options = self._options
        headers = {**self._headers.rendered(message), **_own_headers(message)}
        await self._publish(
            options.exchange,
            key,
            _body(message),
            headers,
            mandatory=options.mandatory,
            persistent=options.persistent,
        )
        return Accepted(f"confirmed by {options.exchange}", message.idempotency_key)

    async def check(self) -> str:
        """Nothing is asked: only a message shows whether the exchange is there."""
        return f"publishes to {self._options.exchange}; whether it is there is seen by the first message"

    async def close(self) -> None:
        """The connection is NotiPy's."""


def _own_headers(message: Message) -> Mapping[str, Any]:
    return {
        "x-notipy-delivery": message.delivery_id,
        "x-notipy-idempotency-key": message.idempotency_key,
        "x-notipy-channel": str(message.channel),
    }


def _body(message: Message) -> bytes:
    """Everything that a sender needs. Attachments travel with their content, or with the URL that they had."""
    return to_json(
        {
            "delivery": message.delivery_id,
            "idempotency_key": message.idempotency_key,
            "channel": str(message.channel),
            "created_at": message.created_at,
            "recipient": dict(message.recipient),
            "content": dict(message.content),
            "attachments": [
                attachment.model_dump(mode="json", exclude_none=True) for attachment in message.attachments
            ],
        }
    )

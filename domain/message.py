"""What a channel adapter is given to send."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from domain.event import Attachment
from domain.vocabulary import Channel


class Accepted(str):
    """A provider's answer in a line: it has taken the message.

    Attributes:
        reference: what the provider calls the message, if it does; its receipts speak of it by that name.
    """

    __slots__ = ("reference",)
    reference: str | None

    def __new__(cls, answer: str, reference: str | None = None) -> Self:
        """Both of them."""
        made = super().__new__(cls, answer)
        made.reference = reference
        return made


def plain_reference(reference: str | None) -> str | None:
    """A provider's reference as it is stored and looked for: a Message-ID with or without its brackets is one."""
    return reference and (reference.strip().removeprefix("<").removesuffix(">") or None)


@dataclass(frozen=True, slots=True)
class Message:
    """One rendered message.

    Attributes:
        delivery_id: for logs; never the address or the content.
        idempotency_key: `<delivery>/<epoch>`, the same for every attempt of an epoch.
        recipient: the recipient's fields as published (`email`, `phone`, `webhook`, …).
        content: the rendered fields of the channel's content (`subject`, `text`, `html`, `title`, `payload`, …); more
            header fields of a mail are `headers.<Name>`.
        created_at: when the delivery's event was received; the same for every attempt.
        event_key: of the event, whose attachments are fetched once for all of its deliveries; empty: for this one.
    """

    delivery_id: str
    idempotency_key: str
    channel: Channel
    recipient: Mapping[str, Any] = field(repr=False)
    content: Mapping[str, str] = field(repr=False)
    created_at: datetime
    attachments: tuple[Attachment, ...] = field(default=(), repr=False)
    event_key: str = ""

"""What a channel adapter is given to send."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Self

from domain.event import Attachment
from domain.vocabulary import Channel

MAX_ANSWER: Final = 500
"""Characters of a provider's answer, and of its name for a message, that are kept."""


class Accepted(str):
    """A provider's answer in a line: it has taken the message.

    Whatever it is made of, it can be stored: once a message is sent, nothing about the answer may fail.

    Attributes:
        reference: what the provider calls the message, if it does; its receipts speak of it by that name.
    """

    __slots__ = ("reference",)
    reference: str | None

    def __new__(cls, answer: str, reference: object = None) -> Self:
        """Both of them; a `reference` that is neither a text nor a whole number is none."""
        made = super().__new__(cls, _line(answer))
        made.reference = _line(reference) or None
        return made

    @classmethod
    def of(cls, answer: object) -> Self:
        """What a provider's `send` returned, of whatever type that is."""
        return answer if isinstance(answer, cls) else cls(_line(answer), getattr(answer, "reference", None))


def _line(value: object) -> str:
    """A text or a whole number as one printable line; of anything else nothing."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    text = value if isinstance(value, str) else str(value) if value.bit_length() <= 128 else ""
    text = text[:MAX_ANSWER]
    return (text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)).strip()


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
        copies_suppressed: how many addresses were left out of a mail's `cc` and `bcc`, because they are suppressed.
    """

    delivery_id: str
    idempotency_key: str
    channel: Channel
    recipient: Mapping[str, Any] = field(repr=False)
    content: Mapping[str, str] = field(repr=False)
    created_at: datetime
    attachments: tuple[Attachment, ...] = field(default=(), repr=False)
    event_key: str = ""
    copies_suppressed: int = 0

    @property
    def tag(self) -> str:
        """`<delivery>_<epoch>`: the idempotency key for labels that take letters, digits, - and _ alone."""
        return self.idempotency_key.replace("/", "_")

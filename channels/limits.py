"""How long what is said over a channel may be: what the most common of its providers take, as data.

A limit holds before anything is handed to a provider, so that a message that is too long is told of by the field and
the numbers, and not by a provider's answer. A provider that takes less says so itself. The parts of an SMS are counted
in `channels/segments.py`; the size of a webhook's body is a setting of its provider.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from domain.failures import PermanentFailure
from domain.ports import MessageTooLarge
from domain.vocabulary import Channel, Reason


@dataclass(frozen=True, slots=True)
class Limit:
    """Of one field, or of several together.

    Attributes:
        most: of `unit`, which `length` counts.
    """

    fields: tuple[str, ...]
    most: int
    unit: str = "characters"
    length: Callable[[str], int] = len


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


LIMITS: Final[Mapping[Channel, tuple[Limit, ...]]] = {
    # RFC 5322 §2.1.1 has it of a line; a longer subject would be folded, and no reader shows so much of it.
    Channel.EMAIL: (Limit(("subject",), 998),),
    # The payload of APNs and of FCM: 4,096 bytes, of which the JSON around the words takes some.
    Channel.PUSH: (Limit(("title", "text"), 4096, "bytes of UTF-8", _bytes),),
    # Telegram takes 4,096 characters in a message (Bot API, sendMessage), some of them for markup.
    Channel.CHAT: (Limit(("title", "text"), 4000),),
    # Of our own: an inbox's entry is read on a phone, and stands in the database as often as it has recipients.
    Channel.INBOX: (Limit(("title",), 250), Limit(("text",), 10_000)),
}


def check_length(length: int, limit: int, unit: str = "characters") -> None:
    """Stop what a provider would refuse, or cut.

    Raises:
        PermanentFailure: `message_too_large`.
    """
    if length > limit:
        raise PermanentFailure(Reason.MESSAGE_TOO_LARGE, f"{length} {unit}; the limit is {limit}")


def check_lengths(channel: Channel, rendered: Mapping[str, str]) -> None:
    """See that what is to be sent is not longer than the channel takes.

    Raises:
        MessageTooLarge: it is; the message names the fields and the numbers.
    """
    for limit in LIMITS.get(channel, ()):
        length = 0
        for field in limit.fields:
            length += limit.length(rendered.get(field, ""))
        if length > limit.most:
            fields = " and ".join(field for field in limit.fields if field in rendered)
            raise MessageTooLarge(f"{fields}: {length} {limit.unit}; the limit of {channel} is {limit.most}")

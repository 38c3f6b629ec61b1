"""The settings that every e-mail provider has, whichever way its mails go."""

from datetime import timedelta
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from channels.connection_options import ConnectionOptions
from channels.fetch import Limits, MediaRanges
from channels.mailbox import Address, parse_sender
from domain.duration import Duration

MEBIBYTE: Final = 1024 * 1024


def _valid_sender(value: str) -> str:
    parse_sender(value)
    return value


class MailOptions(ConnectionOptions):
    """Settings of an e-mail provider.

    Attributes:
        from_address: `from` in the settings: `Shop <no-reply@shop.example>`.
        timeout: from the connection to the answer; and for all attachments together.
        max_attachments: that a message may have.
        max_attachment_bytes: of each of them.
        attachment_types: that are sent, such as `application/pdf` or `image/*`; none: any.
        max_message_bytes: of the whole message as it is sent.
        allow_private: whether attachments may be fetched from private addresses.
    """

    from_address: Annotated[str, Field(alias="from"), AfterValidator(_valid_sender)]
    timeout: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(seconds=30)
    max_attachments: Annotated[int, Field(ge=0)] = 10
    max_attachment_bytes: Annotated[int, Field(ge=0)] = 10 * MEBIBYTE
    attachment_types: MediaRanges = ()
    max_message_bytes: Annotated[int, Field(ge=1024)] = 25 * MEBIBYTE
    allow_private: bool = False

    @property
    def sender(self) -> Address:
        """`from`, read."""
        return parse_sender(self.from_address)

    @property
    def limits(self) -> Limits:
        """Of attachments. Base64 makes three bytes four, and a little for line ends."""
        room = self.max_message_bytes * 72 // 100
        return Limits(self.max_attachments, self.max_attachment_bytes, room, self.timeout, self.attachment_types)

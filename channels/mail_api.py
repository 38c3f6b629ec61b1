"""What every e-mail provider with an API shares: its settings, its attachments and its answers."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from channels.fetch import AttachmentFetcher
from channels.http import ApiOptions, ApiProvider, utc_now
from channels.mail_settings import MailOptions
from channels.surroundings import NOWHERE, Surroundings
from domain.message import Accepted


class MailApiOptions(MailOptions, ApiOptions):
    """Settings of an e-mail provider with an API."""


Options = TypeVar("Options", bound=MailApiOptions)


class MailApiProvider(ApiProvider[Options]):
    """What every e-mail provider over `channels.http` does alike."""

    def __init__(
        self,
        name: str,
        options: Options,
        surroundings: Surroundings = NOWHERE,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(name, options, surroundings, now)
        self._files = AttachmentFetcher(options.limits, allow_private=options.allow_private, files=surroundings.files)

    def takes(self, recipient: Mapping[str, Any]) -> bool:
        """Whoever has an address."""
        return bool(recipient.get("email"))

    async def close(self) -> None:
        """Close the kept connections."""
        await super().close()
        await self._files.close()


def answered(status: int, number: str | None, left_out: int) -> Accepted:
    """How the provider has taken a mail, under its own number; and how many copies had no address."""
    copies = f"; {left_out} cop{'ies' if left_out > 1 else 'y'} left out: no e-mail address" if left_out else ""
    return Accepted(f"HTTP {status} {number or ''}".strip() + copies, number or None)

"""Messages by pigeon: a provider in a package of its own."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import SecretStr

from channels.chat import Addresses
from channels.classify import parse_retry_after
from channels.http import Answer, Api, ApiOptions
from channels.registry import ProviderKind
from channels.surroundings import Surroundings
from channels.taxonomy import Meaning, Rule, Table, codes_of
from domain.failures import DeliveryFailure
from domain.message import Accepted, Message
from domain.vocabulary import Channel

ERRORS = Table(
    provider="pigeon",
    version="2026-11-23",
    source="Pigeon Post, API reference",
    rules=(
        Rule("NO_LOFT", Meaning.RECIPIENT, "nobody keeps pigeons there"),
        Rule("FOG", Meaning.TRANSIENT, "no pigeon flies in this weather"),
    ),
)


class PigeonOptions(ApiOptions):
    """Settings of one loft."""

    base_url: str = "https://api.pigeon.example"
    token: SecretStr


class PigeonProvider:
    """Sends one pigeon for each message."""

    def __init__(self, name: str, options: PigeonOptions, _: Surroundings) -> None:
        self.name = name
        self._options = options
        self._api = Api(options)
        # `pigeon:<loft>`, or the provider's own name before the colon: no other service's address is taken
        self._addresses = Addresses("pigeon", name, named=re.compile(r"[A-Z0-9]{1,20}"))

    def __repr__(self) -> str:
        return f"PigeonProvider({self.name!r})"

    def takes(self, recipient: Mapping[str, Any]) -> bool:
        """Whoever has a loft."""
        return self._addresses.target(recipient) is not None

    async def send(self, message: Message) -> Accepted:
        """Send it; the same key is one pigeon, however often it is asked for."""
        answer = await self._api.request(
            "POST",
            self._options.url("/pigeons"),
            headers={**self._authorization(), "Idempotency-Key": message.idempotency_key},
            json={"to": self._addresses.target(message.recipient), "text": message.content["text"]},
        )
        if not answer.ok:
            raise _failure(answer)
        return Accepted(f"HTTP {answer.status}", answer.document.get("ring"))

    async def check(self) -> str:
        """Ask for the weather; send nothing."""
        answer = await self._api.request("GET", self._options.url("/weather"), headers=self._authorization())
        if not answer.ok:
            raise _failure(answer)
        return "the loft is open"

    async def close(self) -> None:
        """Close the kept connections."""
        await self._api.close()

    def _authorization(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self._options.token.get_secret_value()}"}


def _failure(answer: Answer) -> DeliveryFailure:
    code = str(answer.document.get("code", ""))
    wait = parse_retry_after(answer.headers.get("Retry-After"), datetime.now(UTC))
    return ERRORS.failure((code, *codes_of(answer.status)), f"HTTP {answer.status} {code}".strip(), wait)


PIGEON = ProviderKind(PigeonOptions, frozenset({Channel.CHAT}), PigeonProvider, ERRORS)

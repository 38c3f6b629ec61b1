"""Webhooks: a signed POST as the Standard Webhooks specification has it (https://www.standardwebhooks.com).

A receiver recognises a repetition by `webhook-id`, which is the same for every attempt of a delivery's epoch.
"""

import asyncio
import base64
import binascii
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import aiohttp
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator
from standardwebhooks import Webhook

from channels.classify import connection_failure, http_failure
from channels.guard import address_refused, guarded_session
from channels.http import tracing
from channels.surroundings import NOWHERE, Surroundings
from domain.duration import Duration
from domain.failures import DeliveryFailure, PermanentFailure, UnknownOutcome
from domain.message import Accepted, Message
from domain.vocabulary import Reason

READ: Final = 16 * 1024
"""Bytes of an answer that are read, so that its connection can be kept; a longer answer costs its connection."""
READ_SECONDS: Final = 1.0
USER_AGENT: Final = "NotiPy/0.1 (+https://www.standardwebhooks.com)"

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_OWN_HEADERS: Final = frozenset({"content-type", "content-length", "transfer-encoding", "host", "connection", "expect"})


def _valid_secret(value: SecretStr) -> SecretStr:
    """The specification asks for 24 to 64 random bytes in base64."""
    text = value.get_secret_value().removeprefix("whsec_")
    try:
        length = len(base64.b64decode(text + "=" * (-len(text) % 4), validate=True))
    except (binascii.Error, ValueError):
        length = 0
    if not 24 <= length <= 64:
        raise ValueError("should be whsec_ and 24 to 64 random bytes in base64 (openssl rand -base64 32)")
    return value


def _valid_headers(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not _TOKEN.fullmatch(name) or _CONTROL.search(text):
            raise ValueError("has a name or a value that cannot be a header")
        if name.lower() in _OWN_HEADERS or name.lower().startswith("webhook-"):
            raise ValueError(f"cannot set {name.lower()}: it is NotiPy's own")
    return value


Secret = Annotated[SecretStr, AfterValidator(_valid_secret)]


class WebhookOptions(BaseModel):
    """Settings of one webhook provider.

    Attributes:
        secret: signs; `secrets` where several are in force while one replaces another: each signs.
        headers: sent along, for example an API key of the receivers.
        timeout: from the connection to the answer's first line.
        max_body_bytes: of a request.
        allow_private: whether private and loopback addresses may be called.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    secret: Secret | None = None
    secrets: tuple[Secret, ...] = ()
    headers: Annotated[dict[str, str], AfterValidator(_valid_headers), Field(repr=False)] = Field(default_factory=dict)
    timeout: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(seconds=15)
    max_body_bytes: Annotated[int, Field(ge=1)] = 256 * 1024
    allow_private: bool = False

    @model_validator(mode="after")
    def _signed(self) -> "WebhookOptions":
        if not self.in_force:
            raise ValueError("secret is missing: every webhook is signed")
        return self

    @property
    def in_force(self) -> tuple[SecretStr, ...]:
        """Every secret that signs."""
        return (self.secret, *self.secrets) if self.secret is not None else self.secrets


@dataclass(slots=True)
class _Progress:
    """How far a request has come."""

    sent: bool = False


class WebhookProvider:
    """Posts to each recipient's own URL."""

    def __init__(
        self,
        name: str,
        options: WebhookOptions,
        _: Surroundings = NOWHERE,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.name = name
        self._options = options
        self._now = now
        self._signers = tuple(Webhook(secret.get_secret_value()) for secret in options.in_force)
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"WebhookProvider({self.name!r})"

    def takes(self, recipient: Mapping[str, Any]) -> bool:
        """Whoever has an endpoint."""
        return bool(recipient.get("webhook"))

    async def send(self, message: Message) -> Accepted:
        """Post once. Redirects are not followed.

        Raises:
            TransientFailure: nothing was sent, or the receiver asks for another attempt.
            PermanentFailure: the receiver, or the address, rules it out.
            UnknownOutcome: the request was on its way and no answer came.
        """
        body = message.content.get("payload", "")
        if len(body.encode()) > self._options.max_body_bytes:
            detail = f"{len(body.encode())} bytes; the limit is {self._options.max_body_bytes}"
            raise PermanentFailure(Reason.MESSAGE_TOO_LARGE, detail)
        progress = _Progress()
        try:
            url = str(message.recipient.get("webhook", ""))
            return Accepted(await self._post(url, message.idempotency_key, body, progress))
        except DeliveryFailure:
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _failure(error, sent=progress.sent) from None

    async def check(self) -> str:
        """There is no server to reach: each recipient has its own."""
        keys = len(self._signers)
        return f"signs with {keys} secret{'s' if keys > 1 else ''}; each recipient names its own URL"

    async def close(self) -> None:
        """Close the kept connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post(self, url: str, number: str, body: str, progress: _Progress) -> str:
        async with self._open().post(
            url,
            data=body.encode(),
            headers=self._headers(number, body),
            allow_redirects=False,
            trace_request_ctx=progress,
        ) as response:
            failure = None
            if not 200 <= response.status < 300:
                failure = http_failure(response.status, response.headers.get("Retry-After"), self._now())
            await _drain(response)
        if failure is not None:
            raise failure
        return f"HTTP {response.status}"

    def _headers(self, number: str, body: str) -> Mapping[str, str]:
        now = self._now()
        return self._options.headers | {
            "Content-Type": "application/json; charset=utf-8",
            "webhook-id": number,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signer.sign(number, now, body) for signer in self._signers),
        }

    def _open(self) -> aiohttp.ClientSession:
        """The session, made where there is a running loop."""
        if self._session is None:
            self._session = guarded_session(
                allow_private=self._options.allow_private,
                timeout=aiohttp.ClientTimeout(total=self._options.timeout.total_seconds()),
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
                trace_configs=[tracing()],
            )
        return self._session


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Read a short answer, so that the connection can be kept. The status has said all; nothing here is an error."""
    with suppress(aiohttp.ClientError, OSError):
        async with asyncio.timeout(READ_SECONDS):
            read = 0
            async for chunk in response.content.iter_any():
                read += len(chunk)
                if read > READ:
                    break
            else:
                return
    response.close()


def _failure(error: Exception, *, sent: bool) -> DeliveryFailure:
    if address_refused(error):
        return PermanentFailure(Reason.ADDRESS_REFUSED, "the URL is unusable or leads into a private network")
    if isinstance(error, ValueError) and not isinstance(error, aiohttp.ClientError):
        return PermanentFailure(Reason.BAD_ADDRESS, "the URL cannot be used")
    if not sent:
        return connection_failure(error, "connecting to the endpoint")
    failure = connection_failure(error, "waiting for the endpoint's answer")
    return UnknownOutcome(failure.reason, failure.detail)

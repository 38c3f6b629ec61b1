"""Webhooks: a signed POST as the Standard Webhooks specification has it (https://www.standardwebhooks.com).

A receiver recognises a repetition by `webhook-id`, which is the same for every attempt of a delivery's epoch.
"""

import asyncio
import base64
import binascii
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Annotated, Any, Final

import aiohttp
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator
from standardwebhooks import Webhook

from channels.classify import connection_failure, http_failure
from channels.endpoints import EndpointHealth
from channels.guard import address_refused, guarded_session
from channels.http import Progress, tracing, utc_now
from channels.limits import check_length
from channels.mailbox import CONTROL
from channels.surroundings import NOWHERE, Surroundings
from domain.duration import Duration
from domain.failures import UNBLAMED, DeliveryFailure, PermanentFailure, UnknownOutcome
from domain.message import Accepted, Message
from domain.notification import HEADERS, webhook_header
from domain.vocabulary import Reason

READ: Final = 16 * 1024
"""Bytes of an answer that are read, so that its connection can be kept; a longer answer costs its connection."""
READ_SECONDS: Final = 1.0
LONGEST_DISABLE: Final = timedelta(days=30)
"""Half of the time for which the store remembers an endpoint that nobody calls any more."""
USER_AGENT: Final = "NotiPy/0.1 (+https://www.standardwebhooks.com)"


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
        webhook_header(name)
        if CONTROL.search(text):
            raise ValueError("has a name or a value that cannot be a header")
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
        disable_after: an endpoint that has only failed for so long is given up and suppressed; null: never.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    secret: Secret | None = None
    secrets: tuple[Secret, ...] = ()
    headers: Annotated[dict[str, str], AfterValidator(_valid_headers), Field(repr=False)] = Field(default_factory=dict)
    timeout: Annotated[Duration, Field(gt=timedelta(0))] = timedelta(seconds=15)
    max_body_bytes: Annotated[int, Field(ge=1)] = 256 * 1024
    allow_private: bool = False
    disable_after: Annotated[Duration, Field(gt=timedelta(0), le=LONGEST_DISABLE)] | None = timedelta(days=5)

    @model_validator(mode="after")
    def _signed(self) -> "WebhookOptions":
        if not self.in_force:
            raise ValueError("secret is missing: every webhook is signed")
        return self

    @property
    def in_force(self) -> tuple[SecretStr, ...]:
        """Every secret that signs."""
        return (self.secret, *self.secrets) if self.secret is not None else self.secrets


class WebhookProvider:
    """Posts to each recipient's own URL."""

    def __init__(
        self,
        name: str,
        options: WebhookOptions,
        surroundings: Surroundings = NOWHERE,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.name = name
        self._options = options
        self._now = now
        self._signers = tuple(Webhook(secret.get_secret_value()) for secret in options.in_force)
        self._health = _health(options, surroundings, now)
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
        check_length(len(body.encode()), self._options.max_body_bytes, "bytes")
        url = str(message.recipient.get("webhook", ""))
        if self._health is not None and (gone := await self._health.refused(url)) is not None:
            raise gone
        answer = await self._outcome(url, body, self._headers(message, body))
        if isinstance(answer, DeliveryFailure):
            raise await self._judged(url, answer)
        if self._health is not None:
            self._health.succeeded(url)
        return Accepted(answer)

    async def check(self) -> str:
        """There is no server to reach: each recipient has its own."""
        keys = len(self._signers)
        return f"signs with {keys} secret{'s' if keys > 1 else ''}; each recipient names its own URL"

    async def close(self) -> None:
        """Close the kept connections, and tell the store of the endpoints that have answered."""
        if self._health is not None:
            await self._health.close()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _outcome(self, url: str, body: str, headers: Mapping[str, str]) -> str | DeliveryFailure:
        """Post; the answer in a line, or what it or the error on the way means."""
        progress = Progress(UNBLAMED)  # an endpoint that does not answer says nothing of the others
        try:
            with progress:
                async with self._open().post(
                    url, data=body.encode(), headers=headers, allow_redirects=False, trace_request_ctx=progress
                ) as response:
                    await _drain(response)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return _failure(error, sent=progress.sent)
        if 200 <= response.status < 300:
            return f"HTTP {response.status}"
        return _refusal(http_failure(response.status, response.headers.get("Retry-After"), self._now()))

    async def _judged(self, url: str, failure: DeliveryFailure) -> DeliveryFailure:
        """The failure; or that the endpoint is given up, if it has only failed for long."""
        if self._health is None or failure.reason in _NOT_ANSWERS or failure.suppress:
            return failure
        return await self._health.failed(url, failure)

    def _headers(self, message: Message, body: str) -> Mapping[str, str]:
        """Those of the settings, unless the notification has its own of the name, and NotiPy's."""
        headers = _headers_of(message)
        taken = {name.lower() for name in headers}
        general = {name: text for name, text in self._options.headers.items() if name.lower() not in taken}
        return general | headers | self._signature(message.idempotency_key, body)

    def _signature(self, number: str, body: str) -> dict[str, str]:
        now = self._now()
        return {
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


_NOT_ANSWERS: Final = frozenset({Reason.ADDRESS_REFUSED, Reason.BAD_ADDRESS})
"""The endpoint was not asked."""


def _health(options: WebhookOptions, surroundings: Surroundings, now: Callable[[], datetime]) -> EndpointHealth | None:
    if surroundings.endpoints is None or options.disable_after is None:
        return None
    return EndpointHealth(surroundings.endpoints, options.disable_after, now)


def _headers_of(message: Message) -> dict[str, str]:
    """Those that the notification has for this request.

    Raises:
        PermanentFailure: one has a line break or a control character.
    """
    headers = {name.removeprefix(HEADERS): text for name, text in message.content.items() if name.startswith(HEADERS)}
    for name, text in headers.items():
        if CONTROL.search(text):
            raise PermanentFailure(Reason.MESSAGE_REJECTED, f"the header {name} contains a control character")
    return headers


def _refusal(failure: DeliveryFailure) -> DeliveryFailure:
    """410 says that there will never be anybody again (RFC 9110 §15.5.11; Standard Webhooks: disable the endpoint)."""
    if failure.reason is Reason.ENDPOINT_GONE:
        return PermanentFailure(failure.reason, failure.detail, suppress=True)
    return failure


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

"""Push to Apple's devices through the Apple Push Notification service: HTTP/2, with a provider token (a signed JWT)."""

import asyncio
import logging
import re
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

import jwt
import orjson
from pydantic import Field

from channels.classify import connection_failure, scrub
from channels.http import USER_AGENT, Answer, ApiOptions, Progress, utc_now
from channels.limits import check_length
from channels.push import Push, SignedOptions, push_of, seconds, takes_target
from channels.surroundings import NOWHERE, Surroundings
from channels.taxonomy import Meaning, Rule, Table, codes_of
from domain.failures import DeliveryFailure, PermanentFailure, UnknownOutcome
from domain.message import Accepted, Message
from domain.vocabulary import Reason

if TYPE_CHECKING:
    import httpx

MAX_PAYLOAD: Final = 4096
"""Bytes, by Apple's "Generating a remote notification"."""
RENEWED_AFTER: Final = timedelta(minutes=50)
"""Apple refuses a provider token that is older than an hour …"""
RENEWED_BEFORE: Final = timedelta(minutes=20)
"""… and a provider that signs a new one more often than this."""
IDLE: Final = 600.0
"""Seconds for which an idle connection is kept. Apple asks for long-lived ones; a firewall forgets them sooner."""

ERRORS: Final = Table(
    provider="apns",
    version="2026-11-23",
    source="Apple, Handling notification responses from APNs",
    rules=(
        Rule("Unregistered", Meaning.RECIPIENT, "the app is gone from the device"),
        Rule("ExpiredToken", Meaning.RECIPIENT, "the device token has expired"),
        # The next two are also what a wrong `base_url` or `topic` in the settings comes to, for every device.
        Rule(
            "BadDeviceToken",
            Meaning.RECIPIENT,
            "that is no device token, or one of the other environment (base_url)",
            Reason.BAD_ADDRESS,
            suppress=False,
        ),
        Rule("DeviceTokenNotForTopic", Meaning.RECIPIENT, "the device token is another app's", suppress=False),
        Rule("MissingDeviceToken", Meaning.RECIPIENT, "there is no device token", Reason.BAD_ADDRESS, suppress=False),
        Rule("BadTopic", Meaning.CONFIGURATION, "the topic is not one"),
        Rule("MissingTopic", Meaning.CONFIGURATION, "the topic is missing"),
        Rule("TopicDisallowed", Meaning.CONFIGURATION, "pushing to this topic is not allowed"),
        Rule("BadPath", Meaning.CONFIGURATION, "the path is wrong: look at base_url"),
        Rule("MethodNotAllowed", Meaning.CONFIGURATION, "not asked with POST: look at base_url"),
        Rule("BadCertificate", Meaning.CONFIGURATION, "the certificate is invalid", Reason.AUTHENTICATION),
        Rule(
            "BadCertificateEnvironment",
            Meaning.CONFIGURATION,
            "the certificate is for the other environment",
            Reason.AUTHENTICATION,
        ),
        Rule(
            "ExpiredProviderToken",
            Meaning.CONFIGURATION,
            "the provider token has expired: look at this machine's clock",
            Reason.AUTHENTICATION,
        ),
        Rule(
            "InvalidProviderToken",
            Meaning.CONFIGURATION,
            "the provider token is not valid: look at key_id, team_id, the key and this machine's clock",
            Reason.AUTHENTICATION,
        ),
        Rule("MissingProviderToken", Meaning.CONFIGURATION, "the provider token is missing", Reason.AUTHENTICATION),
        Rule(
            "UnrelatedKeyIdInToken",
            Meaning.CONFIGURATION,
            "the key is not for this topic",
            Reason.AUTHENTICATION,
        ),
        Rule(
            "BadEnvironmentKeyIdInToken",
            Meaning.CONFIGURATION,
            "the key is for the other environment",
            Reason.AUTHENTICATION,
        ),
        Rule("Forbidden", Meaning.CONFIGURATION, "the action is not allowed", Reason.AUTHENTICATION),
        Rule("TooManyProviderTokenUpdates", Meaning.RATE_LIMITED, "a new provider token within 20 minutes"),
        Rule(
            "TooManyRequests",
            Meaning.TRANSIENT,
            "too many messages in a row to this one device",
            Reason.RATE_LIMITED,
            provider_fault=False,
        ),
        Rule("PayloadTooLarge", Meaning.MESSAGE, "the payload is larger than 4096 bytes", Reason.MESSAGE_TOO_LARGE),
        Rule("PayloadEmpty", Meaning.MESSAGE, "the payload is empty"),
        Rule("BadCollapseId", Meaning.MESSAGE, "the collapse identifier is longer than 64 bytes"),
        Rule("BadExpirationDate", Meaning.MESSAGE, "the expiration is no date"),
        Rule("BadMessageId", Meaning.MESSAGE, "apns-id is no UUID"),
        Rule("BadPriority", Meaning.MESSAGE, "the priority is none"),
        Rule("InvalidPushType", Meaning.MESSAGE, "apns-push-type is none"),
        Rule("DuplicateHeaders", Meaning.MESSAGE, "a header is there twice"),
        Rule("IdleTimeout", Meaning.TRANSIENT, "the connection was idle for too long"),
        Rule("InternalServerError", Meaning.TRANSIENT, "an internal error"),
        Rule("ServiceUnavailable", Meaning.TRANSIENT, "the service is unavailable"),
        Rule("Shutdown", Meaning.TRANSIENT, "this server of Apple's is shutting down"),
    ),
)
_DEVICE = re.compile(r"[0-9a-fA-F]{2,400}")
_LOGGERS: Final = ("httpx", "httpcore", "hpack")
"""They log the path, in which the device token is, and the authorization."""


class ApnsOptions(SignedOptions, ApiOptions):
    """Settings of one app.

    Attributes:
        base_url: `https://api.sandbox.push.apple.com` for what Xcode has installed.
        private_key: the token signing key, the content of `AuthKey_….p8`.
        key_id: of that key, ten characters.
        team_id: of the developer account, ten characters.
        topic: the app's bundle id.
    """

    KEY = "a P-256 key in PEM form: the content of AuthKey_….p8"
    base_url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")] = "https://api.push.apple.com"
    key_id: Annotated[str, Field(pattern=r"^[A-Z0-9]{10}$")]
    team_id: Annotated[str, Field(pattern=r"^[A-Z0-9]{10}$")]
    topic: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]{1,255}$")]


class ProviderToken:
    """The JWT that every request carries, signed anew after 50 minutes and at most once in 20."""

    def __init__(self, options: ApnsOptions, now: Callable[[], datetime]) -> None:
        self._key = options.key()
        self._key_id, self._team_id = options.key_id, options.team_id
        self._now = now
        self._signed_at: datetime | None = None
        self._value = ""

    def get(self) -> str:
        """The one in force."""
        if self._age() >= RENEWED_AFTER:
            self._sign()
        return self._value

    def renewed(self, refused: str) -> bool:
        """Have another than the one that was refused, signed by now if need be; False if it is too early for that."""
        if self._value != refused:
            return True  # of many requests that were refused together, another one has had it signed
        if self._age() < RENEWED_BEFORE:
            return False
        self._sign()
        return True

    def _age(self) -> timedelta:
        return timedelta.max if self._signed_at is None else self._now() - self._signed_at

    def _sign(self) -> None:
        self._signed_at = self._now()
        claims = {"iss": self._team_id, "iat": int(self._signed_at.timestamp())}
        self._value = jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": self._key_id})


class _Progress(Progress):
    """How far a request has come; httpx tells of each step by name. Apple acts on none whose body it has not got."""

    async def __call__(self, step: str, _: Mapping[str, Any]) -> None:
        self.sent = self.sent or step == "http2.send_request_body.started"


class ApnsProvider:
    """Sends to the devices that have one app.

    `apns-id` is the same for every attempt of a delivery's epoch. Apple names a message by it in its answers, and does
    not promise to drop a repetition: the device replaces it, by `apns-collapse-id`.
    """

    def __init__(
        self,
        name: str,
        options: ApnsOptions,
        _: Surroundings = NOWHERE,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        _require_http2()
        self.name = name
        self._options = options
        self._now = now
        self._token = ProviderToken(options, now)
        self._client: httpx.AsyncClient | None = None

    def __repr__(self) -> str:
        return f"ApnsProvider({self.name!r})"

    def takes(self, recipient: Mapping[str, Any]) -> bool:
        """A device whose target says `apns`, or this provider's name."""
        return takes_target(recipient, "apns", self.name)

    async def send(self, message: Message) -> Accepted:
        """Hand over one message.

        Raises:
            DeliveryFailure: as `ERRORS` says.
        """
        push = push_of(message)
        if not _DEVICE.fullmatch(push.token):
            raise PermanentFailure(Reason.BAD_ADDRESS, "the device token is not hexadecimal")
        body = _payload(push)
        check_length(len(body), MAX_PAYLOAD, "bytes")
        answer = await self._post(f"/3/device/{push.token}", self._headers(push), body)
        return Accepted(answer.told(), answer.headers.get("apns-id"))

    async def check(self) -> str:
        """Send to a device that there cannot be; the refusal of its token says that everything else is right."""
        nobody = {"apns-topic": self._options.topic, "apns-push-type": "alert"}
        body = b'{"aps":{"alert":"check"}}'
        answer = await self._request(self._token.get(), f"/3/device/{'0' * 64}", nobody, body)
        if not answer.ok and _reason(answer) not in {"BadDeviceToken", "Unregistered", "DeviceTokenNotForTopic"}:
            raise self._failure(answer)
        return "the provider token and the topic are taken"

    async def close(self) -> None:
        """Close the kept connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _headers(self, push: Push) -> dict[str, str]:
        priority = {"high": "10", "normal": "5", None: None}[push.priority]
        headers = {
            "apns-id": push.unique,
            "apns-topic": self._options.topic,
            "apns-push-type": "alert",
            "apns-priority": priority,
            "apns-expiration": str(seconds(push.expires_at(self._options.ttl))),
            "apns-collapse-id": push.collapse_id(64, r"\x21-\x7e"),
        }
        return {name: value for name, value in headers.items() if value is not None}

    async def _post(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Once; and once more with another provider token, if it was the token that had expired."""
        token = self._token.get()
        answer = await self._request(token, path, headers, body)
        if _reason(answer) == "ExpiredProviderToken" and self._token.renewed(refused=token):
            answer = await self._request(self._token.get(), path, headers, body)
        if not answer.ok:
            raise self._failure(answer)
        return answer

    async def _request(self, token: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Ask once.

        Raises:
            TransientFailure: nothing was sent.
            UnknownOutcome: the request was on its way, and no answer came.
        """
        import httpx

        progress = _Progress()
        try:
            with progress:
                async with (
                    asyncio.timeout(self._options.timeout.total_seconds()),
                    self._open().stream(
                        "POST",
                        self._options.url(path),
                        headers={"authorization": f"bearer {token}"} | dict(headers),
                        content=body,
                        extensions={"trace": progress},
                    ) as answer,
                ):
                    return Answer(answer.status_code, answer.headers, await _body(answer))
        except (httpx.HTTPError, OSError) as error:
            raise _connection_failure(error, self._options.base_url, sent=progress.sent) from None

    def _open(self) -> "httpx.AsyncClient":
        """The client, made where there is a running loop. It speaks HTTP/2 alone: many requests share a connection."""
        import httpx

        if self._client is None:
            for name in _LOGGERS:
                logging.getLogger(name).setLevel(logging.WARNING)
            file, connections = self._options.ca_file, self._options.connections
            self._client = httpx.AsyncClient(
                http1=False,
                http2=True,
                verify=ssl.create_default_context(cafile=str(file) if file else None),
                trust_env=False,
                timeout=None,  # noqa: S113 - `_request` has one for the whole of it
                headers={"user-agent": USER_AGENT},
                limits=httpx.Limits(
                    max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=IDLE
                ),
            )
        return self._client

    def _failure(self, answer: Answer) -> DeliveryFailure:
        code = _reason(answer)
        codes = (code, *codes_of(answer.status))
        return ERRORS.refusal(codes, answer.told(code), answer.retry_after(self._now()))


def _payload(push: Push) -> bytes:
    """The payload: `aps` for the system, the rest for the app."""
    alert = {"title": push.title, "body": push.text} if push.title else {"body": push.text}
    aps: dict[str, Any] = {"alert": alert, "badge": push.badge, "sound": push.sound}
    aps["mutable-content"] = 1 if push.image else None  # wakes the app's extension, which fetches the image
    shown = {name: value for name, value in aps.items() if value is not None}
    own = {"url": push.url, "image": push.image}
    return orjson.dumps({name: value for name, value in own.items() if value} | dict(push.data) | {"aps": shown})


async def _body(answer: "httpx.Response") -> bytes:
    """As much as comes. The status has said whether it was taken; a body that breaks off changes nothing of it."""
    import httpx

    content = bytearray()
    with suppress(httpx.HTTPError):
        async for chunk in answer.aiter_bytes():
            content += chunk
    return bytes(content)


def _reason(answer: Answer) -> str:
    return "" if answer.ok else scrub(str(answer.document.get("reason", "")))


def _connection_failure(error: Exception, url: str, *, sent: bool) -> DeliveryFailure:
    if not sent:
        host = urlsplit(url).hostname
        return connection_failure(_wrapped(error), "connecting to APNs", provider_fault=True, host=host)
    failure = connection_failure(_wrapped(error), "waiting for the answer of APNs")
    return UnknownOutcome(failure.reason, failure.detail, provider_fault=True)


def _wrapped(error: BaseException) -> BaseException:
    """The system's own error: httpx keeps httpcore's as the cause, and that has it as an argument."""
    cause = error if isinstance(error, OSError) else error.__cause__ or error
    return next((argument for argument in cause.args if isinstance(argument, BaseException)), cause)


def _require_http2() -> None:
    """Raises ValueError: the extra is not installed."""
    try:
        import h2
        import httpx  # noqa: F401
    except ImportError:
        raise ValueError("apns speaks HTTP/2, for which `pip install 'notipy[apns]'` is needed") from None
    del h2

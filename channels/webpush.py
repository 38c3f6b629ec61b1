"""Web Push to browsers: RFC 8030 (the protocol), RFC 8291 and 8188 (encryption), RFC 8292 (VAPID).

The address is the subscription as the browser gave it: `{"endpoint", "keys": {"p256dh", "auth"}}`, as a JSON text.
Its endpoint is the recipient's word, and not to be trusted: only public addresses are connected, and nothing that a
push service answers is held against the others.
"""

import base64
import binascii
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Any, Final

import http_ece
import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    derive_private_key,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import Field
from yarl import URL

from channels.http import Answer, ApiProvider, GuardedApi, utc_now
from channels.limits import check_length
from channels.push import Push, SignedOptions, push_of, takes_target
from channels.surroundings import NOWHERE, Surroundings
from channels.taxonomy import Meaning, Rule, Table, codes_of
from domain.failures import DeliveryFailure, PermanentFailure
from domain.message import Accepted, Message
from domain.vocabulary import Reason

MAX_PAYLOAD: Final = 3993
"""Bytes before encryption: a push service need not take more than 4096 after it (RFC 8030 §7.2, RFC 8291 §4)."""
VALID_FOR: Final = timedelta(hours=12)
"""A VAPID token; at most 24 hours (RFC 8292 §2)."""
EARLY: Final = timedelta(hours=1)
"""Before its end a token is replaced."""
ORIGINS: Final = 1000
"""Whose tokens are kept: there are some five push services, but recipients name them."""
MAX_REFERENCE: Final = 500

ERRORS: Final = Table(
    provider="webpush",
    version="2026-11-23",
    source="RFC 8030 (§5, §7.3, §8.4), RFC 8292 §4.2, and RFC 9110 for the rest",
    rules=(
        Rule("HTTP 404", Meaning.RECIPIENT, "the subscription has expired"),
        Rule("HTTP 410", Meaning.RECIPIENT, "the subscription is gone"),
        Rule("HTTP 413", Meaning.MESSAGE, "the payload is too large", Reason.MESSAGE_TOO_LARGE),
        Rule("HTTP 400", Meaning.MESSAGE, "the request is wrong"),
        Rule(
            "HTTP 401",
            Meaning.TRANSIENT,
            "the VAPID token is refused: look at private_key, subject and this machine's clock"
            " (Mozilla's service says it of a subscription made with another key, too)",
            Reason.AUTHENTICATION,
            provider_fault=False,
        ),
        Rule(
            "HTTP 403",
            Meaning.TRANSIENT,
            "the VAPID token is refused, by Apple's service for its subject, audience or time, too; or the subscription"
            " was made with another key",
            Reason.AUTHENTICATION,
            provider_fault=False,
        ),
        Rule("HTTP 429", Meaning.TRANSIENT, "too many messages", Reason.RATE_LIMITED, provider_fault=False),
        Rule("HTTP 3xx", Meaning.RECIPIENT, "the endpoint leads elsewhere", Reason.REDIRECT_REFUSED, suppress=False),
        Rule("HTTP 408", Meaning.TRANSIENT, "the request did not come in time", Reason.TIMEOUT, provider_fault=False),
        Rule("HTTP 425", Meaning.TRANSIENT, "too early", provider_fault=False),
        Rule("HTTP 4xx", Meaning.MESSAGE, "the push service does not take it"),
        Rule("HTTP 502", Meaning.UNKNOWN, "a gateway had no usable answer; it may be taken", provider_fault=False),
        Rule("HTTP 504", Meaning.UNKNOWN, "a gateway had no answer in time; it may be taken", provider_fault=False),
        Rule("HTTP 5xx", Meaning.TRANSIENT, "the push service has a fault", provider_fault=False),
    ),
)


class WebPushOptions(SignedOptions):
    """Settings of one application server, which is what a site is to push services.

    Attributes:
        private_key: VAPID's: also as the 32 bytes in base64url that `web-push generate-vapid-keys` prints. The site
            subscribes with its public half (`applicationServerKey`).
        subject: whom a push service may write to: a `mailto:` or `https:` URL.
        allow_private: whether private and loopback addresses may be called, and without TLS.
    """

    KEY = "a P-256 key, in PEM form or its 32 bytes in base64url"
    subject: Annotated[str, Field(pattern=r"^(?:mailto:[^\s@]+@[^\s@]+|https://\S+)$")]
    allow_private: bool = False

    def _read(self, text: str) -> EllipticCurvePrivateKey:
        if "BEGIN" in text:
            return super()._read(text)
        number = _unbase64url(text.strip())
        if len(number) != 32:
            raise ValueError("is not of 32 bytes")
        return derive_private_key(int.from_bytes(number), SECP256R1())


@dataclass(frozen=True, slots=True)
class Subscription:
    """Where a browser is reached, and what only it can read (RFC 8291 §2)."""

    endpoint: URL = field(repr=False)
    key: EllipticCurvePublicKey = field(repr=False)
    auth: bytes = field(repr=False)

    @property
    def origin(self) -> str:
        """The push service, as a VAPID token names it."""
        return str(self.endpoint.origin())


class Vapid:
    """Identifies this server to push services (RFC 8292). A token for each of them, signed anew after eleven hours."""

    def __init__(self, options: WebPushOptions, now: Callable[[], datetime]) -> None:
        self._key = options.key()
        self._subject = options.subject
        self._now = now
        self._public = _base64url(_point(self._key.public_key()))
        self._tokens: OrderedDict[str, tuple[str, datetime]] = OrderedDict()

    def authorization(self, origin: str) -> str:
        """The header for a push service."""
        token, until = self._tokens.get(origin) or ("", self._now())
        if until - EARLY <= self._now():
            token = self._signed(origin)
        return f"vapid t={token},k={self._public}"

    def _signed(self, origin: str) -> str:
        until = self._now() + VALID_FOR
        claims = {"aud": origin, "exp": int(until.timestamp()), "sub": self._subject}
        token = jwt.encode(claims, self._key, algorithm="ES256")
        self._tokens[origin] = token, until
        if len(self._tokens) > ORIGINS:
            self._tokens.popitem(last=False)
        return token


class WebPushProvider(ApiProvider[WebPushOptions]):
    """Sends to browsers, whichever push service theirs is.

    The protocol has no idempotency key: what is repeated may come twice, is marked, and takes its own first copy's
    place (`Topic` while it waits at the push service, `tag` in the browser).
    """

    def __init__(
        self,
        name: str,
        options: WebPushOptions,
        _: Surroundings = NOWHERE,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(name, options, now=now, api=GuardedApi(options, allow_private=options.allow_private))
        self._vapid = Vapid(options, now)

    def takes(self, recipient: Mapping[str, Any]) -> bool:
        """A device whose target says `webpush`, or this provider's name."""
        return takes_target(recipient, "webpush", self.name)

    async def send(self, message: Message) -> Accepted:
        """Encrypt one message and hand it to the browser's push service. Redirects are not followed.

        Raises:
            DeliveryFailure: as `ERRORS` says.
        """
        push = push_of(message)
        subscription = subscription_of(push.token, secure=not self._options.allow_private)
        body = _payload(push)
        check_length(len(body), MAX_PAYLOAD, "bytes")
        answer = await self._api.request(
            "POST",
            str(subscription.endpoint),
            headers=self._headers(push, subscription.origin),
            data=encrypted(body, subscription),
        )
        if not answer.ok:
            raise self._failure(answer)
        location = answer.headers.get("Location")
        return Accepted(answer.told(), location[:MAX_REFERENCE] if location else None)

    async def check(self) -> str:
        """There is no server to reach: each subscription has its own."""
        return "the VAPID key can sign; each subscription names its own push service"

    def _headers(self, push: Push, origin: str) -> Mapping[str, str]:
        headers = {
            "Authorization": self._vapid.authorization(origin),
            "Content-Type": "application/octet-stream",
            "Content-Encoding": "aes128gcm",
            "TTL": str(push.left(self._options.ttl, self._now())),
            "Topic": _topic(push),
        }
        return headers | ({"Urgency": push.priority} if push.priority else {})

    def _failure(self, answer: Answer) -> DeliveryFailure:
        return ERRORS.refusal(codes_of(answer.status), answer.told(), answer.retry_after(self._now()))


def subscription_of(text: str, *, secure: bool = True) -> Subscription:
    """Read a subscription; `secure`: its endpoint has to be an https:// URL, as RFC 8030 asks.

    Raises:
        PermanentFailure: `bad_address`, it is none.
    """
    try:
        document = orjson.loads(text)
        endpoint, keys = URL(document["endpoint"]), document["keys"]
        point, auth = _unbase64url(keys["p256dh"]), _unbase64url(keys["auth"])
        key = EllipticCurvePublicKey.from_encoded_point(SECP256R1(), point)
        endpoint.origin()
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _no_subscription("is no subscription: {endpoint, keys: {p256dh, auth}} in JSON") from None
    if endpoint.scheme not in ({"https"} if secure else {"https", "http"}) or endpoint.user is not None:
        raise _no_subscription("has an endpoint that is no https:// URL")
    if len(auth) != 16:
        raise _no_subscription("has an authentication secret that is not of 16 bytes")
    return Subscription(endpoint, key, auth)


def encrypted(body: bytes, subscription: Subscription) -> bytes:
    """The message as only the browser can read it; with a key of its own, as RFC 8291 asks for each."""
    sealed: bytes = http_ece.encrypt(
        body,
        private_key=generate_private_key(SECP256R1()),
        dh=_point(subscription.key),
        auth_secret=subscription.auth,
        version="aes128gcm",
    )
    return sealed


def _payload(push: Push) -> bytes:
    """What the site's service worker reads with `event.data.json()`.

    The form is that of Declarative Web Push (W3C Push API): browsers that know it show it without a service worker,
    if it has a title and a URL.
    """
    shown = {
        "title": push.title,
        "body": push.text,
        "navigate": push.url,
        "image": push.image,
        "tag": _topic(push),
        "data": push.data or None,
    }
    document: dict[str, Any] = {"notification": {name: value for name, value in shown.items() if value is not None}}
    if push.title and push.url:
        document = {"web_push": 8030} | document
    return orjson.dumps(document | ({"app_badge": push.badge} if push.badge is not None else {}))


def _topic(push: Push) -> str:
    """At most 32 characters of base64url (RFC 8030 §5.4)."""
    return push.collapse_id(32, "A-Za-z0-9_-")


def _no_subscription(why: str) -> PermanentFailure:
    return PermanentFailure(Reason.BAD_ADDRESS, f"the token {why}")


def _point(key: EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _unbase64url(text: str) -> bytes:
    """Raises ValueError: it is not base64url, with or without padding."""
    plain = text.rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except binascii.Error:
        raise ValueError("is not base64url") from None

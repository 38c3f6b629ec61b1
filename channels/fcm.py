"""Push through Firebase Cloud Messaging (HTTP v1 API) to Android, and over it to iOS and browsers."""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final

import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from channels.classify import scrub
from channels.http import Answer, Api, ApiOptions, ApiProvider, utc_now
from channels.limits import check_length
from channels.push import MAX_TTL, Push, TimeToLive, push_of, seconds, takes_target
from channels.surroundings import NOWHERE, Surroundings
from channels.taxonomy import Meaning, Rule, Table, codes_of
from domain.failures import UNSENT, DeliveryFailure, TransientFailure, UnknownOutcome
from domain.message import Accepted, Message
from domain.vocabulary import Reason

MAX_PAYLOAD: Final = 4096
"""Bytes of a message's notification and data, by Firebase's "About FCM messages"."""
SCOPE: Final = "https://www.googleapis.com/auth/firebase.messaging"
ASSERTED_FOR: Final = timedelta(hours=1)
"""The longest that Google takes an assertion for."""
EARLY: Final = timedelta(minutes=5)
"""Before its end a token is replaced: clocks differ, and a request takes its time."""
DEFAULT_WAIT: Final = timedelta(seconds=60)
"""After a 429 that names none: what Firebase's documentation asks for."""

ERRORS: Final = Table(
    provider="fcm",
    version="2026-11-23",
    source="Firebase Cloud Messaging, HTTP v1 REST reference (ErrorCode); google.rpc.ErrorInfo and Code for the rest",
    rules=(
        Rule("UNREGISTERED", Meaning.RECIPIENT, "the app is gone from the device, or the token has expired"),
        Rule("INVALID_ARGUMENT message.token", Meaning.RECIPIENT, "that is no registration token", Reason.BAD_ADDRESS),
        Rule("INVALID_ARGUMENT", Meaning.MESSAGE, "a field of the message is not what it should be"),
        Rule(
            "SENDER_ID_MISMATCH",
            Meaning.RECIPIENT,
            "the token belongs to another Firebase project",
            suppress=False,  # a wrong project in the settings must not suppress every device
        ),
        Rule("RATE_LIMIT_EXCEEDED", Meaning.RATE_LIMITED, "the project's quota of messages is exceeded"),
        Rule(
            "QUOTA_EXCEEDED",
            Meaning.TRANSIENT,
            "a sending limit is exceeded, which may be this device's own",
            Reason.RATE_LIMITED,
            provider_fault=False,
        ),
        Rule("UNAVAILABLE", Meaning.TRANSIENT, "the server is overloaded"),
        Rule("INTERNAL", Meaning.TRANSIENT, "an internal error"),
        Rule(
            "THIRD_PARTY_AUTH_ERROR",
            Meaning.TRANSIENT,
            "the project's APNs or Web Push key is missing or invalid: put it right in the Firebase console",
            Reason.AUTHENTICATION,
            provider_fault=False,  # devices of other platforms are reached all the same
        ),
        Rule("UNAUTHENTICATED", Meaning.CONFIGURATION, "the access token is refused", Reason.AUTHENTICATION),
        Rule(
            "PERMISSION_DENIED",
            Meaning.CONFIGURATION,
            "the service account may not send for this project, or the API is not enabled",
            Reason.AUTHENTICATION,
        ),
        Rule(
            "RESOURCE_EXHAUSTED",
            Meaning.TRANSIENT,
            "a quota is exceeded; which one is not told",
            Reason.RATE_LIMITED,
            provider_fault=False,
        ),
        Rule("DEADLINE_EXCEEDED", Meaning.UNKNOWN, "out of time within Google; it may have been taken"),
    ),
)
_PROJECTS_QUOTA: Final = "RATE_LIMIT_EXCEEDED"
"""The reason in `google.rpc.ErrorInfo`. The code alone is the same for a device that gets too many messages."""
_TOKEN_FIELD: Final = "message.token"  # noqa: S105 - the name of a field
_FIELD = re.compile(r"[\w.\[\]]{1,100}")


class ServiceAccount(BaseModel):
    """The JSON file that Google's console gives for a service account, as far as it is needed."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    project_id: Annotated[str, Field(pattern=r"^[\w:.-]+$")]
    client_email: Annotated[str, Field(min_length=3)]
    private_key: SecretStr
    private_key_id: str | None = None
    token_uri: Annotated[str, Field(pattern=r"^https?://\S+$")] = "https://oauth2.googleapis.com/token"  # noqa: S105

    @cached_property
    def key(self) -> RSAPrivateKey:
        """The private key, read: once, it takes 30 ms.

        Raises:
            ValueError: it is none.
        """
        found = load_pem_private_key(self.private_key.get_secret_value().encode(), None)
        if not isinstance(found, RSAPrivateKey):
            raise ValueError("is no RSA key")
        return found


class FcmOptions(ApiOptions):
    """Settings of one Firebase project.

    Attributes:
        credentials: the service account's JSON; or `credentials_file`, where it is.
        project: the project's id, if it is not the service account's own.
        ttl: how long a message is kept for a device that is away, if its content does not say.
    """

    base_url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")] = "https://fcm.googleapis.com"
    credentials: SecretStr | None = None
    credentials_file: Path | None = None
    project: Annotated[str, Field(pattern=r"^[\w:.-]+$")] | None = None
    ttl: TimeToLive = MAX_TTL

    @model_validator(mode="after")
    def _complete(self) -> "FcmOptions":
        if (self.credentials is None) == (self.credentials_file is None):
            raise ValueError("needs credentials or credentials_file, one of them")
        self.account()
        return self

    def account(self) -> ServiceAccount:
        """The service account.

        Raises:
            ValueError: it cannot be read, or is none.
        """
        given = "credentials" if self.credentials else "credentials_file"
        try:
            account = ServiceAccount.model_validate_json(self._document())
            account.key  # noqa: B018 - whether it can be read
        except (OSError, UnicodeDecodeError, ValidationError, ValueError, TypeError):
            raise ValueError(f"{given} should be the JSON of a service account, with its private_key") from None
        return account

    def _document(self) -> str:
        if self.credentials is not None:
            return self.credentials.get_secret_value()
        return self.credentials_file.read_text(encoding="utf-8") if self.credentials_file else ""


@dataclass(frozen=True, slots=True)
class _AccessToken:
    value: str = field(repr=False)
    until: datetime


class AccessTokens:
    """OAuth 2.0 access tokens for a service account, against an assertion that its key has signed (RFC 7523)."""

    def __init__(self, account: ServiceAccount, api: Api, now: Callable[[], datetime]) -> None:
        self._account, self._key = account, account.key
        self._api = api
        self._now = now
        self._lock = asyncio.Lock()
        self._token: _AccessToken | None = None

    async def get(self, refused: str | None = None) -> str:
        """One that is good for minutes yet, and is not the one that was refused. One is fetched at a time.

        Raises:
            TransientFailure: there is none to be had; nothing of a message was sent.
        """
        with UNSENT:
            async with self._lock:
                token = self._token
                if token is None or token.value == refused or token.until - EARLY <= self._now():
                    token = self._token = await self._fetched()
                return token.value

    async def _fetched(self) -> _AccessToken:
        asked = self._now()
        grant = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": self._assertion(asked)}
        try:
            answer = await self._api.request("POST", self._account.token_uri, data=grant)
        except UnknownOutcome as failure:  # of the request for a token, and not of a message
            raise TransientFailure(failure.reason, failure.detail, provider_fault=True) from None
        value, lifetime = answer.document.get("access_token"), answer.document.get("expires_in", 0)
        if not answer.ok or not isinstance(value, str) or not isinstance(lifetime, int):
            raise self._refused(answer)
        return _AccessToken(value, asked + timedelta(seconds=lifetime))

    def _assertion(self, now: datetime) -> str:
        claims = {
            "iss": self._account.client_email,
            "scope": SCOPE,
            "aud": self._account.token_uri,
            "iat": now,
            "exp": now + ASSERTED_FOR,
        }
        identity = {"kid": self._account.private_key_id} if self._account.private_key_id else None
        return jwt.encode(claims, self._key, algorithm="RS256", headers=identity)

    def _refused(self, answer: Answer) -> TransientFailure:
        """A 4xx (`invalid_grant`, `invalid_client`) is about the service account, or this machine's clock."""
        theirs = answer.status >= 500 or answer.status in {408, 429}
        reason = Reason.PROVIDER_UNAVAILABLE if theirs else Reason.AUTHENTICATION
        error = scrub(str(answer.document.get("error", "")), [self._account.client_email])
        detail = f"no access token: {answer.told(error)}"
        return TransientFailure(reason, detail, retry_after=answer.retry_after(self._now()), provider_fault=True)


class FcmProvider(ApiProvider[FcmOptions]):
    """Sends to the devices of one Firebase project.

    FCM takes no idempotency key: what is repeated may come twice, is marked, and takes its own first copy's place on
    the device (`tag`, `apns-collapse-id`).
    """

    def __init__(
        self,
        name: str,
        options: FcmOptions,
        _: Surroundings = NOWHERE,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(name, options, now=now)
        account = options.account()
        self._tokens = AccessTokens(account, self._api, now)
        self._url = options.url(f"/v1/projects/{options.project or account.project_id}/messages:send")

    def takes(self, recipient: Mapping[str, Any]) -> bool:
        """A device whose target says `fcm`, or this provider's name."""
        return takes_target(recipient, "fcm", self.name)

    async def send(self, message: Message) -> Accepted:
        """Hand over one message.

        Raises:
            DeliveryFailure: as `ERRORS` says.
        """
        document = _message(push_of(message), self._options.ttl, self._now())
        check_length(_size(document), MAX_PAYLOAD, "bytes")
        answer = await self._post({"message": document})
        name = answer.document.get("name")
        return Accepted(answer.told(scrub(str(name or ""))), str(name) if name else None)

    async def check(self) -> str:
        """Send to a topic that nobody reads, with `validate_only`: credentials, project and API, and no delivery."""
        topic = {"topic": "notipy-check", "data": {"check": "1"}}
        await self._post({"validate_only": True, "message": topic})
        return "the service account may send for the project"

    async def _post(self, document: Mapping[str, Any]) -> Answer:
        """Once; and once more with another access token, if it was the token that was refused."""
        token = await self._tokens.get()
        answer = await self._request(token, document)
        if answer.status == 401 and "THIRD_PARTY_AUTH_ERROR" not in _codes(answer):
            answer = await self._request(await self._tokens.get(refused=token), document)
        if not answer.ok:
            raise self._failure(answer)
        return answer

    async def _request(self, token: str, document: Mapping[str, Any]) -> Answer:
        return await self._api.request("POST", self._url, headers={"Authorization": f"Bearer {token}"}, json=document)

    def _failure(self, answer: Answer) -> DeliveryFailure:
        """By the code; the fields that it complains of are told, its words are not."""
        codes = _codes(answer)
        rule = ERRORS.rule(*codes)
        told = [codes[0], *([f": {rule.words}"] if rule else []), *(f"; {name}" for name in _fields(answer))]
        wait = answer.retry_after(self._now())
        limited = rule is not None and rule.told is Reason.RATE_LIMITED
        return ERRORS.failure(
            codes, f"HTTP {answer.status} {''.join(told)}", wait or (DEFAULT_WAIT if limited else None)
        )


# ---------------------------------------------------------------------------------------------------------------
# What is sent
# ---------------------------------------------------------------------------------------------------------------


def _message(push: Push, ttl: timedelta, now: datetime) -> dict[str, Any]:
    """The resource `Message` of the API."""
    data = ({"url": push.url} if push.url else {}) | dict(push.data)
    return {
        "token": push.token,
        "notification": _set(title=push.title, body=push.text, image=push.image),
        "data": {name: _text(value) for name, value in data.items()},
        "android": _android(push, push.left(ttl, now)),
        "apns": _apns(push, seconds(push.expires_at(ttl))),
        "webpush": _webpush(push, push.left(ttl, now)),
    }


def _size(document: Mapping[str, Any]) -> int:
    """Bytes that count for certain: what is shown, and the names and texts of the data."""
    texts = [*document["notification"].values(), *document["data"].keys(), *document["data"].values()]
    return sum(len(text.encode()) for text in texts)


def _android(push: Push, left: int) -> dict[str, Any]:
    shown = _set(tag=push.collapse_id(64, r"\x20-\x7e"), sound=push.sound, notification_count=push.badge)
    priority = push.priority.upper() if push.priority else None
    return _set(collapse_key=push.collapse, priority=priority, ttl=f"{left}s", notification=shown)


def _apns(push: Push, expires: int) -> dict[str, Any]:
    headers = {"apns-expiration": str(expires), "apns-collapse-id": push.collapse_id(64, r"\x21-\x7e")}
    if push.priority:
        headers["apns-priority"] = "10" if push.priority == "high" else "5"
    aps = _set(badge=push.badge, sound=push.sound) | ({"mutable-content": 1} if push.image else {})
    return {"headers": headers, "payload": {"aps": aps}} | (
        {"fcm_options": {"image": push.image}} if push.image else {}
    )


def _webpush(push: Push, left: int) -> dict[str, Any]:
    topic = push.collapse_id(32, "A-Za-z0-9_-")
    headers = {"TTL": str(left), "Topic": topic} | ({"Urgency": push.priority} if push.priority else {})
    link = push.url if push.url and push.url.startswith("https://") else None  # FCM takes no other
    return {"headers": headers, "notification": {"tag": topic}} | ({"fcm_options": {"link": link}} if link else {})


def _set(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _text(value: Any) -> str:
    """FCM's data are texts."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


# ---------------------------------------------------------------------------------------------------------------
# What is answered
# ---------------------------------------------------------------------------------------------------------------


def _codes(answer: Answer) -> tuple[str, ...]:
    """The project's quota or the token's field, where that is to blame; FCM's own code, Google's status, HTTP's."""
    error = _error(answer)
    own = [str(detail["errorCode"]) for detail in _details(error) if "errorCode" in detail]
    quota = [_PROJECTS_QUOTA] * any(detail.get("reason") == _PROJECTS_QUOTA for detail in _details(error))
    found = [*quota, *own, str(error.get("status", ""))]
    if "INVALID_ARGUMENT" in found and _blames_token(answer):
        found.insert(0, f"INVALID_ARGUMENT {_TOKEN_FIELD}")
    return (*filter(None, found), *codes_of(answer.status))


def _blames_token(answer: Answer) -> bool:
    """A malformed token is told as a field, or in the message alone."""
    words = str(_error(answer).get("message", "")).lower()
    return _TOKEN_FIELD in _fields(answer) or "registration token" in words


def _fields(answer: Answer) -> list[str]:
    """The names of the fields that `google.rpc.BadRequest` complains of."""
    violations = [each for detail in _details(_error(answer)) for each in _list(detail.get("fieldViolations"))]
    return [name for each in violations if _FIELD.fullmatch(name := str(each.get("field", "")))]


def _error(answer: Answer) -> Mapping[str, Any]:
    found = answer.document.get("error")
    return found if isinstance(found, dict) else {}


def _details(error: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from _list(error.get("details"))


def _list(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []

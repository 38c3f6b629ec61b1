"""What the chat providers share: how an address is read, what a message says, and requests to a recipient's own URL.

An address of `recipient.chat` is `<kind or provider name>:<target>`. Without what stands before the colon only a
target whose form is one service's alone is taken, so that none is ever handed to another service.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Self, TypeVar
from urllib.parse import quote

import orjson
from pydantic import AfterValidator, SecretStr

from channels.classify import LONGEST_RETRY_AFTER
from channels.connection_options import ConnectionOptions
from channels.http import Answer, Api, ApiProvider, GuardedApi, Options, utc_now
from domain.failures import DeliveryFailure, PermanentFailure, TransientFailure
from domain.message import Message
from domain.vocabulary import Reason

KINDS: Final = frozenset({"slack", "teams", "discord", "telegram", "mattermost", "apprise"})

_PREFIXED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]{0,49}):(.*)", re.DOTALL)
_URL = re.compile(r"https?://[^\s/?#]+\S*", re.IGNORECASE)
_WEB_URL = re.compile(r"https?://[^\s/?#\\@]+(?:[/?#]\S*)?", re.IGNORECASE)
_PING = re.compile(r"(?<![^\W_])@(?=\w)")
_BROKEN_PING: Final = "@\u200b"
"""With a zero-width space, which no service takes for a part of a name."""
_BARE_URL: Final = r"https?://[\w\-.~:/?#@!$&'()+,;=%]+"
_KEPT_IN_URL: Final = ":/?#[]@!$&'*+,;=%-._~"


# ---------------------------------------------------------------------------------------------------------------
# Addresses
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Addresses:
    """Which addresses one provider takes.

    Attributes:
        kind, name: either may stand before the colon.
        own: forms of a target that are this service's alone; they need nothing before them.
        named: forms that are taken after `kind:` or `name:`.
        default: the target where nothing stands after the colon; None: then there is none.
        urls: webhook URLs that are this service's for certain, for a recipient that brings one.
        allow_url, allow_http: whether it may bring one at all, and without TLS.
    """

    kind: str
    name: str
    own: re.Pattern[str] | None = None
    named: re.Pattern[str] | None = None
    default: str | None = field(default=None, repr=False)
    urls: re.Pattern[str] | None = None
    allow_url: bool = False
    allow_http: bool = False

    def target(self, recipient: Mapping[str, Any]) -> str | None:
        """Where this provider would send; None if the address is not for it."""
        prefix, target = split(str(recipient.get("chat") or ""))
        if prefix is not None and not self._is_me(prefix):
            return None
        if is_url(target):
            return target if self._takes_url(prefix, target) else None
        if prefix is not None and not target:
            return self.default
        form = self.own if prefix is None else self.named
        return target if form is not None and form.fullmatch(target) else None

    def _is_me(self, prefix: str) -> bool:
        """Also by its name, unless the name is that of another service."""
        return prefix == self.kind or (prefix == self.name and prefix not in KINDS)

    def _takes_url(self, prefix: str | None, url: str) -> bool:
        if not self.allow_url or not (self.allow_http or url.lower().startswith("https://")):
            return False
        return prefix is not None or (self.urls is not None and self.urls.fullmatch(url) is not None)


def split(address: str) -> tuple[str | None, str]:
    """What stands before the colon, in lower case, and the target; a URL has nothing before it."""
    match = None if is_url(address) else _PREFIXED.fullmatch(address)
    return (match[1].lower(), match[2].strip()) if match else (None, address)


def is_url(target: str) -> bool:
    """Whether the target is a whole webhook URL."""
    return _URL.fullmatch(target) is not None


def literally(target: str | None) -> re.Pattern[str] | None:
    """The form of this one target."""
    return re.compile(re.escape(target)) if target else None


# ---------------------------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------------------------


def _valid_hook(value: SecretStr) -> SecretStr:
    if not _URL.fullmatch(value.get_secret_value()):
        raise ValueError("should be the whole URL of the webhook, https://…")
    return value


HookUrl = Annotated[SecretStr, AfterValidator(_valid_hook)]
"""A webhook's URL: whoever knows it can post."""


class HookOptions(ConnectionOptions):
    """Settings of a service with incoming webhooks.

    Attributes:
        webhook_url: where it posts; the URL is the secret.
        allow_recipient_url: whether a recipient's address may be a webhook URL of its own.
        allow_private: whether such a URL may lead into a private network, and do without TLS.
    """

    webhook_url: HookUrl | None = None
    allow_recipient_url: bool = False
    allow_private: bool = False


# ---------------------------------------------------------------------------------------------------------------
# Content
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Content:
    """What a chat message says.

    Attributes:
        title: plain in either format.
        text: plain, or in the service's own markup where `markdown` is set.
        url: where the title, or a line of its own, leads.
        payload: fields of the service's request, over the usual ones.
    """

    title: str
    text: str
    url: str
    markdown: bool
    payload: Mapping[str, Any]

    @classmethod
    def of(cls, message: Message) -> Self:
        """As rendered.

        Raises:
            PermanentFailure: the payload is no JSON object, or the URL none of the web.
        """
        found = message.content
        return cls(
            title=found.get("title", ""),
            text=found.get("text", ""),
            url=_web_url(found.get("url", "").strip()),
            markdown=found.get("format") == "markdown",
            payload=_payload(found.get("payload")),
        )

    def lines(self, title: str, text: str) -> str:
        """Title and text below each other, whichever there are, and the URL if no title leads to it."""
        url = "" if self.title else self.url
        return "\n".join(line for line in (title, text, url) if line)


def _payload(text: str | None) -> Mapping[str, Any]:
    found = orjson.loads(text) if text else {}
    if not isinstance(found, dict):
        raise PermanentFailure(Reason.MESSAGE_REJECTED, "payload should be a JSON object")
    return found


def _web_url(url: str) -> str:
    """The URL with everything percent-encoded that could end a link in some markup."""
    if url and not _WEB_URL.fullmatch(url):
        raise PermanentFailure(Reason.MESSAGE_REJECTED, "url should be an absolute http:// or https:// URL")
    return quote(url, safe=_KEPT_IN_URL)


def without_pings(text: str) -> str:
    """No `@name` mentions anybody; e-mail addresses stay as they are."""
    return _PING.sub(_BROKEN_PING, text)


def escaper(special: str) -> Callable[[str], str]:
    """Puts a backslash before each of these characters, but for those in URLs, which would no longer lead anywhere."""
    pattern = re.compile(f"({_BARE_URL})|([{re.escape(special)}])")
    return lambda text: pattern.sub(lambda match: match[1] or f"\\{match[2]}", text)


# ---------------------------------------------------------------------------------------------------------------
# Requests
# ---------------------------------------------------------------------------------------------------------------


class RecipientApi(GuardedApi):
    """Requests to webhooks that recipients brought: what would be our settings' fault is their address's."""

    def __init__(self, options: HookOptions, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(options, headers, allow_private=options.allow_private)

    def _failure(self, error: Exception, *, sent: bool) -> DeliveryFailure:
        return of_recipient(super()._failure(error, sent=sent))


_SETTINGS: Final = frozenset(
    {Reason.AUTHENTICATION, Reason.NOT_CONFIGURED, Reason.SENDER_REJECTED, Reason.REDIRECT_REFUSED}
)


def of_recipient(failure: DeliveryFailure) -> DeliveryFailure:
    """The same failure, where the webhook is the recipient's own: wrong settings are then a wrong address."""
    failure.provider_fault = False
    if isinstance(failure, TransientFailure) and failure.reason in _SETTINGS:
        return PermanentFailure(Reason.ENDPOINT_REJECTED, failure.detail)
    return failure


def wait_of(answer: Answer, seconds: object, now: datetime) -> timedelta | None:
    """How long the service asks to be left alone: by its document, which has fractions of a second, or the header."""
    if isinstance(seconds, int | float) and math.isfinite(seconds) and seconds >= 0:
        return timedelta(seconds=min(seconds, LONGEST_RETRY_AFTER.total_seconds()))
    return answer.retry_after(now)


class ChatProvider(ApiProvider[Options]):
    """What every chat provider does alike."""

    def __init__(
        self,
        addresses: Addresses,
        options: Options,
        headers: Mapping[str, str] | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(addresses.name, options, now=now, api=Api(options, headers))
        self._addresses = addresses

    def takes(self, recipient: Mapping[str, Any]) -> bool:
        """Whoever has an address of this service's, or by this provider's name."""
        return self._addresses.target(recipient) is not None

    def _target(self, message: Message) -> str:
        target = self._addresses.target(message.recipient)
        if target is None:
            raise PermanentFailure(Reason.BAD_ADDRESS, f"the chat address is none of {self._addresses.kind}'s")
        return target


Hooked = TypeVar("Hooked", bound=HookOptions)


class HookProvider(ChatProvider[Hooked], ABC):
    """A provider that posts to webhooks: its own, or one that the recipient brought."""

    def __init__(
        self,
        addresses: Addresses,
        options: Hooked,
        headers: Mapping[str, str] | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(addresses, options, headers, now)
        self._hook = options.webhook_url
        self._recipients = RecipientApi(options, headers)

    async def close(self) -> None:
        """Close the kept connections."""
        await super().close()
        await self._recipients.close()

    async def _post(self, target: str, body: Mapping[str, Any], params: Mapping[str, str] | None = None) -> Answer:
        """To the webhook that the target means."""
        if is_url(target):
            return await self._recipients.request("POST", target, json=body, params=params)
        return await self._api.request("POST", self._own_url(), json=body, params=params)

    async def _delivered(self, target: str, body: Mapping[str, Any], params: Mapping[str, str] | None = None) -> Answer:
        """Post a message.

        Raises:
            DeliveryFailure: what the refusal means; of a recipient's own webhook, that its address is wrong.
        """
        answer = await self._post(target, body, params)
        if answer.ok:
            return answer
        failure = self._refusal(answer)
        raise of_recipient(failure) if is_url(target) else failure

    @abstractmethod
    def _refusal(self, answer: Answer) -> DeliveryFailure:
        """What an answer of a webhook's that is no 2xx means."""

    def _own_url(self) -> str:
        if self._hook is None:
            raise PermanentFailure(Reason.BAD_ADDRESS, "no webhook_url is set, and the recipient brings none")
        return self._hook.get_secret_value()

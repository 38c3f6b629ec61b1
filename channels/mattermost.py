"""Chat through Mattermost: an incoming webhook, or a bot's token and the API of version 4 (Create a post).

Mattermost has no documented idempotency key: what is repeated may come twice, and is marked.
"""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import Field, SecretStr, model_validator

from channels.chat import (
    Addresses,
    Content,
    HookOptions,
    HookProvider,
    escaper,
    is_url,
    without_pings,
)
from channels.classify import scrub
from channels.http import Answer, utc_now
from channels.limits import check_length
from channels.surroundings import NOWHERE, Surroundings
from channels.taxonomy import Meaning, Rule, Table, codes_of
from domain.failures import DeliveryFailure, PermanentFailure
from domain.message import Accepted, Message
from domain.vocabulary import Reason

MAX_TEXT: Final = 16_383
"""Characters of a post, by Mattermost's documentation since version 5.0."""

CHANNEL_ID: Final = re.compile(r"[a-z0-9]{26}")
CHANNEL: Final = re.compile(r"#?[a-z0-9][a-z0-9_-]{0,63}|@[a-z0-9][a-z0-9._-]{1,63}")
"""The name of a channel as it stands in its URL, or `@` and a user's name."""
URLS: Final = re.compile(r"https://\S+/hooks/[a-z0-9]{26}")
_ID = re.compile(r"[a-z0-9_.]{3,100}")

ERRORS: Final = Table(
    provider="mattermost",
    version="2026-11-23",
    source="Mattermost, API reference (AppError) and Incoming webhooks; ids as in the server's app/webhook.go,"
    " web/context.go and model/post.go",
    rules=(
        Rule("api.context.session_expired.app_error", Meaning.CONFIGURATION, "bad token", Reason.AUTHENTICATION),
        Rule(
            "api.context.permissions.app_error",
            Meaning.RECIPIENT,
            "the bot may not post in this channel: add it",
            suppress=False,
        ),
        Rule("api.context.invalid_body_param.app_error", Meaning.MESSAGE, "a field of the request is wrong"),
        Rule("api.post.create_post.can_not_post_to_deleted.error", Meaning.RECIPIENT, "the channel is archived"),
        Rule(
            "model.post.is_valid.message_length.app_error",
            Meaning.MESSAGE,
            "the text is too long",
            Reason.MESSAGE_TOO_LARGE,
        ),
        Rule("web.incoming_webhook.disabled.app_error", Meaning.CONFIGURATION, "incoming webhooks are turned off"),
        Rule("web.incoming_webhook.invalid.app_error", Meaning.CONFIGURATION, "there is no such webhook"),
        Rule(
            "web.incoming_webhook.channel.app_error",
            Meaning.RECIPIENT,
            "there is no such channel",
            Reason.BAD_ADDRESS,
            suppress=False,
        ),
        Rule(
            "web.incoming_webhook.user.app_error",
            Meaning.RECIPIENT,
            "there is no such user",
            Reason.BAD_ADDRESS,
            suppress=False,
        ),
        Rule(
            "web.incoming_webhook.channel_locked.app_error",
            Meaning.RECIPIENT,
            "the webhook is locked to another channel",
            suppress=False,
        ),
        Rule(
            "web.incoming_webhook.permissions.app_error",
            Meaning.RECIPIENT,
            "the webhook's creator may not post in this channel",
            suppress=False,
        ),
        Rule("web.incoming_webhook.text.app_error", Meaning.MESSAGE, "the message has no text"),
        Rule("web.incoming_webhook.parse.app_error", Meaning.MESSAGE, "the request cannot be read"),
    ),
)


class MattermostOptions(HookOptions):
    """Settings of one server: `webhook_url`, or `base_url` and `token`.

    Attributes:
        base_url: of the server, with a token.
        token: a bot's, or a personal access token.
        channel: where `mattermost:` alone leads: with a token the id of a channel; with a webhook a channel's name or
            `@user`, in place of the channel that the webhook was made for.
    """

    base_url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")] | None = None
    token: SecretStr | None = None
    channel: Annotated[str, Field(min_length=1, max_length=64)] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "MattermostOptions":
        if (self.token is None) != (self.base_url is None):
            raise ValueError("token and base_url need each other")
        if self.token is not None and self.webhook_url is not None:
            raise ValueError("has both token and webhook_url: use one of them")
        if self.token is None and self.webhook_url is None and not self.allow_recipient_url:
            raise ValueError("needs webhook_url, or base_url and token")
        form = CHANNEL_ID if self.token is not None else CHANNEL
        if self.channel is not None and not form.fullmatch(self.channel):
            raise ValueError("channel should be a channel's id with a token, its name or @user with a webhook")
        return self


def addresses(name: str, options: MattermostOptions) -> Addresses:
    """With a token the id of a channel, which is Mattermost's alone; with a webhook names, which are not."""
    hooked = options.webhook_url is not None
    by_token = options.token is not None
    return Addresses(
        "mattermost",
        name,
        own=CHANNEL_ID if by_token else None,
        named=CHANNEL_ID if by_token else CHANNEL if hooked else None,
        default=options.channel if by_token else (options.channel or "") if hooked else None,
        urls=URLS,
        allow_url=options.allow_recipient_url,
        allow_http=options.allow_private,
    )


class MattermostProvider(HookProvider[MattermostOptions]):
    """Posts to one server."""

    def __init__(
        self,
        name: str,
        options: MattermostOptions,
        _: Surroundings = NOWHERE,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(addresses(name, options), options, now=now)

    async def send(self, message: Message) -> Accepted:
        """Post one message.

        Raises:
            DeliveryFailure: as `ERRORS` says.
        """
        target = self._target(message)
        content = Content.of(message)
        if self._options.token is None or is_url(target):
            return await self._by_hook(target, request_body(content, "text"))
        return await self._by_token({**request_body(content, "message"), "channel_id": target})

    async def check(self) -> str:
        """Ask whose token it is, or whether the webhook's server answers; nothing is sent."""
        if self._options.token is not None:
            answer = await self._call("GET", "/users/me")
            if not answer.ok:
                raise self._refusal(answer)
            return f"the token is that of {scrub(str(answer.document.get('username', 'a user')))}"
        if self._hook is None:
            return "each recipient brings its own webhook URL"
        server, _, _ = self._own_url().rpartition("/hooks/")
        answer = await self._api.request("GET", f"{server}/api/v4/system/ping")
        if not answer.ok:
            raise self._refusal(answer)
        return "the server answers; its webhook cannot be tried without posting"

    async def _by_hook(self, target: str, body: dict[str, Any]) -> Accepted:
        if target and not is_url(target):
            body["channel"] = target.removeprefix("#")
        else:
            body.pop("channel", None)
        answer = await self._delivered(target, body)
        return Accepted(answer.told())

    async def _by_token(self, body: Mapping[str, Any]) -> Accepted:
        answer = await self._call("POST", "/posts", body)
        if not answer.ok:
            raise self._refusal(answer)
        number = answer.document.get("id")
        return Accepted(answer.told(number), number)

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        token = self._options.token.get_secret_value() if self._options.token else ""
        url = f"{(self._options.base_url or '').rstrip('/')}/api/v4{path}"
        return await self._api.request(method, url, headers={"Authorization": f"Bearer {token}"}, json=body)

    def _refusal(self, answer: Answer) -> DeliveryFailure:
        """By the error's id; its words are in the server's language, and may hold names."""
        found = answer.document.get("id")
        code = found if isinstance(found, str) and _ID.fullmatch(found) else ""
        codes = (code, *codes_of(answer.status))
        return ERRORS.refusal(codes, answer.told(code), answer.retry_after(self._now()))


_escaped: Final = escaper("\\`*_{}[]#+->~|")


def escape(text: str) -> str:
    """Mattermost's Markdown, and whatever would mention somebody."""
    return _escaped(without_pings(text))


def request_body(content: Content, field: str) -> dict[str, Any]:
    """What is posted, without the channel; `field` is what the text is called. Nobody is mentioned by `@name`.

    Raises:
        PermanentFailure: it is too long.
    """
    title = escape(content.title)
    if title and content.url:
        title = f"[{title}]({content.url})"
    text = without_pings(content.text) if content.markdown else escape(content.text)
    body = {field: content.lines(f"**{title}**" if title else "", text), **content.payload}
    if not isinstance(body[field], str):
        raise PermanentFailure(Reason.MESSAGE_REJECTED, f"payload.{field} should be a string")
    check_length(len(body[field]), MAX_TEXT)
    return body

"""Chat through Discord: Execute Webhook, with `wait=true`, so that a message that was not stored is an error.

A webhook takes no idempotency key (`nonce` is for bots alone): what is repeated may come twice, and is marked.
"""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import Field, model_validator

from channels.chat import (
    Addresses,
    Content,
    HookOptions,
    HookProvider,
    escaper,
    is_url,
    wait_of,
)
from channels.classify import scrub
from channels.http import Answer, utc_now
from channels.limits import check_length
from channels.surroundings import NOWHERE, Surroundings
from channels.taxonomy import Meaning, Rule, Table, codes_of
from domain.failures import DeliveryFailure, PermanentFailure
from domain.message import Accepted, Message
from domain.vocabulary import Reason

MAX_TEXT: Final = 2000
"""Characters of `content`, by the documentation of Execute Webhook."""
USER_AGENT: Final = "DiscordBot (NotiPy, 0.1)"
"""In the form that Discord's API reference asks for."""

THREAD: Final = re.compile(r"[1-9]\d{16,19}")
"""An id (snowflake) of a thread; Telegram's have 16 digits at most."""
URLS: Final = re.compile(r"https://((ptb|canary)\.)?discord(app)?\.com/api/(v\d+/)?webhooks/\d+/\S+")

ERRORS: Final = Table(
    provider="discord",
    version="2026-11-23",
    source="Discord, Opcodes and Status Codes (JSON error codes) and Rate Limits",
    rules=(
        Rule("10015", Meaning.CONFIGURATION, "unknown webhook: it was deleted"),
        Rule("10003", Meaning.RECIPIENT, "unknown channel or thread", Reason.BAD_ADDRESS, suppress=False),
        Rule("50027", Meaning.CONFIGURATION, "invalid webhook token", Reason.AUTHENTICATION),
        Rule("40001", Meaning.CONFIGURATION, "unauthorised", Reason.AUTHENTICATION),
        Rule("50001", Meaning.CONFIGURATION, "missing access", Reason.AUTHENTICATION),
        Rule("50013", Meaning.CONFIGURATION, "lacks permissions", Reason.AUTHENTICATION),
        Rule("220001", Meaning.CONFIGURATION, "the webhook's channel is a forum: set thread_id"),
        Rule("220003", Meaning.MESSAGE, "the webhook's channel is no forum: thread_name cannot be used"),
        Rule("50083", Meaning.RECIPIENT, "the thread is archived", suppress=False),
        Rule("40005", Meaning.MESSAGE, "the request is too large", Reason.MESSAGE_TOO_LARGE),
        Rule("50006", Meaning.MESSAGE, "the message is empty"),
        Rule("50035", Meaning.MESSAGE, "invalid form body"),
        Rule("50109", Meaning.MESSAGE, "the request is no valid JSON"),
        Rule("200000", Meaning.MESSAGE, "blocked by automatic moderation", Reason.POLICY_REJECTED),
        Rule("240000", Meaning.MESSAGE, "blocked by the filter for harmful links", Reason.POLICY_REJECTED),
        Rule("20016", Meaning.RATE_LIMITED, "the channel is in slow mode"),
        Rule("20028", Meaning.RATE_LIMITED, "too many messages in this channel"),
        Rule("20029", Meaning.RATE_LIMITED, "too many messages on this server"),
        Rule("40062", Meaning.RATE_LIMITED, "the resource is rate limited"),
        Rule("130000", Meaning.TRANSIENT, "the API is overloaded"),
    ),
)


class DiscordOptions(HookOptions):
    """Settings of one webhook.

    Attributes:
        thread_id: of the webhook's channel, where `discord:` alone leads; without it the channel itself.
    """

    thread_id: Annotated[str, Field(pattern=r"^[1-9]\d{16,19}$", coerce_numbers_to_str=True)] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "DiscordOptions":
        if self.webhook_url is None and not self.allow_recipient_url:
            raise ValueError("needs webhook_url")
        if self.webhook_url is None and self.thread_id is not None:
            raise ValueError("thread_id needs webhook_url")
        return self


def addresses(name: str, options: DiscordOptions) -> Addresses:
    """The webhook's channel, or a thread of it."""
    own = THREAD if options.webhook_url else None
    return Addresses(
        "discord",
        name,
        own=own,
        named=own,
        default=(options.thread_id or "") if options.webhook_url else None,
        urls=URLS,
        allow_url=options.allow_recipient_url,
        allow_http=options.allow_private,
    )


class DiscordProvider(HookProvider[DiscordOptions]):
    """Posts to one webhook."""

    def __init__(
        self,
        name: str,
        options: DiscordOptions,
        _: Surroundings = NOWHERE,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(addresses(name, options), options, {"User-Agent": USER_AGENT}, now)

    async def send(self, message: Message) -> Accepted:
        """Post one message.

        Raises:
            DeliveryFailure: as `ERRORS` says.
        """
        target = self._target(message)
        thread = {"thread_id": target} if target and not is_url(target) else {}
        answer = await self._delivered(target, request_body(Content.of(message)), {"wait": "true"} | thread)
        number = answer.document.get("id")
        return Accepted(answer.told(number), number)

    async def check(self) -> str:
        """Get Webhook with Token; nothing is sent."""
        if self._hook is None:
            return "each recipient brings its own webhook URL"
        answer = await self._api.request("GET", self._own_url())
        if not answer.ok:
            raise self._refusal(answer)
        return f"the webhook is {scrub(str(answer.document.get('name', 'there')))}"

    def _refusal(self, answer: Answer) -> DeliveryFailure:
        """By Discord's own code; its words may hold what was sent."""
        code = str(answer.document.get("code", ""))
        codes = (code, *codes_of(answer.status))
        known = code if code.isdigit() and code != "0" else ""
        wait = wait_of(answer, answer.document.get("retry_after"), self._now())
        return ERRORS.refusal(codes, answer.told(known), wait)


escape: Final = escaper("\\*_~`|>#-[]<")
"""Discord's Markdown, its links and its mentions."""


def request_body(content: Content) -> dict[str, Any]:
    """What is posted. Whatever it says, nobody is mentioned, unless the payload has `allowed_mentions` of its own.

    Raises:
        PermanentFailure: it is too long.
    """
    title = escape(content.title)
    if title and content.url:
        title = f"[{title}](<{content.url}>)"
    text = content.lines(f"**{title}**" if title else "", content.text if content.markdown else escape(content.text))
    body = {"content": text, "allowed_mentions": {"parse": []}, **content.payload}
    if not isinstance(body["content"], str | None):
        raise PermanentFailure(Reason.MESSAGE_REJECTED, "payload.content should be a string")
    check_length(len(body["content"] or ""), MAX_TEXT)
    return body

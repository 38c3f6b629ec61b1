"""Chat through Slack: an incoming webhook, or a bot's token and `chat.postMessage` of the Web API.

Slack has no documented idempotency key: what is repeated may come twice, and is marked.
"""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, Final

import orjson
from pydantic import Field, SecretStr, model_validator

from channels.chat import Addresses, Content, HookOptions, HookProvider, is_url, literally
from channels.classify import scrub
from channels.http import Answer, utc_now
from channels.limits import check_length
from channels.surroundings import NOWHERE, Surroundings
from channels.taxonomy import Meaning, Rule, Table, codes_of
from domain.failures import DeliveryFailure, PermanentFailure, UnknownOutcome
from domain.message import Accepted, Message
from domain.vocabulary import Reason

MAX_TEXT: Final = 40_000
"""Characters of `text`, beyond which Slack cuts it off, by its documentation of `chat.postMessage`; it recommends
4,000."""

TARGET: Final = re.compile(r"[CDGUW][A-Z0-9]{7,20}|#[^\s#@:]{1,80}")
"""The id of a channel, a conversation or a member, or a channel's name."""
URLS: Final = re.compile(r"https://hooks\.slack(-gov)?\.com/\S+")

_WORD = re.compile(r"[a-z_]{2,80}")
_MENTION = re.compile(r"<(?=[!@#])")

ERRORS: Final = Table(
    provider="slack",
    version="2026-11-23",
    source="Slack, chat.postMessage (errors) and Sending messages using incoming webhooks (handling errors)",
    rules=(
        # the Web API
        Rule("not_authed", Meaning.CONFIGURATION, "no token was given", Reason.AUTHENTICATION),
        Rule("invalid_auth", Meaning.CONFIGURATION, "the token is not valid, or not from here", Reason.AUTHENTICATION),
        Rule("account_inactive", Meaning.CONFIGURATION, "the token's owner is gone", Reason.AUTHENTICATION),
        Rule("token_revoked", Meaning.CONFIGURATION, "the token was revoked", Reason.AUTHENTICATION),
        Rule("token_expired", Meaning.CONFIGURATION, "the token has expired", Reason.AUTHENTICATION),
        Rule("not_allowed_token_type", Meaning.CONFIGURATION, "this kind of token may not post", Reason.AUTHENTICATION),
        Rule("missing_scope", Meaning.CONFIGURATION, "the token lacks the scope chat:write", Reason.AUTHENTICATION),
        Rule("no_permission", Meaning.CONFIGURATION, "the token's permissions do not do", Reason.AUTHENTICATION),
        Rule("team_access_not_granted", Meaning.CONFIGURATION, "no access to this workspace", Reason.AUTHENTICATION),
        Rule("access_denied", Meaning.CONFIGURATION, "access is denied", Reason.AUTHENTICATION),
        Rule("ekm_access_denied", Meaning.CONFIGURATION, "administrators have suspended posting"),
        Rule("enterprise_is_restricted", Meaning.CONFIGURATION, "cannot be called from an Enterprise"),
        Rule("org_login_required", Meaning.TRANSIENT, "the workspace is being migrated"),
        Rule("team_added_to_org", Meaning.TRANSIENT, "the workspace is being migrated"),
        Rule("ratelimited", Meaning.RATE_LIMITED, "too many requests"),
        Rule("rate_limited", Meaning.RATE_LIMITED, "too many messages"),
        Rule("service_unavailable", Meaning.TRANSIENT, "the service is unavailable for now"),
        Rule("request_timeout", Meaning.TRANSIENT, "the request came incomplete"),
        Rule("internal_error", Meaning.UNKNOWN, "an error on Slack's side; part of it may have been done"),
        Rule("fatal_error", Meaning.UNKNOWN, "a grave error on Slack's side; part of it may have been done"),
        Rule("channel_not_found", Meaning.RECIPIENT, "no such channel, or not for this bot", suppress=False),
        Rule("not_in_channel", Meaning.RECIPIENT, "the bot is not in the channel: invite it", suppress=False),
        Rule("is_archived", Meaning.RECIPIENT, "the channel is archived"),
        Rule(
            "restricted_action", Meaning.RECIPIENT, "the workspace forbids it", Reason.POLICY_REJECTED, suppress=False
        ),
        Rule(
            "restricted_action_read_only_channel",
            Meaning.RECIPIENT,
            "the channel is read-only",
            Reason.POLICY_REJECTED,
            suppress=False,
        ),
        Rule(
            "restricted_action_thread_only_channel",
            Meaning.MESSAGE,
            "the channel takes replies in threads only",
            Reason.POLICY_REJECTED,
        ),
        Rule("msg_too_long", Meaning.MESSAGE, "the text is too long", Reason.MESSAGE_TOO_LARGE),
        Rule("msg_blocks_too_long", Meaning.MESSAGE, "the blocks are too long", Reason.MESSAGE_TOO_LARGE),
        Rule("no_text", Meaning.MESSAGE, "the message has no text"),
        Rule("invalid_blocks", Meaning.MESSAGE, "the blocks are not valid"),
        Rule("invalid_blocks_format", Meaning.MESSAGE, "the blocks are no list of blocks"),
        Rule("too_many_attachments", Meaning.MESSAGE, "more than 100 attachments"),
        Rule("invalid_arguments", Meaning.MESSAGE, "the request has wrong arguments"),
        # incoming webhooks
        Rule("invalid_payload", Meaning.MESSAGE, "the request cannot be understood"),
        Rule("webhook user_not_found", Meaning.CONFIGURATION, "the webhook's member does not exist"),
        Rule("webhook channel_not_found", Meaning.CONFIGURATION, "the webhook's channel does not exist"),
        Rule("channel_is_archived", Meaning.CONFIGURATION, "the webhook's channel is archived"),
        Rule("action_prohibited", Meaning.CONFIGURATION, "an administrator has restricted the webhook"),
        Rule("posting_to_general_channel_denied", Meaning.CONFIGURATION, "an administrator has restricted #general"),
        Rule("no_service", Meaning.CONFIGURATION, "the webhook is disabled, removed or wrong"),
        Rule("no_service_id", Meaning.CONFIGURATION, "the webhook's URL is incomplete"),
        Rule("no_active_hooks", Meaning.CONFIGURATION, "the webhook is disabled"),
        Rule("no_team", Meaning.CONFIGURATION, "the workspace is wrong or gone"),
        Rule("team_disabled", Meaning.CONFIGURATION, "the workspace is no longer active"),
        Rule("invalid_token", Meaning.CONFIGURATION, "the webhook's URL is wrong", Reason.AUTHENTICATION),
        Rule("rollup_error", Meaning.TRANSIENT, "an error on Slack's side"),
    ),
)


class SlackOptions(HookOptions):
    """Settings of one Slack app: `webhook_url`, or `token`.

    Attributes:
        token: of the app's bot, `xoxb-…`, with the scope `chat:write`.
        channel: with a token, where `slack:` alone leads; with a webhook, the channel that it posts to, so that
            recipients can name it.
    """

    base_url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")] = "https://slack.com/api"
    token: SecretStr | None = None
    channel: Annotated[str, Field(pattern=r"^([CDGUW][A-Z0-9]{7,20}|#[^\s#@:]{1,80})$")] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "SlackOptions":
        if self.token is not None and self.webhook_url is not None:
            raise ValueError("has both token and webhook_url: use one of them")
        if self.token is None and self.webhook_url is None and not self.allow_recipient_url:
            raise ValueError("needs webhook_url or token")
        return self


def addresses(name: str, options: SlackOptions) -> Addresses:
    """With a token any channel; a webhook has but its own."""
    by_token = options.token is not None
    default = options.channel if by_token else "" if options.webhook_url is not None else None
    return Addresses(
        "slack",
        name,
        own=TARGET if by_token else None,
        named=TARGET if by_token else literally(options.channel) if options.webhook_url else None,
        default=default,
        urls=URLS,
        allow_url=options.allow_recipient_url,
        allow_http=options.allow_private,
    )


class SlackProvider(HookProvider[SlackOptions]):
    """Posts as one Slack app."""

    def __init__(
        self,
        name: str,
        options: SlackOptions,
        _: Surroundings = NOWHERE,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(addresses(name, options), options, now=now)

    async def send(self, message: Message) -> Accepted:
        """Post one message.

        Raises:
            DeliveryFailure: as `ERRORS` says; also for a 200 that says `"ok": false`.
        """
        target = self._target(message)
        body = request_body(Content.of(message))
        if self._options.token is None or is_url(target):
            return await self._by_hook(target, body)
        return await self._by_token({**body, "channel": target})

    async def check(self) -> str:
        """Ask whose token it is; a webhook is sent an empty message, which Slack refuses if the URL is right."""
        if self._options.token is not None:
            answer = await self._call("auth.test", {})
            if not answer.document.get("ok"):
                raise self._failure(answer)
            return f"the token is a bot's of {scrub(str(answer.document.get('team', 'a workspace')))}"
        if self._hook is None:
            return "each recipient brings its own webhook URL"
        answer = await self._post("", {})
        if not answer.ok and code_of(answer) not in {"no_text", "invalid_payload"}:
            raise self._refusal(answer)
        return "the webhook is there"

    async def _by_hook(self, target: str, body: Mapping[str, Any]) -> Accepted:
        answer = await self._delivered(target, body)
        return Accepted(answer.told())

    async def _by_token(self, body: Mapping[str, Any]) -> Accepted:
        answer = await self._call("chat.postMessage", body)
        found = answer.document
        if answer.ok and found.get("ok") is True:
            stamp = found.get("ts")
            return Accepted(answer.told(stamp), f"{found.get('channel')}/{stamp}")
        raise self._failure(answer)

    async def _call(self, method: str, body: Mapping[str, Any]) -> Answer:
        token = self._options.token.get_secret_value() if self._options.token else ""
        url = f"{self._options.base_url.rstrip('/')}/{method}"
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json; charset=utf-8"}
        return await self._api.request("POST", url, headers=headers, data=orjson.dumps(body))

    def _refusal(self, answer: Answer) -> DeliveryFailure:
        return self._failure(answer, "webhook ")

    def _failure(self, answer: Answer, mode: str = "") -> DeliveryFailure:
        """Slack's own word says more than the status, which is 200 for most refusals of the Web API."""
        code = code_of(answer)
        if answer.ok and not code:
            return UnknownOutcome(Reason.OUTCOME_UNKNOWN, f"HTTP {answer.status} with an answer that cannot be read")
        codes = (f"{mode}{code}", code, *codes_of(answer.status))
        return ERRORS.refusal(codes, answer.told(code), answer.retry_after(self._now()))


def code_of(answer: Answer) -> str:
    """The Web API's `error`, or the one word that an incoming webhook answers; empty if it is neither."""
    found = answer.document.get("error") or answer.body[:100].decode(errors="replace").strip()
    return found if isinstance(found, str) and _WORD.fullmatch(found) else ""


def request_body(content: Content) -> dict[str, Any]:
    """What is posted, without the channel.

    Plain text is escaped and its markup turned off (`mrkdwn`); in Slack's own markup no mention is left.

    Raises:
        PermanentFailure: it is too long.
    """
    text = _marked_up(content) if content.markdown else _plain(content)
    body = {"text": text, "mrkdwn": content.markdown, "link_names": False, **content.payload}
    if not isinstance(body["text"], str):
        raise PermanentFailure(Reason.MESSAGE_REJECTED, "payload.text should be a string")
    check_length(len(body["text"]), MAX_TEXT)
    return body


def escape(text: str) -> str:
    """As Slack asks for it: these three characters, and no others."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _plain(content: Content) -> str:
    return "\n".join(escape(line) for line in (content.title, content.text, content.url) if line)


def _marked_up(content: Content) -> str:
    title = escape(content.title)
    if title and content.url:
        title = f"<{escape(content.url)}|{title}>"
    return content.lines(f"*{title}*" if title else "", _MENTION.sub("&lt;", content.text))

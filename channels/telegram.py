"""Chat through a Telegram bot (`sendMessage` of the Bot API).

The Bot API takes no idempotency key: what is repeated may come twice, and is marked.
"""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, SecretStr

from channels.chat import Addresses, ChatProvider, Content, wait_of, without_pings
from channels.classify import scrub
from channels.http import Answer, ApiOptions, utc_now
from channels.limits import check_length
from channels.surroundings import NOWHERE, Surroundings
from channels.taxonomy import Meaning, Rule, Table, codes_of
from domain.failures import DeliveryFailure, PermanentFailure, UnknownOutcome
from domain.message import Accepted, Message
from domain.vocabulary import Reason

MAX_TEXT: Final = 4096
"""Characters of `text` after its markup is read, by the documentation of `sendMessage`."""

TARGET: Final = re.compile(r"-?[1-9]\d{0,15}|@[A-Za-z][A-Za-z0-9_]{3,31}")
"""The id of a chat, which has 52 bits at most, or the name of a public channel or group."""

_SPECIAL = re.compile(r"([_*\[\]()~`>#+\-=|{}.!\\])")
_MENTION_BY_ID = re.compile(r"tg://", re.IGNORECASE)

ERRORS: Final = Table(
    provider="telegram",
    version="2026-11-23",
    source="Telegram, Bot API (Making requests, ResponseParameters); descriptions as its server tdlib/telegram-bot-api"
    " has them",
    rules=(
        Rule("HTTP 401", Meaning.CONFIGURATION, "the token is not valid", Reason.AUTHENTICATION),
        Rule("HTTP 404", Meaning.CONFIGURATION, "the token or the base URL is wrong", Reason.AUTHENTICATION),
        Rule("HTTP 403", Meaning.RECIPIENT, "the bot may not write to this chat", suppress=False),
        Rule("bot was blocked by the user", Meaning.RECIPIENT, "the user has blocked the bot"),
        Rule("user is deactivated", Meaning.RECIPIENT, "the account was deleted"),
        Rule("bot was kicked from the group chat", Meaning.RECIPIENT, "the bot was removed from the group"),
        Rule("bot was kicked from the supergroup chat", Meaning.RECIPIENT, "the bot was removed from the group"),
        Rule("bot was kicked from the channel chat", Meaning.RECIPIENT, "the bot was removed from the channel"),
        Rule("the group chat was deleted", Meaning.RECIPIENT, "the group was deleted"),
        Rule(
            "bot can't initiate conversation with a user",
            Meaning.RECIPIENT,
            "the user has not started the bot",
            suppress=False,
        ),
        Rule("bots can't send messages to bots", Meaning.RECIPIENT, "the chat is another bot's", Reason.BAD_ADDRESS),
        Rule("chat not found", Meaning.RECIPIENT, "no such chat, or the user has not started the bot", suppress=False),
        Rule("user not found", Meaning.RECIPIENT, "no such user", suppress=False),
        Rule("PEER_ID_INVALID", Meaning.RECIPIENT, "no such chat", Reason.BAD_ADDRESS),
        Rule("chat_id is empty", Meaning.RECIPIENT, "no chat was named", Reason.BAD_ADDRESS),
        Rule(
            "group chat was upgraded to a supergroup chat",
            Meaning.RECIPIENT,
            "the group has another id now, and does not take messages under it either",
        ),
        Rule("have no rights to send a message", Meaning.RECIPIENT, "the bot may not write here", suppress=False),
        Rule(
            "not enough rights to send text messages to the chat",
            Meaning.RECIPIENT,
            "the bot may not write here",
            suppress=False,
        ),
        Rule(
            "need administrator rights in the channel chat",
            Meaning.RECIPIENT,
            "the bot is no administrator of the channel",
            suppress=False,
        ),
        Rule("CHAT_WRITE_FORBIDDEN", Meaning.RECIPIENT, "the bot may not write here", suppress=False),
        Rule("message thread not found", Meaning.MESSAGE, "the topic does not exist"),
        Rule("TOPIC_CLOSED", Meaning.MESSAGE, "the topic is closed"),
        Rule("message text is empty", Meaning.MESSAGE, "the message has no text"),
        Rule("text must be non-empty", Meaning.MESSAGE, "the message has no text"),
        Rule("message is too long", Meaning.MESSAGE, "the text is too long", Reason.MESSAGE_TOO_LARGE),
        Rule("can't parse entities", Meaning.MESSAGE, "the text is no MarkdownV2: escape it, or use plain"),
    ),
)


def _valid_token(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"\d{5,20}:[A-Za-z0-9_-]{20,100}", value.get_secret_value()):
        raise ValueError("should be the bot's token as BotFather gave it, 123456:ABC…")
    return value


def _valid_chat(value: str) -> str:
    if not TARGET.fullmatch(value):
        raise ValueError("should be the number of a chat, or the @name of a public channel")
    return value


class TelegramOptions(ApiOptions):
    """Settings of one bot.

    Attributes:
        token: of the bot.
        chat_id: where `telegram:` alone leads.
        silent: whether messages come without a sound.
        previews: whether links are shown with a preview.
    """

    base_url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")] = "https://api.telegram.org"
    token: Annotated[SecretStr, AfterValidator(_valid_token)]
    chat_id: Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_valid_chat)] | None = None
    silent: bool = False
    previews: bool = True


class TelegramProvider(ChatProvider[TelegramOptions]):
    """Writes as one bot."""

    def __init__(
        self,
        name: str,
        options: TelegramOptions,
        _: Surroundings = NOWHERE,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        addresses = Addresses("telegram", name, own=TARGET, named=TARGET, default=options.chat_id)
        super().__init__(addresses, options, now=now)

    async def send(self, message: Message) -> Accepted:
        """Send one message. A group that has become a supergroup is followed to its new id at once.

        Raises:
            DeliveryFailure: as `ERRORS` says; also for a 200 that says `"ok": false`.
        """
        target = self._target(message)
        body = self._manner() | request_body(Content.of(message))
        answer = await self._call("sendMessage", {**body, "chat_id": chat_id(target)})
        moved = _parameters(answer).get("migrate_to_chat_id")
        if isinstance(moved, int):
            answer = await self._call("sendMessage", {**body, "chat_id": moved})
        return self._accepted(answer)

    async def check(self) -> str:
        """Ask who the bot is; send nothing."""
        answer = await self._call("getMe", {})
        if answer.document.get("ok") is not True:
            raise self._failure(answer)
        found = answer.document.get("result")
        return f"the bot is {scrub(str(found.get('first_name', 'there')))}" if isinstance(found, dict) else "there"

    def _manner(self) -> dict[str, Any]:
        manner: dict[str, Any] = {"disable_notification": True} if self._options.silent else {}
        return manner if self._options.previews else manner | {"link_preview_options": {"is_disabled": True}}

    async def _call(self, method: str, body: Mapping[str, Any]) -> Answer:
        url = self._options.url(f"/bot{self._options.token.get_secret_value()}/{method}")
        return await self._api.request("POST", url, json=body)

    def _accepted(self, answer: Answer) -> Accepted:
        found = answer.document
        if not answer.ok or found.get("ok") is not True:
            raise self._failure(answer)
        result = found.get("result")
        if not isinstance(result, dict):
            return Accepted(answer.told())
        chat, number = (result.get("chat") or {}).get("id"), result.get("message_id")
        return Accepted(answer.told(f"message {number}"), f"{chat}/{number}")

    def _failure(self, answer: Answer) -> DeliveryFailure:
        """By the description, which may hold an address and is not told itself."""
        if answer.ok and "ok" not in answer.document:
            return UnknownOutcome(Reason.OUTCOME_UNKNOWN, f"HTTP {answer.status} with an answer that cannot be read")
        status = _status(answer)
        codes = (_description(answer), *codes_of(status))
        wait = wait_of(answer, _parameters(answer).get("retry_after"), self._now())
        return ERRORS.refusal(codes, f"HTTP {status}", wait)


def chat_id(target: str) -> int | str:
    """As the Bot API has it: a number, or `@name`."""
    return target if target.startswith("@") else int(target)


def _status(answer: Answer) -> int:
    found = answer.document.get("error_code")
    return found if isinstance(found, int) and answer.ok else answer.status


def _parameters(answer: Answer) -> Mapping[str, Any]:
    found = answer.document.get("parameters")
    return found if isinstance(found, dict) else {}


def _description(answer: Answer) -> str:
    """`Bad Request: can't parse entities: …` is `can't parse entities`."""
    parts = str(answer.document.get("description", "")).split(": ")
    return parts[1] if len(parts) > 1 else parts[0]


def request_body(content: Content) -> dict[str, Any]:
    """What is sent, without the chat.

    Plain text has no `parse_mode`, and its title is bold by an entity: nothing in it can be markup.

    Raises:
        PermanentFailure: it is too long, or its payload would make markup of plain text.
    """
    if "text" in content.payload:
        body = dict(content.payload)
    elif {"parse_mode", "entities"} & content.payload.keys():
        raise PermanentFailure(Reason.MESSAGE_REJECTED, "payload.parse_mode and .entities need payload.text")
    else:
        body = {**(_marked_up(content) if content.markdown else _plain(content)), **content.payload}
    if "parse_mode" not in body:  # with markup only Telegram can tell how long it is
        check_length(len(str(body["text"])), MAX_TEXT)
    return body


def _plain(content: Content) -> dict[str, Any]:
    title = without_pings(content.title)
    text = content.lines(title, without_pings(content.text))
    entities = _entities(len(title.encode("utf-16-le")) // 2, content.url) if title else []
    return {"text": text} | ({"entities": entities} if entities else {})


def _entities(length: int, url: str) -> list[dict[str, Any]]:
    """Of the title, whose length is in UTF-16 code units."""
    bold = {"type": "bold", "offset": 0, "length": length}
    return [bold, {"type": "text_link", "offset": 0, "length": length, "url": url}] if url else [bold]


def _marked_up(content: Content) -> dict[str, Any]:
    title = escape(without_pings(content.title))
    if title and content.url:
        title = f"[{title}]({content.url})"
    text = _MENTION_BY_ID.sub("tg:/\u200b/", without_pings(content.text))
    url = "" if content.title else escape(content.url)
    lines = (f"*{title}*" if title else "", text, url)
    return {"text": "\n".join(line for line in lines if line), "parse_mode": "MarkdownV2"}


def escape(text: str) -> str:
    """Every character that MarkdownV2 gives a meaning, with a backslash before it."""
    return _SPECIAL.sub(r"\\\1", text)

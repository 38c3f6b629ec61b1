"""Chat through Microsoft Teams: an Adaptive Card, posted to a workflow.

The workflow starts "when a Teams webhook request is received". The Office 365 connectors of before, and their format
MessageCard, are retired. A workflow answers 202 as soon as it has started, and takes no idempotency key: what is
repeated may come twice, and is marked.
"""

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
from pydantic import model_validator

from channels.chat import Addresses, Content, HookOptions, HookProvider
from channels.http import Answer, utc_now
from channels.limits import check_length
from channels.surroundings import NOWHERE, Surroundings
from channels.taxonomy import Meaning, Rule, Table, codes_of
from domain.failures import DeliveryFailure
from domain.message import Accepted, Message
from domain.vocabulary import Reason

MAX_BYTES: Final = 28 * 1024
"""Of a message, by the documentation of Teams' webhooks and of its Power Automate connector."""
CARD_TYPE: Final = "application/vnd.microsoft.card.adaptive"
CARD: Final = {
    "type": "AdaptiveCard",
    "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
    "version": "1.4",
}
URLS: Final = re.compile(r"https://[a-z0-9.-]+\.(logic\.azure\.com|api\.powerplatform\.com)(:443)?/\S*workflows/\S+")

_WORD = re.compile(r"[A-Za-z]{3,60}")

ERRORS: Final = Table(
    provider="teams",
    version="2026-11-23",
    source="Microsoft Teams, Create incoming webhooks (limits); Azure Logic Apps, Request trigger (error.code)",
    rules=(
        Rule("WorkflowTriggerIsNotEnabled", Meaning.CONFIGURATION, "the workflow is turned off or was deleted"),
        Rule("WorkflowNotFound", Meaning.CONFIGURATION, "the workflow was deleted"),
        Rule(
            "DirectApiAuthorizationRequired",
            Meaning.CONFIGURATION,
            "the URL lacks its signature",
            Reason.AUTHENTICATION,
        ),
        Rule("TriggerInputSchemaMismatch", Meaning.MESSAGE, "the workflow's schema does not allow the message"),
        Rule("HTTP 404", Meaning.CONFIGURATION, "there is no such workflow"),
        Rule("HTTP 410", Meaning.CONFIGURATION, "the workflow or its URL is gone"),
        Rule("HTTP 413", Meaning.MESSAGE, "the message is larger than 28 KB", Reason.MESSAGE_TOO_LARGE),
        Rule("HTTP 429", Meaning.RATE_LIMITED, "too many requests; a webhook takes four a second"),
    ),
)


class TeamsOptions(HookOptions):
    """Settings of one workflow."""

    @model_validator(mode="after")
    def _one_way(self) -> "TeamsOptions":
        if self.webhook_url is None:
            if not self.allow_recipient_url:
                raise ValueError("needs webhook_url")
            return self
        host = urlsplit(self.webhook_url.get_secret_value()).hostname or ""
        if host.endswith((".webhook.office.com", "outlook.office.com")):
            raise ValueError("webhook_url is that of an Office 365 connector, which are retired: create a workflow")
        return self


class TeamsProvider(HookProvider[TeamsOptions]):
    """Posts to one workflow."""

    def __init__(
        self,
        name: str,
        options: TeamsOptions,
        _: Surroundings = NOWHERE,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        addresses = Addresses(
            "teams",
            name,
            default="" if options.webhook_url is not None else None,
            urls=URLS,
            allow_url=options.allow_recipient_url,
            allow_http=options.allow_private,
        )
        super().__init__(addresses, options, now=now)

    async def send(self, message: Message) -> Accepted:
        """Post one card.

        Raises:
            DeliveryFailure: as `ERRORS` says.
        """
        target = self._target(message)
        answer = await self._delivered(target, request_body(Content.of(message)))
        return Accepted(answer.told())

    async def check(self) -> str:
        """A workflow cannot be asked anything without starting it: the next delivery will tell."""
        if self._hook is None:
            return "each recipient brings its own webhook URL"
        return "a workflow cannot be tried without posting"

    def _refusal(self, answer: Answer) -> DeliveryFailure:
        error = answer.document.get("error")
        found = error.get("code") if isinstance(error, dict) else None
        code = found if isinstance(found, str) and _WORD.fullmatch(found) else ""
        codes = (code, *codes_of(answer.status))
        return ERRORS.refusal(codes, answer.told(code), answer.retry_after(self._now()))


def request_body(content: Content) -> dict[str, Any]:
    """What is posted: one card, whose fields the payload may replace.

    Raises:
        PermanentFailure: it is too large.
    """
    card = {**CARD, "body": list(_elements(content)), **content.payload}
    body = {"type": "message", "attachments": [{"contentType": CARD_TYPE, "contentUrl": None, "content": card}]}
    check_length(len(orjson.dumps(body)), MAX_BYTES, "bytes")
    return body


def _elements(content: Content) -> Iterator[dict[str, Any]]:
    """Title, text and link. In a RichTextBlock nothing is markup; a TextBlock has Teams' Markdown."""
    if content.title:
        yield _line(content.title, content.url, weight="Bolder", size="Medium")
    if content.markdown:
        yield {"type": "TextBlock", "text": content.text, "wrap": True}
    else:
        yield from _paragraphs(content.text)
    if content.url and not content.title:
        yield _line(content.url, content.url)


def _paragraphs(text: str) -> Iterator[dict[str, Any]]:
    """A block for each line: what clients do with a line break inside of one differs."""
    gap = True
    for line in text.splitlines():
        if line.strip():
            yield _line(line) | ({} if gap else {"spacing": "None"})
        gap = not line.strip()


def _line(text: str, url: str = "", **style: str) -> dict[str, Any]:
    run: dict[str, Any] = {"type": "TextRun", "text": text, **style}
    if url:
        run["selectAction"] = {"type": "Action.OpenUrl", "url": url}
    return {"type": "RichTextBlock", "inlines": [run]}

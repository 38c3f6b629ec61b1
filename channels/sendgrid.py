"""E-mail through SendGrid (`POST /v3/mail/send` of Twilio SendGrid's v3 Mail API)."""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import timedelta
from email.header import Header
from typing import Annotated, Any, Final

import orjson
from pydantic import Field, SecretStr

from channels.classify import parse_retry_after
from channels.fetch import File
from channels.http import Answer
from channels.limits import check_length
from channels.mail import recipient_of, with_images
from channels.mail_api import MailApiOptions, MailApiProvider, answered
from channels.mail_fields import Fields, read_fields
from channels.mailbox import CONTROL, Address
from channels.taxonomy import Meaning, Rule, Table, codes_of
from domain.failures import DeliveryFailure, PermanentFailure, TransientFailure
from domain.message import Accepted, Message
from domain.vocabulary import Reason

DELIVERY_ARGUMENT: Final = "notipy-delivery"
"""Of `custom_args`: SendGrid's events about a message carry it."""
SCOPE: Final = "mail.send"

_INDEX = re.compile(r"\.\d+")

ERRORS: Final = Table(
    provider="sendgrid",
    version="2026-11-23",
    source="Twilio SendGrid documentation: v3 API errors, Mail Send errors, 4XX API errors and troubleshooting",
    rules=(
        Rule(
            "personalizations.to.email", Meaning.RECIPIENT, "the recipient's address is not valid", Reason.BAD_ADDRESS
        ),
        Rule("from", Meaning.CONFIGURATION, "From is no verified sender identity", Reason.SENDER_REJECTED),
        Rule("from.email", Meaning.CONFIGURATION, "the sender's address is not valid", Reason.SENDER_REJECTED),
        Rule("maximum credits exceeded", Meaning.CONFIGURATION, "the plan's credits are used up"),
        Rule("HTTP 403", Meaning.CONFIGURATION, "the key may not do this, or is blocked", Reason.AUTHENTICATION),
        Rule("HTTP 429", Meaning.RATE_LIMITED, "too many requests"),
    ),
)
"""SendGrid has no codes but the statuses: the other rules are a field of the request that an error names, without the
positions in lists (`personalizations.0.to.0.email`), or an error's whole message."""


class SendGridOptions(MailApiOptions):
    """Settings of one account of SendGrid's.

    Attributes:
        base_url: of the region; of the EU: `https://api.eu.sendgrid.com`.
        api_key: that may send mail (the scope `mail.send`).
        categories: by which SendGrid's statistics group messages.
        test_mode: SendGrid validates messages and does not deliver them (its sandbox mode).
    """

    base_url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")] = "https://api.sendgrid.com"
    api_key: Annotated[SecretStr, Field(min_length=1)]
    categories: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=255)], ...], Field(max_length=10)] = ()
    test_mode: bool = False


class SendGridProvider(MailApiProvider[SendGridOptions]):
    """Sends mail over one account. SendGrid takes no idempotency key: a repetition may come twice, and is marked."""

    async def send(self, message: Message) -> Accepted:
        """Hand over one mail.

        Raises:
            DeliveryFailure: as `ERRORS` says; or the message itself rules it out.
        """
        options = self._options
        files = await self._files.of(message, options.timeout)
        recipient = recipient_of(message)
        fields = read_fields(message.content, recipient)
        body = orjson.dumps(_document(message, recipient, fields, files) | self._account())
        check_length(len(body), options.max_message_bytes, "bytes")
        headers = {"Content-Type": "application/json"}
        answer = await self._request("POST", "/v3/mail/send", headers, body)
        if not answer.ok:
            raise self._failure(answer)
        return answered(answer.status, answer.headers.get("X-Message-Id"), fields.left_out)

    async def check(self) -> str:
        """Ask what the key may do; send nothing."""
        answer = await self._request("GET", "/v3/scopes", {}, None)
        if not answer.ok:
            raise self._failure(answer)
        if SCOPE not in answer.document.get("scopes", [SCOPE]):
            raise TransientFailure(Reason.AUTHENTICATION, f"the key lacks the scope {SCOPE}", provider_fault=True)
        return "the key may send mail"

    def _account(self) -> dict[str, Any]:
        """What the settings add to every request."""
        document: dict[str, Any] = {"from": _mailbox(self._options.sender)}
        if self._options.categories:
            document["categories"] = list(self._options.categories)
        if self._options.test_mode:
            document["mail_settings"] = {"sandbox_mode": {"enable": True}}
        return document

    async def _request(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        key = self._options.api_key.get_secret_value()
        authorized = {"Authorization": f"Bearer {key}", **headers}
        return await self._api.request(method, self._options.url(path), headers=authorized, data=body)

    def _failure(self, answer: Answer) -> DeliveryFailure:
        """The fields that the errors name say more than the status; their words hold addresses, and are left out."""
        codes = (*_codes(answer), *codes_of(answer.status))
        return ERRORS.refusal(codes, answer.told(), self._wait(answer))

    def _wait(self, answer: Answer) -> timedelta | None:
        """Retry-After; else until the second of the epoch in X-RateLimit-Reset."""
        wait = answer.retry_after(self._now())
        reset = answer.headers.get("X-RateLimit-Reset", "")
        if wait is not None or answer.status != 429 or not reset.isdecimal():
            return wait
        seconds = max(0, int(reset) - int(self._now().timestamp()))
        return parse_retry_after(str(seconds), self._now())


def _document(message: Message, recipient: Address, fields: Fields, files: Sequence[File]) -> dict[str, Any]:
    """The message, as the Mail Send endpoint has it; what is empty is left out, because it would be refused."""
    subject = message.content.get("subject", "")
    if CONTROL.search(subject):
        raise PermanentFailure(Reason.MESSAGE_REJECTED, "the subject contains a line break or a control character")
    content, shown = _content(message, files)
    envelope = {"to": [recipient], "cc": fields.cc, "bcc": fields.bcc}
    document = {
        "personalizations": [{name: [*map(_mailbox, whom)] for name, whom in envelope.items() if whom}],
        "reply_to_list": [_mailbox(mailbox) for mailbox in fields.reply_to],
        "subject": subject,
        "content": content,
        "attachments": [_attachment(file, shown.get(position)) for position, file in enumerate(files)],
        "headers": {name: _encoded(text) for name, text in (*fields.headers, ("Auto-Submitted", "auto-generated"))},
        "custom_args": {DELIVERY_ARGUMENT: message.tag},
    }
    return {name: value for name, value in document.items() if value}


def _encoded(text: str) -> str:
    """SendGrid wants what is not ASCII in encoded words (RFC 2047)."""
    return text if text.isascii() else Header(text, "utf-8").encode(linesep="")


def _mailbox(mailbox: Address) -> dict[str, str]:
    return {"email": mailbox.email} | ({"name": mailbox.name} if mailbox.name else {})


def _content(message: Message, files: Sequence[File]) -> tuple[list[dict[str, str]], Mapping[int, str]]:
    """The plainest alternative first, as SendGrid asks, none that is empty; and the ids of the files in the HTML."""
    number = f"{message.idempotency_key.replace('/', '.')}@notipy"
    html, shown = with_images(message.content.get("html", ""), files, number)
    parts = (("text/plain", message.content.get("text", "")), ("text/html", html))
    return [{"type": kind, "value": text} for kind, text in parts if text], shown


def _attachment(file: File, content_id: str | None) -> dict[str, str]:
    attachment = {
        "content": b64encode(file.content).decode(),
        "type": file.content_type,
        "filename": file.filename,
        "disposition": "inline" if content_id else "attachment",
    }
    return attachment | ({"content_id": content_id} if content_id else {})


def _codes(answer: Answer) -> list[str]:
    """What the errors of an answer name: fields without their positions, and whole messages."""
    errors = answer.document.get("errors")
    found = [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []
    fields = [_INDEX.sub("", str(error.get("field") or "")) for error in found]
    return [name for name in (*fields, *(str(error.get("message") or "") for error in found)) if name]

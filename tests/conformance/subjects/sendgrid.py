"""SendGrid, as the reference of its v3 Mail Send endpoint has it.

SendGrid's own types say which fields there are. No package registry has its OpenAPI document: what a field may hold,
`SCHEMA` says after the documentation (https://www.twilio.com/docs/sendgrid/api-reference/mail-send/mail-send, "Request
body"), for the fields that NotiPy uses.
"""

from typing import Any

import jsonschema_rs

from channels.taxonomy import Meaning
from domain.vocabulary import Channel
from tests.conformance.over_http import HttpSubject, Request, Response
from tests.conformance.subject import TEXT, message
from tests.published import faults

KEY = "SG.a-key-of-sendgrid.0123456789"
EMAIL = "ana.private@example.org"
NUMBER = "14c5d75ce93.dfd.64b469"


def closed(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def texts(**more: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": {"type": "string"}} | more


WORD = {"type": "string", "minLength": 1}
MAILBOX = closed(("email",), email={"type": "string", "format": "email"}, name={"type": "string"})
MAILBOXES = {"type": "array", "minItems": 1, "maxItems": 1000, "items": MAILBOX}
NOT_OURS = (
    "x-sg-id|x-sg-eid|received|dkim-signature|content-type|content-transfer-encoding|to|from|subject|reply-to|cc|bcc"
)
"""Headers that a request may not set, by the documentation of `headers`."""
HEADERS = texts(propertyNames={"pattern": f"^(?!(?i:{NOT_OURS})$)", "type": "string"})
SCHEMA = closed(
    ("personalizations", "from", "subject", "content"),
    personalizations={
        "type": "array",
        "minItems": 1,
        "maxItems": 1000,
        "items": closed(("to",), to=MAILBOXES, cc=MAILBOXES, bcc=MAILBOXES),
    },
    reply_to=MAILBOX,
    reply_to_list=MAILBOXES,
    subject=WORD,
    content={"type": "array", "minItems": 1, "items": closed(("type", "value"), type=WORD, value=WORD)},
    attachments={
        "type": "array",
        "items": closed(
            ("content", "filename"),
            content=WORD | {"contentEncoding": "base64"},
            type=WORD,
            filename=WORD,
            disposition={"enum": ["inline", "attachment"]},
            content_id={"type": "string"},
        ),
    },
    headers=HEADERS,
    categories={"type": "array", "uniqueItems": True, "maxItems": 10, "items": WORD | {"maxLength": 255}},
    custom_args=texts(),
    mail_settings=closed(sandbox_mode=closed(("enable",), enable={"type": "boolean"})),
    **{"from": MAILBOX},
)
VALIDATOR = jsonschema_rs.Draft202012Validator(SCHEMA, validate_formats=True)


def refusal(status: int, words: str, field: str | None = None, headers: dict[str, str] | None = None) -> Response:
    error = {"message": words, "field": field, "help": f"{EMAIL} {KEY}"}
    return Response(status, {"errors": [error]}, headers=headers or {})


def faults_in(request: Request) -> list[str]:
    return [*faults("sendgrid", request.json), *(error.message for error in VALIDATOR.iter_errors(request.json))]


def requested(request: Request) -> None:
    assert (request.method, request.path) == ("POST", "/v3/mail/send")
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.headers["Content-Type"] == "application/json"
    document = request.json
    assert faults_in(request) == []
    assert document == {
        "personalizations": [{"to": [{"email": EMAIL, "name": "Ána"}]}],
        "from": {"email": "no-reply@shop.example", "name": "Shop"},
        "subject": f"{TEXT}!",
        "content": [{"type": "text/plain", "value": TEXT}, {"type": "text/html", "value": f"<p>{TEXT}</p>"}],
        "headers": {"Auto-Submitted": "auto-generated"},
        "custom_args": {"notipy-delivery": "d1_1"},
        "categories": ["orders"],
        "mail_settings": {"sandbox_mode": {"enable": True}},
    }


SUBJECT = HttpSubject(
    kind="sendgrid",
    channel=Channel.EMAIL,
    options=lambda url, _: {
        "base_url": url,
        "api_key": KEY,
        "from": "Shop <no-reply@shop.example>",
        "categories": ["orders"],
        "test_mode": True,
        "max_message_bytes": 100_000,
    },
    message=message(Channel.EMAIL, {"email": EMAIL, "name": "Ána"}),
    address=EMAIL,
    success=Response(202, headers={"X-Message-Id": NUMBER}),
    failures={
        "the recipient": (
            refusal(400, "Does not contain a valid address.", "personalizations.0.to.0.email"),
            Meaning.RECIPIENT,
        ),
        "the sender": (
            refusal(403, "The from address does not match a verified Sender Identity.", "from"),
            Meaning.CONFIGURATION,
        ),
        "the content": (refusal(400, "The content value must be a string.", "content.0.value"), Meaning.MESSAGE),
        "wrong key": (
            refusal(401, "The provided authorization grant is invalid, expired, or revoked"),
            Meaning.CONFIGURATION,
        ),
        "no credits": (refusal(401, "Maximum credits exceeded"), Meaning.CONFIGURATION),
        "not allowed": (refusal(403, "access forbidden"), Meaning.CONFIGURATION),
        "too large": (refusal(413, "content too large"), Meaning.MESSAGE),
        "too many requests": (refusal(429, "too many requests", None, {"Retry-After": "7"}), Meaning.RATE_LIMITED),
        "a fault": (refusal(500, "internal server error"), Meaning.TRANSIENT),
        "no document": (Response(503, text="<html>"), Meaning.TRANSIENT),
        "strange errors": (Response(400, {"errors": "none"}), Meaning.MESSAGE),
    },
    requested=requested,
    secrets=(KEY,),
    reference=NUMBER,
    too_long=message(Channel.EMAIL, {"email": EMAIL}, content={"subject": "s", "text": "x" * 100_000}),
)

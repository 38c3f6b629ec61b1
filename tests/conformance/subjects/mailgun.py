"""Mailgun, as the reference of its Messages API has it."""

import email
from base64 import b64decode
from email import policy
from email.message import EmailMessage
from typing import Any

from channels.taxonomy import Meaning
from domain.vocabulary import Channel
from tests.conformance.over_http import HttpSubject, Request, Response
from tests.conformance.subject import TEXT, message
from tests.published import faults

KEY = "key-0123456789abcdef-of-mailgun"
DOMAIN = "mg.shop.example"
EMAIL = "ana.private@example.org"
SENT = {"id": f"<d1.1@{DOMAIN}>", "message": "Queued. Thank you."}
LIMIT = "is not allowed to send: recipient limit exceeded, try again after Mon, 25 Aug 2025 07:00:31 UTC"


def refusal(status: int, words: str, headers: dict[str, str] | None = None) -> Response:
    return Response(status, {"message": f"{words} ({EMAIL}, {KEY})"}, headers=headers or {})


def form_of(request: Request) -> dict[str, list[bytes]]:
    """The fields of a `multipart/form-data` body, read by the standard library."""
    head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
    whole = email.message_from_bytes(head + request.body, policy=policy.HTTP)
    assert whole.get_content_type() == "multipart/form-data"
    fields: dict[str, list[bytes]] = {}
    for part in whole.iter_parts():
        name = part.get_param("name", header="content-disposition")
        # a part of message/rfc822 is read as the message that it is
        inner: Any = part.get_payload(0) if part.is_multipart() else part
        content = inner.as_bytes() if part.is_multipart() else inner.get_payload(decode=True)
        fields.setdefault(str(name), []).append(content)
    return fields


def mail_of(request: Request) -> EmailMessage:
    (raw,) = form_of(request)["message"]
    return email.message_from_bytes(raw, policy=policy.default)


def faults_in(request: Request) -> list[str]:
    """By the fields as Mailgun's own library takes them: of recipients and tags there may be several."""
    form = {name: [each.decode() for each in values] for name, values in form_of(request).items()}
    several = {"to", "o:tag"}
    return faults("mailgun", {name: each if name in several else "".join(each) for name, each in form.items()})


def requested(request: Request) -> None:
    assert (request.method, request.path) == ("POST", f"/v3/{DOMAIN}/messages.mime")
    scheme, _, login = request.headers["Authorization"].partition(" ")
    assert (scheme, b64decode(login).decode()) == ("Basic", f"api:{KEY}")
    assert faults_in(request) == []
    form = form_of(request)
    assert {name: value for name, value in form.items() if name != "message"} == {
        "to": [EMAIL.encode()],
        "v:notipy-delivery": [b"d1_1"],
        "o:tag": [b"orders", b"shop"],
        "o:testmode": [b"yes"],
    }
    mail = mail_of(request)
    assert mail.defects == []
    assert (mail["from"], mail["to"], mail["subject"]) == (f"Shop <no-reply@{DOMAIN}>", EMAIL, f"{TEXT}!")
    assert mail["message-id"] == f"<d1.1@{DOMAIN}>"
    plain, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert plain is not None
    assert html is not None
    assert plain.get_content().strip() == TEXT
    assert html.get_content().strip() == f"<p>{TEXT}</p>"


SUBJECT = HttpSubject(
    kind="mailgun",
    channel=Channel.EMAIL,
    options=lambda url, _: {
        "base_url": url,
        "api_key": KEY,
        "domain": DOMAIN,
        "from": f"Shop <no-reply@{DOMAIN}>",
        "tags": ["orders", "shop"],
        "test_mode": True,
        "max_message_bytes": 100_000,
    },
    message=message(Channel.EMAIL, {"email": EMAIL}),
    address=EMAIL,
    success=Response(200, SENT),
    failures={
        "the recipient": (refusal(400, "'to' parameter is not a valid address. please check"), Meaning.RECIPIENT),
        "the sender": (refusal(400, "'from' parameter is not a valid address. please check"), Meaning.CONFIGURATION),
        "an unknown fault": (refusal(400, "the message is strange"), Meaning.MESSAGE),
        "wrong key": (Response(401, text="Forbidden"), Meaning.CONFIGURATION),
        "not activated": (
            refusal(403, f"Domain {DOMAIN} is not allowed to send: Please activate your Mailgun account."),
            Meaning.CONFIGURATION,
        ),
        "a sandbox": (refusal(400, "Sandbox subdomains are for test purposes only."), Meaning.CONFIGURATION),
        "no such domain": (refusal(404, f"Domain not found: {DOMAIN}"), Meaning.CONFIGURATION),
        "too large": (Response(413, text="Request Entity Too Large"), Meaning.MESSAGE),
        "the recipients' limit": (refusal(420, f"Domain {DOMAIN} {LIMIT}"), Meaning.RATE_LIMITED),
        "too many requests": (refusal(429, "Too many requests", {"Retry-After": "7"}), Meaning.RATE_LIMITED),
        "a fault": (refusal(500, "Internal Server Error"), Meaning.TRANSIENT),
        "no document": (Response(502, text="<html>"), Meaning.UNKNOWN),
    },
    requested=requested,
    secrets=(KEY,),
    reference=f"d1.1@{DOMAIN}",
    too_long=message(Channel.EMAIL, {"email": EMAIL}, content={"subject": "s", "text": "x" * 100_000}),
)

"""What the e-mail providers with an API add to the conformance suite: copies, attachments, limits, SES at moto's."""

import asyncio
import email
import ssl
import sys
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from email import policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
import trustme
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.server import ThreadedMotoServer
from moto.ses.models import ses_backends
from pydantic import Base64Bytes

from channels.mailgun import MailgunOptions, MailgunProvider
from channels.registry import make_provider
from channels.sendgrid import SendGridOptions, SendGridProvider
from channels.ses import SesOptions
from domain.event import Attachment
from domain.failures import DeliveryFailure, PermanentFailure, TransientFailure, UnknownOutcome
from domain.message import Message
from domain.ports import Provider
from domain.vocabulary import Channel, Reason
from tests.conformance.over_http import HttpSubject, Response
from tests.conformance.subject import message
from tests.conformance.subjects import mailgun, sendgrid, ses
from tests.contract.peers import serving
from tests.fakes import START

ANA, BEN, EVA, BOSS = "ana@example.org", "ben@example.org", "eva@example.org", "boss@example.org"
PNG = b"\x89PNG\r\n\x1a\n"
FULL = {
    "subject": "Order 1042",
    "text": "It is on its way.",
    "html": '<p>It is on its way. <img src="cid:logo.png"></p>',
    "cc": f"Ben <{BEN}>, nobody",
    "bcc": f"{BOSS}, {ANA}",
    "reply_to": f"Ána <{EVA}>",
    "priority": "high",
    "unsubscribe": "https://shop.example/u/1 mailto:stop@shop.example",
    "headers.X-Order": "1042",
}
SUBJECTS = [mailgun.SUBJECT, sendgrid.SUBJECT, ses.SUBJECT]
Make = Callable[..., Provider]


def _b64(data: bytes) -> Base64Bytes:
    return b64encode(data)


FILES = (
    Attachment(filename="Rechnung ü.pdf", content_type="application/pdf", content=_b64(b"%PDF")),
    Attachment(filename="logo.png", content_type="image/png", content=_b64(PNG)),
)
MESSAGE = Message("d1", "d1/1", Channel.EMAIL, {"email": ANA}, FULL, START, FILES)


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Makes a provider as its subject has it; what was made is closed at the end."""
    made: list[Provider] = []

    def provider(subject: HttpSubject, url: str, **options: Any) -> Provider:
        settings = dict(subject.options(url, tmp_path)) | options
        made.append(make_provider(Channel.EMAIL, "primary", subject.kind, settings))
        return made[-1]

    yield provider
    for each in made:
        await each.close()


async def failure_of(provider: Provider, message: Message = MESSAGE) -> DeliveryFailure:
    with pytest.raises(DeliveryFailure) as caught:
        await provider.send(message)
    return caught.value


# --- everything that a notification can say of a mail -----------------------------------------------------------------


def _composed(mail: EmailMessage) -> None:
    assert mail.defects == []
    assert (mail["to"], mail["cc"], mail["bcc"]) == (ANA, f"Ben <{BEN}>", None)
    assert mail["reply-to"] == f"Ána <{EVA}>"
    assert (mail["importance"], mail["x-order"]) == ("high", "1042")
    assert mail["list-unsubscribe"] == "<https://shop.example/u/1>, <mailto:stop@shop.example>"
    parts = {part.get_filename(): part for part in mail.walk() if part.get_filename()}
    assert {name: part.get_content() for name, part in parts.items()} == {"Rechnung ü.pdf": b"%PDF", "logo.png": PNG}
    html = mail.get_body(("html",))
    assert html is not None
    assert f"cid:{parts['logo.png']['content-id'][1:-1]}" in html.get_content()


async def test_mailgun_gets_the_mail_and_everybody_in_its_envelope(make: Make) -> None:
    async with mailgun.SUBJECT.peer() as peer:
        answer = await make(mailgun.SUBJECT, peer.url).send(MESSAGE)
    assert answer.endswith("1 copy left out: no e-mail address")
    form = mailgun.form_of(peer.requests[0])
    assert form["to"] == [ANA.encode(), BEN.encode(), BOSS.encode()]
    _composed(mailgun.mail_of(peer.requests[0]))


async def test_ses_gets_the_mail_and_everybody_in_its_envelope(make: Make) -> None:
    async with ses.SUBJECT.peer() as peer:
        answer = await make(ses.SUBJECT, peer.url).send(MESSAGE)
    assert answer.endswith("1 copy left out: no e-mail address")
    document = peer.requests[0].json
    assert document["Destination"] == {"ToAddresses": [ANA], "BccAddresses": [BEN, BOSS]}
    raw = b64decode(document["Content"]["Raw"]["Data"])
    _composed(email.message_from_bytes(raw, policy=policy.default))


async def test_sendgrid_gets_the_same_in_its_own_fields(make: Make) -> None:
    async with sendgrid.SUBJECT.peer() as peer:
        answer = await make(sendgrid.SUBJECT, peer.url).send(MESSAGE)
    assert answer.endswith("1 copy left out: no e-mail address")
    document = peer.requests[0].json
    sendgrid.VALIDATOR.validate(document)
    (envelope,) = document["personalizations"]
    assert envelope == {"to": [{"email": ANA}], "cc": [{"email": BEN, "name": "Ben"}], "bcc": [{"email": BOSS}]}
    assert document["reply_to_list"] == [{"email": EVA, "name": "Ána"}]
    assert document["headers"] == {
        "Importance": "high",
        "X-Priority": "1 (Highest)",
        "List-Unsubscribe": "<https://shop.example/u/1>, <mailto:stop@shop.example>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        "X-Order": "1042",
        "Auto-Submitted": "auto-generated",
    }
    invoice, logo = document["attachments"]
    assert (invoice["filename"], invoice["disposition"]) == ("Rechnung ü.pdf", "attachment")
    assert b64decode(invoice["content"]) == b"%PDF"
    assert (b64decode(logo["content"]), logo["disposition"]) == (PNG, "inline")
    assert f'src="cid:{logo["content_id"]}"' in document["content"][1]["value"]


async def test_sendgrid_gets_encoded_words_in_headers(make: Make) -> None:
    content = {"subject": "s", "text": "t", "headers.X-Said": "Grüße " * 30}
    async with sendgrid.SUBJECT.peer() as peer:
        await make(sendgrid.SUBJECT, peer.url).send(replace(MESSAGE, content=content))
    said = peer.requests[0].json["headers"]["X-Said"]
    assert said.isascii()
    assert "\n" not in said
    assert (
        str(email.message_from_string(f"X-Said: {said}\n\n", policy=policy.default)["x-said"]).split() == ["Grüße"] * 30
    )


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.kind)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"recipient": {"email": "nobody"}}, Reason.BAD_ADDRESS),
        ({"content": FULL | {"subject": "a\r\nBcc: x@y.example"}}, Reason.MESSAGE_REJECTED),
        ({"content": FULL | {"reply_to": "nobody"}}, Reason.MESSAGE_REJECTED),
        ({"attachments": FILES * 6}, Reason.ATTACHMENT_REJECTED),
    ],
)
async def test_what_cannot_be_sent_is_not(
    make: Make, subject: HttpSubject, change: dict[str, Any], reason: Reason
) -> None:
    async with subject.peer() as peer:
        failure = await failure_of(make(subject, peer.url), replace(MESSAGE, **change))
    assert (type(failure), failure.reason) == (PermanentFailure, reason)
    assert peer.requests == []


@pytest.mark.parametrize("kind", ["mailgun", "sendgrid", "ses"])
def test_a_wrong_sender_is_named(make: Make, kind: str) -> None:
    (subject,) = (each for each in SUBJECTS if each.kind == kind)
    with pytest.raises(ValueError, match="from: should be an e-mail address"):
        make(subject, "http://127.0.0.1:9", **{"from": "Shop"})


async def test_a_copy_that_mailgun_refuses_suppresses_nobody(make: Make) -> None:
    async with mailgun.SUBJECT.peer(mailgun.refusal(400, "'to' parameter is not a valid address")) as peer:
        failure = await failure_of(make(mailgun.SUBJECT, peer.url))
    assert (type(failure), failure.reason, failure.suppress) == (PermanentFailure, Reason.BAD_ADDRESS, False)


# --- how long a provider asks to be left alone ------------------------------------------------------------------------


async def _wait(provider: Provider) -> timedelta | None:
    failure = await failure_of(provider)
    assert failure.reason is Reason.RATE_LIMITED
    await provider.close()
    return failure.retry_after


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"X-RateLimit-Reset": str(int(START.timestamp()) + 42)}, timedelta(seconds=42)),
        ({"X-RateLimit-Reset": str(int(START.timestamp()) - 42)}, timedelta(0)),
        ({"X-RateLimit-Reset": "9" * 30}, timedelta(days=7)),
        ({"X-RateLimit-Reset": "soon"}, None),
        ({"Retry-After": "7", "X-RateLimit-Reset": "9999999999"}, timedelta(seconds=7)),
    ],
)
async def test_sendgrid_says_when_its_limit_ends(headers: dict[str, str], wait: timedelta | None) -> None:
    async with sendgrid.SUBJECT.peer(sendgrid.refusal(429, "too many requests", None, headers)) as peer:
        options = SendGridOptions.model_validate(sendgrid.SUBJECT.options(peer.url, Path()))
        assert await _wait(SendGridProvider("p", options, now=lambda: START)) == wait


async def test_mailgun_says_when_its_limit_ends() -> None:
    words = "is not allowed to send: recipient limit exceeded, try again after Sun, 22 Nov 2026 17:05:00 UTC"
    response = Response(420, {"message": f"Domain {mailgun.DOMAIN} {words}"})
    async with mailgun.SUBJECT.peer(response) as peer:
        options = MailgunOptions.model_validate(mailgun.SUBJECT.options(peer.url, Path()))
        assert await _wait(MailgunProvider("p", options, now=lambda: START)) == timedelta(minutes=5)


# --- what a provider says without sending -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "response", "words"),
    [
        (mailgun.SUBJECT, Response(400, {"message": "to parameter is missing"}), "the key is good for mg.shop.example"),
        (sendgrid.SUBJECT, Response(200, {"scopes": ["alerts.read", "mail.send"]}), "the key may send mail"),
        (ses.SUBJECT, Response(200, {"SendingEnabled": True}), "sending is enabled"),
        (ses.SUBJECT, Response(200, {"SendingEnabled": False}), "sending is paused"),
        (ses.SUBJECT, ses.refusal(403, "AccessDeniedException"), "knows the credentials"),
    ],
)
async def test_a_check_that_is_passed(make: Make, subject: HttpSubject, response: Response, words: str) -> None:
    async with subject.peer(response) as peer:
        assert words in await make(subject, peer.url).check()
    for request in peer.requests:
        assert ANA.encode() not in request.body


@pytest.mark.parametrize(
    ("subject", "response"),
    [
        (mailgun.SUBJECT, Response(401, text="Forbidden")),
        (sendgrid.SUBJECT, Response(200, {"scopes": ["alerts.read"]})),
        (sendgrid.SUBJECT, sendgrid.refusal(401, "authorization required")),
        (ses.SUBJECT, ses.refusal(403, "UnrecognizedClientException")),
    ],
)
async def test_a_check_that_is_not(make: Make, subject: HttpSubject, response: Response) -> None:
    async with subject.peer(response) as peer:
        with pytest.raises(TransientFailure) as caught:
            await make(subject, peer.url).check()
    assert caught.value.reason is Reason.AUTHENTICATION
    assert caught.value.provider_fault


# --- SES --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def moto() -> Iterator[str]:
    """moto's server; its URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
    ses_backends.reset()


async def test_a_mail_arrives_at_motos_ses(make: Make, moto: str) -> None:
    backend = ses_backends[DEFAULT_ACCOUNT_ID][ses.REGION]
    backend.verify_email_identity("no-reply@shop.example")
    answer = await make(ses.SUBJECT, moto).send(MESSAGE)
    (sent,) = backend.sent_messages
    assert answer.reference == sent.id
    assert sent.source == "no-reply@shop.example"
    assert {ANA, BEN, BOSS} <= set(sent.destinations)
    _composed(email.message_from_string(sent.raw_data, policy=policy.default))


async def test_motos_ses_refuses_a_sender_that_it_does_not_know(make: Make, moto: str) -> None:
    failure = await failure_of(make(ses.SUBJECT, moto))
    assert (type(failure), failure.reason) == (PermanentFailure, Reason.MESSAGE_REJECTED)
    assert ses_backends[DEFAULT_ACCOUNT_ID][ses.REGION].sent_messages == []


async def test_ses_takes_ascii_only_before_the_at(make: Make) -> None:
    async with ses.SUBJECT.peer() as peer:
        failure = await failure_of(make(ses.SUBJECT, peer.url), replace(MESSAGE, recipient={"email": "änne@b.example"}))
    assert (type(failure), failure.reason) == (PermanentFailure, Reason.BAD_ADDRESS)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{", b"HTTP/1.1 2", b"\x00"])
async def test_an_answer_of_ses_that_breaks_off_leaves_it_open(make: Make, answer: bytes) -> None:
    async def talk(reader: Any, writer: Any) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    async with serving(talk) as port:
        failure = await failure_of(make(ses.SUBJECT, f"http://127.0.0.1:{port}"))
    assert type(failure) is UnknownOutcome
    assert failure.provider_fault


async def test_a_connection_that_ses_resets_leaves_it_open(make: Make) -> None:
    async def talk(reader: Any, writer: Any) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()  # what is unread makes it a reset

    async with serving(talk) as port:
        failure = await failure_of(make(ses.SUBJECT, f"http://127.0.0.1:{port}"))
    assert type(failure) is UnknownOutcome


async def test_ses_is_asked_once_for_each_attempt(make: Make) -> None:
    async with ses.SUBJECT.peer(ses.refusal(500, "InternalFailure")) as peer:
        await failure_of(make(ses.SUBJECT, peer.url))
    assert len(peer.requests) == 1


async def test_without_credentials_nothing_is_sent(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    async with ses.SUBJECT.peer() as peer:
        nothing = {"access_key_id": None, "secret_access_key": None, "session_token": None}
        failure = await failure_of(make(ses.SUBJECT, peer.url, **nothing))
    assert (type(failure), failure.reason, failure.provider_fault) == (TransientFailure, Reason.AUTHENTICATION, True)
    assert peer.requests == []


async def test_the_machines_own_credentials_are_used(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCESS_KEY_ID", ses.KEY_ID), ("SECRET_ACCESS_KEY", ses.SECRET), ("SESSION_TOKEN", ses.TOKEN)):
        monkeypatch.setenv(f"AWS_{name}", value)
    async with ses.SUBJECT.peer() as peer:
        nothing = {"access_key_id": None, "secret_access_key": None, "session_token": None}
        await make(ses.SUBJECT, peer.url, **nothing).send(message(Channel.EMAIL, {"email": ses.EMAIL}))
    ses.requested(peer.requests[0])


async def test_credentials_that_do_not_come_are_transient(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("aiobotocore.session.AioSession._create_client", never)
    monkeypatch.setattr("channels.ses.OPENING_SECONDS", 0.1)
    async with ses.SUBJECT.peer() as peer:
        failure = await failure_of(make(ses.SUBJECT, peer.url))
    assert (type(failure), failure.reason) == (TransientFailure, Reason.TIMEOUT)


async def test_a_certificate_that_nobody_has_signed_is_refused(make: Make) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)

    async def talk(*_: Any) -> None:
        raise AssertionError("reached")

    async with serving(talk, context) as port:
        for subject in SUBJECTS:
            failure = await failure_of(make(subject, f"https://127.0.0.1:{port}"))
            assert (type(failure), failure.reason) == (TransientFailure, Reason.TLS), subject.kind
            assert failure.provider_fault


def test_half_of_a_key_is_refused() -> None:
    with pytest.raises(ValueError, match="needs access_key_id and secret_access_key, or neither"):
        SesOptions.model_validate({"region": ses.REGION, "from": "a@b.example", "access_key_id": ses.KEY_ID})


def test_without_the_extra_it_says_what_to_install(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiobotocore.session", None)
    with pytest.raises(ValueError, match=r"pip install 'notipy\[ses\]'"):
        make(ses.SUBJECT, "http://127.0.0.1:9")

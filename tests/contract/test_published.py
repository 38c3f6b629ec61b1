"""Whatever an adapter can say follows what the provider publishes of its requests; and what does not is found."""

import hashlib
import json
import re
import time
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from pydantic import Base64Bytes

from channels.mail import Mail
from channels.registry import KINDS, make_provider
from channels.ses import ERRORS as SES_ERRORS
from channels.ses import SesOptions, SesProvider
from channels.vonage import ERRORS as VONAGE_ERRORS
from domain.event import Attachment
from domain.failures import TransientFailure
from domain.message import Message
from domain.vocabulary import Channel
from tests.conformance.over_http import HttpSubject, Request, Response
from tests.conformance.subjects import (
    apns,
    discord,
    fcm,
    mailgun,
    mattermost,
    sendgrid,
    ses,
    slack,
    teams,
    telegram,
    twilio,
    vonage,
)
from tests.fakes import START
from tests.nodejs import verify
from tests.published import faults, jwt_faults, published_file, ses_operation

URL = "https://shop.example/orders/1042?a=b#c"
EVIL = '"\\ <b> {{ x }} *_~`|># @everyone\u2028 🚲 \x07'
CHAT = (
    {"text": "Hello"},
    {"title": "Title", "text": "Hello"},
    {"title": EVIL, "text": EVIL},
    {"title": "Title", "text": "one\n\ntwo\nthree", "url": URL},
    {"title": "Title", "text": "**bold**", "url": URL, "format": "markdown"},
    {"text": "**bold**", "url": URL, "format": "markdown"},
)
PUSH = (
    {"text": "It is on its way."},
    {"title": "Order 1042", "text": EVIL, "priority": "high", "ttl": "0s"},
    {
        "title": "Order 1042",
        "text": "It is on its way.",
        "image": "https://shop.example/1042.png",
        "url": URL,
        "badge": "3",
        "sound": "bell",
        "data": '{"order_id": 1042, "data": {"a_b": 1}, "parts": [1, 2]}',
        "collapse": "order 1042 ü",
        "ttl": "4h",
        "priority": "normal",
    },
)
SMS = ({"text": "Hello"}, {"text": EVIL}, {"text": "long " * 300})
EMAIL = (
    {"subject": "Order 1042", "text": "It is on its way."},
    {"subject": 'ü "\\ <b> 🚲', "html": '<p>ü <img src="cid:logo.png"></p>'},
    {
        "subject": "Order 1042",
        "text": "It is on its way.",
        "html": "<p>It is on its way.</p>",
        "cc": "Ben <ben@example.org>, nobody",
        "bcc": "boss@example.org",
        "reply_to": "Ána <eva@example.org>",
        "priority": "high",
        "unsubscribe": "https://shop.example/u/1 mailto:stop@shop.example",
        "headers.X-Order": "1042 ü",
    },
)


def _b64(data: bytes) -> Base64Bytes:
    return b64encode(data)


FILES = (
    Attachment(filename="Rechnung ü.pdf", content_type="application/pdf", content=_b64(b"%PDF")),
    Attachment(filename="logo.png", content_type="image/png", content=_b64(b"\x89PNG\r\n\x1a\n")),
)


@dataclass(frozen=True)
class Case:
    """One kind of provider, or one way of using it.

    Attributes:
        faults_in: a request, by what is published.
        contents: that cover every field that the adapter sends.
        options: of the settings, those that change requests.
    """

    subject: HttpSubject
    faults_in: Callable[[Request], list[str]]
    contents: tuple[Mapping[str, str], ...]
    options: Mapping[str, Any]

    def messages(self, contents: Sequence[Mapping[str, str]]) -> list[Message]:
        """With files, where there can be any."""
        files = FILES if self.subject.channel is Channel.EMAIL else ()
        first = replace(self.subject.message_over(""), attachments=files, created_at=START)
        return [replace(first, content=content) for content in contents]


def json_of(kind: str) -> Callable[[Request], list[str]]:
    return lambda request: faults(kind, request.json)


def payload(**fields: Any) -> dict[str, str]:
    return {"text": "Hello", "payload": json.dumps(fields)}


BUTTON = {"type": "button", "text": {"type": "plain_text", "text": "Track"}, "url": URL, "action_id": "track"}
BLOCKS: list[dict[str, Any]] = [
    {"type": "header", "text": {"type": "plain_text", "text": "Order 1042"}},
    {"type": "section", "fields": [{"type": "mrkdwn", "text": "*Carrier*\nDHL"}]},
    {"type": "actions", "elements": [BUTTON]},
]
EMBED = {"title": "Order", "color": 255, "fields": [{"name": "a", "value": "b", "inline": True}]}
FACTS = {"type": "FactSet", "facts": [{"title": "Order", "value": "1042"}]}
KEYBOARD = {"inline_keyboard": [[{"text": "Track", "url": URL}]]}
POST = {"root_id": "8xp9fdt77pncbef59f4k1qe83o", "props": {"attachments": [{"text": "Order 1042"}]}}

CASES: Mapping[str, Case] = {
    "apns": Case(apns.SUBJECT, apns.faults_in, PUSH, {"ttl": "1h"}),
    "discord": Case(
        discord.SUBJECT,
        json_of("discord"),
        (*CHAT, payload(content=None, embeds=[EMBED]), payload(username="Shop", tts=False, flags=4)),
        {},
    ),
    "fcm": Case(fcm.SUBJECT, json_of("fcm"), PUSH, {"ttl": "1h"}),
    "mailgun": Case(mailgun.SUBJECT, mailgun.faults_in, EMAIL, {"tags": [], "test_mode": False}),
    "mattermost": Case(mattermost.SUBJECTS[1], json_of("mattermost"), (*CHAT, payload(**POST)), {}),
    "sendgrid": Case(sendgrid.SUBJECT, sendgrid.faults_in, EMAIL, {"categories": [], "test_mode": False}),
    "ses": Case(ses.SUBJECT, ses.faults_in, EMAIL, {"configuration_set": None}),
    "slack": Case(
        slack.SUBJECTS[0],
        json_of("slack"),
        (*CHAT, payload(blocks=BLOCKS, unfurl_links=False, thread_ts="1503435956.000247")),
        {},
    ),
    "slack webhook": Case(
        slack.SUBJECTS[1], json_of("slack webhook"), (*CHAT, payload(blocks=BLOCKS, unfurl_media=False)), {}
    ),
    "teams": Case(teams.SUBJECT, json_of("teams"), (*CHAT, payload(body=[FACTS], msteams={"width": "full"})), {}),
    "telegram": Case(
        telegram.SUBJECT,
        json_of("telegram"),
        (*CHAT, payload(reply_markup=KEYBOARD, protect_content=True), payload(text="<b>x</b>", parse_mode="HTML")),
        {"silent": True, "previews": False},
    ),
    "twilio": Case(
        twilio.SUBJECT,
        twilio.faults_in,
        SMS,
        {"from": None, "messaging_service_sid": "MG" + "0a" * 16, "status_callback": URL},
    ),
    "vonage": Case(vonage.SUBJECT, lambda request: faults("vonage", vonage.form_of(request)), SMS, {"callback": URL}),
}
BY_HAND = frozenset({"http", "webhook", "webpush"})
"""Standards have their own checks in `tests/conformance/subjects`; what `http` sends, its settings say."""
NOT_HTTP = frozenset({"amqp", "apprise", "console", "file", "inbox", "smtp"})


async def requests_of(case: Case, folder: Path, contents: Sequence[Mapping[str, str]], **more: Any) -> list[Request]:
    async with case.subject.peer() as peer, AsyncExitStack() as stack:
        settings = dict(case.subject.options(peer.url, folder)) | more
        provider = make_provider(case.subject.channel, "primary", case.subject.kind, settings)
        stack.push_async_callback(provider.close)
        for message in case.messages(contents):
            await provider.send(message)
        if case.subject.kind in {"apns", "fcm"}:  # they are asked with a message that nobody gets
            await provider.check()
        return list(peer.requests)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_every_request_is_as_the_provider_publishes_it(case: Case, tmp_path: Path) -> None:
    requests = await requests_of(case, tmp_path, case.contents)
    requests += await requests_of(case, tmp_path, case.contents[-1:], **case.options) if case.options else []
    assert [case.faults_in(request) for request in requests] == [[] for _ in requests]
    assert len(requests) >= len(case.contents) + bool(case.options)


def test_every_kind_is_checked_or_says_why_not() -> None:
    checked = {case.subject.kind for case in CASES.values()}
    assert checked | BY_HAND | NOT_HTTP == KINDS.keys()
    assert not checked & (BY_HAND | NOT_HTTP)
    told = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert all(f"| `{kind}`" in told for kind in checked | BY_HAND)


# --- what is wrong is found -------------------------------------------------------------------------------------------

APS = {"alert": {"title": "a", "body": "b"}, "badge": 3}
HEADERS = {"apns-id": "x", "apns-topic": "t", "apns-push-type": "alert", "apns-expiration": "5"}
CARD = {"type": "AdaptiveCard", "version": "1.4", "body": [{"type": "TextBlock", "text": "x", "wrap": True}]}
RUN = {"type": "TextRun", "text": "x"}
MAIL = {
    "from": {"email": "a@b.example"},
    "subject": "s",
    "personalizations": [{"to": [{"email": "a@b.example"}]}],
    "content": [{"type": "text/plain", "value": "x"}],
}
SES: Mapping[str, Any] = {"FromEmailAddress": "a@b.example", "Content": {"Raw": {"Data": "eA=="}}}
MESSAGES = "/2010-04-01/Accounts/AC1/Messages.json"


def apple(headers: Mapping[str, str] = HEADERS, **own: Any) -> Any:
    return {"headers": headers, "payload": {"aps": APS} | own}


def card(**fields: Any) -> Any:
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None}
    return {"type": "message", "attachments": [attachment | {"content": CARD | fields}]}


def run(**fields: Any) -> Any:
    return card(body=[{"type": "RichTextBlock", "inlines": [RUN | fields]}])


def push(**fields: Any) -> Any:
    return {"message": {"token": "t", "notification": {"title": "x"}} | fields}


def form(body: str, path: str = MESSAGES, method: str = "POST") -> Any:
    return {"method": method, "path": path, "body": body}


def mail(document: Any, path: str = "/v2/email/outbound-emails") -> Any:
    return {"method": "POST", "path": path, "document": document}


RIGHT: Mapping[str, Any] = {
    "apns": apple(),
    "discord": {"content": "x", "embeds": [EMBED]},
    "fcm": push(),
    "mailgun": {"to": ["a@b.example"], "message": "x", "v:any": "x"},
    "mattermost": {"channel_id": "c", "message": "x"},
    "sendgrid": MAIL,
    "ses": mail(SES),
    "slack": {"channel": "C1", "text": "x"},
    "slack webhook": {"text": "x"},
    "teams": run(selectAction={"type": "Action.OpenUrl", "url": URL}),
    "telegram": {"chat_id": 1, "text": "x"},
    "twilio": form("To=%2B4915112345678&Body=x"),
    "vonage": {"from": "Shop", "to": "49", "text": "x"},
}
WRONG: Mapping[str, Mapping[str, Any]] = {
    "apns": {
        "an unknown header": apple({**HEADERS, "apns-colour": "red"}),
        "an unknown field": apple(aps=APS | {"colour": "red"}),
        "an unknown field of the alert": apple(aps={"alert": {"title": "a", "text": "b"}}),
        "a wrong type": apple(aps=APS | {"badge": "3"}),
        "a wrong value": apple({**HEADERS, "apns-push-type": "alarm"}),
        "a missing header": apple({name: text for name, text in HEADERS.items() if name != "apns-topic"}),
        "a missing field": apple(aps={"badge": 3}),
    },
    "discord": {
        "an unknown field": {"content": "x", "wait": True},
        "a wrong type": {"content": 5},
        "a wrong length": {"content": "x" * 2001},
        "a missing field": {"embeds": [{"fields": [{"name": "a"}]}]},
    },
    "fcm": {
        "an unknown field": push(colour="red"),
        "an unknown field of a platform": push(android={"notification": {"badge": 3}}),
        "an unknown field for Apple": push(apns={"payload": {"aps": {"colour": "red"}}}),
        "a wrong type": push(data={"order_id": 1042}),
        "a wrong value": push(android={"priority": "high"}),
        "a missing field": {"message": {"notification": {"title": "x"}}},
    },
    "mailgun": {
        "an unknown field": {**RIGHT["mailgun"], "o:tags": ["a"]},
        "a wrong type": RIGHT["mailgun"] | {"o:tag": 5},
        "a wrong value": RIGHT["mailgun"] | {"o:testmode": "on"},
        "a missing field": {"message": "x"},
    },
    "mattermost": {
        "an unknown field": {"channel_id": "c", "message": "x", "text": "x"},
        "a wrong type": {"channel_id": "c", "message": "x", "props": "x"},
        "a missing field": {"message": "x"},
    },
    "sendgrid": {
        "an unknown field": MAIL | {"reply_to_lists": []},
        "a field of a mailbox": MAIL | {"from": {"mail": "a@b.example"}},
        "a wrong type": MAIL | {"categories": "orders"},
        "a missing field": {name: each for name, each in MAIL.items() if name != "personalizations"},
    },
    "ses": {
        "an unknown field": mail({**SES, "ReplyTo": "a@b.example"}),
        "a wrong type": mail({**SES, "ConfigurationSetName": 5}),
        "a missing field": mail({"FromEmailAddress": "a@b.example"}),
        "no such operation": mail(SES, "/v2/email/outbound-mails"),
    },
    "slack": {
        "an unknown field": {"channel": "C1", "text": "x", "markdown": True},
        "an unknown field of a block": {"channel": "C1", "blocks": [BLOCKS[0] | {"colour": "red"}]},
        "a wrong type": {"channel": "C1", "text": "x", "mrkdwn": "no"},
        "a missing field": {"text": "x"},
        "a missing text": {"channel": "C1"},
    },
    "slack webhook": {
        "an unknown field": {"text": "x", "colour": "red"},
        "a field that webhooks ignore": {"text": "x", "channel": "#elsewhere"},
        "a wrong type": {"text": "x", "link_names": 0},
        "a missing field": {"mrkdwn": False},
    },
    "teams": {
        "an unknown element": card(body=[{"type": "TextBlok", "text": "x"}]),
        "an unknown field": run(colour="red"),
        "a wrong type": card(body=[{"type": "TextBlock", "text": 5}]),
        "a wrong value": run(weight="Fat"),
        "a missing field": run(selectAction={"type": "Action.OpenUrl"}),
        "a missing text": card(body=[{"type": "TextBlock"}]),
        "no card": {"type": "message"},
    },
    "telegram": {
        "an unknown field": {"chat_id": 1, "text": "x", "silent": True},
        "a wrong type": {"chat_id": 1, "text": 5},
        "a wrong value": {"chat_id": 1, "text": "x", "parse_mode": "Markdown3"},
        "a missing field": {"chat_id": 1},
        "a missing field of an entity": {"chat_id": 1, "text": "x", "entities": [{"type": "text_link", "offset": 0}]},
    },
    "twilio": {
        "an unknown field": form("To=%2B4915112345678&Text=x"),
        "a wrong value": form("To=%2B4915112345678&Body=x&MessagingServiceSid=MG1"),
        "a wrong URL": form("To=%2B4915112345678&Body=x&StatusCallback=shop"),
        "a field twice": form("To=%2B4915112345678&To=%2B4915112345679"),
        "a missing field": form("Body=x"),
        "no such operation": form("To=x", "/2010-04-01/Accounts/AC1/Message.json"),
        "no such method": form("To=x", method="PUT"),
    },
    "vonage": {
        "an unknown field": RIGHT["vonage"] | {"client_ref": "x"},
        "a wrong type": RIGHT["vonage"] | {"ttl": "soon"},
        "a wrong value": RIGHT["vonage"] | {"type": "utf-8"},
        "a missing field": {"from": "Shop", "text": "x"},
    },
}


def test_a_right_request_has_no_faults() -> None:
    assert WRONG.keys() == RIGHT.keys() == CASES.keys()
    assert {kind: faults(kind, body) for kind, body in RIGHT.items()} == {kind: [] for kind in RIGHT}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_request_has_some(kind: str) -> None:
    overlooked = [name for name, body in WRONG[kind].items() if not faults(kind, body)]
    assert overlooked == []


# --- what is answered -------------------------------------------------------------------------------------------------


def answers(subject: HttpSubject) -> list[Any]:
    """What its double says, in JSON; without what it says only to see that it is not repeated."""
    said = [subject.success, *(response for response, _ in subject.failures.values())]
    documents = [response.document for response in said if response.document is not None]
    return [{name: each for name, each in document.items() if name != "hint"} for document in documents]


ANSWERS: Mapping[str, list[Any]] = {
    "discord answer": answers(discord.SUBJECT)[:1],
    "discord refusal": [each for each in answers(discord.SUBJECT)[1:] if "code" in each],
    "fcm answer": answers(fcm.SUBJECT)[:1],
    "mailgun answer": answers(mailgun.SUBJECT)[:1],
    "mattermost answer": answers(mattermost.SUBJECTS[1])[:1],
    "ses answer": answers(ses.SUBJECT)[:1],
    "slack answer": answers(slack.SUBJECTS[0]),
    "telegram answer": answers(telegram.SUBJECT),
    "twilio answer": answers(twilio.SUBJECT)[:1],
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_the_doubles_answer_as_the_providers_do(kind: str) -> None:
    assert ANSWERS[kind]
    assert [faults(kind, each) for each in ANSWERS[kind]] == [[] for _ in ANSWERS[kind]]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("discord answer", {"id": 5}),
        ("discord answer", {"number": "5"}),
        ("discord refusal", {"code": "10015", "message": "no"}),
        ("fcm answer", {"id": "x"}),
        ("mailgun answer", {"id": "x"}),
        ("mattermost answer", {"create_at": "now"}),
        ("ses answer", {"MessageID": "x"}),
        ("slack answer", {"ts": "1503435956.000247"}),
        ("slack answer", {"ok": True, "id": "C1"}),
        ("telegram answer", {"ok": True, "result": {"id": 42}}),
        ("telegram answer", {"ok": False, "description": "no"}),
        ("twilio answer", {"sid": "SM1"}),
        ("twilio answer", {"status": "gone"}),
    ],
)
def test_a_wrong_answer_is_found(kind: str, wrong: Any) -> None:
    assert faults(kind, wrong) != []


def test_every_refusal_that_is_published_has_a_rule() -> None:
    modelled = {shape.name for shape in ses_operation().error_shapes}
    listed = set(re.findall(r'[A-Z_]+ = "(\d+)"', published_file("@vonage/sms/dist/cjs/enums/SMSErrors.d.ts"))) - {"0"}
    assert len(modelled) > 5
    assert len(listed) > 15
    assert modelled <= {rule.code for rule in SES_ERRORS.rules}
    assert listed <= {rule.code for rule in VONAGE_ERRORS.rules}


# --- SES's library ----------------------------------------------------------------------------------------------------


class Careless(SesProvider):
    """What the adapter must not become."""

    def _request(self, message: Message, mail: Mail) -> Mapping[str, Any]:
        return {**super()._request(message, mail), "ReplyTo": "a@b.example"}


async def test_no_unknown_field_goes_out_to_ses() -> None:
    async with ses.SUBJECT.peer() as peer:
        provider = Careless("primary", SesOptions.model_validate(ses.SUBJECT.options(peer.url, Path())))
        with pytest.raises(TransientFailure, match="ParamValidationError"):
            await provider.send(ses.SUBJECT.message_over(""))
        await provider.close()
        assert peer.requests == []


# --- packages ---------------------------------------------------------------------------------------------------------


def test_a_package_that_is_another_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "types-1.0.0.tgz"
    archive.write_bytes(b"the right one")
    verify(archive, "sha512-" + b64encode(hashlib.sha512(b"the right one").digest()).decode())
    with pytest.raises(AssertionError, match=r"types-1\.0\.0\.tgz is not what published\.json says"):
        verify(archive, "sha512-" + b64encode(hashlib.sha512(b"another").digest()).decode())


# --- tokens -----------------------------------------------------------------------------------------------------------


async def test_googles_tokens_are_asked_for_with_an_assertion_that_another_library_verifies(tmp_path: Path) -> None:
    asked: list[Request] = []

    def token(request: Request) -> Response | None:
        answer = fcm.token(request)
        asked.extend([request] if answer else [])
        return answer

    subject = replace(fcm.SUBJECT, aside=token)
    async with subject.peer() as peer, AsyncExitStack() as stack:
        provider = make_provider(Channel.PUSH, "primary", "fcm", subject.options(peer.url, tmp_path))
        stack.push_async_callback(provider.close)
        await provider.send(subject.message_over(peer.url))
    (assertion,) = parse_qs(asked[0].body.decode())["assertion"]
    claims = {"issuer": fcm.EMAIL, "audience": f"{peer.url}/token", "maxTokenAge": "1 minute"}
    assert jwt_faults(assertion, fcm.PUBLIC, "RS256", claims=claims, kid="k1", within=HOUR) == []


HOUR = 3600
EXPECTED = {"issuer": apns.TEAM_ID, "audience": "https://push.example", "maxTokenAge": "1 minute"}


def token_of(key: Any = apns.KEY, kid: str | None = None, algorithm: str = "ES256", **claims: Any) -> str:
    now = int(time.time())
    said = {"iss": apns.TEAM_ID, "aud": "https://push.example", "iat": now, "exp": now + HOUR} | claims
    return jwt.encode(said, key, algorithm, headers={"kid": kid} if kid else None)


@pytest.mark.parametrize(
    ("make", "right"),
    [
        (lambda: token_of(), True),
        (lambda: token_of(generate_private_key(SECP256R1())), False),
        (lambda: token_of(fcm.KEY, algorithm="RS256"), False),
        (lambda: token_of("a-secret-of-at-least-thirty-two-bytes", algorithm="HS256"), False),
        (lambda: token_of(kid="another"), False),
        (lambda: token_of(iss="somebody"), False),
        (lambda: token_of(aud="https://elsewhere.example"), False),
        (lambda: token_of(iat=int(time.time()) - HOUR), False),
        (lambda: token_of(exp=int(time.time()) - 1), False),
        (lambda: token_of(exp=int(time.time()) + 2 * HOUR), False),
        (lambda: "no.token.atall", False),
    ],
)
def test_a_wrong_token_is_found(make: Callable[[], str], right: bool) -> None:
    assert (jwt_faults(make(), apns.PUBLIC, "ES256", claims=EXPECTED, within=HOUR + 5) == []) is right

"""What smtp, webhook and file add to the conformance suite, over real conversations."""

import asyncio
import base64
import ssl
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from pydantic import Base64Bytes

from channels.registry import KINDS, make_provider
from domain.event import Attachment
from domain.failures import DeliveryFailure, PermanentFailure, TransientFailure, was_unsent
from domain.message import Message
from domain.ports import Provider
from domain.vocabulary import Channel, Reason
from tests.contract.peers import http_server, password_is, real_smtp, scripted_smtp, serving
from tests.waiting import eventually

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
CREATED = datetime(2026, 11, 22, 17, 0, tzinfo=UTC)
ADDRESS = "ana.private@example.org"


def email(number: int = 1, *, to: str = ADDRESS, **fields: Any) -> Message:
    content = {"subject": "Order 1042 shipped – ü", "text": "Grüße\n.dots\n", "html": "<p>Grüße</p>"}
    return Message(
        delivery_id=f"d{number}",
        idempotency_key=f"d{number}/1",
        channel=Channel.EMAIL,
        recipient={"email": to, "name": "Ána, the 1st"},
        content=fields.pop("content", content),
        created_at=CREATED,
        **fields,
    )


def hook(url: str, payload: str = '{"order":"ü"}') -> Message:
    return Message("d1", "d1/1", Channel.WEBHOOK, {"webhook": url}, {"payload": payload}, CREATED)


def smtp(port: int, query: str = "", login: str = "", **options: Any) -> Provider:
    host = "localhost" if query else "127.0.0.1"  # certificates are for a name
    url = f"smtp://{login}{host}:{port}{query}"
    settings = {"url": url, "from": "Shop <no-reply@shop.example>", "timeout": "5s"} | options
    return make_provider(Channel.EMAIL, "primary", "smtp", settings)


def webhooks(**options: Any) -> Provider:
    settings = {"secret": SECRET, "allow_private": True, "timeout": "5s"} | options
    return make_provider(Channel.WEBHOOK, "hooks", "webhook", settings)


async def failure_of(provider: Provider, message: Message) -> DeliveryFailure:
    with pytest.raises(DeliveryFailure) as caught:
        await provider.send(message)
    return caught.value


# --- settings and names ---------------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["one by one", "pipelining"])
def pipelining(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def test_an_unknown_host_is_transient() -> None:
    provider = make_provider(Channel.EMAIL, "p", "smtp", {"url": "smtp://nobody.invalid", "from": "a@b.example"})
    failure = await failure_of(provider, email())
    assert (type(failure), failure.reason) == (TransientFailure, Reason.NAME_RESOLUTION)
    async with AsyncExitStack() as stack:
        hooks = webhooks()
        stack.push_async_callback(hooks.close)
        failure = await failure_of(hooks, hook("http://nobody.invalid/"))
    assert (type(failure), failure.reason) == (TransientFailure, Reason.NAME_RESOLUTION)


@pytest.mark.parametrize(
    ("channel", "kind", "options", "words"),
    [
        (Channel.EMAIL, "carrier-pigeon", {}, "is no kind of provider for email; known: "),
        (Channel.SMS, "smtp", {}, "is no kind of provider for sms; known: "),
        (Channel.EMAIL, "smtp", {"url": "smtp://h"}, "from: Field required"),
        (Channel.EMAIL, "smtp", {"url": "http://h", "from": "a@b.c"}, "url: should be smtp://"),
        (Channel.EMAIL, "smtp", {"url": "smtp://u:p@w@rd/x@h:1", "from": "a@b.c"}, "url: should be smtp://"),
        (Channel.EMAIL, "smtp", {"url": "smtp://u:hidden@h:25", "from": "a@b.c"}, "url: would send the password"),
        (Channel.EMAIL, "smtp", {"url": "smtp://h:25?tls=maybe", "from": "a@b.c"}, "url: has a wrong tls"),
        (Channel.EMAIL, "smtp", {"url": "smtp://h:25?ssl=1", "from": "a@b.c"}, "url: has an unknown option"),
        (Channel.EMAIL, "smtp", {"url": "smtp://h", "from": "a@b.c\nBcc: x@y.z"}, "from: should be an e-mail address"),
        (Channel.EMAIL, "smtp", {"url": "smtp://h", "from": "a@b.c", "conections": 3}, "conections: is not a field"),
        (Channel.EMAIL, "smtp", {"url": "smtp://h", "from": "a@b.c", "ca_file": "/none"}, "ca_file should be"),
        (Channel.EMAIL, "smtp", {"url": "smtp://h", "from": "a@b.c", "attachment_types": ["pdf"]}, "a media type such"),
        (Channel.WEBHOOK, "webhook", {}, "secret is missing"),
        (Channel.WEBHOOK, "webhook", {"secret": "whsec_hidden!"}, "secret: should be whsec_"),
        (Channel.WEBHOOK, "webhook", {"secret": SECRET, "headers": {"Webhook-Id": "1"}}, "headers: cannot set"),
        (Channel.WEBHOOK, "webhook", {"secret": SECRET, "headers": {"A": "1\r\nB: 2"}}, "headers: has a name or"),
    ],
)
def test_a_wrong_setting_is_named(channel: Channel, kind: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        make_provider(channel, "p", kind, options)
    assert words in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_every_kind_has_channels() -> None:
    assert all(spec.channels for spec in KINDS.values())


# --- e-mail ---------------------------------------------------------------------------------------------------------


async def test_a_mail_arrives_as_written() -> None:
    files = (
        Attachment(filename="Rechnung ü.pdf", content_type="application/pdf", content=_b64(b"%PDF")),
        Attachment(filename="a.txt", content=_b64(b"x")),
    )
    async with real_smtp() as (port, mailbox):
        provider = smtp(port)
        await provider.send(email(attachments=files))
        await provider.close()
    (mail,), (envelope,) = mailbox.mails, mailbox.envelopes
    assert mail.defects == []
    assert (envelope.mail_from, envelope.rcpt_tos) == ("no-reply@shop.example", [ADDRESS])
    assert mail["from"] == "Shop <no-reply@shop.example>"
    assert mail["to"].addresses[0].display_name == "Ána, the 1st"
    assert mail["subject"] == "Order 1042 shipped – ü"
    assert mail["message-id"] == "<d1.1@shop.example>"
    assert mail["auto-submitted"] == "auto-generated"
    assert mail["date"].datetime == CREATED
    assert mail.get_body(("plain",)).get_content() == "Grüße\r\n.dots\r\n"  # type: ignore[union-attr]
    assert mail.get_body(("html",)).get_content().strip() == "<p>Grüße</p>"  # type: ignore[union-attr]
    assert [(part.get_filename(), part.get_content()) for part in mail.iter_attachments()] == [
        ("Rechnung ü.pdf", b"%PDF"),
        ("a.txt", b"x"),
    ]


def _b64(data: bytes) -> Base64Bytes:
    return base64.b64encode(data)


async def test_connections_are_kept_and_closed(pipelining: bool) -> None:
    async with scripted_smtp(pipelining=pipelining) as server:
        provider = smtp(server.port, connections=2)
        for number in range(5):
            await provider.send(email(number))
        assert server.connections == 1
        await asyncio.gather(*(provider.send(email(number)) for number in range(20)))
        assert server.connections == 2
        assert len(server.mails) == 25
        await provider.close()
        await eventually(lambda: server.open == 0)


@pytest.mark.parametrize("slow", [0.0, 0.1], ids=["at once", "slowly"])
async def test_a_server_that_takes_fewer_connections_gets_fewer_and_every_mail(
    monkeypatch: pytest.MonkeyPatch, slow: float
) -> None:
    async with scripted_smtp() as server:
        server.most, server.pauses["GREETING"] = 3, slow
        provider = smtp(server.port, connections=20)
        await asyncio.gather(*(provider.send(email(number)) for number in range(60)))
        assert (server.most_seen, server.refused, len(server.mails)) == (3, 17, 60)
        await asyncio.gather(*(provider.send(email(number)) for number in range(60)))
        assert (server.refused, len(server.mails)) == (17, 120), "it is not asked for more yet"
        monkeypatch.setattr("channels.smtp_pool.MORE_AFTER", -1.0)
        await provider.close()
        server.most, provider = 2, smtp(server.port, connections=3)
        for _ in range(3):
            await asyncio.gather(*(provider.send(email(number)) for number in range(6)))
        assert (server.refused, len(server.mails)) == (20, 138), "it is asked for more with each burst"
        server.most = 1000
        await asyncio.gather(*(provider.send(email(number)) for number in range(6)))
        assert (server.refused, server.open, len(server.mails)) == (20, 3, 144)
        await provider.close()


async def test_a_server_that_takes_no_connection_is_asked_once_for_each_mail() -> None:
    async with scripted_smtp() as server:
        server.most = 0
        provider = smtp(server.port, connections=20)
        failures = await asyncio.gather(*(failure_of(provider, email(number)) for number in range(20)))
        assert server.connections == 20
        server.most = 1000
        await asyncio.gather(*(provider.send(email(number)) for number in range(60)))
        assert (server.most_seen, len(server.mails)) == (20, 60), "all places are there still"
        await provider.close()
    assert {type(failure) for failure in failures} == {TransientFailure}
    assert {failure.reason for failure in failures} == {Reason.PROVIDER_UNAVAILABLE}


async def test_whoever_waits_for_another_connection_in_vain_was_sent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("channels.smtp_pool.MORE_AFTER", -1.0)
    async with scripted_smtp(MAIL=[None]) as server:
        server.most = 1
        provider = smtp(server.port, connections=2, timeout="300ms")
        first = asyncio.create_task(provider.send(email(1)))
        await eventually(lambda: "MAIL" in str(server.commands))
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.1):
                await provider.send(email(2))
        failure = await failure_of(provider, email(3))
        with suppress(DeliveryFailure):
            await first
        server.replies.clear()
        server.most = 1000
        await asyncio.gather(*(provider.send(email(number)) for number in range(4)))
        assert (server.most_seen, len(server.mails)) == (2, 4), "no place was lost"
        await provider.close()
    assert was_unsent(caught.value)
    assert isinstance(failure, TransientFailure)


async def test_connections_that_are_asked_whether_they_live_count_as_standing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("channels.smtp_pool.PROBE_AFTER", 0.0)
    monkeypatch.setattr("channels.smtp_pool.MORE_AFTER", -1.0)
    async with scripted_smtp() as server:
        server.most = 3
        provider = smtp(server.port, connections=20)
        await asyncio.gather(*(provider.send(email(number)) for number in range(20)))
        server.pauses["NOOP"] = 0.05
        await asyncio.gather(*(provider.send(email(number)) for number in range(20)))
        await provider.close()
    assert len(server.mails) == 40
    assert server.refused > 17


async def test_a_check_at_the_servers_limit_asks_a_connection_that_stands() -> None:
    async with scripted_smtp() as server:
        server.most = 3
        provider = smtp(server.port, connections=20)
        server.pauses["BODY"] = 0.2
        sending = asyncio.gather(*(provider.send(email(number)) for number in range(3)))
        await eventually(lambda: len(server.mails) == 3)
        await provider.check()  # all of them are busy: they answer
        assert "NOOP" not in server.commands
        await sending
        await provider.check()
        assert (server.commands.count("NOOP"), server.refused, server.open) == (1, 2, 3)
        server.replies["NOOP"] = [""]
        with pytest.raises(TransientFailure):
            await provider.check()
        await provider.check()
        await provider.close()


async def test_mails_wait_as_long_as_others_get_through() -> None:
    async with scripted_smtp() as server:
        server.most, server.pauses["BODY"] = 2, 0.1
        provider = smtp(server.port, connections=5, timeout="300ms")
        await asyncio.gather(*(provider.send(email(number)) for number in range(20)))
        assert len(server.mails) == 20
        server.pauses["BODY"] = 5.0
        failures = await asyncio.gather(*(failure_of(provider, email(number)) for number in range(4)))
        assert sum("connections were busy for 300ms" in failure.detail for failure in failures) == 2
        await provider.close()


async def test_the_last_place_goes_to_a_connection_that_a_check_has_made() -> None:
    async with scripted_smtp() as server:
        provider = smtp(server.port, connections=1)
        await provider.send(email(1))
        await provider.check()
        server.most, server.replies["MAIL"] = 1, ["421 4.4.2 idle", "250 ok"]
        async with asyncio.timeout(2):
            await provider.send(email(2))
        await provider.close()
    assert (server.refused, len(server.mails)) == (1, 2)


def with_copies(**fields: str) -> Message:
    return email(content={"subject": "s", "text": "x", "cc": "bo.private@example.org, cy@example.org", **fields})


async def test_a_copy_that_is_refused_fails_nobody_else(pipelining: bool) -> None:
    refusal = "550 5.1.1 <bo.private@example.org> no such user"
    async with scripted_smtp(pipelining=pipelining, RCPT=["250 ok", refusal, "451 4.3.0 later", "250 ok"]) as server:
        provider = smtp(server.port)
        answer = await provider.send(with_copies(bcc="nobody, dan@example.org"))
        await provider.send(email(2))
        await provider.close()
    told = "250 2.0.0 queued as 42 (3 of 4 copies not sent: refused with 451, 550; 1 no e-mail address)"
    assert (answer, server.connections, len(server.mails)) == (told, 1, 2)
    assert [command for command in server.commands if command.startswith("RCPT")][:4] == [
        f"RCPT TO:<{address}>" for address in (ADDRESS, "bo.private@example.org", "cy@example.org", "dan@example.org")
    ]


async def test_a_recipient_that_is_refused_is_no_mail_to_the_copies(pipelining: bool) -> None:
    async with scripted_smtp(pipelining=pipelining, RCPT=["550 5.1.1 no", "250 ok"], DATA=["354 go ahead"]) as server:
        provider = smtp(server.port)
        failure = await failure_of(provider, with_copies())
        assert "DATA" not in server.commands
        await provider.send(email(2))
        await provider.close()
    assert (type(failure), failure.reason) == (PermanentFailure, Reason.RECIPIENT_REJECTED)
    assert (server.connections, len(server.mails)) == (1, 1)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("421 4.7.0 too many errors", Reason.POLICY_REJECTED),
        ("", Reason.CONNECTION_LOST),
        ("what?", Reason.PROVIDER_UNAVAILABLE),
        (None, Reason.TIMEOUT),
    ],
)
async def test_a_connection_that_ends_at_a_copy_is_transient(
    answer: str | None, reason: Reason, pipelining: bool
) -> None:
    async with scripted_smtp(pipelining=pipelining, RCPT=["250 ok", answer]) as server:
        provider = smtp(server.port, timeout="200ms")
        failure = await failure_of(provider, with_copies())
        await provider.close()
        await eventually(lambda: server.open == 0)
    assert (type(failure), failure.reason) == (TransientFailure, reason)
    assert server.mails == []


async def test_a_refusal_keeps_the_connection(pipelining: bool) -> None:
    async with scripted_smtp(pipelining=pipelining, RCPT=["550 5.1.1 no", "250 ok"]) as server:
        provider = smtp(server.port)
        await failure_of(provider, email())
        await provider.send(email(2))
        await provider.close()
    assert server.connections == 1
    assert "RSET" in server.commands


@pytest.mark.parametrize("answer", ["", "421 4.3.2 closing"])
async def test_a_kept_connection_that_has_died_is_replaced(answer: str, pipelining: bool) -> None:
    async with scripted_smtp(pipelining=pipelining, MAIL=["250 ok", answer, "250 ok"]) as server:
        provider = smtp(server.port)
        await provider.send(email(1))
        await provider.send(email(2))
        await provider.close()
    assert (server.connections, len(server.mails)) == (2, 2)


async def test_a_connection_that_dies_twice_is_transient(pipelining: bool) -> None:
    async with scripted_smtp(pipelining=pipelining, MAIL=["250 ok", ""]) as server:
        provider = smtp(server.port)
        await provider.send(email(1))
        failure = await failure_of(provider, email(2))
        await provider.close()
    assert (type(failure), failure.reason) == (TransientFailure, Reason.CONNECTION_LOST)


async def test_a_server_that_asks_for_a_message_without_a_recipient_gets_none() -> None:
    async with scripted_smtp(pipelining=True, RCPT=["550 5.1.1 no", "250 ok"], DATA=["354 go ahead"]) as server:
        provider = smtp(server.port)
        failure = await failure_of(provider, email(1))
        await provider.send(email(2))
        await provider.close()
    assert failure.reason is Reason.RECIPIENT_REJECTED
    assert (server.connections, len(server.mails)) == (2, 1)


async def test_a_refusal_counts_though_the_server_hangs_up_upon_it() -> None:
    async with scripted_smtp(pipelining=True, RCPT=["550 5.1.1 no"], DATA=[""]) as server:
        provider = smtp(server.port)
        failure = await failure_of(provider, email())
        await provider.close()
    assert (type(failure), failure.reason) == (PermanentFailure, Reason.RECIPIENT_REJECTED)


async def test_a_connection_over_which_the_server_speaks_unasked_is_not_used_again() -> None:
    async with scripted_smtp(BODY=["250 ok\r\n421 4.4.2 idle for too long", "250 ok"]) as server:
        provider = smtp(server.port)
        await provider.send(email(1))
        await provider.send(email(2))
        await provider.close()
    assert (server.connections, len(server.mails)) == (2, 2)


@pytest.mark.parametrize(
    "answer",
    ["x", "2500 ok", "25", "\x00\xff", "250-a\r\nwhat?", "250-" + "x" * 40_000, "\r\n".join(["250-y"] * 20_000)],
    ids=["a word", "four digits", "two digits", "no text", "within a reply", "a line without end", "lines without end"],
)
async def test_a_reply_that_is_no_smtp(answer: str) -> None:
    async with scripted_smtp(MAIL=[answer, "250 ok"]) as server:
        provider = smtp(server.port, timeout="300ms")
        failure = await failure_of(provider, email(1))
        await provider.send(email(2))
        await provider.close()
    assert (type(failure), failure.reason) == (TransientFailure, Reason.PROVIDER_UNAVAILABLE)
    assert len(server.mails) == 1


SILENT_AT = {"MAIL": True, "RCPT": True, "DATA": True, "BODY": False}
"""Where the server falls silent, and whether it is then certain that nothing was sent."""


@pytest.mark.parametrize(("stage", "certain"), SILENT_AT.items(), ids=str)
async def test_whoever_cuts_a_send_off_can_tell_whether_anything_was_sent(
    stage: str, certain: bool, pipelining: bool
) -> None:
    silence: dict[str, list[str | None]] = {stage: [None]}
    async with scripted_smtp(pipelining=pipelining, **silence) as server:
        provider = smtp(server.port)
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.1):
                await provider.send(email())
        await provider.close()
    assert was_unsent(caught.value) is certain


async def test_nothing_was_sent_by_one_that_waits_for_a_connection(pipelining: bool) -> None:
    async with scripted_smtp(pipelining=pipelining, MAIL=[None]) as server:
        provider = smtp(server.port, connections=1)
        first = asyncio.create_task(provider.send(email(1)))
        await eventually(lambda: server.connections == 1)
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.05):
                await provider.send(email(2))
        first.cancel()
        await asyncio.wait([first])
        await provider.close()
    assert was_unsent(caught.value)


async def test_a_cancelled_send_sends_no_more_of_the_message() -> None:
    """A graceful close would write the rest, and with it the dot that makes the server take it."""
    got = bytearray()
    begun, cancelled, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        for answer in (b"250 slow", b"250 ok", b"250 ok", b"354 go ahead"):
            await reader.readline()
            writer.write(answer + b"\r\n")
        got.extend(await reader.readexactly(1000))
        begun.set()
        await cancelled.wait()
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                got.extend(data)
        ended.set()

    async with serving(slow) as port:
        provider = smtp(port)
        text = ("x" * 78 + "\n") * 200_000
        sending = asyncio.create_task(provider.send(email(content={"subject": "s", "text": text})))
        await asyncio.wait_for(begun.wait(), 10)
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending
        await provider.close()
        cancelled.set()
        await asyncio.wait_for(ended.wait(), 10)
    assert not bytes(got).endswith(b"\r\n.\r\n")


def _only(stage: str, answer: str | None) -> dict[str, list[str | None]]:
    return {stage: [answer]}


@pytest.mark.parametrize("stage", ["GREETING", "EHLO", "MAIL", "RCPT"])
@pytest.mark.parametrize(("answer", "reason"), [("", Reason.CONNECTION_LOST), (None, Reason.TIMEOUT)])
async def test_lost_before_the_message_is_transient(
    stage: str, answer: str | None, reason: Reason, pipelining: bool
) -> None:
    async with scripted_smtp(pipelining=pipelining, **_only(stage, answer)) as server:
        provider = smtp(server.port, timeout="200ms")
        failure = await failure_of(provider, email())
        await provider.close()
        await eventually(lambda: server.open == 0)
    assert (type(failure), failure.reason) == (TransientFailure, reason)


async def test_an_old_kept_connection_is_asked_before_use(monkeypatch: pytest.MonkeyPatch, pipelining: bool) -> None:
    monkeypatch.setattr("channels.smtp_pool.PROBE_AFTER", 0.0)
    async with scripted_smtp(pipelining=pipelining, NOOP=["250 ok", ""]) as server:
        provider = smtp(server.port)
        for number in range(3):
            await provider.send(email(number))
        await provider.close()
    assert (server.connections, len(server.mails)) == (2, 3)


async def test_of_old_kept_connections_one_that_is_dead_speaks_for_all(
    monkeypatch: pytest.MonkeyPatch, pipelining: bool
) -> None:
    async with scripted_smtp(pipelining=pipelining, NOOP=[None]) as server:
        provider = smtp(server.port, timeout="200ms")
        await asyncio.gather(*(provider.send(email(number)) for number in range(4)))
        opened = server.connections
        monkeypatch.setattr("channels.smtp_pool.PROBE_AFTER", 0.0)
        await provider.send(email(4))
        assert (opened, server.connections, server.commands.count("NOOP")) == (4, 5, 1)
        await eventually(lambda: server.open == 1)
        await provider.close()
    assert len(server.mails) == 5


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return authority, path


def _server_context(authority: trustme.CA, name: str = "localhost") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_tls_and_login(tls: str, authority: tuple[trustme.CA, Path]) -> None:
    context = _server_context(authority[0])
    auth: dict[str, Any] = {"authenticator": password_is(b"bob", b"p@ss word"), "auth_require_tls": False}
    extra: dict[str, Any] = (
        {"implicit": context} if tls == "implicit" else {"tls_context": context, "require_starttls": True}
    )
    async with real_smtp(**auth, **extra) as (port, mailbox):
        provider = smtp(port, f"?tls={tls}", "bob:p%40ss%20word@", ca_file=str(authority[1]))
        assert "logged in" in await provider.check()
        await provider.send(email())
        await provider.close()
        wrong = smtp(port, f"?tls={tls}", "bob:wrong-secret@", ca_file=str(authority[1]))
        failure = await failure_of(wrong, email())
        await wrong.close()
    assert len(mailbox.mails) == 1
    assert (type(failure), failure.reason) == (TransientFailure, Reason.AUTHENTICATION)
    assert "wrong-secret" not in str(failure)


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_a_certificate_that_is_not_trusted(tls: str, authority: tuple[trustme.CA, Path]) -> None:
    context = _server_context(authority[0])
    extra: dict[str, Any] = {"implicit": context} if tls == "implicit" else {"tls_context": context}
    async with real_smtp(**extra) as (port, mailbox):
        provider = smtp(port, f"?tls={tls}")
        failure = await failure_of(provider, email())
        await provider.close()
        careless = smtp(port, f"?tls={tls}", verify=False)
        await careless.send(email())
        await careless.close()
    assert (type(failure), failure.reason) == (TransientFailure, Reason.TLS)
    assert len(mailbox.mails) == 1


async def test_starttls_that_the_server_has_not_is_no_plain_text() -> None:
    async with scripted_smtp() as server:
        provider = smtp(server.port, "?tls=starttls", "bob:secret@")
        failure = await failure_of(provider, email())
        await provider.close()
    assert (type(failure), failure.reason) == (TransientFailure, Reason.TLS)
    assert not any("AUTH" in command or "MAIL" in command for command in server.commands)


async def test_international_addresses() -> None:
    async with real_smtp() as (port, mailbox):
        provider = smtp(port)
        await provider.send(email(1, to="ana@bücher.example"))
        await provider.send(email(2, to="änne@bücher.example"))
        await provider.close()
    first, second = mailbox.envelopes
    assert first.rcpt_tos == ["ana@xn--bcher-kva.example"]
    assert second.rcpt_tos == ["änne@xn--bcher-kva.example"]
    assert all(mail.defects == [] for mail in mailbox.mails)


async def test_an_international_address_needs_smtputf8() -> None:
    async with scripted_smtp(EHLO=["250 localhost"]) as server:
        provider = smtp(server.port)
        failure = await failure_of(provider, email(to="änne@example.org"))
        await provider.close()
    assert (type(failure), failure.reason) == (PermanentFailure, Reason.BAD_ADDRESS)
    assert "SMTPUTF8" in failure.detail


@pytest.mark.parametrize("to", ["", "nobody", "a@b\r\nRCPT TO:<c@d>", "a b@c.example", "<a@b.c>,d@e.f", "@x.example"])
async def test_addresses_that_cannot_be_used(to: str, pipelining: bool) -> None:
    async with scripted_smtp(pipelining=pipelining) as server:
        provider = smtp(server.port)
        failure = await failure_of(provider, email(to=to))
        await provider.close()
    assert (type(failure), failure.reason) == (PermanentFailure, Reason.BAD_ADDRESS)
    assert server.mails == []


async def test_types_of_attachments_that_are_not_sent() -> None:
    async with real_smtp() as (port, mailbox):
        provider = smtp(port, attachment_types=["Application/PDF", "image/*"])
        for kind in ("application/pdf", "image/png", "Image/PNG"):
            await provider.send(email(attachments=(Attachment(filename="a", content_type=kind, content=_b64(b"x")),)))
        sheet = Attachment(filename="a", content_type="application/x-sh", content=_b64(b"x"))
        failure = await failure_of(provider, email(attachments=(sheet,)))
        await provider.close()
    assert (type(failure), failure.reason) == (PermanentFailure, Reason.ATTACHMENT_REJECTED)
    assert (
        failure.detail == "attachment 1: application/x-sh is none of the types that are sent (application/pdf, image/*)"
    )
    assert len(mailbox.mails) == 3


async def _file(request: web.Request) -> web.StreamResponse:
    match request.path:
        case "/ok.pdf":
            return web.Response(body=b"%PDF-1.7")
        case "/large":
            return web.Response(body=b"x" * 5000)
        case "/endless":
            response = web.StreamResponse()
            response.enable_chunked_encoding()
            await response.prepare(request)
            for _ in range(100):
                await response.write(b"x" * 1000)
            return response
        case "/moved":
            return web.Response(status=302, headers={"Location": "/ok.pdf"})
        case "/slow":
            await asyncio.sleep(60)
        case _:
            pass
    return web.Response(status=int(request.path.strip("/") or 404))


@pytest.mark.parametrize(
    ("path", "kind", "reason"),
    [
        ("large", PermanentFailure, Reason.ATTACHMENT_REJECTED),
        ("endless", PermanentFailure, Reason.ATTACHMENT_REJECTED),
        ("moved", PermanentFailure, Reason.ATTACHMENT_REJECTED),
        ("404", PermanentFailure, Reason.ATTACHMENT_REJECTED),
        ("429", TransientFailure, Reason.ATTACHMENT_UNAVAILABLE),
        ("503", TransientFailure, Reason.ATTACHMENT_UNAVAILABLE),
        ("slow", TransientFailure, Reason.ATTACHMENT_UNAVAILABLE),
    ],
)
async def test_attachments_that_cannot_be_had(path: str, kind: type[DeliveryFailure], reason: Reason) -> None:
    async with http_server(_file) as url:
        timeout = "300ms" if path == "slow" else "5s"
        provider = smtp(1, allow_private=True, max_attachment_bytes=4000, timeout=timeout)
        failure = await failure_of(provider, email(attachments=(Attachment(filename="a", url=url + path),)))
        await provider.close()
    assert (type(failure), failure.reason) == (kind, reason)
    assert "127.0.0.1" not in failure.detail


async def test_attachments_are_fetched() -> None:
    async with http_server(_file) as url, real_smtp() as (port, mailbox):
        provider = smtp(port, allow_private=True)
        await provider.send(email(attachments=(Attachment(filename="a.pdf", url=url + "ok.pdf"),)))
        await provider.close()
    assert [part.get_content() for part in mailbox.mails[0].iter_attachments()] == [b"%PDF-1.7"]


async def test_attachments_from_private_addresses_are_refused() -> None:
    async with http_server(_file) as url:
        provider = smtp(1)
        failure = await failure_of(provider, email(attachments=(Attachment(filename="a", url=url + "ok.pdf"),)))
        await provider.close()
    assert (type(failure), failure.reason) == (PermanentFailure, Reason.ADDRESS_REFUSED)


async def test_too_many_attachments() -> None:
    files = tuple(Attachment(filename=f"{number}", content=_b64(b"x")) for number in range(3))
    failure = await failure_of(smtp(1, max_attachments=2), email(attachments=files))
    assert (type(failure), failure.reason) == (PermanentFailure, Reason.ATTACHMENT_REJECTED)


# --- webhooks -------------------------------------------------------------------------------------------------------


async def test_a_redirect_is_not_followed() -> None:
    seen: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.Response(status=307, headers={"Location": "/other"})

    async with http_server(answer) as url:
        provider = webhooks()
        failure = await failure_of(provider, hook(url))
        await provider.close()
    assert (type(failure), failure.reason) == (PermanentFailure, Reason.REDIRECT_REFUSED)
    assert seen == ["/"]


async def test_an_endless_answer_is_not_read() -> None:
    hung_up = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with suppress(ConnectionError):
            while True:
                await response.write(b"x" * 65536)
        hung_up.set()
        return response

    async with http_server(answer) as url:
        provider = webhooks()
        assert await provider.send(hook(url)) == "HTTP 200"
        await asyncio.wait_for(hung_up.wait(), 5)
        await provider.close()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "127.1", "0x7f.1", "0177.0.0.1", "0.0.0.0",
     "169.254.169.254", "10.0.0.1", "[fd00::1]", "172.16.0.1", "192.168.1.1", "[fe80::1]", "[::ffff:7f00:1]",
     "[::ffff:10.0.0.1]", "[64:ff9b::7f00:1]", "0x7f000001", "017700000001", "0251.0376.0251.0376", "2852039166",
     "LOCALHOST"],
)  # fmt: skip
async def test_private_addresses_are_refused(host: str) -> None:
    async def answer(_request: web.Request) -> web.Response:
        raise AssertionError("reached")

    async with http_server(answer) as url:
        port = url.rsplit(":", 1)[1]
        provider = webhooks(allow_private=False)
        failure = await failure_of(provider, hook(f"http://{host}:{port}"))
        await provider.close()
    assert (type(failure), failure.reason) == (PermanentFailure, Reason.ADDRESS_REFUSED)
    assert host not in failure.detail


async def test_checking_webhooks_reaches_nobody() -> None:
    assert "1 secret" in await webhooks().check()


# --- files ----------------------------------------------------------------------------------------------------------


def _files(directory: Path, channel: Channel = Channel.SMS) -> Provider:
    return make_provider(channel, "files", "file", {"directory": str(directory)})


@pytest.mark.parametrize("channel", list(Channel))
async def test_any_channel_into_a_file(channel: Channel, tmp_path: Path) -> None:
    provider = _files(tmp_path, channel)
    content = {"subject": "Hi", "text": "Grüße\nÜ", "html": "<p>"} if channel is Channel.EMAIL else {"text": "Grüße\nÜ"}
    recipient = {"phone": "+4915112345678", "email": "ana@example.org", "name": "Ana"}
    message = Message("d1", "d1/1", channel, recipient, content, CREATED)
    await provider.send(message)
    answer = await provider.send(message)  # the second attempt writes the same file
    (path,) = tmp_path.rglob("*.txt")
    assert path == tmp_path / channel / "20261122T170000-d1-1.txt"
    assert path.name in answer
    text = path.read_text("utf-8")
    assert "Grüße\nÜ" in text
    assert text.startswith(f"Channel: {channel}\n")
    assert "can be written" in await provider.check()
    await provider.close()


async def test_a_directory_that_cannot_be_written_is_told_when_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TransientFailure, match="not_configured: cannot write the file"):
        await _files(tmp_path / "file").check()

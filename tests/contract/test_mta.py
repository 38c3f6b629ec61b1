"""Mails through a real mail server, with STARTTLS and a login: what arrives, read by parsers of two authors."""

import asyncio
import json
import re
import subprocess
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email import message_from_bytes, message_from_string, policy
from email.message import EmailMessage
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import uvloop

from channels.registry import make_provider
from channels.smtp_pool import SmtpPool
from domain.event import Attachment
from domain.failures import DeliveryFailure, PermanentFailure, TransientFailure
from domain.message import Message
from domain.ports import Provider
from domain.vocabulary import Channel, Reason
from tests.contract.mta import PASSWORD, REFUSED, USER, Mta, mta
from tests.nodejs import NODE, installed
from tests.waiting import eventually

CREATED = datetime(2026, 11, 22, 17, 0, tzinfo=UTC)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
PDF = b"%PDF-1.7\n" + bytes(range(256)) * 40
HTML = '<p>Grüße &amp; 你好</p><img src="cid:Logo ü.png"><p style="background: url(\'cid:Logo%20%C3%BC.png\')">'


@pytest.fixture(scope="session")
def server() -> Iterator[Mta]:
    with mta() as running:
        yield running


@pytest.fixture(scope="session")
def reader() -> Path:
    """The script of the other parser."""
    return installed(Path(__file__).parents[1] / "mailparser") / "read.mjs"


def provider_of(server: Mta, **options: Any) -> Provider:
    login = f"{USER}:{quote(options.pop('password', PASSWORD))}"
    settings = {
        "url": f"smtp://{login}@localhost:{server.port}?tls=starttls",
        "from": '"Kürbis & Söhne, Shop" <no-reply@shop.example>',
        "ca_file": str(server.ca_file),
        "timeout": "10s",
        **options,
    }
    return make_provider(Channel.EMAIL, "mta", "smtp", settings)


def mail(name: str, to: str = "ana@example.org", *, files: Sequence[Attachment] = (), **content: str) -> Message:
    recipient = {"email": to, "name": "Ána, the 1st"}
    return Message(name, f"{name}/1", Channel.EMAIL, recipient, content, CREATED, tuple(files))


def file(filename: str, kind: str, content: bytes) -> Attachment:
    return Attachment(filename=filename, content_type=kind, content=b64encode(content))


async def sent(server: Mta, *messages: Message, **options: Any) -> list[str]:
    provider = provider_of(server, **options)
    try:
        return [await provider.send(message) for message in messages]
    finally:
        await provider.close()


async def arrived(server: Mta, name: str, count: int = 1) -> list[bytes]:
    """The mails that a message became in the mailboxes."""

    def found() -> list[bytes]:
        return [content for content in server.mails if f"<{name}.1@".encode() in content]

    await eventually(lambda: len(found()) == count)
    return found()


def parsed(content: bytes) -> EmailMessage:
    """Read by Python: no part of it, and no header, may have a defect."""
    read = message_from_bytes(content, policy=policy.default)
    assert isinstance(read, EmailMessage)
    assert [part.defects for part in read.walk() if part.defects] == []
    assert [(name, value.defects) for part in read.walk() for name, value in part.items() if value.defects] == []
    return read


async def read_elsewhere(reader: Path, content: bytes, scratch: Path) -> Mapping[str, Any]:
    path = scratch / "mail.eml"
    path.write_bytes(content)
    command = [NODE, reader, path]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=20, check=True)
    (read,) = json.loads(done.stdout)
    assert isinstance(read, dict)
    return read


async def test_a_mail_with_everything_arrives_as_it_was_written(server: Mta, reader: Path, tmp_path: Path) -> None:
    files = [file("Rechnung 你好.pdf", "application/pdf", PDF), file("Logo ü.png", "image/png", PNG)]
    message = mail(
        "everything",
        files=files,
        subject="Bestellung 1042 ist unterwegs – 你好 🎃",
        text="Grüße\n.\n..dots\nFrom the shop\n" + "long " * 400,
        html=HTML,
        reply_to='"Help, please" <help@shop.example>',
        cc="Bo <bo@example.org>, cy@bücher.example",
        bcc="secret@example.org",
        priority="high",
        unsubscribe="https://shop.example/u/" + "x" * 90 + " mailto:leave@shop.example?subject=u1",
        **{"headers.X-Campaign": "Herbst ü", "headers.Feedback-ID": "1:2:shop"},
    )
    (answer,) = await sent(server, message)
    assert answer.startswith("250 OK")
    (content,) = await arrived(server, "everything")
    read = parsed(content)
    envelope = str(read["envelope-to"])
    assert sorted(re.findall(r"[\w.]+@[\w.-]+", envelope)) == [
        "ana@example.org",
        "bo@example.org",
        "cy@xn--bcher-kva.example",
        "secret@example.org",
    ]
    assert "secret" not in str(content.partition(b"\nFrom: ")[2])
    assert read["importance"] == "high"
    assert read["list-unsubscribe-post"] == "List-Unsubscribe=One-Click"
    other = await read_elsewhere(reader, content, tmp_path)
    assert other["from"] == ["Kürbis & Söhne, Shop", "no-reply@shop.example"]
    assert other["to"] == [["Ána, the 1st", "ana@example.org"]]
    assert other["cc"] == [["Bo", "bo@example.org"], ["", "cy@xn--bcher-kva.example"]]
    assert other["replyTo"] == [["Help, please", "help@shop.example"]]
    assert other["subject"] == read["subject"] == "Bestellung 1042 ist unterwegs – 你好 🎃"
    assert other["date"] == "2026-11-22T17:00:00.000Z"
    unsubscribe = f"<https://shop.example/u/{'x' * 90}>, <mailto:leave@shop.example?subject=u1>"
    assert other["headers"]["list-unsubscribe"] == unsubscribe
    assert other["text"].replace("\r\n", "\n").rstrip() == message.content["text"].rstrip()
    plain, html = read.get_body(("plain",)), read.get_body(("html",))
    assert plain is not None
    assert html is not None
    assert plain.get_content().rstrip() == message.content["text"].rstrip()
    inline, attached = sorted(other["attachments"], key=lambda each: str(each["disposition"]), reverse=True)
    assert (inline["filename"], inline["type"], inline["disposition"]) == ("Logo ü.png", "image/png", "inline")
    assert (attached["filename"], attached["type"]) == ("Rechnung 你好.pdf", "application/pdf")
    assert [each["sha256"] for each in (inline, attached)] == [sha256(PNG).hexdigest(), sha256(PDF).hexdigest()]
    assert re.findall(r"cid:([^\"']+)", html.get_content()) == [inline["contentId"].strip("<>")] * 2


async def test_it_is_sent_over_tls_with_the_login_and_together(server: Mta, monkeypatch: pytest.MonkeyPatch) -> None:
    extensions: list[frozenset[str]] = []
    connect = SmtpPool._connect

    async def noting(pool: SmtpPool) -> Any:
        session = await connect(pool)
        extensions.append(session.extensions)
        return session

    monkeypatch.setattr(SmtpPool, "_connect", noting)
    await sent(server, *(mail(f"together-{n}", subject="s", text="x") for n in range(20)))
    (seen,) = extensions
    assert {"pipelining", "size", "smtputf8"} <= seen
    for n in range(20):
        await arrived(server, f"together-{n}")
    received = [line for line in server.log.splitlines() if "id=together-" in line]
    assert len(received) == 20
    assert all("P=esmtpsa X=TLS1.3:" in line and f"A=plain:{USER}" in line for line in received)


async def test_a_refused_copy_takes_nothing_from_the_recipient(server: Mta) -> None:
    message = mail("copies", subject="s", text="x", cc=f"{REFUSED}@example.org, bo@example.org, no address")
    (answer,) = await sent(server, message)
    assert answer.startswith("250 OK")
    assert answer.endswith("(2 of 3 copies not sent: refused with 550; 1 no e-mail address)")
    assert "@" not in answer
    (content,) = await arrived(server, "copies")
    assert "ana@example.org" in str(parsed(content)["envelope-to"])
    assert "bo@example.org" in str(parsed(content)["envelope-to"])


async def test_a_refused_recipient_is_no_mail_to_the_copies(server: Mta) -> None:
    provider = provider_of(server)
    with pytest.raises(PermanentFailure) as caught:
        await provider.send(mail("refused", f"{REFUSED}@example.org", subject="s", text="x", cc="bo@example.org"))
    assert caught.value.reason is Reason.RECIPIENT_REJECTED
    await provider.send(mail("afterwards", subject="s", text="x"))
    await provider.close()
    await arrived(server, "afterwards")
    assert not [content for content in server.mails if b"<refused.1@" in content]


async def test_an_international_address(server: Mta, reader: Path, tmp_path: Path) -> None:
    await sent(server, mail("international", "änne@bücher.example", subject="s", text="x"))
    (content,) = await arrived(server, "international")
    read = message_from_string(content.decode(), policy=policy.SMTPUTF8)  # RFC 6532: headers in UTF-8
    assert read["to"].addresses[0].addr_spec == "änne@xn--bcher-kva.example"
    assert (await read_elsewhere(reader, content, tmp_path))["to"][0][1] == "änne@xn--bcher-kva.example"


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"password": "wrong"}, Reason.AUTHENTICATION), ({"ca_file": None}, Reason.TLS)],
    ids=["password", "certificate"],
)
async def test_what_is_not_let_in(server: Mta, options: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(DeliveryFailure) as caught:
        await sent(server, mail("never", subject="s", text="x"), **options)
    assert (type(caught.value), caught.value.reason) == (TransientFailure, reason)
    assert "wrong" not in str(caught.value)


def test_it_works_on_uvloop_too(server: Mta) -> None:
    """The session takes over aiosmtplib's transport after STARTTLS, and uvloop has transports of its own."""

    async def sending() -> None:
        assert type(asyncio.get_running_loop()).__module__ == "uvloop"
        files = [file("large.bin", "application/octet-stream", PDF * 200)]
        messages = [mail(f"uvloop-{n}", files=files, subject="ü", text="x", html="<p>x") for n in range(3)]
        await sent(server, *messages)
        for n in range(3):
            (content,) = await arrived(server, f"uvloop-{n}")
            (part,) = parsed(content).iter_attachments()
            assert part.get_content() == PDF * 200

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(sending())

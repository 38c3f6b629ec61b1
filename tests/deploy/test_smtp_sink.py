"""The SMTP sink, spoken to by a real client."""

from collections.abc import AsyncIterator
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import urlsplit

import aiosmtplib
import pytest

from deploy.smtp_sink import SmtpSink


@pytest.fixture
async def sink(tmp_path: Path) -> AsyncIterator[SmtpSink]:
    async with SmtpSink(tmp_path / "mails") as sink:
        yield sink


async def send(sink: SmtpSink, recipient: str, text: str = "Hello") -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "shop@example.org", recipient, "Grüße"
    message.set_content(text)
    await aiosmtplib.send(message, hostname="127.0.0.1", port=sink.port, timeout=5)


async def test_an_accepted_mail_is_kept(sink: SmtpSink) -> None:
    await send(sink, "ana@example.org", "Dear Ana")

    [mail] = sink.mails
    assert (mail.sender, mail.recipients) == ("shop@example.org", ("ana@example.org",))
    assert mail.message["Subject"] == "Grüße"
    assert mail.message.get_content() == "Dear Ana\r\n"
    assert mail.path.read_bytes() == mail.content
    assert urlsplit(sink.url).port == sink.port


async def test_fail_answers_so_often_and_then_accepts(sink: SmtpSink) -> None:
    for _attempt in range(2):
        with pytest.raises(aiosmtplib.SMTPRecipientsRefused) as refused:
            await send(sink, "fail-451-2@example.org")
        assert refused.value.recipients[0].code == 451
    await send(sink, "fail-451-2@example.org")

    assert len(sink.mails) == 1


async def test_reject_never_accepts(sink: SmtpSink) -> None:
    for _attempt in range(3):
        with pytest.raises(aiosmtplib.SMTPRecipientsRefused) as refused:
            await send(sink, "reject-550@example.org")
        assert refused.value.recipients[0].code == 550
        assert refused.value.recipients[0].message.startswith("5.1.1 ")

    assert sink.mails == []


async def test_refuse_answers_after_the_content(sink: SmtpSink) -> None:
    with pytest.raises(aiosmtplib.SMTPDataError) as refused:
        await send(sink, "refuse-552-1@example.org")
    await send(sink, "refuse-552-1@example.org")

    assert refused.value.code == 552
    assert len(sink.mails) == 1


async def test_drop_keeps_the_mail_and_cuts_the_connection(sink: SmtpSink) -> None:
    with pytest.raises(aiosmtplib.SMTPServerDisconnected):
        await send(sink, "drop-1@example.org")
    await send(sink, "drop-1@example.org")

    assert len(sink.mails) == 2


async def test_leaving_hangs_up_on_open_connections(tmp_path: Path) -> None:
    async with SmtpSink(tmp_path) as sink:
        client = aiosmtplib.SMTP(hostname="127.0.0.1", port=sink.port)
        await client.connect()

    with pytest.raises(aiosmtplib.SMTPServerDisconnected):
        await client.noop()
    client.close()


def test_an_address_is_known_only_while_listening(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="async with"):
        _ = SmtpSink(tmp_path).url

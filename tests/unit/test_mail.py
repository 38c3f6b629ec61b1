"""Mails, read back by the standard library's own parser."""

from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import parseaddr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.fetch import File
from channels.mail import compose, parse_sender
from domain.failures import PermanentFailure
from domain.message import Message
from domain.vocabulary import Channel, Reason

SENDER = parse_sender("Shop <no-reply@shop.example>")
PRINTABLE = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.just(" "), max_size=255).map(
    lambda text: " ".join(text.split())
)
BODY = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=3000)


def mail(files: tuple[File, ...] = (), name: str = "", **content: str) -> EmailMessage:
    recipient = {"email": "ana@example.org", "name": name}
    message = Message("d1", "d1/1", Channel.EMAIL, recipient, content, datetime(2026, 1, 2, tzinfo=UTC))
    body = compose(message, SENDER, files).body
    assert all(len(line) <= 998 for line in body.split(b"\r\n"))
    assert b"\n" not in body.replace(b"\r\n", b"")
    assert body.isascii()
    parsed = message_from_bytes(body, policy=policy.default)
    assert [part.defects for part in parsed.walk() if part.defects] == []
    return parsed


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")


@given(PRINTABLE, PRINTABLE)
def test_headers_come_back(subject: str, name: str) -> None:
    parsed = mail(name=name, subject=subject, text="x")
    assert parsed["subject"] == subject
    assert [mailbox.addr_spec for mailbox in parsed["to"].addresses] == ["ana@example.org"]
    # policy.default puts a space between the encoded words of a long name, against RFC 2047 §6.2
    raw = next(value for header, value in parsed.raw_items() if header == "To")
    assert str(make_header(decode_header(parseaddr(raw)[0]))) == name
    assert parsed.defects == []
    assert all(not parsed[header].defects for header in ("to", "from", "subject", "date", "message-id"))


@given(BODY, BODY)
def test_bodies_come_back(text: str, html: str) -> None:
    parsed = mail(subject="s", text=text, html=html)
    assert parsed.get_content_type() == "multipart/alternative"
    plain, markup = parsed.iter_parts()
    for part, sent, kind in ((plain, text, "text/plain"), (markup, html, "text/html")):
        payload = part.get_payload(decode=True)
        assert isinstance(payload, bytes)
        assert _lines(payload.decode()) == _lines(sent)
        assert part.get_content_type() == kind


@pytest.mark.parametrize("field", ["text", "html"])
def test_one_body_is_no_multipart(field: str) -> None:
    content = {"subject": "s", field: "hello\n.\n--=_a.d1.1--\nFrom x"}
    parsed = mail((), "", **content)
    assert not parsed.is_multipart()
    assert _lines(parsed.get_content()) == "hello\n.\n--=_a.d1.1--\nFrom x"


@given(
    st.text(
        st.characters(codec="utf-8", exclude_categories=["C"], exclude_characters="/\\\u2028\u2029"),
        min_size=1,
        max_size=255,
    )
)
def test_file_names_come_back(name: str) -> None:
    parsed = mail((File(name, "application/pdf", b"%PDF"),), subject="s", text="x")
    (part,) = parsed.iter_attachments()
    assert part.get_filename() == name.strip()  # the parser strips it
    assert part.get_content() == b"%PDF"


@pytest.mark.parametrize("kind", ["message/rfc822", "multipart/mixed", "text/plain", "application/octet-stream"])
def test_files_of_any_type(kind: str) -> None:
    parsed = mail((File("a", kind, b"Subject: x\r\n\r\n\x00"),), subject="s", text="x", html="y")
    (part,) = parsed.iter_attachments()
    assert part.get_payload(decode=True) == b"Subject: x\r\n\r\n\x00"


@pytest.mark.parametrize("subject", ["a\nBcc: x@y.z", "a\r\n\r\nbody", "a\x00", "a\u2028b"])
def test_no_header_can_be_added(subject: str) -> None:
    with pytest.raises(PermanentFailure) as caught:
        mail(subject=subject, text="x")
    assert caught.value.reason is Reason.MESSAGE_REJECTED
    with pytest.raises(PermanentFailure) as caught:
        mail(name=subject, subject="s", text="x")
    assert caught.value.reason is Reason.BAD_ADDRESS


def test_every_attempt_sends_the_same_bytes() -> None:
    assert mail(subject="s", text="x", html="y").as_bytes() == mail(subject="s", text="x", html="y").as_bytes()


@pytest.mark.parametrize("text", ["", "nobody", "a@b\nBcc: c@d", "Shop <>", "a@b@c"])
def test_senders_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse_sender(text)

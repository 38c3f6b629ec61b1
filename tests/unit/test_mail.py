"""Mails, read back by the standard library's own parser."""

from contextlib import suppress
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import parseaddr

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from channels.fetch import File
from channels.mail import Mail, compose, parse_sender
from channels.mail_fields import MAX_ADDRESSES, copies, read_fields
from channels.mailbox import address
from channels.rendering import TemplateRenderer
from domain.failures import PermanentFailure
from domain.message import Message
from domain.notification import check_content
from domain.vocabulary import Channel, Reason
from tests.growth import grows_linearly

SENDER = parse_sender("Shop <no-reply@shop.example>")
PRINTABLE = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.just(" "), max_size=255).map(
    lambda text: " ".join(text.split())
)
BODY = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=3000)


def composed(files: tuple[File, ...] = (), name: str = "", **content: str) -> Mail:
    recipient = {"email": "ana@example.org", "name": name}
    message = Message("d1", "d1/1", Channel.EMAIL, recipient, content, datetime(2026, 1, 2, tzinfo=UTC))
    return compose(message, SENDER, files)


def mail(files: tuple[File, ...] = (), name: str = "", **content: str) -> EmailMessage:
    body = composed(files, name, **content).body
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
@example("<>")
def test_file_names_come_back(name: str) -> None:
    parsed = mail((File(name, "application/pdf", b"%PDF"),), subject="s", text="x")
    (part,) = parsed.iter_attachments()
    # not `get_filename`, which takes what stands in brackets for an address
    assert part["Content-Disposition"].params["filename"].strip() == name.strip()
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


# --- cc, bcc, reply-to, priority, unsubscribe, more headers -----------------------------------------------------------


def more(**content: str) -> EmailMessage:
    return mail((), "", subject="s", text="x", **content)


def refused(**content: str) -> str:
    with pytest.raises(PermanentFailure) as caught:
        more(**content)
    assert caught.value.reason is Reason.MESSAGE_REJECTED
    return caught.value.detail


def test_copies_are_in_the_envelope_and_cc_alone_in_the_header() -> None:
    cc, bcc = 'Bo <bo@example.org>, cy@bücher.example\n"D, d" <d@example.org>', "eve@example.org"
    made = composed(subject="s", text="x", cc=cc, bcc=bcc)
    copies = ("bo@example.org", "cy@xn--bcher-kva.example", "d@example.org", "eve@example.org")
    assert (made.recipient, made.copies, made.left_out) == ("ana@example.org", copies, 0)
    assert made.recipients == ("ana@example.org", *copies)
    assert b"eve" not in made.body
    found = more(cc=cc, bcc=bcc)["cc"].addresses
    assert [(each.display_name, each.addr_spec) for each in found] == [
        ("Bo", "bo@example.org"),
        ("", "cy@xn--bcher-kva.example"),
        ("D, d", "d@example.org"),
    ]


def test_a_copy_that_is_unwanted_is_left_out_of_envelope_and_header() -> None:
    renderer = TemplateRenderer()
    content = {
        "subject": "s",
        "text": "t",
        "cc": 'Ben <ben@example.org>, "Cem, Jr." <cem@example.org>\nnobody, dan@bücher.example',
        "bcc": "eve@example.org",
    }
    known = renderer.copies(content)
    assert known == ["ben@example.org", "cem@example.org", "dan@xn--bcher-kva.example", "eve@example.org"]
    fewer = renderer.without_copies(content, {"ben@example.org", "eve@example.org"})
    assert fewer == {**content, "cc": '"Cem, Jr." <cem@example.org>, nobody, dan@bücher.example', "bcc": ""}
    assert renderer.copies(fewer) == ["cem@example.org", "dan@xn--bcher-kva.example"]
    assert renderer.without_copies({"subject": "s"}, {"ben@example.org"}) == {"subject": "s"}
    too_long = {"cc": "ben@example.org, " * 2000}
    assert renderer.copies(too_long) == []


def test_everybody_gets_one() -> None:
    made = composed(subject="s", text="x", cc="ANA@example.org, bo@example.org", bcc="Bo@example.org,cy@example.org")
    assert made.copies == ("bo@example.org", "cy@example.org")


@pytest.mark.parametrize(
    "text", ["nobody", "a b@example.org", "<>", "a@b@", "Bo <bo@example.org> x", "a@b\x0bc", "0@¸", "a@b＞"]
)
def test_a_copy_that_is_no_address_is_left_out(text: str) -> None:
    made = composed(subject="s", text="x", cc=f"{text}, bo@example.org")
    assert (made.copies, made.left_out) == (("bo@example.org",), 1)


@given(st.text(max_size=200))
def test_nothing_in_an_address_field_makes_another_header(text: str) -> None:
    made = composed(subject="s", text="x", cc=text, bcc=text)
    names = [line.partition(b":")[0] for line in made.body.partition(b"\r\n\r\n")[0].splitlines() if line[:1] != b" "]
    assert [name for name in names if name != b"Cc"] == [*_USUAL]
    assert all("\n" not in copy and " " not in copy for copy in made.copies)


_USUAL = (
    *(b"From", b"To", b"Subject", b"Date", b"Message-ID", b"Auto-Submitted", b"MIME-Version"),
    *(b"Content-Type", b"Content-Transfer-Encoding"),
)


@pytest.mark.parametrize(
    ("begin", "piece", "end"),
    [('"', '\\"', ""), ("", '"a" ', ""), ("", " ", "x"), ("", "a ", "<b@c"), ("", '"', ""), ("", '"' + "a" * 1001, "")],
)
@pytest.mark.parametrize("field", ["cc", "reply_to"])
def test_the_time_to_read_an_odd_address_field_grows_with_its_length_alone(
    begin: str, piece: str, end: str, field: str
) -> None:
    def read(size: int) -> None:
        with suppress(PermanentFailure):
            read_fields({field: begin + piece * (size // len(piece)) + end}, address("ana@example.org"))

    assert grows_linearly(read, MAX_ADDRESSES // 4 - 10)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ('"Lee, Ana" <ana@example.org>, bo@example.org', ["ana@example.org", "bo@example.org"]),
        ('"Ana, bo@example.org', ["bo@example.org"]),
        ('"Ana \\" bo@example.org\ncy@example.org', ["bo@example.org", "cy@example.org"]),
        ('ana@example.org, "bo@example.org,"', ["ana@example.org"]),
        (f'"{"a" * 1001}",bo@example.org', ["bo@example.org"]),
    ],
)
def test_a_quote_that_is_not_closed_hides_no_address(text: str, items: list[str]) -> None:
    assert copies({"cc": text}) == items


@pytest.mark.parametrize("field", ["cc", "bcc", "reply_to"])
def test_an_address_field_longer_than_all_its_addresses_can_be_is_refused(field: str) -> None:
    with pytest.raises(PermanentFailure, match=field):
        composed((), "", subject="s", text="t", **{field: '"' + '\\"' * 20_000})


def test_too_many_copies_are_refused() -> None:
    many = ", ".join(f"u{number}@example.org" for number in range(50))
    assert "50 copies (cc and bcc); at most 49" in refused(cc=many)


def test_answers_go_where_they_are_asked_for() -> None:
    (found,) = more(reply_to="Hilfe & Büro <help@shop.example>")["reply-to"].addresses
    assert (found.display_name, found.addr_spec) == ("Hilfe & Büro", "help@shop.example")
    assert "reply_to" in refused(reply_to="help")


@pytest.mark.parametrize(
    ("priority", "importance", "number"),
    [("high", "high", "1 (Highest)"), (" Low\n", "low", "5 (Lowest)"), ("normal", None, None), ("", None, None)],
)
def test_priority(priority: str, importance: str | None, number: str | None) -> None:
    read = more(priority=priority)
    assert (read["importance"], read["x-priority"]) == (importance, number)
    assert "high, normal, low" in refused(priority="urgent")


def test_one_click_unsubscription_is_for_https() -> None:
    """RFC 8058 §3.1."""
    both = "https://shop.example/u?t=" + "x" * 300 + "\nmailto:leave@shop.example"
    read = more(unsubscribe=both)
    assert read["list-unsubscribe"] == f"<https://shop.example/u?t={'x' * 300}>, <mailto:leave@shop.example>"
    assert read["list-unsubscribe-post"] == "List-Unsubscribe=One-Click"
    for alone in ("mailto:leave@shop.example", "http://shop.example/u"):
        read = more(unsubscribe=alone)
        assert (read["list-unsubscribe"], read["list-unsubscribe-post"]) == (f"<{alone}>", None)


@pytest.mark.parametrize(
    "target", ["javascript:x", "shop.example", "https://", "https://x/ü", "https://x/>a", "http://[x"]
)
def test_what_cannot_be_an_unsubscription(target: str) -> None:
    assert "unsubscribe should be" in refused(unsubscribe=target)


def test_no_line_is_longer_than_a_server_takes() -> None:
    assert "more than 900 characters" in refused(unsubscribe="https://shop.example/" + "x" * 900)
    more(unsubscribe="https://shop.example/".ljust(900, "x"), **{"headers.X-A": "a " + "x" * 1500})


def test_more_headers() -> None:
    fields = {"headers.X-Campaign": "Herbst ü " * 20, "headers.List-Id": "<news.shop.example>", "headers.X-Empty": " "}
    read = more(**fields)
    assert read["x-campaign"] == ("Herbst ü " * 20).strip()
    assert read["list-id"] == "<news.shop.example>"
    assert "x-empty" not in read


@pytest.mark.parametrize(
    "name", ["Bcc", "From", "Sender", "Return-Path", "DKIM-Signature", "X-Priority", "X-A: b", "X-Ü", "X-\u212a"]
)
def test_headers_that_are_not_for_a_notification(name: str) -> None:
    assert "not one that a notification may set" in refused(**{f"headers.{name}": "x"})
    content = {"subject": "s", "text": "x", "headers": {name: "x"}}
    assert ["should be X-" in str(fault) for fault in check_content(Channel.EMAIL, content)] == [True]


def test_a_header_of_two_lines_is_refused() -> None:
    assert "X-A contains a line break" in refused(**{"headers.X-A": "a\nBcc: x@y.example"})


def test_a_definition_writes_them_as_texts_lists_and_a_mapping() -> None:
    content = {
        "subject": "s",
        "text": "x",
        "reply_to": "help@shop.example",
        "cc": ["{{ boss }}", "bo@example.org"],
        "unsubscribe": ["https://shop.example/u/{{ recipient.id }}", "mailto:leave@shop.example"],
        "priority": "{{ 'high' if urgent else 'normal' }}",
        "headers": {"X-Order": "{{ order_id }}"},
    }
    assert check_content(Channel.EMAIL, content) == ()
    renderer = TemplateRenderer()
    assert renderer.check(Channel.EMAIL, content) == []
    assert renderer.missing(Channel.EMAIL, content, {}) == ["boss", "order_id", "urgent"]
    context = {"boss": "cy@example.org", "urgent": True, "order_id": 7, "recipient": {"id": "u1"}}
    read = more(
        **{name: text for name, text in renderer.render(Channel.EMAIL, content, context).items() if name not in _OWN}
    )
    assert read["cc"] == "cy@example.org, bo@example.org"
    assert read["list-unsubscribe"] == "<https://shop.example/u/u1>, <mailto:leave@shop.example>"
    assert (read["importance"], read["x-order"], read["reply-to"]) == ("high", "7", "help@shop.example")


_OWN = {"subject", "text"}


def test_a_priority_that_is_none_is_found_at_once() -> None:
    (fault,) = check_content(Channel.EMAIL, {"subject": "s", "text": "x", "priority": "urgent"})
    assert str(fault).startswith("email.priority: should be one of high, normal, low")


# --- images ---------------------------------------------------------------------------------------------------------


LOGO = File("Logo ü & co.png", "image/png", b"PNG")


@pytest.mark.parametrize(
    "written", ["cid:Logo ü & co.png", "cid:Logo ü &amp; co.png", "cid:Logo%20%C3%BC%20%26%20co.png"]
)
def test_a_file_that_the_html_shows_stands_beside_it(written: str) -> None:
    other = File("terms.pdf", "application/pdf", b"PDF")
    read = mail((other, LOGO), "", subject="s", text="x", html=f"<img src='{written}'><a href='cid:other.png'>")
    assert read.get_content_type() == "multipart/mixed"
    alternative, attachment = read.iter_parts()
    _, related = alternative.iter_parts()
    html, image = related.iter_parts()
    assert (alternative.get_content_type(), related.get_content_type()) == (
        "multipart/alternative",
        "multipart/related",
    )
    assert related.get_param("type") == "text/html"
    content_id = image["content-id"]
    assert html.get_content().strip() == f"<img src='cid:{content_id[1:-1]}'><a href='cid:other.png'>"
    assert (image.get_content_disposition(), image.get_filename(), image.get_content()) == (
        "inline",
        LOGO.filename,
        b"PNG",
    )
    assert (attachment.get_content_disposition(), attachment.get_filename()) == ("attachment", "terms.pdf")


def test_a_longer_name_is_not_taken_for_a_shorter_one() -> None:
    files = (File("a.png", "image/png", b"1"), File("a.png.png", "image/png", b"2"), File("a.png", "image/png", b"3"))
    read = mail(files, "", subject="s", html='<img src="cid:a.png.png"><img src="cid:a.png"><img src="cid:a.pngx">')
    related, attached = read.iter_parts()
    html, first, second = related.iter_parts()
    assert [part.get_content() for part in (first, second, attached)] == [b"1", b"2", b"3"]
    ids = [part["content-id"][1:-1] for part in (second, first)]
    assert html.get_content().strip() == f'<img src="cid:{ids[0]}"><img src="cid:{ids[1]}"><img src="cid:a.pngx">'


def test_without_html_every_file_is_attached() -> None:
    (part,) = mail((LOGO,), "", subject="s", text="cid:Logo ü & co.png").iter_attachments()
    assert part.get_content_disposition() == "attachment"


def test_every_attempt_sends_the_same_bytes() -> None:
    assert mail(subject="s", text="x", html="y").as_bytes() == mail(subject="s", text="x", html="y").as_bytes()


@pytest.mark.parametrize("text", ["", "nobody", "a@b\nBcc: c@d", "Shop <>", "a@b@c", "a@x＞"])
def test_senders_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse_sender(text)

"""What each provider's published example of a report is read as, and that nothing else is taken for one."""

import json
from datetime import UTC, datetime
from threading import get_ident
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.bounces import status_of
from channels.receipts import FORM, MAIL, MAX_BYTES, Read, Unreadable, by_code, read_receipts
from consumers.receipts import ReceiptHandler
from domain.receipt import Receipt, Status
from domain.vocabulary import Reason
from tests.growth import ends_soon

DELIVERY = "0c6f1a52-5a0e-5b7e-8d0c-6a3c6e2f9b11"

SES_MAIL: dict[str, Any] = {
    "timestamp": "2018-10-08T14:05:45 +0000",
    "messageId": "000001378603177f-7a5433e7-8edb-42ae-af10-f0181f34d6ee-000000",
    "source": "sender@example.com",
    "sourceArn": "arn:aws:ses:us-east-1:888888888888:identity/example.com",
    "sourceIp": "127.0.3.0",
    "sendingAccountId": "123456789012",
    "destination": ["recipient@example.com"],
    "headersTruncated": False,
}
SES_BOUNCE: dict[str, Any] = {
    "notificationType": "Bounce",
    "bounce": {
        "bounceType": "Permanent",
        "reportingMTA": "dns; email.example.com",
        "bouncedRecipients": [
            {
                "emailAddress": "jane@example.com",
                "status": "5.1.1",
                "action": "failed",
                "diagnosticCode": "smtp; 550 5.1.1 <jane@example.com>... User",
            }
        ],
        "bounceSubType": "General",
        "timestamp": "2016-01-27T14:59:38.237Z",
        "feedbackId": "00000138111222aa-33322211-cccc-cccc-cccc-ddddaaaa068a-000000",
        "remoteMtaIp": "127.0.2.0",
    },
    "mail": SES_MAIL,
}
SES_COMPLAINT: dict[str, Any] = {
    "notificationType": "Complaint",
    "complaint": {
        "userAgent": "AnyCompany Feedback Loop (V0.01)",
        "complainedRecipients": [{"emailAddress": "richard@example.com"}],
        "complaintFeedbackType": "abuse",
        "arrivalDate": "2016-01-27T14:59:38.237Z",
        "timestamp": "2016-01-27T14:59:38.237Z",
        "feedbackId": "000001378603177f-18c07c78-fa81-4a58-9dd1-fedc3cb8f49a-000000",
    },
    "mail": SES_MAIL,
}
SES_DELIVERY: dict[str, Any] = {
    "notificationType": "Delivery",
    "mail": SES_MAIL,
    "delivery": {
        "timestamp": "2016-01-27T14:59:38.237Z",
        "recipients": ["jane@example.com"],
        "processingTimeMillis": 546,
        "reportingMTA": "a8-70.smtp-out.amazonses.com",
        "smtpResponse": "250 ok:  Message 64111812 accepted",
        "remoteMtaIp": "127.0.2.0",
    },
}
MAILGUN_DELIVERED: dict[str, Any] = {
    "signature": {
        "timestamp": "1529006854",
        "token": "a8ce0edb2dd8301dee6c2405235584e45aa91d1e9f979f3de0",
        "signature": "d2271d12299f6592d9d44cd9d250f0704e4674c30d79d07c47a66f95ce71cf55",
    },
    "event-data": {
        "event": "delivered",
        "id": "CPgfbmQMTCKtHW6uIWtuVe",
        "timestamp": 1521472262.908181,
        "log-level": "info",
        "delivery-status": {
            "tls": True,
            "mx-host": "smtp-in.example.com",
            "attempt-no": 1,
            "description": "",
            "session-seconds": 0.4331989288330078,
            "utf8": True,
            "code": 250,
            "message": "OK",
            "certificate-verified": True,
        },
        "envelope": {
            "transport": "smtp",
            "sender": "bob@example.com",
            "sending-ip": "209.61.154.250",
            "targets": "alice@example.com",
        },
        "message": {
            "headers": {
                "to": "Alice <alice@example.com>",
                "message-id": "20130503182626.18666.16540@example.com",
                "from": "Bob <bob@example.com>",
                "subject": "Test delivered webhook",
            },
            "attachments": [],
            "size": 111,
        },
        "recipient": "alice@example.com",
        "recipient-domain": "example.com",
        "user-variables": {"my_var_1": "Mailgun Variable #1", "my-var-2": "awesome"},
    },
}
_SENDGRID_COMMON: dict[str, Any] = {
    "email": "example@test.com",
    "timestamp": 1513299569,
    "smtp-id": "<14c5d75ce93.dfd.64b469@ismtpd-555>",
    "sg_event_id": "sg_event_id",
    "sg_message_id": "14c5d75ce93.dfd.64b469.filter0001.16648.5515E0B88.0",
}
_SENDGRID_EVENTS: list[dict[str, Any]] = [
    {"event": "processed", "category": ["cat facts"]},
    {"event": "deferred", "response": "400 try again later", "attempt": "5"},
    {"event": "delivered", "response": "250 OK"},
    {"event": "open", "useragent": "Mozilla/4.0", "ip": "255.255.255.255"},
    {"event": "bounce", "reason": "500 unknown recipient", "status": "5.0.0", "type": "bounce"},
    {"event": "bounce", "reason": "451 try later", "status": "4.0.0", "type": "blocked"},
    {"event": "dropped", "reason": "Bounced Address", "status": "5.0.0"},
    {"event": "spamreport"},
    {"event": "unsubscribe"},
    {"event": "group_unsubscribe", "asm_group_id": 10},
]
SENDGRID = [{**_SENDGRID_COMMON, **event} for event in _SENDGRID_EVENTS]
TWILIO: dict[str, Any] = {
    "SmsSid": "SM2xxxxxx",
    "SmsStatus": "sent",
    "MessageStatus": "sent",
    "To": "+1512zzzyyyy",
    "MessageSid": "SM2xxxxxx",
    "AccountSid": "ACxxxxxxx",
    "From": "+1512xxxyyyy",
    "ApiVersion": "2010-04-01",
}
VONAGE: dict[str, Any] = {
    "msisdn": "447700900000",
    "to": "AcmeInc",
    "network-code": "12345",
    "messageId": "0A0000001234567B",
    "price": "0.03330000",
    "status": "delivered",
    "scts": "2001011400",
    "err-code": "0",
    "api-key": "abcd1234",
    "message-timestamp": "2020-01-01T12:00:00.000+00:00",
}
DSN = f"""\
Return-Path: <>
From: Mail Delivery System <MAILER-DAEMON@mail.example>
To: no-reply@shop.example
Subject: Undelivered Mail Returned to Sender
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
 boundary="9B0A61FC.1353/mail.example"

This is a MIME-encapsulated message.

--9B0A61FC.1353/mail.example
Content-Description: Notification
Content-Type: text/plain; charset=us-ascii

I'm sorry to have to inform you that your message could not be delivered.

--9B0A61FC.1353/mail.example
Content-Description: Delivery report
Content-Type: message/delivery-status

Reporting-MTA: dns; mail.example
X-Postfix-Queue-ID: 9B0A61FC
Arrival-Date: Mon, 23 Nov 2026 12:00:00 +0000 (UTC)

Final-Recipient: rfc822; ana@example.org
Original-Recipient: rfc822;ana@example.org
Action: failed
Status: 5.1.1
Remote-MTA: dns; mx.example.org
Diagnostic-Code: smtp; 550 5.1.1 <ana@example.org>: Recipient address rejected:
 User unknown in virtual mailbox table

--9B0A61FC.1353/mail.example
Content-Description: Undelivered Message
Content-Type: message/rfc822

From: Shop <no-reply@shop.example>
To: ana@example.org
Subject: Order 1042
Message-ID: <{DELIVERY}.2@shop.example>
MIME-Version: 1.0
Content-Type: text/plain; charset="us-ascii"

Hello Ana
--9B0A61FC.1353/mail.example--
"""
ARF = f"""\
From: <abusedesk@example.com>
To: <abuse@shop.example>
Subject: FW: Earn money
MIME-Version: 1.0
Content-Type: multipart/report; report-type=feedback-report; boundary="part1_13d.2e68ed54_boundary"

--part1_13d.2e68ed54_boundary
Content-Type: text/plain; charset="US-ASCII"

This is an email abuse report for an email message received from IP 192.0.2.1.

--part1_13d.2e68ed54_boundary
Content-Type: message/feedback-report

Feedback-Type: abuse
User-Agent: SomeGenerator/1.0
Version: 1

--part1_13d.2e68ed54_boundary
Content-Type: message/rfc822

From: <no-reply@shop.example>
To: <ana@example.org>
Message-ID: <{DELIVERY}.1@shop.example>

Spam
--part1_13d.2e68ed54_boundary--
"""


def read(document: Any, content_type: str | None = "application/json") -> Read:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return read_receipts(body, content_type)


def one(document: Any, content_type: str | None = "application/json") -> Receipt:
    (receipt,) = read(document, content_type).receipts
    return receipt


def refused(document: Any, content_type: str | None = "application/json") -> Unreadable:
    with pytest.raises(Unreadable) as raised:
        read(document, content_type)
    assert raised.value.faults
    return raised.value


def test_our_own_form() -> None:
    receipt = one({"delivery": DELIVERY, "status": "delivered", "time": "2026-11-23T12:00:00Z", "code": 250})
    assert receipt.about == (DELIVERY, None)
    assert (receipt.status, receipt.code) == (Status.DELIVERED, "250")
    assert receipt.told == "250 at 2026-11-23T12:00:00Z"
    by_epoch = one({"provider": "smtp", "reference": f"{DELIVERY}/3", "status": "bounced"})
    assert by_epoch.about == (DELIVERY, 3)
    words = one({"delivery": DELIVERY, "status": "bounced", "detail": "550 <ana@example.org> unknown"}).detail
    assert words == "550 <<address>> unknown"


def test_amazon_ses() -> None:
    bounce = one(SES_BOUNCE)
    assert bounce.reference == SES_MAIL["messageId"]
    assert (bounce.provider, bounce.status, bounce.code) == ("ses", Status.BOUNCED, "5.1.1")
    assert bounce.recipient == "jane@example.com"
    assert bounce.time == datetime(2016, 1, 27, 14, 59, 38, 237000, UTC)
    assert "jane@" not in str(bounce.detail)
    assert one(SES_COMPLAINT).status is Status.COMPLAINED
    delivered = one(SES_DELIVERY)
    assert (delivered.status, delivered.detail) == (Status.DELIVERED, "250 ok: Message 64111812 accepted")


@pytest.mark.parametrize(
    ("kind", "sub", "status"),
    [
        ("Permanent", "Suppressed", Status.BOUNCED),
        ("Transient", "MailboxFull", Status.SOFT_BOUNCED),
        ("Transient", "ContentRejected", Status.FAILED),
        ("Undetermined", "Undetermined", Status.SOFT_BOUNCED),
    ],
)
def test_a_bounce_of_ses_says_whether_the_address_is_of_use(kind: str, sub: str, status: Status) -> None:
    bounce = {**SES_BOUNCE["bounce"], "bounceType": kind, "bounceSubType": sub}
    assert one({**SES_BOUNCE, "bounce": bounce}).status is status


def test_events_of_ses_name_the_delivery_by_its_tag() -> None:
    event = {**SES_DELIVERY, "mail": {**SES_MAIL, "tags": {"notipy-delivery": [DELIVERY]}}}
    event["eventType"] = event.pop("notificationType")
    assert one(event).about == (DELIVERY, None)
    assert one({"eventType": "Open", "mail": SES_MAIL, "open": {}}).status is Status.PROGRESS
    assert one({"eventType": "Reject", "mail": SES_MAIL, "reject": {"reason": "Bad content"}}).status is Status.FAILED
    not_spam = {**SES_COMPLAINT["complaint"], "complaintFeedbackType": "not-spam"}
    assert one({**SES_COMPLAINT, "complaint": not_spam}).status is Status.PROGRESS


def test_the_envelope_of_sns() -> None:
    envelope = {
        "Type": "Notification",
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": "arn:aws:sns:us-west-2:123456789012:MyTopic",
        "Message": json.dumps(SES_BOUNCE),
        "Timestamp": "2012-05-02T00:54:06.655Z",
        "SignatureVersion": "1",
    }
    assert one(envelope) == one(SES_BOUNCE)
    confirmation = {**envelope, "Type": "SubscriptionConfirmation", "Message": "You have chosen to subscribe"}
    assert "SubscriptionConfirmation" in refused(confirmation).faults[0].fault
    assert refused({**envelope, "Message": "no JSON"}).faults[0].fault == "its Message is not JSON"


def test_a_report_of_ses_that_names_nobody_is_not_lost() -> None:
    assert refused({**SES_DELIVERY, "delivery": {}}).reason is Reason.INVALID


def test_mailgun() -> None:
    receipt = one(MAILGUN_DELIVERED)
    assert receipt.reference == "20130503182626.18666.16540@example.com"
    assert (receipt.provider, receipt.status, receipt.code) == ("mailgun", Status.DELIVERED, "250")
    assert receipt.recipient == "alice@example.com"
    event = {**MAILGUN_DELIVERED["event-data"], "user-variables": {"notipy-delivery": DELIVERY}}
    assert one({"event-data": event}).about == (DELIVERY, None)


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"severity": "permanent", "reason": "suppress-bounce", "delivery-status": {"code": 605}}, Status.BOUNCED),
        ({"severity": "permanent", "reason": "suppress-complaint", "delivery-status": {"code": 607}}, Status.FAILED),
        ({"severity": "permanent", "reason": "old", "delivery-status": {"code": 602}}, Status.SOFT_BOUNCED),
        (
            {"severity": "permanent", "reason": "bounce", "delivery-status": {"code": 550, "message": "5.7.1 spam"}},
            Status.FAILED,
        ),
        ({"severity": "permanent", "reason": "bounce", "delivery-status": {"code": 550}}, Status.BOUNCED),
        ({"severity": "temporary", "reason": "generic", "delivery-status": {"code": 450}}, Status.PROGRESS),
    ],
)
def test_a_failure_of_mailgun_says_whether_the_address_is_of_use(more: dict[str, Any], status: Status) -> None:
    event = {**MAILGUN_DELIVERED["event-data"], "event": "failed", **more}
    assert one({"event-data": event}).status is status


def test_sendgrid() -> None:
    receipts = read(SENDGRID).receipts
    assert {receipt.reference for receipt in receipts} == {"14c5d75ce93.dfd.64b469"}
    assert [receipt.status for receipt in receipts] == [
        Status.PROGRESS,
        Status.PROGRESS,
        Status.DELIVERED,
        Status.PROGRESS,
        Status.BOUNCED,
        Status.SOFT_BOUNCED,
        Status.BOUNCED,
        Status.COMPLAINED,
        Status.UNSUBSCRIBED,
        Status.UNSUBSCRIBED,
    ]
    assert receipts[0].time == datetime(2017, 12, 15, 0, 59, 29, tzinfo=UTC)
    assert one([{**SENDGRID[2], "notipy-delivery": DELIVERY}]).about == (DELIVERY, None)


def test_one_bad_receipt_of_many_does_not_stop_the_others() -> None:
    found = read([*SENDGRID, 7, {"sg_event_id": "e", "event": "delivered"}])
    assert len(found.receipts) == len(SENDGRID)
    assert [fault.field for fault in found.faults] == ["10", "11"]


@pytest.mark.parametrize(
    ("name", "code", "status"),
    [
        ("sent", None, Status.PROGRESS),
        ("delivered", None, Status.DELIVERED),
        ("read", None, Status.DELIVERED),
        ("undelivered", "30003", Status.SOFT_BOUNCED),
        ("undelivered", "30005", Status.BOUNCED),
        ("undelivered", "30007", Status.FAILED),
        ("failed", "30008", Status.FAILED),
        ("failed", "99999", Status.FAILED),
    ],
)
def test_twilio(name: str, code: str | None, status: Status) -> None:
    fields = {**TWILIO, "MessageStatus": name, **({"ErrorCode": code} if code else {})}
    receipt = one(fields)
    assert (receipt.status, receipt.reference, receipt.code) == (status, "SM2xxxxxx", code)
    form = "&".join(f"{key}={value}" for key, value in fields.items()).encode()
    assert one(form, FORM) == receipt


@pytest.mark.parametrize(
    ("name", "code", "status"),
    [
        ("delivered", "0", Status.DELIVERED),
        ("accepted", "0", Status.PROGRESS),
        ("buffered", "0", Status.PROGRESS),
        ("failed", "3", Status.BOUNCED),
        ("expired", "2", Status.SOFT_BOUNCED),
        ("rejected", "6", Status.FAILED),
    ],
)
def test_vonage(name: str, code: str, status: Status) -> None:
    receipt = one({**VONAGE, "status": name, "err-code": code, "client-ref": f"{DELIVERY}/2"})
    assert (receipt.status, receipt.reference) == (status, "0A0000001234567B")
    assert receipt.about == (DELIVERY, 2)
    assert one(VONAGE).about is None


def test_a_bounced_mail() -> None:
    receipt = one(DSN.encode(), MAIL)
    assert receipt.about == (DELIVERY, 2)
    assert (receipt.status, receipt.code, receipt.recipient) == (Status.BOUNCED, "5.1.1", "ana@example.org")
    assert "ana@" not in str(receipt.detail)
    assert "User unknown" in str(receipt.detail)


@pytest.mark.parametrize(
    "field",
    [
        "Content-Type: multipart/report; " + "".join(f'a{number}="x"; ' for number in range(8000)),
        "Content-Type: multipart/report; " + "".join(f'a{number}="x";\r\n ' for number in range(8000)),
        'Content-Type: multipart/report; a="' + '\\";' * 40_000,
        "Content-Type: multipart/mixed; boundary=b\r\n\r\n" + "--b\r\n\r\n" * 200_000,
    ],
)
def test_a_hostile_mail_is_refused_soon(field: str) -> None:
    with ends_soon(), pytest.raises(Unreadable):
        read_receipts(f"{field}\r\n\r\n".encode(), MAIL)


def test_a_bounce_that_brings_the_whole_mail_back_is_read() -> None:
    assert one(f"{DSN}\n{'QUJD' * 19}\n".encode() + b"QUJD\n" * 500_000, MAIL).about == (DELIVERY, 2)


async def test_receipts_are_read_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def read(*_: object) -> Read:
        threads.append(get_ident())
        return Read((), ())

    monkeypatch.setattr("consumers.receipts.read_receipts", read)
    message: Any = SimpleNamespace(body=b"", content_type=MAIL, headers={}, redelivered=False)
    nothing: Any = None
    await ReceiptHandler(nothing, nothing, nothing, ())(message)
    assert threads
    assert get_ident() not in threads


def test_a_bounced_mail_with_headers_alone_and_windows_line_ends() -> None:
    text = DSN.replace("Content-Type: message/rfc822", "Content-Type: text/rfc822-headers").replace("\n", "\r\n")
    assert one(text.encode(), f"{MAIL}; charset=utf-8").about == (DELIVERY, 2)


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        ("Action: failed", "Action: delayed", Status.PROGRESS),
        ("Action: failed", "Action: delivered", Status.DELIVERED),
        ("Action: failed", "Action: relayed", Status.PROGRESS),
        ("Status: 5.1.1", "Status: 4.4.1", Status.SOFT_BOUNCED),
        ("Status: 5.1.1", "Status: 5.2.2", Status.SOFT_BOUNCED),
        ("Status: 5.1.1", "Status: 5.7.1", Status.FAILED),
        ("Status: 5.1.1", "Status: 5.0.0", Status.BOUNCED),
    ],
)
def test_a_bounced_mail_says_whether_the_address_is_of_use(old: str, new: str, status: Status) -> None:
    assert one(DSN.replace(old, new, 1).encode(), MAIL).status is status


def test_a_complaint_as_a_mail() -> None:
    receipt = one(ARF.encode(), MAIL)
    assert (receipt.status, receipt.about) == (Status.COMPLAINED, (DELIVERY, 1))
    other = ARF.replace("Feedback-Type: abuse", "Feedback-Type: not-spam")
    assert one(other.encode(), MAIL).status is Status.PROGRESS


@pytest.mark.parametrize(
    ("document", "content_type", "reason"),
    [
        (b"", None, Reason.NOT_JSON),
        (b"status=delivered", None, Reason.NOT_JSON),
        (b"\xff\xfe", None, Reason.NOT_JSON),
        (b"[]", None, Reason.INVALID),
        ("delivered", None, Reason.INVALID),
        ({"delivery": DELIVERY}, None, Reason.INVALID),
        ({"delivery": DELIVERY, "status": "gone"}, None, Reason.INVALID),
        ({"delivery": DELIVERY, "status": "delivered", "time": "yesterday"}, None, Reason.INVALID),
        ({"delivery": DELIVERY, "status": "delivered", "colour": "red"}, None, Reason.INVALID),
        ({"reference": "SM1", "status": "delivered"}, None, Reason.INVALID),
        ({"provider": "twilio", "status": "delivered"}, None, Reason.INVALID),
        ({**SES_BOUNCE, "mail": {}}, None, Reason.INVALID),
        ({"event-data": 7}, None, Reason.INVALID),
        (b"Subject: hello\n\nworld", MAIL, Reason.INVALID),
        (DSN.replace(DELIVERY, "order-1").encode(), MAIL, Reason.INVALID),
        (b" " * (MAX_BYTES + 1), None, Reason.TOO_LARGE),
    ],
)
def test_what_is_no_receipt_is_refused_with_the_reason(document: Any, content_type: str | None, reason: Reason) -> None:
    assert refused(document, content_type).reason is reason


def test_every_fault_is_told_without_a_value() -> None:
    faults = refused({"delivery": "x" * 200, "status": "gone", "code": "ana@example.org" * 9}).faults
    assert {fault.field for fault in faults} == {"delivery", "status", "code"}
    assert "ana@" not in str(faults)


def test_a_receipt_shows_no_address() -> None:
    assert "jane@" not in repr(one(SES_BOUNCE))


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("5.1.1", Status.BOUNCED),
        ("550 5.1.8 bad sender", Status.FAILED),
        ("5.01.01", Status.BOUNCED),
        ("4.2.2 mailbox full", Status.SOFT_BOUNCED),
        ("550 5.2.1 receives mail at too high a rate", Status.SOFT_BOUNCED),
        ("4.7.1 greylisted", Status.FAILED),
        ("2.0.0", Status.DELIVERED),
        ("user unknown", Status.FAILED),
    ],
)
def test_an_enhanced_status_code(words: str, status: Status) -> None:
    assert status_of(words) is status


def test_a_code_is_explained_by_the_table_of_its_kind() -> None:
    assert by_code("twilio", "30005") is Status.BOUNCED
    assert by_code("twilio", "") is by_code("nobody", "30005") is Status.FAILED
    receipt = one({"provider": "twilio", "reference": "SM1", "status": "failed", "code": "30003"})
    assert receipt.status is Status.SOFT_BOUNCED


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=10,
)
_SHAPED = st.sampled_from([SES_BOUNCE, SES_COMPLAINT, SES_DELIVERY, MAILGUN_DELIVERED, SENDGRID[4], TWILIO, VONAGE])


def found_or_told(body: bytes, content_type: str | None) -> object:
    """The receipts, or else the faults: nothing is ever lost in between, and nothing else is raised."""
    try:
        return read_receipts(body, content_type).receipts
    except Unreadable as fault:
        return fault.faults


@given(_SHAPED, st.data())
def test_whatever_stands_in_a_known_form_is_read_or_refused(example: dict[str, Any], data: st.DataObject) -> None:
    broken = dict(example)
    for name in data.draw(st.lists(st.sampled_from(sorted(example)), max_size=3)):
        broken[name] = data.draw(_JSON)
    assert found_or_told(json.dumps(broken).encode(), None)


@given(st.binary(max_size=200), st.sampled_from([None, MAIL, FORM]))
def test_any_bytes_are_read_or_refused(body: bytes, content_type: str | None) -> None:
    assert found_or_told(body, content_type)


@given(st.integers(0, len(DSN)), st.binary(max_size=30))
def test_a_damaged_bounce_is_read_or_refused(place: int, noise: bytes) -> None:
    raw = DSN.encode()
    assert found_or_told(raw[:place] + noise + raw[place + len(noise) :], MAIL)

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.event import Event, EventRejected, FaultyRecipient, Incoming, Recipient, event_key, parse_event
from domain.vocabulary import Channel, Reason

NOW = datetime(2026, 11, 22, 17, tzinfo=UTC)
ANA = {"email": "ana@example.org"}


def parse(document: Any, *, key: str | None = "shop.order.shipped", message_id: str | None = "m-1") -> Event:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_event(Incoming(body, key, message_id), NOW, 100_000)


def test_the_smallest_event_takes_the_rest_from_the_message() -> None:
    event = parse({"recipients": [ANA], "data": {"order_id": 1}})
    assert (event.id, event.source, event.type, event.time) == ("m-1", "shop", "order.shipped", NOW)
    assert event.key == event_key("shop", "m-1")


def test_the_body_wins_over_the_message() -> None:
    event = parse({"id": "a", "source": "x", "type": "y.z", "time": "2026-01-01T00:00:00+01:00", "recipients": [ANA]})
    assert (event.id, event.topic, event.time.astimezone(UTC).year) == ("a", "x.y.z", 2025)


def test_a_cloud_event_is_an_event() -> None:
    event = parse(
        {
            "specversion": "1.0",
            "id": "c-1",
            "source": "/shop/eu",
            "type": "com.example.shipped",
            "time": "2026-11-22T17:00:00Z",
            "datacontenttype": "application/json",
            "traceparent": "00-1-2-00",
            "data": {"recipients": [ANA], "data": {"order_id": 7}, "lane": "high"},
        },
        key=None,
        message_id=None,
    )
    assert (event.id, event.source, event.type, event.lane) == ("c-1", "/shop/eu", "com.example.shipped", "high")
    assert event.data == {"order_id": 7}


FAULTS: list[tuple[str, Any, Reason, str]] = [
    ("not JSON", b"hello", Reason.NOT_JSON, "expected value"),
    ("empty", b"", Reason.NOT_JSON, "EOF"),
    ("cut short", b'{"recipients": [', Reason.NOT_JSON, "EOF"),
    ("bad UTF-8", b'{"recipients": [{"email": "\xff@example.org"}]}', Reason.NOT_JSON, "unicode"),
    ("lone surrogate", b'{"recipients": [{"name": "\\ud800"}]}', Reason.NOT_JSON, "escape"),
    ("NaN", b'{"recipients": [{"email": "a@example.org"}], "data": {"x": NaN}}', Reason.NOT_JSON, "expected"),
    ("huge", b'"' + b"x" * 100_001 + b'"', Reason.TOO_LARGE, "the limit is 100000"),
    ("too deep to read", b'{"data":' + b"[" * 5000, Reason.TOO_DEEP, "recursion"),
    ("a list", [], Reason.INVALID, "JSON object"),
    ("no recipients", {"data": {}}, Reason.INVALID, "recipients: Field required"),
    ("recipients empty", {"recipients": []}, Reason.INVALID, "recipients"),
    ("recipients no list", {"recipients": {"email": "a@example.org"}}, Reason.INVALID, "recipients"),
    ("recipient no object", {"recipients": ["ana@example.org"]}, Reason.INVALID, "recipients.0"),
    ("recipient empty", {"recipients": [{}]}, Reason.INVALID, "needs an id or an address"),
    ("bad address", {"recipients": [{"email": "ana at example"}]}, Reason.INVALID, "recipients.0.email"),
    ("injected address", {"recipients": [{"email": "a@example.org\r\nBcc: b@example.org"}]}, Reason.INVALID, "control"),
    ("injected name", {"recipients": [{**ANA, "name": "A\r\nBcc: b@example.org"}]}, Reason.INVALID, "line break"),
    ("bad phone", {"recipients": [{"phone": "0151 123"}]}, Reason.INVALID, "international form"),
    ("bad webhook", {"recipients": [{"webhook": "ftp://example.org"}]}, Reason.INVALID, "http"),
    ("bad zone", {"recipients": [{**ANA, "timezone": "Mars/Base"}]}, Reason.INVALID, "time zone"),
    ("unknown field", {"recipients": [ANA], "receipients": []}, Reason.INVALID, "receipients: is not a field"),
    ("data no object", {"recipients": [ANA], "data": [1]}, Reason.INVALID, "data"),
    (
        "data too deep",
        {"recipients": [ANA], "data": {"a": json.loads("[" * 40 + "]" * 40)}},
        Reason.INVALID,
        "32 levels",
    ),
    ("huge integer", {"recipients": [ANA], "data": {"a": 2**70}}, Reason.INVALID, "64 bits"),
    ("naive time", {"recipients": [ANA], "time": "2026-01-01T00:00:00"}, Reason.INVALID, "time"),
    ("bad lane", {"recipients": [ANA], "lane": "fast"}, Reason.INVALID, "lane"),
    ("bad channel", {"recipients": [ANA], "channels": ["pigeon"]}, Reason.INVALID, "channels.0"),
    (
        "path as filename",
        {"recipients": [ANA], "attachments": [{"filename": "../x", "content": ""}]},
        Reason.INVALID,
        "filename",
    ),
    (
        "attachment twice",
        {"recipients": [ANA], "attachments": [{"filename": "x"}]},
        Reason.INVALID,
        "either url or content",
    ),
    ("wildcard type", {"recipients": [ANA], "type": "a.*"}, Reason.INVALID, "type"),
    ("cloud event 0.3", {"specversion": "0.3", "data": {}}, Reason.INVALID, "specversion"),
    ("cloud event without data", {"specversion": "1.0", "data": "x"}, Reason.INVALID, "data"),
]


@pytest.mark.parametrize(("document", "reason", "told"), [fault[1:] for fault in FAULTS], ids=[f[0] for f in FAULTS])
def test_what_cannot_be_used_says_where_and_why(document: Any, reason: Reason, told: str) -> None:
    with pytest.raises(EventRejected) as caught:
        parse(document)
    assert caught.value.reason is reason
    assert told in str(caught.value)


def test_a_key_of_one_word_names_no_type() -> None:
    with pytest.raises(EventRejected, match="type: Field required"):
        parse({"recipients": [ANA]}, key="shop")


def test_one_bad_recipient_does_not_stop_the_others() -> None:
    event = parse({"recipients": [ANA, {"email": "nowhere"}, {"id": "7", "email": "b@example.org", "phone": "x"}]})
    good, bad, half = event.recipients
    assert isinstance(good, Recipient)
    assert isinstance(bad, FaultyRecipient)
    assert bad.usable is None
    assert isinstance(half, FaultyRecipient)
    assert half.fault_for(Channel.EMAIL) is None
    assert "international form" in str(half.fault_for(Channel.SMS))


def test_a_fault_never_repeats_the_value() -> None:
    with pytest.raises(EventRejected) as caught:
        parse({"recipients": [{"email": "s3cr3t-value", "phone": "s3cr3t-value"}]})
    assert "s3cr3t" not in str(caught.value)


def _used_or_rejected(document: Any) -> None:
    try:
        outcome: Event | EventRejected = parse(document)
    except EventRejected as rejected:
        outcome = rejected
    assert isinstance(outcome, Event) or outcome.faults


@given(st.binary(max_size=400))
def test_no_bytes_are_anything_but_an_event_or_a_rejection(body: bytes) -> None:
    _used_or_rejected(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
FIELDS = ["id", "source", "type", "time", "recipients", "data", "attachments", "channels", "lane", "send_at", "content"]


@given(st.dictionaries(st.sampled_from([*FIELDS, "specversion"]), json_values, max_size=5))
def test_no_document_is_anything_but_an_event_or_a_rejection(document: dict[str, Any]) -> None:
    _used_or_rejected(document)

"""Every code to its failure, as a table; Retry-After by properties."""

import socket
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.classify import (
    LONGEST_RETRY_AFTER,
    MAX_DETAIL,
    MAX_READ,
    Stage,
    connection_failure,
    enhanced_code,
    http_failure,
    parse_retry_after,
    scrub,
    smtp_failure,
)
from channels.taxonomy import Table, codes_of
from domain.circuit import THRESHOLD, Circuit, Mode
from domain.failures import DeliveryFailure, PermanentFailure, TransientFailure, UnknownOutcome
from domain.outcome import Retry, Unknown
from domain.retry import RetryPolicy
from domain.vocabulary import Reason, Semantics
from tests.growth import ends_soon

NOW = datetime(2026, 11, 22, 17, 0, tzinfo=UTC)
T, P = TransientFailure, PermanentFailure


@pytest.mark.parametrize(
    ("reply", "stage", "kind", "reason"),
    [
        # enhanced status codes come first
        ("452 4.2.2 mailbox full", "rcpt", T, Reason.MAILBOX_UNAVAILABLE),
        ("552 5.2.2 mailbox full", "rcpt", P, Reason.MAILBOX_UNAVAILABLE),
        ("550 5.2.1 disabled", "rcpt", P, Reason.RECIPIENT_REJECTED),
        ("550 5.1.1 no such user", "rcpt", P, Reason.RECIPIENT_REJECTED),
        ("550 5.1.10 null MX", "rcpt", P, Reason.RECIPIENT_REJECTED),
        ("501 5.1.3 bad syntax", "rcpt", P, Reason.BAD_ADDRESS),
        ("553 5.1.7 bad sender", "mail", T, Reason.SENDER_REJECTED),
        ("550 5.1.8 bad sender domain", "rcpt", P, Reason.SENDER_REJECTED),
        ("550 5.2.3 too long", "body", P, Reason.MESSAGE_TOO_LARGE),
        ("554 5.3.4 too big", "mail", P, Reason.MESSAGE_TOO_LARGE),
        ("550 5.2.3 too long", "mail", P, Reason.MESSAGE_TOO_LARGE),
        ("552 too much", "mail", P, Reason.MESSAGE_TOO_LARGE),
        ("550 5.7.1 not you", "mail", T, Reason.SENDER_REJECTED),
        ("553 5.1.8 bad sender domain", "mail", T, Reason.SENDER_REJECTED),
        ("550 5.6.7 no SMTPUTF8", "mail", P, Reason.BAD_ADDRESS),
        ("450 4.3.2 not now", "mail", T, Reason.PROVIDER_UNAVAILABLE),
        ("550 5.4.1 access denied", "rcpt", P, Reason.RECIPIENT_REJECTED),
        ("451 4.4.1 no answer from host", "rcpt", T, Reason.PROVIDER_UNAVAILABLE),
        ("452 4.5.3 too many recipients", "rcpt", T, Reason.RATE_LIMITED),
        ("554 5.6.0 bad content", "body", P, Reason.MESSAGE_REJECTED),
        ("550 5.6.7 no SMTPUTF8", "rcpt", P, Reason.BAD_ADDRESS),
        ("550 5.7.1 spam", "body", P, Reason.POLICY_REJECTED),
        ("550 5.7.26 DMARC", "body", P, Reason.POLICY_REJECTED),
        ("451 4.7.1 greylisted", "rcpt", T, Reason.POLICY_REJECTED),
        ("421 4.7.28 rate", "body", T, Reason.RATE_LIMITED),
        # an enhanced code of another class than the reply's is none
        ("550 4.2.2 odd", "rcpt", P, Reason.RECIPIENT_REJECTED),
        ("550 5.9.9 unknown subject", "rcpt", P, Reason.RECIPIENT_REJECTED),
        # our credentials
        ("535 5.7.8 bad credentials", "auth", T, Reason.AUTHENTICATION),
        ("550 what", "auth", T, Reason.AUTHENTICATION),
        ("530 5.7.0 must issue STARTTLS", "mail", T, Reason.AUTHENTICATION),
        ("534 5.7.9 too weak", "auth", T, Reason.AUTHENTICATION),
        ("538 5.7.11 encryption", "auth", T, Reason.AUTHENTICATION),
        ("454 4.7.0 temporary", "auth", T, Reason.AUTHENTICATION),
        ("550 5.7.8 login first", "mail", T, Reason.AUTHENTICATION),
        # basic codes
        ("421 closing", "rcpt", T, Reason.PROVIDER_UNAVAILABLE),
        ("450 busy", "rcpt", T, Reason.MAILBOX_UNAVAILABLE),
        ("451 local error", "body", T, Reason.PROVIDER_UNAVAILABLE),
        ("452 storage", "mail", T, Reason.PROVIDER_UNAVAILABLE),
        ("455 parameters", "mail", T, Reason.PROVIDER_UNAVAILABLE),
        ("550 no", "mail", T, Reason.SENDER_REJECTED),
        ("550 no", "rcpt", P, Reason.RECIPIENT_REJECTED),
        ("550 no", "body", P, Reason.MESSAGE_REJECTED),
        ("551 not local", "rcpt", P, Reason.RECIPIENT_REJECTED),
        ("552 too much", "body", P, Reason.MESSAGE_TOO_LARGE),
        ("553 name", "rcpt", P, Reason.BAD_ADDRESS),
        ("553 name", "mail", T, Reason.SENDER_REJECTED),
        ("554 failed", "body", P, Reason.MESSAGE_REJECTED),
        ("554 failed", "data", P, Reason.MESSAGE_REJECTED),
        ("556 null MX", "rcpt", P, Reason.RECIPIENT_REJECTED),
        # before the transaction it is about us
        ("554 5.7.1 you are listed", "connect", T, Reason.PROVIDER_UNAVAILABLE),
        ("421 busy", "connect", T, Reason.PROVIDER_UNAVAILABLE),
        # no SMTP at all
        ("-1 HTTP/1.1", "connect", T, Reason.PROVIDER_UNAVAILABLE),
        ("250 ok to DATA", "data", T, Reason.PROVIDER_UNAVAILABLE),
    ],
)
def test_smtp(reply: str, stage: str, kind: type[DeliveryFailure], reason: Reason) -> None:
    code, _, text = reply.partition(" ")
    failure = smtp_failure(int(code), text, Stage(stage))
    assert (type(failure), failure.reason) == (kind, reason)
    assert code in failure.detail
    if stage == "mail":
        assert failure.provider_fault is (kind is T)


@pytest.mark.parametrize(
    ("reply", "stage", "suppress"),
    [
        *((f"550 {code} no", "rcpt", True) for code in ("5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10")),
        ("553 5.1.3 syntax", "rcpt", True),
        ("556 5.1.10 null MX", "rcpt", True),
        # no proof: blocklists, policies and rates are told so, too
        ("550 5.2.1 The user you are trying to contact is receiving mail at a rate that prevents", "rcpt", False),
        ("521 5.2.1 (DMARC) This message failed DMARC Evaluation", "rcpt", False),
        *((f"{code} no such user", "rcpt", False) for code in (550, 551, 553, 554, 556)),
        *(
            (f"550 {code} no", "rcpt", False)
            for code in ("5.0.0", "5.1.0", "5.1.4", "5.1.7", "5.1.8", "5.2.0", "5.2.2")
        ),
        *((f"550 {code} no", "rcpt", False) for code in ("5.3.0", "5.4.4", "5.5.3", "5.6.7", "5.7.1", "5.7.27")),
        ("550 4.1.1 of another class", "rcpt", False),
        ("450 4.1.1 later", "rcpt", False),
        # about the message and everybody in it, or about us
        ("550 5.1.1 no", "body", False),
        ("550 5.1.1 no", "data", False),
        ("550 5.1.1 no", "mail", False),
    ],
)
def test_a_refused_recipient_is_suppressed_only_where_the_answer_says_so_of_the_address(
    reply: str, stage: str, suppress: bool
) -> None:
    code, _, text = reply.partition(" ")
    assert smtp_failure(int(code), text, Stage(stage)).suppress is suppress


@given(st.integers(400, 599), st.sampled_from(Stage), st.text())
def test_every_smtp_reply_has_an_outcome(code: int, stage: Stage, text: str) -> None:
    failure = smtp_failure(code, text, stage)
    assert isinstance(failure, TransientFailure) or code >= 500
    assert len(failure.detail) <= MAX_DETAIL


def test_enhanced_codes_are_read_at_the_start_only() -> None:
    assert enhanced_code(550, "5.1.1 no") == ("1", "1.1")
    assert enhanced_code(550, "5.01.001 no") == ("01", "1.1")
    assert enhanced_code(550, "blocked by 5.1.1.1") is None
    assert enhanced_code(550, "5.1.1.1 is listed") is None  # an IP address


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (301, P, Reason.REDIRECT_REFUSED), (302, P, Reason.REDIRECT_REFUSED), (304, P, Reason.REDIRECT_REFUSED),
        (307, P, Reason.REDIRECT_REFUSED), (308, P, Reason.REDIRECT_REFUSED),
        (400, P, Reason.ENDPOINT_REJECTED), (401, P, Reason.AUTHENTICATION), (403, P, Reason.ENDPOINT_REJECTED),
        (404, P, Reason.ENDPOINT_REJECTED), (405, P, Reason.ENDPOINT_REJECTED), (407, P, Reason.AUTHENTICATION),
        (408, T, Reason.TIMEOUT), (409, P, Reason.ENDPOINT_REJECTED), (410, P, Reason.ENDPOINT_GONE),
        (413, P, Reason.MESSAGE_TOO_LARGE), (422, P, Reason.ENDPOINT_REJECTED), (425, T, Reason.PROVIDER_UNAVAILABLE),
        (429, T, Reason.RATE_LIMITED), (451, P, Reason.ENDPOINT_REJECTED), (500, T, Reason.PROVIDER_UNAVAILABLE),
        (501, P, Reason.ENDPOINT_REJECTED), (502, UnknownOutcome, Reason.OUTCOME_UNKNOWN),
        (503, T, Reason.PROVIDER_UNAVAILABLE), (504, UnknownOutcome, Reason.OUTCOME_UNKNOWN),
        (505, P, Reason.ENDPOINT_REJECTED), (599, T, Reason.PROVIDER_UNAVAILABLE),
        (999, T, Reason.PROVIDER_UNAVAILABLE),
    ],
)  # fmt: skip
def test_http(status: int, kind: type[DeliveryFailure], reason: Reason) -> None:
    failure = http_failure(status, "30", NOW)
    assert (type(failure), failure.reason) == (kind, reason)
    assert failure.retry_after == (None if kind is P else timedelta(seconds=30))
    assert not failure.provider_fault, "each recipient has an endpoint of its own"


@given(st.integers(0, 10**12))
def test_retry_after_in_seconds(seconds: int) -> None:
    assert parse_retry_after(f" {seconds} ", NOW) == min(timedelta(seconds=min(seconds, 10**9)), LONGEST_RETRY_AFTER)


@given(st.timedeltas(timedelta(days=-3), timedelta(days=3)).map(lambda d: timedelta(seconds=int(d.total_seconds()))))
def test_retry_after_as_a_date(distance: timedelta) -> None:
    value = format_datetime(NOW + distance, usegmt=True)
    assert parse_retry_after(value, NOW) == max(distance, timedelta(0))


@given(st.text())
def test_retry_after_is_never_an_error(value: str) -> None:
    wait = parse_retry_after(value, NOW)
    assert wait is None or timedelta(0) <= wait <= LONGEST_RETRY_AFTER


@pytest.mark.parametrize("value", [None, "", "soon", "-5", "1.5", "٣", "Sun, 99 Nov 2026 17:00:00 GMT"])
def test_a_retry_after_that_says_nothing(value: str | None) -> None:
    assert parse_retry_after(value, NOW) is None


def _caused(error: Exception) -> Exception:
    outer = RuntimeError("while connecting to 10.0.0.1")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(111, "to 10.0.0.1"), Reason.CONNECTION_REFUSED),
        (OSError("Multiple exceptions: [Errno 111] ('::1', 25), [Errno 111] (…)"), Reason.CONNECTION_REFUSED),
        (socket.gaierror(-2, "no such name"), Reason.NAME_RESOLUTION),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), Reason.TLS),
        (ssl.SSLError(1, "handshake"), Reason.TLS),
        (TimeoutError(), Reason.TIMEOUT),
        (ConnectionResetError(104, "by 10.0.0.1"), Reason.CONNECTION_LOST),
        (OSError(113, "no route to 10.0.0.1"), Reason.CONNECTION_LOST),
    ],
)  # fmt: skip
def test_errors_on_the_way(error: Exception, reason: Reason) -> None:
    for one in (error, _caused(error)):
        failure = connection_failure(one, "connecting to mail.example:25")
        assert failure.reason is reason
        assert "mail.example" in failure.detail
        assert "10.0.0.1" not in failure.detail


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("<ana@example.org>: no", "<<address>>: no"),
        ("to änne@bücher.example, sorry", "to <address>, sorry"),
        ("line\r\nX-Evil: 1\x00\x1b[31m", "line X-Evil: 1 [31m"),
        ("call +4915112345678", "call <number>"),
        ("user Hunter2 unknown", "user <hidden> unknown"),
        ("x" * 500, "x" * MAX_DETAIL),
        ("\udce4 odd bytes", "odd bytes"),
    ],
)
def test_scrubbing(text: str, clean: str) -> None:
    cleaned = scrub(text, hide=("hunter2", ""))
    assert cleaned == clean
    cleaned.encode()


@pytest.mark.parametrize("unit", ["a", "a.", "a:", "+1", "a@", " "])
def test_scrubbing_takes_no_longer_by_the_square(unit: str) -> None:
    with ends_soon():
        scrub(unit * 100_000)


def test_an_address_or_a_secret_cut_in_half_is_not_shown() -> None:
    for place in range(MAX_READ - 20, MAX_READ + 2):
        assert "hunt" not in scrub(" " * place + "hunter2", hide=("hunter2",))
        assert "ana" not in scrub(" " * place + "ana@example.org")


@pytest.mark.parametrize("status", [502, 504])
def test_what_a_receivers_gateway_answers_is_marked_or_not_sent_again(status: int) -> None:
    failure = http_failure(status, None, NOW)
    again = RetryPolicy().next_attempt(1, failure, NOW, Random(1))
    assert isinstance(again, Retry)
    assert again.possible_duplicate
    once = RetryPolicy(semantics=Semantics.AT_MOST_ONCE).next_attempt(1, failure, NOW, Random(1))
    assert isinstance(once, Unknown)


@pytest.mark.parametrize("status", [502, 504])
def test_what_a_gateway_answers_is_an_unknown_outcome_and_the_providers_fault(status: int) -> None:
    failure = Table("p", "1", "none", ()).failure(codes_of(status), "a gateway")
    assert type(failure) is UnknownOutcome
    circuit = Circuit("p", lambda: NOW)
    for _ in range(THRESHOLD):
        circuit.ended(failure)
    assert circuit.mode is Mode.OPEN

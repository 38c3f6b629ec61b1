"""What an answer or an error means: tables from SMTP replies, HTTP statuses and exceptions to failures.

Sources: RFC 5321 (SMTP replies), RFC 3463, 5248, 7372, 7504 (enhanced status codes), RFC 4954 (authentication),
RFC 9110, 6585, 8470 (HTTP statuses), RFC 9110 §10.2.3 (Retry-After). A code says with its first digit whether
another attempt makes sense; the tables say why. Details never hold an address or a secret.
"""

import re
import socket
import ssl
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final

from domain.failures import DeliveryFailure, PermanentFailure, TransientFailure, UnknownOutcome
from domain.vocabulary import Reason

MAX_DETAIL: Final = 200
MAX_READ: Final = 2000
"""Characters of a server's words that are looked at, of which `MAX_DETAIL` are kept."""
LONGEST_RETRY_AFTER: Final = timedelta(days=7)
"""A longer Retry-After is read as this; the domain waits less anyway."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_ADDRESS = re.compile(r"(?<![^\s<>()\[\],;:\"'@])[^\s<>()\[\],;:\"'@]++@[^\s<>()\[\],;\"']+")
_PHONE = re.compile(r"\+\d{7,}")
_ENHANCED = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})(?!\S*\.\d)")


class Stage(StrEnum):
    """How far an SMTP conversation has come. Up to `DATA` nothing of the message has left."""

    CONNECT = "connect"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    """`DATA` was said, the server has not yet asked for the message."""
    BODY = "body"
    """The message is on its way, or on the other side; only the answer tells."""


def scrub(text: str, hide: Iterable[str] = ()) -> str:
    """A server's words as one short line without addresses; each of `hide` is taken out wherever it stands."""
    line = _CONTROL.sub(" ", text)
    for secret in sorted(filter(None, hide), key=len, reverse=True):
        if line.isascii() and secret.isascii() and secret.lower() not in line.lower():
            continue  # as in nearly every answer: no expression is made for it
        line = re.sub(re.escape(secret), "<hidden>", line, flags=re.IGNORECASE)
    if len(line) > MAX_READ:
        line = line[:MAX_READ].rpartition(" ")[0]  # not half an address: that would not be known as one
    line = _PHONE.sub("<number>", _ADDRESS.sub("<address>", line))
    return " ".join(line.split())[:MAX_DETAIL]


# ---------------------------------------------------------------------------------------------------------------
# SMTP
# ---------------------------------------------------------------------------------------------------------------

AUTHENTICATION_CODES: Final = frozenset({432, 454, 530, 534, 535, 538})
"""RFC 4954 §6. Our credentials are wrong, or not wanted as given: a fault of the configuration, not of the message.
It is transient, also where the server says 5xx: what an operator will put right must not fail a million deliveries."""

BY_DETAIL: Final[Mapping[str, Reason]] = {
    "1.3": Reason.BAD_ADDRESS,  # bad destination mailbox address syntax
    "1.7": Reason.SENDER_REJECTED,  # bad sender's mailbox address syntax
    "1.8": Reason.SENDER_REJECTED,  # bad sender's system address
    "2.1": Reason.RECIPIENT_REJECTED,  # mailbox disabled
    "2.3": Reason.MESSAGE_TOO_LARGE,  # message length exceeds administrative limit
    "3.4": Reason.MESSAGE_TOO_LARGE,  # message too big for system
    "5.3": Reason.RATE_LIMITED,  # too many recipients
    "6.7": Reason.BAD_ADDRESS,  # RFC 6531: non-ASCII address not permitted for that recipient
    "6.9": Reason.BAD_ADDRESS,  # RFC 6531: UTF-8 header message cannot be transferred
    "7.8": Reason.AUTHENTICATION,  # RFC 4954: authentication credentials invalid
    "7.9": Reason.AUTHENTICATION,  # authentication mechanism is too weak
    "7.11": Reason.AUTHENTICATION,  # encryption required for requested authentication mechanism
    "7.28": Reason.RATE_LIMITED,  # mail flood detected
}
"""Reason by subject and detail of an enhanced status code, where the subject alone says too little."""

BY_SUBJECT: Final[Mapping[str, Mapping[str, Reason]]] = {
    "4": {
        "1": Reason.MAILBOX_UNAVAILABLE,
        "2": Reason.MAILBOX_UNAVAILABLE,
        "3": Reason.PROVIDER_UNAVAILABLE,
        "4": Reason.PROVIDER_UNAVAILABLE,
        "5": Reason.PROVIDER_UNAVAILABLE,
        "6": Reason.MESSAGE_REJECTED,
        "7": Reason.POLICY_REJECTED,  # greylisting and reputation
    },
    "5": {
        "1": Reason.RECIPIENT_REJECTED,
        "2": Reason.MAILBOX_UNAVAILABLE,
        "3": Reason.PROVIDER_UNAVAILABLE,
        "4": Reason.RECIPIENT_REJECTED,  # no route to the recipient's domain
        "5": Reason.MESSAGE_REJECTED,
        "6": Reason.MESSAGE_REJECTED,
        "7": Reason.POLICY_REJECTED,
    },
}
"""Reason by class and subject of an enhanced status code (RFC 3463 §3)."""

BY_CODE: Final[Mapping[int, Reason]] = {
    421: Reason.PROVIDER_UNAVAILABLE,
    450: Reason.MAILBOX_UNAVAILABLE,
    451: Reason.PROVIDER_UNAVAILABLE,
    452: Reason.PROVIDER_UNAVAILABLE,
    521: Reason.RECIPIENT_REJECTED,  # RFC 7504: the host does not accept mail
    551: Reason.RECIPIENT_REJECTED,
    552: Reason.MESSAGE_TOO_LARGE,
    556: Reason.RECIPIENT_REJECTED,  # RFC 7504: the domain does not accept mail
}
"""Reason by basic reply code, whatever was said before it."""

UNDELIVERABLE: Final = frozenset(
    {
        "1.1",  # bad destination mailbox address: there is no such mailbox
        "1.2",  # bad destination system address: there is no such domain, or it takes no mail
        "1.3",  # bad destination mailbox address syntax
        "1.6",  # the mailbox has moved, and nobody knows where to
        "1.10",  # RFC 7505: the domain has a null MX
    }
)
"""Enhanced status codes (RFC 3463, RFC 7505) with which a refusal of RCPT for good suppresses the address: each says
that the address itself is of no use.

A bare 550, 551, 553 or 554 is no proof: "mailbox not found, no access, or command rejected for policy reasons" is all
one to RFC 5321 §4.2.3, and a server that has our own host on a blocklist answers so to every recipient. Nor do the rest
of the subject 1 (5.1.0 says nothing, 5.1.7 and 5.1.8 are about the sender), a full mailbox (5.2.2), the network (5.4.x)
or a policy (5.7.x); nor "mailbox disabled" (5.2.1), with which Gmail also refuses a mailbox that is in use and gets too
much mail (`ReceivingRatePerm`), and AOL what fails DMARC. After DATA the answer is about the message and all of its
recipients, whatever its code."""

BY_STAGE: Final[Mapping[Stage, Reason]] = {
    Stage.MAIL: Reason.SENDER_REJECTED,
    Stage.RCPT: Reason.RECIPIENT_REJECTED,
    Stage.DATA: Reason.MESSAGE_REJECTED,
    Stage.BODY: Reason.MESSAGE_REJECTED,
}
"""Reason of any other 5xx, by what it answered."""


def smtp_failure(code: int, text: str, stage: Stage, hide: Iterable[str] = ()) -> DeliveryFailure:
    """What a reply that is no success means.

    A 5xx before the mail transaction (a greeting of 554, a refused EHLO) is about us and not about the message,
    so it is transient; as is every answer that is no SMTP. So is a refused MAIL, which names nothing but our sender,
    unless its size or its form is what is refused.
    """
    detail = scrub(f"{code} {text}", hide)
    if code in AUTHENTICATION_CODES or stage is Stage.AUTH:
        return TransientFailure(Reason.AUTHENTICATION, detail, provider_fault=True)
    if stage is Stage.CONNECT or not 400 <= code <= 599:
        return TransientFailure(Reason.PROVIDER_UNAVAILABLE, detail, provider_fault=True)
    reason = _smtp_reason(code, text, stage)
    if reason is Reason.AUTHENTICATION:
        return TransientFailure(reason, detail, provider_fault=True)
    if code < 500:
        # before a recipient is named it is no recipient's fault; 421 closes the connection on whoever is next; and a
        # flood of mails is ours, whoever this one is for
        ours = stage is Stage.MAIL or code == 421 or _flood(code, text)
        return TransientFailure(reason, detail, provider_fault=ours)
    if stage is Stage.MAIL and not _about_message(code, text):
        return TransientFailure(Reason.SENDER_REJECTED, detail, provider_fault=True)
    return PermanentFailure(reason, detail, suppress=stage is Stage.RCPT and _undeliverable(code, text))


def enhanced_code(code: int, text: str) -> tuple[str, str] | None:
    """Subject and `subject.detail` of the enhanced status code, if the reply has one of its own class (RFC 2034)."""
    match = _ENHANCED.match(text.lstrip())
    if match is None or match[1] != str(code)[0]:
        return None
    return match[2], f"{int(match[2])}.{int(match[3])}"


def _undeliverable(code: int, text: str) -> bool:
    """Whether a refusal of RCPT says that the address is of no use."""
    _, detail = enhanced_code(code, text) or ("", "")
    return detail in UNDELIVERABLE


def _flood(code: int, text: str) -> bool:
    """Whether we are too fast for the server (X.7.28 of the IANA registry: mail flood detected)."""
    _, detail = enhanced_code(code, text) or ("", "")
    return detail == "7.28"


def _about_message(code: int, text: str) -> bool:
    """Whether a refusal of MAIL is about this message: its size (RFC 1870), or its form (X.6, such as SMTPUTF8)."""
    subject, detail = enhanced_code(code, text) or ("", "")
    return code == 552 or detail in {"2.3", "3.4"} or subject == "6"


def _smtp_reason(code: int, text: str, stage: Stage) -> Reason:
    enhanced = enhanced_code(code, text)
    if enhanced is not None:
        subject, detail = enhanced
        found = BY_DETAIL.get(detail) or BY_SUBJECT[str(code)[0]].get(subject)
        if found is not None:
            return found
    if code == 553:  # mailbox name not allowed, the sender's or the recipient's
        return Reason.SENDER_REJECTED if stage is Stage.MAIL else Reason.BAD_ADDRESS
    return BY_CODE.get(code) or (BY_STAGE[stage] if code >= 500 else Reason.PROVIDER_UNAVAILABLE)


# ---------------------------------------------------------------------------------------------------------------
# HTTP
# ---------------------------------------------------------------------------------------------------------------

BY_STATUS: Final[Mapping[int, tuple[type[DeliveryFailure], Reason]]] = {
    401: (PermanentFailure, Reason.AUTHENTICATION),
    407: (PermanentFailure, Reason.AUTHENTICATION),
    408: (TransientFailure, Reason.TIMEOUT),
    410: (PermanentFailure, Reason.ENDPOINT_GONE),
    413: (PermanentFailure, Reason.MESSAGE_TOO_LARGE),
    425: (TransientFailure, Reason.PROVIDER_UNAVAILABLE),  # RFC 8470: Too Early
    429: (TransientFailure, Reason.RATE_LIMITED),  # RFC 6585
    # RFC 9110 §15.6.2 and §15.6.6: the server does not support the method or the version, and says so as a property
    # of its own rather than of its present state; asking again ends the same way.
    501: (PermanentFailure, Reason.ENDPOINT_REJECTED),
    # a gateway answers, after it has passed the request on (RFC 9110 §15.6.3 and §15.6.5)
    502: (UnknownOutcome, Reason.OUTCOME_UNKNOWN),
    504: (UnknownOutcome, Reason.OUTCOME_UNKNOWN),
    505: (PermanentFailure, Reason.ENDPOINT_REJECTED),
}
"""Statuses that mean something else than their class."""

BY_CLASS: Final[Mapping[int, tuple[type[DeliveryFailure], Reason]]] = {
    1: (TransientFailure, Reason.PROVIDER_UNAVAILABLE),
    3: (PermanentFailure, Reason.REDIRECT_REFUSED),
    4: (PermanentFailure, Reason.ENDPOINT_REJECTED),
    5: (TransientFailure, Reason.PROVIDER_UNAVAILABLE),
}


def http_failure(status: int, retry_after: str | None, now: datetime) -> DeliveryFailure:
    """What a status that is no 2xx means. `retry_after`: the header as it came; what fails for good has none."""
    unknown = (TransientFailure, Reason.PROVIDER_UNAVAILABLE)
    kind, reason = BY_STATUS.get(status) or BY_CLASS.get(status // 100, unknown)
    wait = None if kind is PermanentFailure else parse_retry_after(retry_after, now)
    return kind(reason, f"HTTP {status}", retry_after=wait)


def parse_retry_after(value: str | None, now: datetime) -> timedelta | None:
    """Read Retry-After, a number of seconds or an HTTP date; None if it is neither. Never negative."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        # Nine digits hold 31 years; more would only overflow.
        return min(timedelta(seconds=int(text[:9]) if len(text) < 10 else 10**9), LONGEST_RETRY_AFTER)
    try:
        date = parsedate_to_datetime(text)
        aware = date if date.tzinfo else date.replace(tzinfo=UTC)
        return min(max(aware - now, timedelta(0)), LONGEST_RETRY_AFTER)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


# ---------------------------------------------------------------------------------------------------------------
# Errors on the way
# ---------------------------------------------------------------------------------------------------------------


def connection_failure(
    error: BaseException, doing: str, *, provider_fault: bool = False, host: str | None = None
) -> TransientFailure:
    """What an error while connecting or talking means, as long as nothing of the message can have arrived.

    `doing` goes into the detail, the error's own words do not: they hold addresses. `host`: the provider's, as the
    settings have it, named where there is no such host; never a recipient's.
    """
    reason = connection_reason(error)
    words = f"the host {host} was not found" if host and reason is Reason.NAME_RESOLUTION else _WORDS[reason]
    detail = f"{words} while {doing}{_tls_words(error)}"
    return TransientFailure(reason, detail, provider_fault=provider_fault)


def connection_reason(error: BaseException) -> Reason:
    """Why a connection failed."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError | ssl.CertificateError):
            return Reason.TLS
        if isinstance(cause, socket.gaierror):
            return Reason.NAME_RESOLUTION
        # Of a host with several addresses asyncio tells all errors in one, without a number.
        if isinstance(cause, ConnectionRefusedError) or _REFUSED.search(str(cause)):
            return Reason.CONNECTION_REFUSED
    if any(isinstance(cause, TimeoutError) for cause in _causes(error)):
        return Reason.TIMEOUT
    return Reason.CONNECTION_LOST


_REFUSED = re.compile(r"\[Errno (?:111|61|10061)\]")
_WORDS: Final[Mapping[Reason, str]] = {
    Reason.TLS: "TLS failed",
    Reason.NAME_RESOLUTION: "the host name was not found",
    Reason.CONNECTION_REFUSED: "connection refused",
    Reason.TIMEOUT: "no answer in time",
    Reason.CONNECTION_LOST: "connection lost",
}


def _causes(error: BaseException) -> Iterable[BaseException]:
    found: BaseException | None = error
    for _ in range(10):
        if found is None:
            return
        yield found
        found = found.__cause__ or getattr(found, "os_error", None)


def _tls_words(error: BaseException) -> str:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f": {scrub(getattr(cause, 'verify_message', ''))}"
    return ""

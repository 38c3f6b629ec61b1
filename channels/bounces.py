"""Bounces and complaints as mail servers write them: RFC 3464 reports and RFC 5965 feedback.

Which message it is about is told by the Message-ID of the message that came back, `<delivery>.<epoch>@…`, as
`channels.mail` has written it.
"""

import re
from collections.abc import Iterator, Mapping
from email import message_from_bytes, policy
from email.message import Message
from typing import Any, Final

from channels.classify import scrub
from domain.receipt import Status

MAX_READ: Final = 128 * 1024
"""Bytes of a report that are read. What matters stands before the returned message's body, which may be of any size."""
MAX_HEADER: Final = 8 * 1024
"""Bytes of one header field: the standard library's parser takes time by the square of its parameters."""

_FIELD: Final = re.compile(rb"[^\n]*+(?:\n[ \t][^\n]*+)*+")
_MESSAGE_ID: Final = re.compile(r"<([0-9a-f-]{36})\.(\d{1,9})@[^<>\s]+>")
_ENHANCED: Final = re.compile(r"\b([245])\.(\d{1,3})\.(\d{1,3})\b")

BY_DETAIL: Final[Mapping[str, Status]] = {
    "5.1.7": Status.FAILED,  # bad sender's mailbox address syntax
    "5.1.8": Status.FAILED,  # bad sender's system address
    "5.2.3": Status.FAILED,  # message length exceeds administrative limit
    "5.2.4": Status.FAILED,  # mailing list expansion problem
    "5.4.4": Status.BOUNCED,  # unable to route: there is no such domain
}
BY_SUBJECT: Final[Mapping[str, Status]] = {
    "5.0": Status.SOFT_BOUNCED,  # other or undefined: nothing is said of the address
    "5.1": Status.BOUNCED,  # addressing
    "5.2": Status.SOFT_BOUNCED,  # mailbox: full, for one, or (5.2.1) one that gets more than it may just now
    "5.4": Status.SOFT_BOUNCED,  # network and routing
    "4.0": Status.SOFT_BOUNCED,
    "4.1": Status.SOFT_BOUNCED,
    "4.2": Status.SOFT_BOUNCED,
    "4.3": Status.SOFT_BOUNCED,
    "4.4": Status.SOFT_BOUNCED,
}
"""What an enhanced status code (RFC 3463, RFC 5248) says of the address, once a server has given up; any other is about
the message, the sender or a policy."""


class NotABounce(Exception):
    """The mail is no report that can be used; the message says why, without anything of its content."""


def status_of(code: str | None, *, unknown: Status = Status.FAILED) -> Status:
    """What `5.1.1`, alone or within a server's words, says; `unknown`: if there is no such code."""
    match = _ENHANCED.search(code or "")
    if match is None:
        return unknown
    kind, subject, detail = (str(int(part)) for part in match.groups())
    if kind == "2":
        return Status.DELIVERED
    return BY_DETAIL.get(f"{kind}.{subject}.{detail}") or BY_SUBJECT.get(f"{kind}.{subject}") or Status.FAILED


def read_bounce(body: bytes) -> Mapping[str, Any]:
    """A report as the fields of a receipt.

    Raises:
        NotABounce: it is none, or about no message of ours.
    """
    mail = _parsed(body)
    delivery = _about(mail)
    if (complaint := _part(mail, "message/feedback-report")) is not None:
        return {"delivery": delivery, **_complaint(complaint)}
    report = _part(mail, "message/delivery-status")
    if report is None:
        raise NotABounce("has no part message/delivery-status (RFC 3464) or message/feedback-report (RFC 5965)")
    return {"delivery": delivery, **_delivery_status(report)}


def _parsed(body: bytes) -> Message:
    """By `compat32`, which is many times as fast with hostile headers, and gives all that is asked for here."""
    short = _FIELD.sub(lambda found: found[0][:MAX_HEADER], body[:MAX_READ])
    return message_from_bytes(short, policy=policy.compat32)


def _part(mail: Message, kind: str) -> Message | None:
    return next((part for part in mail.walk() if part.get_content_type() == kind), None)


def _about(mail: Message) -> str:
    """The delivery and the epoch, by the Message-ID of the message that came back, whole or only its headers."""
    for part in mail.walk():
        if part.get_content_type() in {"message/rfc822", "text/rfc822-headers", "message/rfc822-headers"}:
            found = _MESSAGE_ID.search(_returned(part))
            if found is not None:
                return f"{found[1]}/{found[2]}"
    raise NotABounce("no message with a Message-ID of NotiPy's came back in it")


def _returned(part: Message) -> str:
    """The headers of the message that came back."""
    payload = part.get_payload()
    if isinstance(payload, list) and payload and isinstance(payload[0], Message):
        return str(payload[0].get("Message-ID") or "")
    raw = part.get_payload(decode=True)
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(payload)
    found = re.search(r"(?im)^message-id:\s*(<[^<>\s]+>)", text)
    return found[1] if found else ""


def _delivery_status(report: Message) -> Mapping[str, Any]:
    """The first recipient that something final is said of; of several, each has a report of its own by most servers."""
    groups = [group for group in _groups(report) if group.get("action")]
    if not groups:
        raise NotABounce("its delivery-status names no Action")
    group = next((group for group in groups if _action(group) == "failed"), groups[0])
    code = _field(group, "status")
    return {
        "status": _status(_action(group), code, _field(group, "diagnostic-code")),
        "code": code[:64] or None,
        "detail": scrub(_field(group, "diagnostic-code").partition(";")[2]) or None,
        "recipient": _address(group),
    }


def _status(action: str, code: str, diagnostic: str) -> Status:
    """RFC 3464 §2.3.3: `relayed` and `expanded` go on where nothing is reported any more."""
    if action == "failed":
        vague = code.endswith(".0.0") and _ENHANCED.search(diagnostic) is not None
        return status_of(diagnostic if vague else code, unknown=Status.SOFT_BOUNCED)
    return Status.DELIVERED if action == "delivered" else Status.PROGRESS


def _groups(report: Message) -> Iterator[Message]:
    payload = report.get_payload()
    for group in payload if isinstance(payload, list) else ():
        if isinstance(group, Message):
            yield group


def _field(group: Message, name: str) -> str:
    return " ".join(str(group.get(name) or "").split())


def _action(group: Message) -> str:
    return _field(group, "action").lower()


def _address(group: Message) -> str | None:
    """As we wrote it, where the report says so: what a forwarder made of it is another address."""
    named = _field(group, "original-recipient") or _field(group, "final-recipient")
    return named.partition(";")[2].strip().strip("<>") or None


def _complaint(report: Message) -> Mapping[str, Any]:
    """Only abuse is a complaint; `not-spam` takes one back, the others are fraud and viruses (RFC 5965 §7.3)."""
    payload = report.get_payload()
    inner = payload[0] if isinstance(payload, list) and payload else payload
    fields = inner if isinstance(inner, Message) else _parsed(str(inner).encode("utf-8", "replace"))
    kind = _field(fields, "feedback-type").lower()
    if not kind:
        raise NotABounce("its feedback-report names no Feedback-Type")
    return {"status": Status.COMPLAINED if kind == "abuse" else Status.PROGRESS, "code": kind[:64]}

"""What providers report, in their own forms, read as `domain.receipt.Receipt`.

NotiPy has no HTTP API: a gateway of the user's takes a provider's callback, verifies its signature, and publishes the
body as it came to the exchange `notipy.receipts`. Which form it has is told by its fields. Sources: Amazon SES, "Amazon
SNS notification contents" and "event data that Amazon SES publishes"; Mailgun, "Webhook payload"; Twilio SendGrid,
"Event Webhook reference"; Twilio, "Track outbound message status" (`MessageStatus`); Vonage, "SMS delivery receipts".
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.errors import MessageError
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson
from pydantic import ValidationError

from channels.bounces import NotABounce, read_bounce, status_of
from channels.classify import scrub
from channels.registry import kinds
from channels.taxonomy import Meaning
from domain.receipt import Receipt, Status
from domain.text import MAX_FAULTS, Fault, faults_of
from domain.vocabulary import Reason

MAX_BYTES: Final = 4 * 1024 * 1024
"""Of one message; SendGrid's largest is 768 KiB, a bounce may hold the whole mail."""
MAIL: Final = "message/rfc822"
FORM: Final = "application/x-www-form-urlencoded"
_TAG: Final = "notipy-delivery"
"""Under which the e-mail providers' adapters hand a delivery's id along; it comes back in what they report."""
Values = Mapping[str, Any]


class Unreadable(Exception):
    """Nothing of the message can be used."""

    def __init__(self, reason: Reason, *faults: Fault) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Read:
    """The receipts of a message, and what is wrong with the others that it holds."""

    receipts: tuple[Receipt, ...]
    faults: tuple[Fault, ...]


def read_receipts(body: bytes, content_type: str | None = None) -> Read:
    """Read a message of the receipts queue.

    Raises:
        Unreadable: none of it can be used.
    """
    if len(body) > MAX_BYTES:
        raise Unreadable(Reason.TOO_LARGE, Fault("", f"{len(body)} bytes; the limit is {MAX_BYTES}"))
    receipts: list[Receipt] = []
    faults: list[Fault] = []
    for place, values in _found(body, content_type):
        try:
            receipts.append(Receipt.model_validate(_usable(values)))
        except ValidationError as error:
            faults += faults_of(error, place)
        except _Unusable as fault:
            faults.append(Fault(place, str(fault)))
    if faults and not receipts:
        raise Unreadable(Reason.INVALID, *faults[:MAX_FAULTS])
    return Read(tuple(receipts), tuple(faults[:MAX_FAULTS]))


class _Unusable(Exception):
    """One of the receipts in a message cannot be used; the message says why."""


def _usable(values: "Values | _Unusable") -> Values:
    if isinstance(values, _Unusable):
        raise values
    return {name: value for name, value in values.items() if value is not None}


def _found(body: bytes, content_type: str | None) -> Iterator[tuple[str, "Values | _Unusable"]]:
    """The receipts with where they stand; one that is none as the fault."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind == MAIL:
        yield "", _bounce(body)
        return
    document = dict(parse_qsl(body.decode("utf-8", "replace"))) if kind == FORM else _json(body)
    if not isinstance(document, list):
        yield from (("", values) for values in _native(document))
        return
    if not document:
        raise Unreadable(Reason.INVALID, Fault("", "should be a receipt, or a list of some"))
    for number, item in enumerate(document):
        yield from ((str(number), values) for values in _native(item))


def _bounce(body: bytes) -> "Values | _Unusable":
    try:
        return {"provider": "smtp", **read_bounce(body)}
    except (NotABounce, MessageError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as fault:
        # the standard library's parser raises many things of a mail that follows no standard
        return _Unusable(str(fault) if isinstance(fault, NotABounce) else "is a mail that cannot be read")


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Unreadable(Reason.NOT_JSON, Fault("", str(error)[:200])) from None


def _native(document: Any) -> "list[Values | _Unusable]":
    """The receipts in one JSON object, by the first form that it has."""
    if not isinstance(document, dict):
        return [_Unusable("should be a JSON object")]
    for has_form, read in _FORMS:
        if has_form(document):
            try:
                return list(read(document)) or [_Unusable("names nobody that it is about")]
            except _Unusable as fault:
                return [fault]
    return [_Unusable("is a receipt of no known form: it has no status, and no provider's fields")]


# ---------------------------------------------------------------------------------------------------------------
# Our own form
# ---------------------------------------------------------------------------------------------------------------


def _own(document: Values) -> Iterator[Values]:
    """As documented in docs/receipts.md; a code of a provider with a table says more than `failed`."""
    values = dict(document)
    if isinstance(values.get("detail"), str):
        values["detail"] = scrub(values["detail"])
    if values.get("status") == Status.FAILED and isinstance(values.get("provider"), str):
        values["status"] = by_code(values["provider"], str(values.get("code") or ""))
    yield values


def by_code(kind: str, code: str) -> Status:
    """What a provider's error code says of an address, by the provider's own table; `failed` without one."""
    chosen = kinds().get(kind)
    rule = chosen.errors.rule(code) if chosen is not None and chosen.errors is not None and code else None
    if rule is None:
        return Status.FAILED
    if rule.meaning is Meaning.RECIPIENT:
        return Status.BOUNCED if rule.suppress else Status.FAILED
    return Status.SOFT_BOUNCED if rule.told is Reason.MAILBOX_UNAVAILABLE else Status.FAILED


# ---------------------------------------------------------------------------------------------------------------
# Amazon SES
# ---------------------------------------------------------------------------------------------------------------


def _sns(document: Values) -> Iterator[Values]:
    """The envelope of Amazon SNS around a notification of SES."""
    if document["Type"] != "Notification":
        raise _Unusable(f"is an SNS {_short(document['Type'])}: confirm the subscription where the callback arrives")
    try:
        inner = orjson.loads(str(document.get("Message")))
    except orjson.JSONDecodeError:
        raise _Unusable("its Message is not JSON") from None
    for values in _native(inner):
        if isinstance(values, _Unusable):
            raise values
        yield values


def _ses(document: Values) -> Iterator[Values]:
    """One receipt for each recipient that it names, or one for the message."""
    mail, kind = _mapping(document["mail"]), str(document.get("notificationType") or document.get("eventType"))
    tags = _mapping(mail.get("tags")).get(_TAG)
    common = {
        "provider": "ses",
        "reference": _text(mail.get("messageId")),
        "delivery": _text(tags[0]) if isinstance(tags, list) and tags else None,
    }
    read = _SES.get(kind)
    if read is None:
        yield {**common, "status": _SES_OTHER.get(kind, Status.PROGRESS), "code": _short(kind)}
        return
    for values in read(document):
        yield {**common, **values}


def _ses_bounce(document: Values) -> Iterator[Values]:
    bounce = _mapping(document.get("bounce"))
    kind, sub = _short(bounce.get("bounceType")), _short(bounce.get("bounceSubType"))
    status = Status.BOUNCED if kind == "Permanent" else Status.FAILED if sub in _SES_CONTENT else Status.SOFT_BOUNCED
    for recipient in _mappings(bounce.get("bouncedRecipients")):
        yield {
            "status": status,
            "recipient": _text(recipient.get("emailAddress")),
            "time": _time(bounce.get("timestamp")),
            "code": _short(recipient.get("status")) or f"{kind}/{sub}",
            "detail": _words(recipient.get("diagnosticCode")) or f"{kind}/{sub}",
        }


_SES_CONTENT: Final = frozenset({"MessageTooLarge", "ContentRejected", "AttachmentRejected"})
"""Subtypes of a transient bounce that are about the message."""


def _ses_complaint(document: Values) -> Iterator[Values]:
    complaint = _mapping(document.get("complaint"))
    kind = _short(complaint.get("complaintFeedbackType"))
    for recipient in _mappings(complaint.get("complainedRecipients")):
        yield {
            "status": Status.PROGRESS if kind == "not-spam" else Status.COMPLAINED,
            "recipient": _text(recipient.get("emailAddress")),
            "time": _time(complaint.get("timestamp")),
            "code": kind or None,
        }


def _ses_delivery(document: Values) -> Iterator[Values]:
    delivery = _mapping(document.get("delivery"))
    recipients = delivery.get("recipients")
    for recipient in recipients if isinstance(recipients, list) else ():
        yield {
            "status": Status.DELIVERED,
            "recipient": _text(recipient),
            "time": _time(delivery.get("timestamp")),
            "detail": _words(delivery.get("smtpResponse")),
        }


def _ses_subscription(document: Values) -> Iterator[Values]:
    changed = _mapping(document.get("subscription"))
    gone = _mapping(changed.get("newTopicPreferences")).get("unsubscribeAll") is True
    status = Status.UNSUBSCRIBED if gone else Status.PROGRESS
    yield {"status": status, "time": _time(changed.get("timestamp"))}


_SES: Final[Mapping[str, Callable[[Values], Iterator[Values]]]] = {
    "Bounce": _ses_bounce,
    "Complaint": _ses_complaint,
    "Delivery": _ses_delivery,
    "Subscription": _ses_subscription,
}
_SES_OTHER: Final[Mapping[str, Status]] = {"Reject": Status.FAILED, "Rendering Failure": Status.FAILED}


# ---------------------------------------------------------------------------------------------------------------
# Mailgun
# ---------------------------------------------------------------------------------------------------------------


def _mailgun(document: Values) -> Iterator[Values]:
    event = _mapping(document["event-data"])
    told = _mapping(event.get("delivery-status"))
    words = _words(told.get("message")) or _words(told.get("description"))
    yield {
        "provider": "mailgun",
        "reference": _text(_mapping(_mapping(event.get("message")).get("headers")).get("message-id")),
        "delivery": _text(_mapping(event.get("user-variables")).get(_TAG)),
        "status": _mailgun_status(event, str(told.get("code") or ""), words),
        "time": _time(event.get("timestamp")),
        "recipient": _text(event.get("recipient")),
        "code": _short(told.get("code")) or None,
        "detail": words,
    }


def _mailgun_status(event: Values, code: str, words: str | None) -> Status:
    """`temporary`: Mailgun goes on trying. 605 to 607: it has the address on a suppression list of its own."""
    name, reason = str(event.get("event")), str(event.get("reason"))
    if name != "failed" or event.get("severity") == "temporary":
        return _MAILGUN.get(name, Status.PROGRESS)
    if code in _MAILGUN_CODES or reason in _MAILGUN_REASONS:
        return _MAILGUN_CODES.get(code) or _MAILGUN_REASONS[reason]
    return status_of(words, unknown=Status.BOUNCED if reason == "bounce" else Status.FAILED)


_MAILGUN: Final[Mapping[str, Status]] = {
    "delivered": Status.DELIVERED,
    "complained": Status.COMPLAINED,
    "unsubscribed": Status.UNSUBSCRIBED,
    "rejected": Status.FAILED,
}
_MAILGUN_CODES: Final[Mapping[str, Status]] = {"605": Status.BOUNCED, "606": Status.FAILED, "607": Status.FAILED}
_MAILGUN_REASONS: Final[Mapping[str, Status]] = {"suppress-bounce": Status.BOUNCED, "old": Status.SOFT_BOUNCED}


# ---------------------------------------------------------------------------------------------------------------
# SendGrid
# ---------------------------------------------------------------------------------------------------------------


def _sendgrid(event: Values) -> Iterator[Values]:
    """`sg_message_id` begins with what the answer to the send called the message (`X-Message-Id`)."""
    number = _text(event.get("sg_message_id")) or ""
    for mark in (".filter", ".recvd"):
        number = number.partition(mark)[0]
    yield {
        "provider": "sendgrid",
        "reference": number or None,
        "delivery": _text(event.get(_TAG)),
        "status": _sendgrid_status(event),
        "time": _time(event.get("timestamp")),
        "recipient": _text(event.get("email")),
        "code": _short(event.get("status")) or None,
        "detail": _words(event.get("reason")) or _words(event.get("response")),
    }


def _sendgrid_status(event: Values) -> Status:
    """A bounce of the type `blocked` is one that may pass; `dropped` was never sent, for a reason that it names."""
    name = str(event.get("event"))
    if name == "bounce" and event.get("type") == "blocked":
        about = str(event.get("bounce_classification") or "").lower()
        return Status.FAILED if about in _SENDGRID_POLICY else Status.SOFT_BOUNCED
    if name == "dropped":
        reason = str(event.get("reason") or "").lower()
        return Status.BOUNCED if reason.startswith(("bounced address", "invalid")) else Status.FAILED
    return _SENDGRID.get(name, Status.PROGRESS)


_SENDGRID: Final[Mapping[str, Status]] = {
    "delivered": Status.DELIVERED,
    "bounce": Status.BOUNCED,
    "spamreport": Status.COMPLAINED,
    "unsubscribe": Status.UNSUBSCRIBED,
    "group_unsubscribe": Status.UNSUBSCRIBED,
}
_SENDGRID_POLICY: Final = frozenset({"content", "reputation", "frequency or volume too high"})


# ---------------------------------------------------------------------------------------------------------------
# SMS
# ---------------------------------------------------------------------------------------------------------------


def _twilio(document: Values) -> Iterator[Values]:
    """The fields of the form that Twilio posts to `StatusCallback`."""
    name, code = str(document.get("MessageStatus") or document.get("SmsStatus")), _short(document.get("ErrorCode"))
    failed = name in {"failed", "undelivered"}
    rule = kinds()["twilio"].errors
    known = rule.rule(code) if rule is not None and code else None
    yield {
        "provider": "twilio",
        "reference": _text(document.get("MessageSid") or document.get("SmsSid")),
        "status": by_code("twilio", code) if failed else _TWILIO.get(name, Status.PROGRESS),
        "code": code or None,
        "detail": known.words if known is not None else None,
    }


_TWILIO: Final[Mapping[str, Status]] = {
    "delivered": Status.DELIVERED,
    "read": Status.DELIVERED,
    "canceled": Status.FAILED,
}


def _vonage(document: Values) -> Iterator[Values]:
    """`client-ref` is the delivery and its epoch, as the adapter hands it along."""
    name, code = str(document.get("status")), _short(document.get("err-code"))
    failed = name in {"failed", "rejected", "expired"}
    status, words = _VONAGE_CODES.get(code, (Status.FAILED, None))
    yield {
        "provider": "vonage",
        "reference": _text(document.get("messageId")),
        "delivery": _text(document.get("client-ref")),
        "status": status if failed else Status.DELIVERED if name == "delivered" else Status.PROGRESS,
        "time": _time(document.get("message-timestamp")),
        "code": code or None,
        "detail": words if failed else None,
    }


_VONAGE_CODES: Final[Mapping[str, tuple[Status, str]]] = {
    "1": (Status.FAILED, "unknown"),
    "2": (Status.SOFT_BOUNCED, "absent subscriber, temporary"),
    "3": (Status.BOUNCED, "absent subscriber, permanent"),
    "4": (Status.BOUNCED, "call barred by the user"),
    "5": (Status.FAILED, "portability error"),
    "6": (Status.FAILED, "anti-spam rejection"),
    "7": (Status.SOFT_BOUNCED, "handset busy"),
    "8": (Status.FAILED, "network error"),
    "9": (Status.BOUNCED, "illegal number"),
    "10": (Status.FAILED, "illegal message"),
    "11": (Status.FAILED, "unroutable"),
    "12": (Status.SOFT_BOUNCED, "destination unreachable"),
    "13": (Status.FAILED, "subscriber age restriction"),
    "14": (Status.FAILED, "number blocked by the carrier"),
    "15": (Status.SOFT_BOUNCED, "prepaid subscriber without funds"),
    "99": (Status.FAILED, "general error"),
}
"""`err-code` of a delivery receipt; not the codes of the answer to a send, which `channels.vonage` has."""


# ---------------------------------------------------------------------------------------------------------------


_FORMS: Final[tuple[tuple[Callable[[Values], bool], Callable[[Values], Iterator[Values]]], ...]] = (
    (lambda document: "Type" in document and "TopicArn" in document, _sns),
    (lambda document: "mail" in document and ("notificationType" in document or "eventType" in document), _ses),
    (lambda document: "event-data" in document, _mailgun),
    (lambda document: "sg_message_id" in document or "sg_event_id" in document, _sendgrid),
    (lambda document: "MessageSid" in document or "SmsSid" in document, _twilio),
    (lambda document: "messageId" in document and ("err-code" in document or "msisdn" in document), _vonage),
    (lambda document: "status" in document, _own),
)


def _mapping(value: Any) -> Values:
    return value if isinstance(value, dict) else {}


def _mappings(value: Any) -> Iterator[Values]:
    yield from (item for item in value if isinstance(item, dict)) if isinstance(value, list) else ()


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _short(value: Any) -> str:
    """A code: one word, or a few; what is longer or odd is none."""
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return scrub(text) if len(text) <= 40 else ""


def _words(value: Any) -> str | None:
    """A provider's words in a line, without addresses."""
    return (scrub(value) or None) if isinstance(value, str) else None


def _time(value: Any) -> datetime | None:
    """Seconds since 1970, or ISO 8601; a time without a zone is taken for UTC. None if it is neither."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        at = datetime.fromisoformat(value) if isinstance(value, str) else None
    except (ValueError, OverflowError, OSError):
        return None
    return at if at is None or at.tzinfo else at.replace(tzinfo=UTC)

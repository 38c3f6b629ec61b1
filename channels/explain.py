"""What a provider's error code means and what NotiPy does about it, for a person who has met one."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

from channels.classify import BY_CODE, BY_STATUS, Stage, http_failure, smtp_failure
from channels.enhanced import WORDS
from channels.registry import kinds
from channels.taxonomy import CONSEQUENCES, HTTP_RULES, Meaning, Rule, Table, codes_of
from domain.circuit import CONFIGURATION
from domain.failures import DeliveryFailure, PermanentFailure, UnknownOutcome
from domain.vocabulary import Reason

SMTP: Final = "smtp"
WEBHOOK: Final = "webhook"
_VERSION: Final = "2026-11-23"
_SMTP_SOURCE: Final = "RFC 5321, RFC 3463, RFC 4954; IANA, SMTP Enhanced Status Codes (RFC 5248)"
_HTTP_SOURCE: Final = "RFC 9110, RFC 6585, RFC 8470"
_REPLY: Final = re.compile(r"(?:(?P<code>[2-5]\d\d)(?:[ -]+|$))?(?P<enhanced>[245]\.\d{1,3}\.\d{1,3})?$")
_STATUS: Final = re.compile(r"(?:HTTP )?([1-5]\d\d)", re.IGNORECASE)
_RECIPIENTS: Final = frozenset({Reason.RECIPIENT_REJECTED, Reason.BAD_ADDRESS, Reason.ENDPOINT_GONE})
_APART: Final = "retried by the channel's schedule; the provider is not at fault, and goes on being used"
_KEPT: Final = "failed and parked, without retry; the address stays in use"


class NoSuchProvider(Exception):
    """There is none of this name with codes; `known` are those that there are."""

    def __init__(self, known: Sequence[str]) -> None:
        super().__init__("no such provider")
        self.known = known


class NoSuchCode(Exception):
    """It cannot be a code of this provider; the message says what one looks like."""


@dataclass(frozen=True, slots=True)
class Explained:
    """One code.

    Attributes:
        known: whether the table has it; if not, it is treated as the rest says.
        does: what NotiPy does.
        words: the documentation's own, in short.
    """

    provider: str
    code: str
    known: bool
    meaning: Meaning
    reason: Reason
    does: str
    words: str
    version: str
    source: str


def providers() -> Sequence[str]:
    """The kinds that have codes.

    Raises:
        ValueError: another package's kind cannot be loaded.
    """
    own = (name for name, kind in kinds().items() if kind.errors is not None)
    return sorted({SMTP, WEBHOOK, *own})


def explain(provider: str, code: str, stage: Stage = Stage.RCPT) -> Explained:
    """One code of a provider; `stage`: what an SMTP reply answered.

    Raises:
        NoSuchProvider: which there are.
        NoSuchCode: what a code looks like.
        ValueError: another package's kind cannot be loaded.
    """
    if provider == SMTP:
        return _smtp(code, stage)
    if provider == WEBHOOK:
        return _webhook(code)
    return _of_table(_table(provider), code)


def every(provider: str) -> Iterator[Explained]:
    """All codes that a provider's table has.

    Raises:
        NoSuchProvider, ValueError: as `explain`.
    """
    if provider == SMTP:
        yield from (_smtp(f"{kind}.{code}", Stage.RCPT) for kind in "45" for code in WORDS)
        yield from (_smtp(str(code), Stage.RCPT) for code in sorted(BY_CODE))
    elif provider == WEBHOOK:
        yield from (_webhook(str(status)) for status in (301, 400, *sorted(BY_STATUS), 500))
    else:
        table = _table(provider)
        own = {rule.code for rule in table.rules}
        yield from (_explained(table, rule) for rule in table.rules)
        yield from (_explained(table, rule) for rule in HTTP_RULES if rule.code not in own)


def _table(provider: str) -> Table:
    kind = kinds().get(provider)
    if kind is None or kind.errors is None:
        raise NoSuchProvider(providers())
    return kind.errors


def _of_table(table: Table, code: str) -> Explained:
    status = _STATUS.fullmatch(code)
    rule = table.rule(code, *(codes_of(int(status[1])) if status else ()))
    if rule is not None:
        return _explained(table, rule)
    words = f"not in the table: the answer's HTTP status decides, and without one it is treated as {Meaning.MESSAGE}"
    return _explained(table, Rule(code, Meaning.MESSAGE, words), known=False)


def _explained(table: Table, rule: Rule, *, known: bool = True) -> Explained:
    does = _does(rule.meaning, suppress=rule.suppress, provider_fault=rule.provider_fault)
    return Explained(
        table.provider, rule.code, known, rule.meaning, rule.told, does, rule.words, table.version, table.source
    )


def _smtp(code: str, stage: Stage) -> Explained:
    found = _REPLY.fullmatch(code.strip())
    if found is None or not code.strip():
        raise NoSuchCode("a reply is such as 550, 5.1.1 or 550 5.1.1")
    enhanced = found["enhanced"] or ""
    reply = int(found["code"] or f"{enhanced[0]}50")
    if reply < 400:
        raise NoSuchCode(f"{reply} is no error: the server has taken what it was sent")
    words = WORDS.get(enhanced[2:], "")
    return _of_failure(SMTP, code.strip(), smtp_failure(reply, enhanced, stage), words, _SMTP_SOURCE, bool(words))


def _webhook(code: str) -> Explained:
    found = _STATUS.fullmatch(code.strip())
    if found is None:
        raise NoSuchCode("a status is such as 410")
    status = int(found[1])
    if 200 <= status < 300:
        raise NoSuchCode(f"{status} is no error: the receiver has taken it")
    failure = http_failure(status, None, datetime.now(UTC))
    failure.suppress = failure.reason is Reason.ENDPOINT_GONE  # as the webhook adapter has it
    return _of_failure(WEBHOOK, f"HTTP {status}", failure, _phrase(status), _HTTP_SOURCE, status in BY_STATUS)


def _of_failure(provider: str, code: str, failure: DeliveryFailure, words: str, source: str, known: bool) -> Explained:
    meaning = _meaning(failure)
    does = _does(meaning, suppress=failure.suppress, provider_fault=failure.provider_fault)
    told = words or "treated as its class"
    return Explained(provider, code, known, meaning, failure.reason, does, told, _VERSION, source)


def _does(meaning: Meaning, *, suppress: bool, provider_fault: bool) -> str:
    if meaning is Meaning.RECIPIENT and not suppress:
        return _KEPT
    passing = meaning in {Meaning.TRANSIENT, Meaning.RATE_LIMITED}
    return _APART if passing and not provider_fault else CONSEQUENCES[meaning]


def _meaning(failure: DeliveryFailure) -> Meaning:
    if isinstance(failure, UnknownOutcome):
        return Meaning.UNKNOWN
    if isinstance(failure, PermanentFailure):
        return Meaning.RECIPIENT if failure.suppress or failure.reason in _RECIPIENTS else Meaning.MESSAGE
    if failure.reason in CONFIGURATION and failure.provider_fault:
        return Meaning.CONFIGURATION
    return Meaning.RATE_LIMITED if failure.reason is Reason.RATE_LIMITED else Meaning.TRANSIENT


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase.lower()
    except ValueError:
        return ""

"""What a provider's error codes mean, as data: one versioned table for each provider.

A table says of each code what it is about, and that alone decides what follows: another attempt, a pause of the
provider, or the end of this delivery and of the address.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

from domain.failures import DeliveryFailure, PermanentFailure, TransientFailure, UnknownOutcome
from domain.vocabulary import Reason


class Meaning(StrEnum):
    """What an error is about."""

    TRANSIENT = "transient"
    """The provider or the network, for now: another attempt, or another provider."""
    RATE_LIMITED = "rate_limited"
    """We are too fast: the provider is left alone for a while, and no attempt is spent."""
    RECIPIENT = "recipient"
    """This address: the delivery fails for good, and the address is suppressed."""
    MESSAGE = "message"
    """What was to be sent: the delivery fails for good, the address is as good as before."""
    CONFIGURATION = "configuration"
    """Our account, credentials or settings: the provider is paused until an operator has put them right."""
    UNKNOWN = "unknown"
    """Nobody can tell whether it was taken."""


CONSEQUENCES: Final[Mapping[Meaning, str]] = {
    Meaning.TRANSIENT: "retried by the channel's schedule; five such faults of the provider in a row pause it",
    Meaning.RATE_LIMITED: "the provider is paused for as long as it asks, and the attempt does not count",
    Meaning.RECIPIENT: "failed and parked, without retry; the address goes onto the suppression list",
    Meaning.MESSAGE: "failed and parked, without retry; mend the content, then replay",
    Meaning.CONFIGURATION: "the provider is paused and an alert raised; the attempt does not count",
    Meaning.UNKNOWN: "repeated and marked possible_duplicate, or unknown where the channel is at_most_once",
}
"""What NotiPy does about each."""

_REASONS: Final[Mapping[Meaning, Reason]] = {
    Meaning.TRANSIENT: Reason.PROVIDER_UNAVAILABLE,
    Meaning.RATE_LIMITED: Reason.RATE_LIMITED,
    Meaning.RECIPIENT: Reason.RECIPIENT_REJECTED,
    Meaning.MESSAGE: Reason.MESSAGE_REJECTED,
    Meaning.CONFIGURATION: Reason.NOT_CONFIGURED,
    Meaning.UNKNOWN: Reason.OUTCOME_UNKNOWN,
}


@dataclass(frozen=True, slots=True)
class Rule:
    """One code.

    Attributes:
        code: as the provider writes it; `HTTP 429`, or `HTTP 5xx` for a class, where it is a status.
        meaning: what it is about.
        words: what the provider's documentation says of it, in short.
        reason: in place of the meaning's usual one.
        suppress: of a `recipient`: whether the address is of no more use at all.
        provider_fault: of a `transient` or `unknown`: whether any other recipient would meet the same.
    """

    code: str
    meaning: Meaning
    words: str
    reason: Reason | None = None
    suppress: bool = True
    provider_fault: bool = True

    @property
    def told(self) -> Reason:
        """The reason that the delivery has."""
        return self.reason or _REASONS[self.meaning]


@dataclass(frozen=True, slots=True)
class Table:
    """The codes of one provider.

    Attributes:
        provider: the kind in the settings.
        version: the day on which it was compared with its source.
        source: the documentation that it follows.
    """

    provider: str
    version: str
    source: str
    rules: tuple[Rule, ...]

    def rule(self, *codes: str) -> Rule | None:
        """Of the first of these codes that is known, here or to HTTP in general."""
        return next((rule for code in codes for rule in self._all() if rule.code.lower() == code.lower()), None)

    def failure(self, codes: Iterable[str], detail: str, retry_after: timedelta | None = None) -> DeliveryFailure:
        """What an answer with these codes, the most telling first, means; one that nobody knows is the message's.

        Args:
            codes: as `codes_of` or the adapter finds them.
            detail: for people: without an address, a secret or content.
            retry_after: how long the provider asked to be left alone.
        """
        rule = self.rule(*codes) or Rule("", Meaning.MESSAGE, "")
        match rule.meaning:
            case Meaning.TRANSIENT:
                return TransientFailure(rule.told, detail, retry_after=retry_after, provider_fault=rule.provider_fault)
            case Meaning.RATE_LIMITED | Meaning.CONFIGURATION:
                return TransientFailure(rule.told, detail, retry_after=retry_after, provider_fault=True)
            case Meaning.RECIPIENT:
                return PermanentFailure(rule.told, detail, suppress=rule.suppress)
            case Meaning.MESSAGE:
                return PermanentFailure(rule.told, detail)
            case Meaning.UNKNOWN:
                return UnknownOutcome(rule.told, detail, retry_after=retry_after, provider_fault=rule.provider_fault)

    def refusal(self, codes: Sequence[str], told: str, retry_after: timedelta | None = None) -> DeliveryFailure:
        """As `failure`; after what is `told` stands what the table knows of the code, where it knows it."""
        rule = self.rule(*codes)
        return self.failure(codes, f"{told}: {rule.words}" if rule else told, retry_after)

    def _all(self) -> Iterable[Rule]:
        yield from self.rules
        yield from HTTP_RULES


HTTP_RULES: Final = (
    Rule("HTTP 401", Meaning.CONFIGURATION, "the credentials are wrong", Reason.AUTHENTICATION),
    Rule("HTTP 402", Meaning.CONFIGURATION, "payment is required: the account has no credit left"),
    Rule("HTTP 403", Meaning.CONFIGURATION, "the credentials do not allow it", Reason.AUTHENTICATION),
    Rule("HTTP 404", Meaning.CONFIGURATION, "there is no such method: the base URL or the account is wrong"),
    Rule("HTTP 407", Meaning.CONFIGURATION, "a proxy wants credentials", Reason.AUTHENTICATION),
    Rule("HTTP 408", Meaning.TRANSIENT, "the request did not come in time", Reason.TIMEOUT),
    Rule("HTTP 413", Meaning.MESSAGE, "the request is too large", Reason.MESSAGE_TOO_LARGE),
    Rule("HTTP 425", Meaning.TRANSIENT, "too early"),
    Rule("HTTP 429", Meaning.RATE_LIMITED, "too many requests"),
    Rule("HTTP 3xx", Meaning.CONFIGURATION, "the base URL leads elsewhere", Reason.REDIRECT_REFUSED),
    Rule("HTTP 4xx", Meaning.MESSAGE, "the request is wrong"),
    # a gateway answers, after it has passed the request on (RFC 9110 §15.6.3 and §15.6.5)
    Rule("HTTP 502", Meaning.UNKNOWN, "a gateway had no usable answer; who is behind it may have taken it"),
    Rule("HTTP 504", Meaning.UNKNOWN, "a gateway had no answer in time; who is behind it may have taken it"),
    Rule("HTTP 5xx", Meaning.TRANSIENT, "the provider has a fault"),
)
"""Statuses as an API uses them (RFC 9110, 6585, 8470), where the provider's own table says nothing else."""


def codes_of(status: int) -> tuple[str, str]:
    """A status as codes: itself, and its class."""
    return f"HTTP {status}", f"HTTP {status // 100}xx"

"""What became of an attempt, as data."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from domain.vocabulary import Reason


@dataclass(frozen=True, slots=True)
class Sent:
    """The provider accepted it.

    Attributes:
        detail: the provider's answer.
        reference: what the provider calls the message.
        copies_suppressed: how many copies of a mail were left out, because their addresses are suppressed.
    """

    detail: str
    reference: str | None = None
    copies_suppressed: int = 0


@dataclass(frozen=True, slots=True)
class Retry:
    """It failed and goes to the retry queue `tier`, back at `at`."""

    reason: Reason
    detail: str
    tier: timedelta
    at: datetime
    possible_duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Hold:
    """It failed and waits in the database until `at`: longer than any retry queue, or for its provider.

    `forgiven`: it does not count against the attempts of the policy.
    """

    reason: Reason
    detail: str
    at: datetime
    possible_duplicate: bool = False
    forgiven: bool = False


@dataclass(frozen=True, slots=True)
class FailedOver:
    """Its provider was at fault, nothing was sent: it does not count, and another provider takes the next at once."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Failed:
    """It failed for good and is parked.

    Attributes:
        possible_duplicate: it may have been sent all the same.
        address_suppressed: the provider has refused the address as such, and nothing more is sent to it.
    """

    reason: Reason
    detail: str
    possible_duplicate: bool = False
    address_suppressed: bool = False


@dataclass(frozen=True, slots=True)
class Unknown:
    """Whether it was sent cannot be known, and the channel must not send twice."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Expired:
    """It was not sent because its time was over."""

    detail: str


@dataclass(frozen=True, slots=True)
class Suppressed:
    """It was not sent because its address is suppressed; `detail` says why and since when."""

    detail: str


Outcome = Sent | Retry | Hold | FailedOver | Failed | Unknown | Expired | Suppressed

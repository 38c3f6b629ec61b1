"""A provider's circuit: while the provider itself is at fault, nothing is handed to it and no attempt is spent.

The pattern is Michael Nygard's ("Release It!", Circuit Breaker), with two differences. A fault of configuration
(wrong credentials, a bad certificate) opens the circuit at once, because an operator has to put it right; so does a
limit of ours that is reached, because what follows would be refused, too. And before the first delivery is let through
again, the provider is asked without sending anything (`domain.ports.Provider.check`), so that a dead provider costs no
delivery an attempt.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from random import Random

from domain.failures import DeliveryFailure, TransientFailure
from domain.ports import Now
from domain.vocabulary import Reason

THRESHOLD = 5
"""Faults of the provider in a row, without an answer in between, that open the circuit."""
FIRST_WAIT = timedelta(seconds=1)
"""Before the provider is asked for the first time; doubled with each answer that is no better."""
LONGEST_WAIT = timedelta(seconds=30)
"""Between two questions at most, so that everything flows again within a minute of the provider's return."""
LONGEST_ASKED_FOR = timedelta(hours=1)
"""A provider that asks to be left alone for longer (Retry-After) is asked again after this."""
JITTER = 0.2
"""A wait is longer by up to this part, so that many processes do not ask at the same moment."""
FORGIVEN_AT_MOST = 50
"""Attempts of one delivery that are not counted: a fault that it alone provokes must come to an end."""
TRIAL_TOLD_FOR = timedelta(minutes=1)
"""A circuit that waits for a delivery to try is told as paused for so long; afterwards there is just no traffic."""
CONFIGURATION = frozenset(
    {Reason.AUTHENTICATION, Reason.TLS, Reason.NOT_CONFIGURED, Reason.SENDER_REJECTED, Reason.REDIRECT_REFUSED}
)
"""Faults that an operator has to put right: one is enough."""
_AT_ONCE = CONFIGURATION | {Reason.RATE_LIMITED}


class Mode(StrEnum):
    """What the circuit lets through."""

    CLOSED = "closed"
    """Everything."""
    OPEN = "open"
    """Nothing."""
    TRIAL = "trial"
    """One delivery at a time, until one of them has an answer."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One delivery's leave to go to the provider.

    Attributes:
        trial: others wait for what comes of it.
    """

    trial: bool = False


@dataclass(slots=True)
class Circuit:
    """The circuit of one provider in one process. Closed to begin with.

    Attributes:
        name: the provider's.
        since: when it opened.
        reason, detail: of the fault that keeps it open.
        until: when the provider is asked next.
    """

    name: str
    now: Now
    rng: Random = field(default_factory=Random)
    mode: Mode = Mode.CLOSED
    since: datetime | None = None
    until: datetime | None = None
    reason: Reason | None = None
    detail: str = ""
    _faults: int = 0
    _wait: timedelta = FIRST_WAIT
    _pause: timedelta = timedelta(0)
    _trial: "asyncio.Future[None] | None" = None

    @property
    def why(self) -> str | None:
        """Why nothing is handed to the provider; None while it is used."""
        return f"provider {self.name} is paused ({self.reason})" if self.mode is Mode.OPEN else None

    @property
    def told(self) -> Reason | None:
        """The reason for which it is told to be paused."""
        trying = self.mode is Mode.TRIAL and self._pausing
        return self.reason if self.mode is Mode.OPEN or trying else None

    @property
    def admits(self) -> bool:
        """Whether a delivery may go to the provider now, rather than never or after another one has tried."""
        return self.mode is Mode.CLOSED or (self.mode is Mode.TRIAL and self._trial is None)

    def enter(self) -> Passage:
        """Go to the provider, which it admits; on trial the others wait for what comes of it."""
        if self.mode is Mode.TRIAL:
            self._trial = asyncio.get_running_loop().create_future()
            return Passage(trial=True)
        return Passage()

    async def tried(self) -> None:
        """Wait while another delivery tries."""
        if self._trial is not None:
            await asyncio.shield(self._trial)

    @contextmanager
    def passing(self, passage: Passage) -> Iterator[None]:
        """The attempt is made inside; however it ends, those who wait for it go on."""
        try:
            yield
        finally:
            if passage.trial:
                self._end_trial()

    def ended(self, failure: DeliveryFailure | None) -> None:
        """An attempt ended: in an answer (also one that refuses this recipient), or in a fault of the provider."""
        if failure is None or not failure.provider_fault:
            if self.mode is not Mode.OPEN:  # one that was under way when it opened proves nothing about now
                self._close()
            return
        self._faults += 1
        if self.mode is Mode.TRIAL or self._opens(failure):
            self._open(failure)

    def due(self) -> bool:
        """Whether the provider should be asked now."""
        return self.mode is Mode.OPEN and not self._pausing

    @property
    def _pausing(self) -> bool:
        """Whether `until` is still to come. One further off than it ever was is over: the clock was set back."""
        return self.until is not None and timedelta(0) < self.until - self.now() <= self._pause

    def _pause_for(self, pause: timedelta) -> None:
        self.until, self._pause = self.now() + pause, pause

    def asked(self, failure: DeliveryFailure | None) -> None:
        """The provider was asked: without failure one delivery may try."""
        if failure is None:
            self.mode = Mode.TRIAL
            self._pause_for(TRIAL_TOLD_FOR)
        else:
            self._open(failure)

    def _opens(self, failure: DeliveryFailure) -> bool:
        if self.mode is Mode.OPEN:
            return False
        return self._faults >= THRESHOLD or failure.reason in _AT_ONCE or failure.retry_after is not None

    def _open(self, failure: DeliveryFailure) -> None:
        self.since = self.since or self.now()
        asked_for = min(failure.retry_after or timedelta(0), LONGEST_ASKED_FOR)
        self.mode, self.reason, self.detail = Mode.OPEN, failure.reason, failure.detail
        self._pause_for(max(self._wait, asked_for) * (1 + JITTER * self.rng.random()))
        self._wait = min(self._wait * 2, LONGEST_WAIT)

    def _close(self) -> None:
        self.mode, self.since, self.until, self.reason, self.detail = Mode.CLOSED, None, None, None, ""
        self._faults, self._wait = 0, FIRST_WAIT

    def _end_trial(self) -> None:
        trial, self._trial = self._trial, None
        if trial is not None and not trial.done():
            trial.set_result(None)

    def forgives(self, failure: DeliveryFailure, forgiven: int) -> bool:
        """Whether a failed attempt is not the delivery's to pay for: nothing was sent, and the provider is paused.

        `forgiven`: how many of its attempts have been already.
        """
        provider = isinstance(failure, TransientFailure) and failure.provider_fault and self.mode is Mode.OPEN
        return provider and forgiven < FORGIVEN_AT_MOST

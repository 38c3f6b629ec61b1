"""What a channel adapter says when a send did not plainly succeed.

The adapter classifies; only the domain knows attempts, tiers and semantics.
"""

import asyncio
import traceback
from datetime import timedelta
from pathlib import PurePath
from types import TracebackType

from domain.vocabulary import Reason


class DeliveryFailure(Exception):
    """A send that failed: a reason for machines and a detail for people (never an address or content).

    Attributes:
        retry_after: how long the provider asked to be left alone.
        suppress: the address itself is of no more use, whatever is sent to it.
        provider_fault: the provider, or the way to it, is at fault and whoever the recipient is would meet the same:
            it counts towards the provider's circuit (`domain.circuit`).
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        *,
        retry_after: timedelta | None = None,
        provider_fault: bool = False,
        suppress: bool = False,
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.retry_after = retry_after
        self.provider_fault = provider_fault
        self.suppress = suppress


class TransientFailure(DeliveryFailure):
    """Another attempt may succeed."""


class PermanentFailure(DeliveryFailure):
    """Another attempt would end the same way."""


class UnknownOutcome(DeliveryFailure):
    """The provider may or may not have taken the message: the connection broke between sending and the answer."""


class Unsent:
    """`with UNSENT:` in an adapter: if the lease ends inside, nothing was sent, and the provider is at fault.

    `with UNBLAMED:` says that nothing was sent either, and that somebody else is: whose failure says nothing of the
    provider. Where an adapter says nothing of the kind, what is cut off at the end of its lease may have been sent.
    """

    def __init__(self, *, provider_fault: bool) -> None:
        self._provider_fault = provider_fault

    def __enter__(self) -> None:
        """Nothing is known yet."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Mark a cancellation; it goes on as one."""
        if isinstance(error, asyncio.CancelledError):
            setattr(error, _BLAMED, self._provider_fault)


UNSENT = Unsent(provider_fault=True)
UNBLAMED = Unsent(provider_fault=False)
_BLAMED = "notipy_unsent_by_fault_of_provider"


def was_unsent(cut_off: BaseException) -> bool:
    """Whether what was cut off, by `asyncio.timeout` or by a cancellation, is certain to have sent nothing."""
    return hasattr(_cancellation(cut_off), _BLAMED)


def unsent_by_provider(cut_off: BaseException) -> bool:
    """Whether it has sent nothing, and the provider is at fault."""
    return getattr(_cancellation(cut_off), _BLAMED, False)


def _cancellation(cut_off: BaseException) -> BaseException | None:
    return cut_off.__cause__ if isinstance(cut_off, TimeoutError) else cut_off


def place_of(error: BaseException) -> str:
    """What kind of error came from where, innermost first, without its own words: they may hold an address."""
    frames = traceback.extract_tb(error.__traceback__)
    places = ", ".join(f"{PurePath(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-4:]))
    return f"{type(error).__name__} at {places}" if places else type(error).__name__

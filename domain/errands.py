"""Sends of one batch: run by as many tasks as their provider has use for, cut off together when their lease ends."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Self

from domain.circuit import Mode
from domain.deliver import Deliver, what_was_cut_off
from domain.dispatch import Dispatch
from domain.failures import DeliveryFailure, TransientFailure, UnknownOutcome, place_of
from domain.message import Accepted, Message
from domain.outcome import Outcome
from domain.pool import Member
from domain.suppression import Suppression
from domain.vocabulary import Reason

BROKEN_OFF = UnknownOutcome(Reason.INTERNAL_ERROR, "the attempt was broken off")


class Runners:
    """Tasks that run one thing after the other for as long as there are some; at most `limit`, None: one for each."""

    def __init__(self, limit: object = None) -> None:
        self._limit = limit if isinstance(limit, int) and limit > 0 else None  # a provider of another package names it
        self._waiting: deque[Callable[[], Awaitable[None]]] = deque()
        self._running: set[asyncio.Task[None]] = set()

    def add(self, run: Callable[[], Awaitable[None]]) -> None:
        """Run it, when its turn has come. It raises nothing but a cancellation."""
        self._waiting.append(run)
        if self._limit is None or len(self._running) < self._limit:
            self._start()

    def _start(self) -> None:
        task = asyncio.create_task(self._run())
        self._running.add(task)
        task.add_done_callback(self._stopped)

    def _stopped(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._waiting and not task.cancelled():  # it was ended by what it ran
            self._start()

    async def _run(self) -> None:
        while self._waiting:
            await self._waiting.popleft()()


@dataclass(eq=False, slots=True)
class Errand:
    """One delivery on its way to its provider.

    Attributes:
        suppression: of its address, which does not stop it.
        outcome: what is known to become of it without sending.
        message: as soon as it is rendered.
        answer: the provider's; or its `failure`.
        task: who runs it at this moment.
        left: whether that one is told to leave it; `cut_off`: because its lease ends, and not because nobody waits.
    """

    job: Dispatch
    suppression: Suppression | None = None
    outcome: Outcome | None = None
    message: Message | None = None
    answer: Accepted | None = None
    failure: DeliveryFailure | None = None
    ended_at: datetime | None = None
    task: "asyncio.Task[None] | None" = None
    left: bool = False
    cut_off: bool = False


class Errands:
    """The sends of one batch. What has not ended when its block is left is left too."""

    def __init__(
        self, deliver: Deliver, member: Member, runners: Callable[[Dispatch], Runners], deadline: datetime
    ) -> None:
        self._deliver = deliver
        self._member = member
        self._runners = runners
        self._deadline = deadline
        self._open: set[Errand] = set()
        self._ended: list[Errand] = []
        self._some = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        """Nothing is sent yet."""
        return self

    def begin(self, errands: Sequence[Errand]) -> None:
        """Send them, but for those whose outcome is known; what is not sent by the deadline is cut off."""
        for errand in errands:
            if errand.outcome is not None:
                self._end(errand)
            else:
                self._open.add(errand)
                self._runners(errand.job).add(partial(self._run, errand))
        left = (self._deadline - self._deliver.now()).total_seconds()
        self._timer = asyncio.get_running_loop().call_later(left, self._cut_off)

    async def ended(self) -> Sequence[Errand]:
        """Those that have ended since the last time, one at least; none when all have."""
        if self._open and not self._ended:
            self._some.clear()
            await self._some.wait()
        ended, self._ended = self._ended, []
        return ended

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Whoever runs one of them goes on with another's."""
        if self._timer is not None:
            self._timer.cancel()
        for errand in list(self._open):
            self._leave(errand)

    def _leave(self, errand: Errand) -> None:
        if errand.task is None:
            self._end(errand)
        elif not errand.left:
            errand.left = True
            errand.task.cancel()

    def _cut_off(self) -> None:
        """The lease is nearly over.

        That the turn of some has not come is nobody's fault: what holds up those before them, they tell themselves.
        """
        for errand in list(self._open):
            errand.cut_off = True
            if errand.task is None:
                errand.failure = TransientFailure(Reason.TIMEOUT, "its turn did not come within the lease")
            self._leave(errand)

    def _end(self, errand: Errand) -> None:
        self._open.discard(errand)
        errand.ended_at, errand.task = self._deliver.now(), None
        self._ended.append(errand)
        self._some.set()

    async def _run(self, errand: Errand) -> None:
        if errand.ended_at is not None:
            return
        errand.task = task = asyncio.current_task()
        try:
            await self._send(errand)
        except DeliveryFailure as failure:
            errand.failure = failure
        except asyncio.CancelledError as cancelled:
            if errand.cut_off:
                errand.failure = what_was_cut_off(cancelled, errand.message, self._member)
            if not errand.left:
                raise
        except TimeoutError as late:
            errand.failure = what_was_cut_off(late, errand.message, self._member)
        except Exception as error:  # noqa: BLE001 - recorded; the runner goes on
            errand.failure = UnknownOutcome(Reason.INTERNAL_ERROR, place_of(error))
        finally:
            if errand.left and task is not None:
                while task.cancelling():  # also where what it ran has swallowed that
                    task.uncancel()
            errand.failure = errand.failure or (BROKEN_OFF if errand.answer is None else None)
            self._end(errand)

    async def _send(self, errand: Errand) -> None:
        circuit = self._member.circuit
        if circuit.mode is Mode.OPEN:  # since it was claimed
            raise TransientFailure(circuit.reason or Reason.PROVIDER_PAUSED, circuit.detail, provider_fault=True)
        errand.message = await self._deliver.render(errand.job)
        self._deliver.left(self._deadline)
        errand.answer = await self._deliver.handed_over(errand.message, self._member)

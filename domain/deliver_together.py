"""Deliveries that came together go the way of each alone (`domain.deliver`), its steps taken for many at a time.

One write claims them, one question screens them, no more are handed over at a time than the provider has use for, and
what has ended meanwhile is recorded by one write. What needs more than that goes alone: its provider is being tried,
or used at a limited rate, or its order is old.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import zip_longest

from domain.deliver import Deliver, Made, Result, Settled, may_have_suppressed
from domain.dispatch import Dispatch
from domain.errands import BROKEN_OFF, Errand, Errands, Runners
from domain.failures import TransientFailure, place_of
from domain.outcome import FailedOver, Outcome, Sent
from domain.pool import NOBODY, Member
from domain.ports import Record
from domain.suppression import Suppression, hit, keys_of, screen
from domain.vocabulary import Reason

Tell = Callable[[Dispatch, Result | Exception], None]
"""Told of each, once: what became of it, or the fault of ours that it alone has met."""
Way = Coroutine[None, None, None]
Follow = Callable[[Sequence[Made], Sequence[bool | Exception]], Way]


@dataclass(frozen=True, slots=True)
class DeliverTogether:
    """Delivers several over one channel; what `Deliver` guarantees holds for each of them.

    Attributes:
        runners: who hands over to each provider, by its name.
        apart: who hands over what waits for more than its provider, such as an attachment.
    """

    deliver: Deliver
    runners: dict[str, Runners] = field(default_factory=dict)
    apart: Runners = field(default_factory=Runners)

    async def __call__(self, jobs: Sequence[Dispatch], tell: Tell, *, redelivered: bool, waited: timedelta) -> None:
        """Make an attempt at each. Returns when all are settled; each is told of as soon as it is.

        `waited`: how long they have been in hand.
        """
        plain: defaultdict[str, list[Dispatch]] = defaultdict(list)
        ways: list[Way] = []
        for job in jobs:
            if (member := self._plain(job)) is not None:
                plain[member.name].append(job)
            else:
                ways.append(_told(job, tell, self.deliver(job, redelivered=redelivered, waited=waited)))
        members = (member for member in self.deliver.pool.members if member.name in plain)
        ways += [self._several(member, plain[member.name], tell, redelivered, waited) for member in members]
        await _all(ways)

    def _plain(self, job: Dispatch) -> Member | None:
        """The provider that it goes to, where nothing is to be looked at or waited for before."""
        return None if job.stale(self.deliver.now()) else self.deliver.pool.plain(job.delivery.recipient)

    async def _several(
        self, member: Member, jobs: Sequence[Dispatch], tell: Tell, redelivered: bool, waited: timedelta
    ) -> None:
        """Claim → render → send → classify → record → settle."""
        claims = [self.deliver.claim_of(job, member.name) for job in jobs]
        won: list[Dispatch] = []
        ways: list[Way] = []
        for job, win in zip(jobs, await self.deliver.deliveries.claim_all(claims), strict=True):
            if isinstance(win, Exception):
                tell(job, win)
            elif win:
                won.append(job)
            else:
                ways.append(_told(job, tell, self.deliver.not_claimed(job, redelivered)))
        if won:
            follow = partial(self._follow, member, waited, tell)
            ways.append(self._attempts(member, won, tell, self.deliver.deadline(claims[0]), follow))
        await _all(ways)

    async def _attempts(
        self, member: Member, jobs: Sequence[Dispatch], tell: Tell, deadline: datetime, follow: Follow
    ) -> None:
        """Send, and record what has ended while the rest is under way; what follows is not waited for meanwhile."""
        started = self.deliver.now()
        following: list[asyncio.Task[None]] = []
        try:
            with Errands(self.deliver, member, partial(self._runners, member), deadline) as errands:
                errands.begin(await self._screened(jobs, started))
                while ended := await errands.ended():
                    made = await self._made(member, ended, started, tell)
                    following.append(asyncio.create_task(follow(made, await self._recorded(made))))
            await asyncio.gather(*following)
        finally:
            for task in following:
                task.cancel()

    def _runners(self, member: Member, job: Dispatch) -> Runners:
        """One that waits for its event or for attachments keeps nobody waiting."""
        if job.event is None or job.event.attachments:
            return self.apart
        if member.name not in self.runners:
            self.runners[member.name] = Runners(getattr(member.provider, "at_once", None))
        return self.runners[member.name]

    async def _screened(self, jobs: Sequence[Dispatch], now: datetime) -> Sequence[Errand]:
        """An errand for each; one that is ruled out has its outcome already."""
        try:
            keys = [keys_of(job.delivery) for job in jobs]
            found = await self.deliver.suppressions.among([key for own in keys for key in own])
        except Exception:  # noqa: BLE001 - one may be the fault of all
            return await asyncio.gather(*(self._screened_alone(job, now) for job in jobs))
        return [self._errand(job, hit(own, found), now) for job, own in zip(jobs, keys, strict=True)]

    async def _screened_alone(self, job: Dispatch, now: datetime) -> Errand:
        try:
            return self._errand(job, await screen(self.deliver.suppressions, job.delivery), now)
        except Exception as error:  # noqa: BLE001 - told, and tried again: an attempt that is claimed has an outcome
            failure = TransientFailure(Reason.INTERNAL_ERROR, place_of(error))
            return Errand(job, outcome=self.deliver.tried_again(job, failure))

    def _errand(self, job: Dispatch, suppression: Suppression | None, now: datetime) -> Errand:
        return Errand(job, suppression, self.deliver.ruled_out(job.delivery, suppression, now))

    async def _made(self, member: Member, errands: Sequence[Errand], started: datetime, tell: Tell) -> Sequence[Made]:
        """What is to be recorded of each; a fault of ours is told of the one that has met it."""
        outcomes: Sequence[Outcome | BaseException]
        if all(
            errand.answer is not None and not may_have_suppressed(errand.job.delivery, errand.suppression)
            for errand in errands
        ):
            outcomes = [await self._outcome(member, errand) for errand in errands]
        else:  # some ask the database something
            asking = (self._outcome(member, errand) for errand in errands)
            outcomes = await asyncio.gather(*asking, return_exceptions=True)
        made: list[Made] = []
        for errand, outcome in zip(errands, outcomes, strict=True):
            if isinstance(outcome, Exception):
                tell(errand.job, outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                ended_at = errand.ended_at or self.deliver.now()
                made.append(self.deliver.made(errand.job, member.name, outcome, started, ended_at))
        return made

    async def _recorded(self, made: Sequence[Made]) -> Sequence[bool | Exception]:
        try:
            records = [Record(each.delivery, each.job.attempt - 1, each.changes) for each in made]
            return await self.deliver.deliveries.record_all(records)
        except Exception as error:  # noqa: BLE001 - told of each
            return [error] * len(made)

    async def _outcome(self, member: Member, errand: Errand) -> Outcome:
        if errand.outcome is not None:
            return errand.outcome
        if errand.failure is not None or errand.message is None or errand.answer is None:
            return await self.deliver.failed(errand.job, member, NOBODY, errand.failure or BROKEN_OFF)
        return await self.deliver.sent(errand.job.delivery, errand.suppression, errand.message, errand.answer)

    async def _follow(
        self, member: Member, waited: timedelta, tell: Tell, made: Sequence[Made], wins: Sequence[bool | Exception]
    ) -> None:
        """See to what follows from what is on record, and tell."""
        sent: list[Made] = []
        ways: list[Way] = []
        for each, win in zip(made, wins, strict=True):
            if isinstance(win, Exception):
                tell(each.job, win)
            elif win and isinstance(each.outcome, Sent):
                sent.append(each)
            else:
                ways.append(_told(each.job, tell, self._settled(member, each, waited, recorded=win)))
        if sent:
            ways.append(self._all_sent(sent, tell))
        await _all(ways)

    async def _all_sent(self, made: Sequence[Made], tell: Tell) -> None:
        """Nothing follows but that it is told, each change after the one before."""
        results: Sequence[Result | Exception] = [each.result for each in made]
        try:
            for changes in zip_longest(*(each.changes for each in made)):
                changed = [(each.delivery, change) for each, change in zip(made, changes, strict=True) if change]
                await self.deliver.queue.statuses(changed)
        except Exception as error:  # noqa: BLE001 - told to each
            results = [error] * len(made)
        for each, result in zip(made, results, strict=True):
            tell(each.job, result)

    async def _settled(self, member: Member, made: Made, waited: timedelta, *, recorded: bool) -> Result:
        """As an attempt that was made alone; another provider takes over at once where this one was at fault."""
        result = await self.deliver.settled(made, recorded=recorded)
        if isinstance(result, Settled) and isinstance(result.outcome, FailedOver):
            return await self.deliver.by_another(made.job, result, frozenset({member.name}), waited)
        return result


async def _told(job: Dispatch, tell: Tell, way: Coroutine[None, None, Result]) -> None:
    result: Result | Exception
    try:
        result = await way
    except Exception as error:  # noqa: BLE001 - told
        result = error
    tell(job, result)


async def _all(ways: Sequence[Way]) -> None:
    """Side by side, each to its end; where it is one, without a task of its own."""
    if len(ways) == 1:
        await ways[0]
        return
    for ended in await asyncio.gather(*ways, return_exceptions=True):
        if ended is not None:
            raise ended

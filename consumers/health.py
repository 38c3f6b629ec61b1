"""Whether this process is ready: connected to both servers, and consuming."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from consumers.metrics import Metrics

log = structlog.get_logger()
EVERY = 2.0
"""Seconds between two looks."""
PATIENCE = 3.0
"""Seconds that a server may take to answer."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What stands in the way of being ready; nothing if it is ready.

    `paused`: providers that are at fault. The process is ready all the same: another process could do no better.
    """

    problems: tuple[str, ...] = ("starting",)
    paused: tuple[str, ...] = ()
    at: float = field(default_factory=time.time)

    @property
    def ready(self) -> bool:
        """Connected to both servers, with a consumer on every queue of its roles."""
        return not self.problems


class Health:
    """Looks after this process: its servers answer, and its queues have consumers."""

    def __init__(
        self,
        ping_database: Callable[[], Awaitable[object]],
        ping_broker: Callable[[], Awaitable[bool]],
        counts: Callable[[str], Awaitable[tuple[int, int] | None]],
        declare: Callable[[], Awaitable[None]],
        renew: Callable[[Collection[str]], Awaitable[None]],
        queues: Sequence[str],
        paused: Callable[[], Mapping[str, str]],
        at_fault: Callable[[], Collection[str]],
        metrics: Metrics,
    ) -> None:
        self._ping_database = ping_database
        self._ping_broker = ping_broker
        self._counts = counts
        self._declare = declare
        self._renew = renew
        self._queues = queues
        self._paused = paused
        self._at_fault = at_fault
        self._metrics = metrics
        self._condition = Condition()

    def state(self) -> Condition:
        """As of the last look."""
        return self._condition

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look()
            if self._condition.ready:
                await self._renew(())  # here, so that no look meets a queue whose consumer is just being renewed
            await asyncio.sleep(EVERY)

    async def look(self) -> Condition:
        """Look once."""
        database, broker = await asyncio.gather(self._answers(self._ping_database), self._answers(self._ping_broker))
        problems = [] if database else ["database unreachable: nothing is taken from the queues"]
        problems += await self._without_consumer() if broker else ["broker unreachable"]
        paused = tuple(sorted(set(self._at_fault()))) if database else ()
        before, self._condition = self._condition, Condition(tuple(problems), paused)
        if before.problems != self._condition.problems:
            tell = log.info if self._condition.ready else log.warning
            tell("notipy.ready" if self._condition.ready else "notipy.not_ready", problems=problems)
        self._metrics.up.labels("database").set(database)
        self._metrics.up.labels("broker").set(broker)
        self._metrics.ready.set(self._condition.ready)
        self._metrics.tasks.set(len(asyncio.all_tasks()))
        self._metrics.heartbeat.set_to_current_time()
        return self._condition

    async def _answers(self, ping: Callable[[], Awaitable[object]]) -> bool:
        try:
            async with asyncio.timeout(PATIENCE):
                return await ping() is not False
        except Exception:  # noqa: BLE001 - whatever kept it from answering, it did not
            return False

    async def _without_consumer(self) -> list[str]:
        problems, paused, missing = [], self._paused(), set()
        for queue in self._queues:
            try:
                async with asyncio.timeout(PATIENCE):
                    found = await self._counts(queue)
            except TimeoutError:
                return ["broker does not answer"]
            if found is None:
                missing.add(queue)
            if found is None or not (found[1] or queue in paused):
                problems.append(f"queue {queue} {'is missing' if found is None else 'has no consumer'}")
        if missing:
            await self._mend(missing)
        return problems

    async def _mend(self, missing: Collection[str]) -> None:
        """Somebody has deleted a queue, or the broker has lost it: declare what is missing, and consume from it."""
        log.warning("topology.incomplete", missing=sorted(missing))
        await self._answers(self._declare)
        await self._renew(missing)

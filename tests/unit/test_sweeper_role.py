"""The loops around the sweep."""

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

from consumers.metrics import Metrics
from consumers.sweeper import Sweeper
from domain.sweep import EVENTS_BATCH, Swept
from tests.unit.world import World
from tests.waiting import eventually

NOTHING = Swept(0, {}, {}, ())


class Rounds(Counter[str]):
    """A sweep, a leadership and a broker that count what is asked of them."""

    leads = True

    async def drive(self) -> Swept:
        self["driven"] += 1
        return NOTHING

    async def plan(self) -> Swept:
        self["planned"] += 1
        return NOTHING

    async def held(self, *_: object) -> bool:
        self["asked"] += 1
        return self.leads

    async def leave(self) -> None:
        self["left"] += 1

    async def nothing(self, *_: object) -> Any:
        return 0


def sweeper(rounds: Rounds) -> Sweeper:
    world, anything = World(), cast("Any", rounds)
    now = world.clock
    role = Sweeper(anything, anything, anything, anything, Metrics(), now, timedelta(milliseconds=1), rounds.nothing)
    role._show = rounds.nothing  # type: ignore[method-assign]
    return role


async def test_who_leads_drives_deliveries_on_and_beside_that_plans_events() -> None:
    rounds = Rounds()
    role = sweeper(rounds)
    tasks = [asyncio.create_task(role.run()), asyncio.create_task(role.plan())]
    await eventually(lambda: min(rounds["driven"], rounds["planned"]) >= 2)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert rounds["left"] == 1


async def test_where_there_may_be_more_events_the_next_are_planned_at_once() -> None:
    rounds = Rounds()

    async def plan() -> Swept:
        rounds["planned"] += 1
        return replace(NOTHING, events=EVENTS_BATCH if rounds["planned"] < 5 else EVENTS_BATCH - 1)

    rounds.plan = plan  # type: ignore[method-assign]
    role = sweeper(rounds)
    role._leading, role._interval = True, timedelta(hours=1)
    planning = asyncio.create_task(role.plan())
    await eventually(lambda: rounds["planned"] == 5)
    await asyncio.sleep(0)
    planning.cancel()
    await asyncio.gather(planning, return_exceptions=True)
    assert rounds["planned"] == 5


async def test_who_does_not_lead_does_neither() -> None:
    rounds = Rounds()
    rounds.leads = False
    role = sweeper(rounds)
    tasks = [asyncio.create_task(role.run()), asyncio.create_task(role.plan())]
    await eventually(lambda: rounds["asked"] >= 5)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (rounds["driven"], rounds["planned"]) == (0, 0)

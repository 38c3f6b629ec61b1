"""`notipy audit`: whether everything that was accepted is accounted for."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer

from cli.failures import CommandFailed
from cli.options import JsonOption
from cli.output import Column, counted, json_line, print_fields, print_table, say, state_text, time_text
from cli.session import execute, load, storage

if TYPE_CHECKING:
    from config.settings import Settings


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands in the database.

    Attributes:
        states: deliveries by channel and state, as stored.
        unplanned: events whose planning is not complete; `stale_events` are those that nobody has taken up.
        overdue: deliveries that were due and that nobody has looked after.
        oldest_due_at: the earliest time at which a delivery is, or was, due.
    """

    states: Mapping[str, Mapping[str, int]]
    unplanned: int
    stale_events: int
    overdue: int
    oldest_due_at: datetime | None

    @property
    def dead(self) -> int:
        """Deliveries that wait for a replay or a drop."""
        return sum(states.get("failed", 0) + states.get("unknown", 0) for states in self.states.values())

    @property
    def in_order(self) -> bool:
        """Nothing is late beyond what the sweeper would have found."""
        return not (self.overdue or self.stale_events)

    def record(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"in_order": self.in_order, **asdict(self), "dead": self.dead}


def audit(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Check in the database that nothing was forgotten.

    It counts the deliveries by state, the dead ones, and the events whose planning is not complete. Everything that
    is not final has a time at which the sweeper looks after it: what is late by more than the setting
    [bold]sweeper.overdue[/] has been forgotten, or no sweeper runs, and the exit code is 1. The queues of the broker
    are not looked at: `notipy topology` shows them.

    [bold]Examples[/]

      $ notipy audit
      $ notipy audit --json | jq .overdue
    """
    settings = load(ctx)
    standing = execute(_look(settings))
    if as_json:
        json_line(standing.record())
    else:
        _print(standing)
    if not standing.in_order:
        raise CommandFailed(
            f"{counted(standing.overdue, 'delivery', 'deliveries')} and {counted(standing.stale_events, 'event')}"
            " are overdue.",
            "See that a `notipy run` with the role sweeper is running, and what its log says.",
        )


async def _look(settings: "Settings") -> Standing:
    from domain.vocabulary import State

    late = datetime.now(UTC) - settings.sweeper.overdue
    async with storage(settings) as stores:
        states: dict[str, dict[str, int]] = {}
        for (channel, state), count in (await stores.deliveries.count_by_state(tuple(State))).items():
            states.setdefault(str(channel), {})[str(state)] = count
        return Standing(
            states=states,
            unplanned=await stores.events.count_due(),
            stale_events=await stores.events.count_due(late),
            overdue=await stores.deliveries.count_due(late),
            oldest_due_at=await stores.deliveries.oldest_due(),
        )


def _print(standing: Standing) -> None:
    rows = [
        (channel, state_text(state), f"{count:,}")
        for channel, states in sorted(standing.states.items())
        for state, count in sorted(states.items())
    ]
    if rows:
        print_table((Column("channel"), Column("state"), Column("deliveries")), rows)
        say()
    total = Counter[str]()
    for states in standing.states.values():
        total.update(states)
    print_fields(
        {
            "Deliveries": f"{sum(total.values()):,}",
            "Dead": f"{standing.dead:,}" + (" (notipy dead list)" if standing.dead else ""),
            "Unplanned events": f"{standing.unplanned:,}",
            "Overdue": f"{standing.overdue:,}",
            "Next due": time_text(standing.oldest_due_at) or "nothing",
        }
    )
    if standing.in_order:
        say("\nNothing is overdue.")

"""Watching deliveries on their way: a table that lives on a terminal, a line for each change elsewhere."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cli.output import GAP, plain, state_text
from cli.samples import Expected, Published
from domain.delivery import Change, Delivery
from domain.vocabulary import State
from storage.deliveries import DeliveryFilter, MongoDeliveries

PATIENCE = 45.0
"""Seconds that deliveries which take some four on an idle machine are waited for."""
_LOOK_EVERY = 0.1
_WIDE = 100
"""Columns of a terminal in which there is room for everything."""
_PASSING = frozenset({State.QUEUED, State.SENDING})


@dataclass(frozen=True, slots=True)
class Row:
    """A delivery that has to be, and the one that is."""

    event: Published
    expected: Expected
    delivery: Delivery | None

    @property
    def settled(self) -> bool:
        """Whether it has come to an end of the epoch in which it should."""
        return self.delivery is not None and self.delivery.state.final and self.delivery.epoch >= self.expected.epoch

    @property
    def right(self) -> bool:
        """Whether it is where it should be."""
        found, wanted = self.delivery, self.expected
        return found is not None and (found.state, found.attempt, found.epoch) == (
            wanted.state,
            wanted.attempt,
            wanted.epoch,
        )

    def __str__(self) -> str:
        found = self.delivery
        stands = f"{found.state}, attempt {found.attempt}, epoch {found.epoch}" if found else "missing"
        return f"{self.event.id} {self.expected.channel} to {self.expected.recipient}: {stands}"


class Watch:
    """Follows the deliveries of `events`."""

    def __init__(self, deliveries: MongoDeliveries, events: Sequence[Published], console: Console) -> None:
        self.events = events
        self.begun = datetime.now(UTC)
        self._deliveries = deliveries
        self._console = console
        self._told: dict[str, int] = {}
        self._found: dict[str, dict[tuple[str, str], Delivery]] = {}

    async def until_settled(self, *, replayed: bool) -> None:
        """Show what happens until every delivery has come to its end, or `PATIENCE` is over."""
        deadline = time.monotonic() + PATIENCE
        with self._shown(replayed) as show:
            while True:
                await self._look()
                rows = self.rows(replayed=replayed)
                show(rows)
                if all(row.settled for row in rows) or time.monotonic() > deadline:
                    return
                await asyncio.sleep(_LOOK_EVERY)

    def rows(self, *, replayed: bool) -> Sequence[Row]:
        """Every delivery that has to be, as of the last look."""
        return [
            Row(event, wanted, self._found.get(event.key, {}).get((wanted.channel, wanted.recipient)))
            for event in self.events
            for wanted in event.expected(replayed=replayed)
        ]

    def surplus(self) -> Sequence[Delivery]:
        """Deliveries that should not be."""
        wanted = {(row.event.key, row.expected.channel, row.expected.recipient) for row in self.rows(replayed=False)}
        found = [delivery for event in self._found.values() for delivery in event.values()]
        return [d for d in found if (d.event_key, d.channel, d.recipient_key) not in wanted]

    async def _look(self) -> None:
        for event in self.events:
            page = await self._deliveries.page(DeliveryFilter(event_key=event.key), 100)
            self._found[event.key] = {(delivery.channel, delivery.recipient_key): delivery for delivery in page}

    @contextmanager
    def _shown(self, replayed: bool) -> Iterator[Callable[[Sequence[Row]], None]]:
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            yield lambda _: self._tell()
            return
        chosen = [row.event.key for row in self.rows(replayed=True) if not replayed or row.event.sample.replayed]
        with Live(console=self._console, auto_refresh=False) as live:

            def update(rows: Sequence[Row]) -> None:
                shown = [row for row in rows if row.event.key in chosen]
                live.update(table(shown, self._console.width), refresh=True)

            yield update

    def _tell(self) -> None:
        """A line for each change since the last look, in the order in which they happened."""
        changes = [
            (change.at, delivery, change)
            for event in self._found.values()
            for delivery in event.values()
            for change in delivery.history[self._told.get(delivery.id, 0) :]
        ]
        for _, delivery, change in sorted(changes, key=lambda item: item[0]):
            self._told[delivery.id] = len(delivery.history)
            if change.state is not State.SENDING:
                self._console.print(self._line(delivery, change), soft_wrap=True)

    def _line(self, delivery: Delivery, change: Change) -> Text:
        seconds = max(0.0, (change.at - self.begun).total_seconds())
        attempt = f"attempt {change.attempt}, " if change.attempt else ""
        why = f"{change.reason}: {change.detail}" if change.detail else str(change.reason)
        return Text.assemble(
            f"  {seconds:5.1f} s  {delivery.event_id:<18} {delivery.channel:<8} ",
            state_text(f"{change.state:<11}"),
            plain(f"{attempt}{why}"),
        )


def table(rows: Sequence[Row], width: int, *, judged: bool = False) -> Table:
    """The deliveries and the way that each has come; `judged` with whether it is where it should be."""
    found = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    titles = ("  EVENT", "CHANNEL", *(("TO",) if width >= _WIDE else ()), "ATTEMPT", "EPOCH")
    for title in titles:
        found.add_column(title, no_wrap=True)
    found.add_column("WAY", overflow="fold")
    for row in rows:
        to = (plain(row.expected.recipient),) if width >= _WIDE else ()
        found.add_row(_event(row, judged), row.expected.channel, *to, *_cells(row.delivery))
    return found


def _event(row: Row, judged: bool) -> Text:
    if not judged:
        return Text(f"  {row.event.id}")
    return Text.assemble(("✓ ", "green") if row.right else ("✗ ", "bold red"), row.event.id)


def _cells(delivery: Delivery | None) -> tuple[str, str, Text]:
    if delivery is None:
        return "", "", Text()
    return str(delivery.attempt), str(delivery.epoch), _way(delivery)


def _way(delivery: Delivery) -> Text:
    """The states that it went through, where it stands last and in colour; those that every delivery has left out."""
    passed = [change.state for change in delivery.history[:-1] if change.state not in _PASSING]
    why = "" if delivery.state is State.SENT else plain(f" ({delivery.reason})")
    return Text.assemble("".join(f"{state} → " for state in passed), state_text(delivery.state), why)

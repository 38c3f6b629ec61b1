"""What commands print: tables and texts for people, JSON lines for scripts. Hints go to standard error."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

UNBOUNDED = 10_000
"""Columns of a pipe: what is not a terminal has no edge at which to fold."""
GAP = 2
_STYLES = {
    "queued": "cyan",
    "sending": "cyan",
    "held": "yellow",
    "retrying": "yellow",
    "sent": "green",
    "delivered": "green",
    "failed": "bold red",
    "bounced": "red",
    "unknown": "bold magenta",
    "suppressed": "dim",
    "expired": "dim",
    "cancelled": "dim",
}

Cell = str | Text


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        rank: 0 is always shown; of the others, the highest leave first where the terminal is too narrow.
        fold: long text goes on in the next line; what is not folded is never cut, so that it can be copied.
    """

    title: str
    rank: int = 0
    fold: bool = False


def stdout() -> Console:
    """The console for what was asked for."""
    return _console(sys.stdout.isatty(), stderr=False)


def stderr() -> Console:
    """The console for hints, progress and faults."""
    return _console(sys.stderr.isatty(), stderr=True)


def _console(terminal: bool, *, stderr: bool) -> Console:
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=None if terminal else UNBOUNDED)


def plain(text: str) -> str:
    """The text without what a terminal would obey: it may come from a producer or from a provider."""
    return "".join(character if character.isprintable() or character == "\n" else "�" for character in text)


def json_line(record: Mapping[str, Any]) -> None:
    """One object a line; times are ISO 8601 in UTC."""
    import orjson

    sys.stdout.write(orjson.dumps(record, option=orjson.OPT_UTC_Z).decode() + "\n")


def say(text: Cell = "") -> None:
    """A line for a person, on standard output."""
    stdout().print(_text(text), soft_wrap=True)


def hint(text: str) -> None:
    """A line on standard error: where a page ends, what a table leaves out."""
    stderr().print(Text(plain(text), style="dim"), soft_wrap=True)


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state, style=_STYLES.get(state, ""))


def time_text(time: datetime | None) -> str:
    """ISO 8601 in UTC, to the second."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if time else ""


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> None:
    """Print a table that fits the terminal: less important columns are left out, and a hint says which."""
    screen = stdout()
    cells = [[_text(cell) for cell in row] for row in rows]
    shown = _fitting(columns, cells, screen.width)
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for index in shown:
        column = columns[index]
        table.add_column(column.title.upper(), no_wrap=not column.fold, overflow="fold")
    for row in cells:
        table.add_row(*(row[index] for index in shown))
    screen.print(table)
    if hidden := [column.title for index, column in enumerate(columns) if index not in shown]:
        hint(f"The terminal is too narrow for: {', '.join(hidden)}. --json prints everything.")


def print_fields(fields: Mapping[str, Cell | None]) -> None:
    """Print names and values, one a line; what is unset is left out."""
    table = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in fields.items():
        if value is not None and len(value):
            table.add_row(name, _text(value))
    stdout().print(table)


def counted(number: int, one: str, many: str = "") -> str:
    """`1 delivery`, `2 deliveries`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _text(cell: Cell) -> Text:
    return cell if isinstance(cell, Text) else Text(plain(cell))


def _fitting(columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int) -> list[int]:
    widths = [_width(column, [row[index].plain for row in rows]) for index, column in enumerate(columns)]
    shown = list(range(len(columns)))
    while sum(widths[i] + GAP for i in shown) - GAP > width and any(columns[i].rank for i in shown):
        shown.remove(max(shown, key=lambda index: columns[index].rank))
    return shown


def _width(column: Column, values: Sequence[str]) -> int:
    longest = max(map(cell_len, [column.title, *values]))
    return min(longest, 24) if column.fold else longest

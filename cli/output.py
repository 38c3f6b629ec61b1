"""What commands print: tables and texts for people, JSON lines for scripts. Hints go to standard error."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from unicodedata import category

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

UNBOUNDED = 10_000
"""Columns of a pipe: what is not a terminal has no edge at which to fold."""
GAP = 2
UNREAD = 141
"""The exit code of a command whose output nobody reads: 128 + SIGPIPE, as a shell has it."""
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
        rank: 0 always stands in the row; of the others, the highest go first to a second line where it is too wide.
        short: of an id, so many characters are shown where the row is too wide; it can be given so abbreviated.
    """

    title: str
    rank: int = 0
    short: int | None = None


def stdout() -> Console:
    """The console for what was asked for."""
    return _console(sys.stdout.isatty(), stderr=False)


def stderr() -> Console:
    """The console for hints, progress and faults."""
    return _console(sys.stderr.isatty(), stderr=True)


def _console(terminal: bool, *, stderr: bool) -> Console:
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=None if terminal else UNBOUNDED)


_HARMLESS = "\n\u00ad\u200b\u200c\u200d\u2060"
"""A line's end, the soft hyphen, and what joins letters and pictures or keeps them apart."""


def plain(text: str) -> str:
    """The text without what a terminal would obey: it may come from a producer or from a provider."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    """Spaces of every kind, and what joins letters, are text; controls and what turns its direction are not."""
    text = character.isprintable() or character in _HARMLESS or category(character) == "Zs"
    return character if text else "�"


def json_line(record: Mapping[str, Any]) -> None:
    """One object a line; times are ISO 8601 in UTC. The command ends where nobody reads any more, as `head` does."""
    import orjson

    try:
        sys.stdout.write(orjson.dumps(record, option=orjson.OPT_UTC_Z).decode() + "\n")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python meets it once more as it ends
        raise SystemExit(UNREAD) from None


def say(text: Cell = "") -> None:
    """A line for a person, on standard output."""
    stdout().print(_text(text), soft_wrap=True)


def hint(text: str) -> None:
    """A line on standard error: where a page ends, what to do next."""
    stderr().print(Text(plain(text), style="dim"))


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state, style=_STYLES.get(state, ""))


def time_text(time: datetime | None) -> str:
    """ISO 8601 in UTC, to the second."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if time else ""


def hanging(line: str, screen: Console) -> Text:
    """The line as it fits the screen: where it goes on, it is indented by two more than where it begins."""
    text = line.lstrip()
    indent = len(line) - len(text)
    parts = Text(text).wrap(screen, max(GAP, screen.width - indent - GAP))
    return Text(" " * indent).append_text(Text("\n" + " " * (indent + GAP)).join(parts))


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> None:
    """Print a table. Nothing but an id is ever cut: what a narrow terminal has no room for follows in a second line."""
    screen = stdout()
    titles = [Text(column.title.upper(), style="bold") for column in columns]
    cells = [titles, *([_text(cell) for cell in row] for row in rows)]
    if _width(_widths(cells)) > screen.width:
        cells = [titles, *([*map(_shortened, columns, row)] for row in cells[1:])]
    widths = _widths(cells)
    first = _fitting(columns, widths, screen.width)
    for row in cells:
        screen.print(_aligned([row[index] for index in first], [widths[index] for index in first]), soft_wrap=True)
        if rest := [row[index].plain for index in range(len(columns)) if index not in first and row[index].plain]:
            screen.print(Padding(Text(" · ".join(rest), style="dim"), (0, 0, 0, GAP), expand=False))


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


def _widths(cells: Sequence[Sequence[Text]]) -> Sequence[int]:
    return [max(cell_len(cell.plain) for cell in column) for column in zip(*cells, strict=True)]


def _width(widths: Sequence[int]) -> int:
    """Of the columns side by side."""
    return sum(width + GAP for width in widths) - GAP


def _shortened(column: Column, cell: Text) -> Text:
    return cell if column.short is None else cell[: column.short]


def _fitting(columns: Sequence[Column], widths: Sequence[int], available: int) -> list[int]:
    """The columns that stand side by side."""
    shown = list(range(len(columns)))
    while _width([widths[index] for index in shown]) > available and any(columns[i].rank for i in shown):
        shown.remove(max(shown, key=lambda index: columns[index].rank))
    return shown


def _aligned(cells: Sequence[Text], widths: Sequence[int]) -> Text:
    line = Text()
    for cell, width in zip(cells, widths, strict=True):
        line.append(" " * GAP if line else "").append_text(cell).append(" " * (width - cell_len(cell.plain)))
    line.rstrip()
    return line

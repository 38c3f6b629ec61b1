"""`notipy inbox`: what is in a recipient's inbox."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.failures import BadInput, CommandGroup
from cli.options import JsonOption
from cli.output import Column, counted, hint, json_line, print_table, time_text
from cli.session import execute, load, storage

if TYPE_CHECKING:
    from config.settings import Settings
    from domain.inbox import InboxCounts, InboxItem

app = typer.Typer(cls=CommandGroup, rich_markup_mode="rich", no_args_is_help=True, help="Inboxes inside applications.")
_SHOWN = 60
"""Characters of a title, or of a text without one, in a table."""


@app.command("list")
def list_items(
    ctx: typer.Context,
    recipient: Annotated[str, typer.Argument(metavar="RECIPIENT", help="The recipient's id, as producers give it.")],
    archived: Annotated[bool, typer.Option("--archived", help="What the recipient has archived.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most so many, the newest first.")] = 50,
    after: Annotated[
        str | None, typer.Option("--after", metavar="CURSOR", help="Go on where the page before has ended.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a recipient's inbox, the newest first, and how much of it is unseen and unread.

    [bold]Examples[/]

      $ notipy inbox list user-7
      $ notipy inbox list user-7 --archived --json
    """
    items, counts = execute(_look(load(ctx), recipient, limit, archived, _cursor(after)))
    if as_json:
        for item in items:
            json_line(item.document())
    else:
        _print(items, counts)
    if len(items) == limit:
        hint(f"More: --after '{items[-1].at.isoformat()} {items[-1].id}'")


@app.command("count")
def count(
    ctx: typer.Context,
    recipient: Annotated[str, typer.Argument(metavar="RECIPIENT", help="The recipient's id, as producers give it.")],
    as_json: JsonOption = False,
) -> None:
    """Count what is in a recipient's inbox, its archive left out.

    [bold]Example[/]

      $ notipy inbox count user-7
    """
    _, counts = execute(_look(load(ctx), recipient, 1, False, None))
    if as_json:
        json_line({"recipient": recipient, **_values(counts)})
    else:
        typer.echo(_told(counts))


async def _look(
    settings: "Settings", recipient: str, limit: int, archived: bool, after: tuple[datetime, str] | None
) -> "tuple[Sequence[InboxItem], InboxCounts]":
    async with storage(settings) as stores:
        items = await stores.inbox.page(recipient, limit, archived=archived, after=after)
        return items, await stores.inbox.counts(recipient)


def _cursor(text: str | None) -> tuple[datetime, str] | None:
    if text is None:
        return None
    at, _, last = text.partition(" ")
    try:
        found = datetime.fromisoformat(at)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None or not last:
        raise BadInput("--after: should be the cursor that the page before has ended with.")
    return found, last


def _values(counts: "InboxCounts") -> Mapping[str, Any]:
    return {"items": counts.items, "unseen": counts.unseen, "unread": counts.unread}


def _told(counts: "InboxCounts") -> str:
    return f"{counted(counts.items, 'item')}, {counts.unseen:,} unseen, {counts.unread:,} unread"


def _print(items: "Sequence[InboxItem]", counts: "InboxCounts") -> None:
    columns = [Column("at"), Column("state"), Column("title"), Column("id", rank=1)]
    print_table(columns, [[time_text(item.at), _state(item), _title(item), item.id] for item in items])
    hint(_told(counts))


def _state(item: "InboxItem") -> str:
    if item.archived:
        return "archived"
    if item.unseen:
        return "new"
    return "unread" if item.unread else "read"


def _title(item: "InboxItem") -> str:
    text = " ".join((item.content.get("title") or item.content.get("text", "")).split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"

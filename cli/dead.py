"""`notipy dead`: what could not be delivered, and what was no event; looked at, replayed or given up."""

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from cli.failures import BadInput, CommandFailed, CommandGroup
from cli.options import (
    DeadState,
    DeadStateOption,
    DryRunOption,
    IdOption,
    JsonOption,
    Parked,
    ParkedOption,
    ReasonOption,
    SinceOption,
    SourceOption,
    TypeOption,
    UntilOption,
)
from cli.output import Column, counted, hint, json_line, print_table, say, time_text
from cli.session import core, execute, load

if TYPE_CHECKING:
    from cli.parked import Chosen, Done
    from config.settings import Settings
    from consumers.dead_letters import DeadEvent
    from domain.delivery import Delivery
    from domain.vocabulary import Reason

app = typer.Typer(
    cls=CommandGroup,
    rich_markup_mode="rich",
    no_args_is_help=True,
    help="What could not be delivered, or used at all: look, replay, give up.",
)
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many, the oldest first.")]
SHOWN = 20
"""How many of those that would be treated a dry run shows to a person."""


@app.command("list")
def list_(
    ctx: typer.Context,
    channel: ParkedOption = None,
    reason: ReasonOption = None,
    source: SourceOption = None,
    type_: TypeOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    ids: IdOption = None,
    state: DeadStateOption = DeadState.FAILED,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the oldest first.")] = 50,
    body: Annotated[bool, typer.Option("--body", help="With --json: also the events' bodies.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List deliveries that failed, and messages that were no events. Receipts only where --channel asks for them.

    [bold]Examples[/]

      $ notipy dead list
      $ notipy dead list --channel email --reason timeout --since 2h
      $ notipy dead list --channel events --json --body
    """
    chosen = _chosen(channel, reason, source, type_, since, until, state, limit, ids)
    settings = load(ctx)
    above = False
    if not chosen.messages:
        deliveries, total = execute(_deliveries(settings, chosen))
        above = bool(deliveries)
        _print_deliveries(deliveries, total, as_json)
    if channel in {None, Parked.EVENTS} and state is DeadState.FAILED:
        _print_events(*execute(_events(settings, chosen)), as_json, body, below=above)
    if channel is Parked.RECEIPTS:
        _print_events(*execute(_events(settings, chosen)), as_json, body, below=False, what="receipt")


@app.command("replay")
def replay(
    ctx: typer.Context,
    channel: ParkedOption = None,
    reason: ReasonOption = None,
    source: SourceOption = None,
    type_: TypeOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    ids: IdOption = None,
    state: DeadStateOption = DeadState.FAILED,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Send failed deliveries again, with all their attempts anew; or publish dead events or receipts again.

    Each is replayed once, even by two operators at the same time. Without --channel: the deliveries of every channel,
    and no events or receipts.

    One whose address is suppressed is left alone; but not the one whose own refusal has suppressed it. If its replay is
    sent, the address is used again; until then it stays suppressed for all others.

    One that failed over its template (template_error, message_too_large) is told in the words of the notification's
    version that is in force now; everything else in those that it was planned with.

    [bold]Examples[/]

      $ notipy dead replay --channel email --reason connection_refused --since 2h --dry-run
      $ notipy dead replay --channel email --limit 100
      $ notipy dead replay --channel events --source shop
      $ notipy dead replay --channel receipts --id 5feceb66ffc86f38
    """
    chosen = _chosen(channel, reason, source, type_, since, until, state, limit, ids)
    _treat(load(ctx), chosen, "replayed", dry_run, as_json)


@app.command("drop")
def drop(
    ctx: typer.Context,
    channel: ParkedOption = None,
    reason: ReasonOption = None,
    source: SourceOption = None,
    type_: TypeOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    ids: IdOption = None,
    state: DeadStateOption = DeadState.FAILED,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Give failed deliveries up: they end cancelled, and stay in the database. Dead events and receipts are deleted.

    Without --channel: the deliveries of every channel, and no events or receipts. On a terminal it asks before;
    elsewhere it drops only with --yes.

    [bold]Examples[/]

      $ notipy dead drop --channel sms --reason bad_address --dry-run
      $ notipy dead drop --channel events --until 30d --yes
    """
    chosen = _chosen(channel, reason, source, type_, since, until, state, limit, ids)
    settings = load(ctx)
    if not dry_run and not yes:
        _confirm(settings, chosen)
    _treat(settings, chosen, "dropped", dry_run, as_json)


def _chosen(
    channel: Parked | None,
    reason: "Reason | None",
    source: str | None,
    type_: str | None,
    since: datetime | None,
    until: datetime | None,
    state: DeadState,
    limit: int | None,
    ids: list[str] | None,
) -> "Chosen":
    from cli.parked import Chosen
    from domain.ports import DeadFilter
    from domain.vocabulary import Channel, State

    messages = channel in {Parked.EVENTS, Parked.RECEIPTS}
    if messages and state is not DeadState.FAILED:
        raise typer.BadParameter(f"goes with deliveries, not with --channel {channel}", param_hint="--state")
    own = Channel(channel) if channel and not messages else None
    chosen = DeadFilter(State(state), own, reason, source, type_, since, until)
    return Chosen(channel is Parked.EVENTS, chosen, limit, channel is Parked.RECEIPTS, tuple(ids or ()))


# ---------------------------------------------------------------------------------------------------------------
# list
# ---------------------------------------------------------------------------------------------------------------


async def _deliveries(settings: "Settings", chosen: "Chosen") -> "tuple[Sequence[Delivery], int]":
    from cli.parked import dead_deliveries, with_whole_ids
    from cli.session import storage

    async with storage(settings) as stores:
        chosen = await with_whole_ids(stores.deliveries, chosen)
        found = [delivery async for delivery in dead_deliveries(stores.deliveries, chosen)]
        return found, len(found) if chosen.ids else await stores.deliveries.count_dead(chosen.filter)


async def _events(settings: "Settings", chosen: "Chosen") -> "tuple[Sequence[DeadEvent], int]":
    from cli.parked import list_events

    async with core(settings) as opened:
        return await list_events(opened, chosen)


def _print_deliveries(deliveries: "Sequence[Delivery]", total: int, as_json: bool) -> None:
    from cli.delivery_views import record_of

    for delivery in deliveries if as_json else ():
        json_line(record_of(delivery))
    if not as_json and deliveries:
        _print_table(deliveries)
    elif not deliveries:
        hint("No dead deliveries.")
    _print_total(len(deliveries), total, "delivery", "deliveries")


def _print_table(deliveries: "Sequence[Delivery]") -> None:
    from cli.delivery_views import address_of

    columns = (
        Column("id"),
        Column("channel"),
        Column("reason"),
        Column("failed", rank=1),
        Column("event", rank=3),
        Column("recipient", rank=4),
        Column("detail", rank=5),
    )
    rows = [
        (d.id, str(d.channel), str(d.reason), time_text(d.updated_at), f"{d.source}/{d.event_id}", address_of(d),
         d.detail or "")
        for d in deliveries
    ]  # fmt: skip
    print_table(columns, rows)


def _print_events(
    events: "Sequence[DeadEvent]", total: int, as_json: bool, body: bool, *, below: bool, what: str = "event"
) -> None:
    from cli.parked import event_record, faults_told

    if as_json:
        for event in events:
            json_line(event_record(event, body=body, channel=f"{what}s"))
    elif events:
        if below:
            say(Text("\nMessages that were no events", style="bold"))
        columns = (Column(f"dead {what}"), Column("key"), Column("reason"), Column("parked", rank=1))
        print_table(
            (*columns, Column("faults", rank=2)),
            [(e.id, e.routing_key or "-", e.reason, time_text(e.parked_at), faults_told(e)) for e in events],
        )
    elif not total:
        hint(f"No dead {what}s.")
    _print_total(len(events), total, f"dead {what}")


def _print_total(shown: int, total: int, one: str, many: str = "") -> None:
    if total > shown:
        hint(f"{shown} of {counted(total, one, many)}: more with --limit.")


# ---------------------------------------------------------------------------------------------------------------
# replay and drop
# ---------------------------------------------------------------------------------------------------------------


def _confirm(settings: "Settings", chosen: "Chosen") -> None:
    """Ask, if there is anything to drop.

    Raises:
        BadInput: nobody can be asked.
        Exit: the answer was no, 1; or Ctrl-C, 130.
    """
    number = execute(_count(settings, chosen))
    what = _counted(number, chosen)
    consequence = "They are deleted." if chosen.messages else "They are not sent any more."
    if number and not sys.stdin.isatty():
        raise BadInput(f"{what} would be dropped, and nobody can be asked.", "Give --yes; --dry-run shows them.")
    if number and (code := _refusal(f"Drop {what}? {consequence}")):
        hint("Aborted.")
        raise typer.Exit(code)


def _counted(number: int, chosen: "Chosen") -> str:
    if not chosen.messages:
        return counted(number, "delivery", "deliveries")
    return counted(number, "dead receipt" if chosen.receipts else "dead event")


def _refusal(question: str) -> int:
    """The exit code of an answer that is not yes; 0 for yes."""
    try:
        return 0 if typer.confirm(question, err=True) else 1
    except typer.Abort as abort:  # Ctrl-C, or the end of the input: the cursor stands behind the question
        hint("")
        return 130 if isinstance(abort.__context__, KeyboardInterrupt) else 1


async def _count(settings: "Settings", chosen: "Chosen") -> int:
    from cli.parked import count, with_whole_ids

    async with core(settings) as opened:
        return await count(opened, await with_whole_ids(opened.deliveries, chosen))


_WHERE_IDS_ARE = (
    "`notipy dead list` shows them, whole with --json; "
    "those of events and receipts go with --channel events or --channel receipts."
)


def _treat(settings: "Settings", chosen: "Chosen", action: str, dry_run: bool, as_json: bool) -> None:
    done = execute(_carry_out(settings, chosen, action, dry_run, as_json))
    if chosen.ids and not (done.treated or done.failed or done.skipped):
        what = "dead receipt" if chosen.receipts else "dead event" if chosen.messages else "dead delivery"
        raise CommandFailed(f"No {what} that the other options mean has such an id.", _WHERE_IDS_ARE)
    if not as_json:
        _print_done(done, action, dry_run, _counted(done.treated, chosen))
    if done.failed:
        raise typer.Exit(1)


async def _carry_out(settings: "Settings", chosen: "Chosen", action: str, dry_run: bool, as_json: bool) -> "Done":
    from cli.parked import Report, treat, with_whole_ids

    async with core(settings) as opened:
        chosen = await with_whole_ids(opened.deliveries, chosen)
        return await treat(opened, chosen, action, Report(as_json, SHOWN if dry_run else 0, dry_run), dry_run=dry_run)


def _print_done(done: "Done", action: str, dry_run: bool, what: str) -> None:
    say(f"{what} {'would be ' if dry_run else ''}{action}.")
    if done.refused:
        say(
            f"{done.refused:,} of them to an address that its own refusal has suppressed: used again once this is sent."
        )
    if done.corrected:
        say(f"{done.corrected:,} of them with the version of their notification that is in force now.")
    if done.unchanged:
        say(f"{done.unchanged:,} of them in words that have failed: correct them and `notipy apply` before.")
    for why, number in done.skipped.most_common():
        say(f"{counted(number, 'other')} left alone: {why}.")
    if done.removed:
        hint(f"{counted(done.removed, 'message')} removed from the dead-letter queues.")

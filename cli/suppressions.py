"""`notipy suppressions`: the addresses that nothing more is sent to. The one place where they are shown."""

import csv
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from cli.delivery_ids import LEAST
from cli.failures import BadInput, CommandFailed, CommandGroup
from cli.options import ChannelOption, JsonOption
from cli.output import Column, counted, hint, json_line, plain, print_table, say, stderr, time_text
from cli.session import execute, load, storage
from domain.vocabulary import Channel, SuppressionReason

if TYPE_CHECKING:
    from config.settings import Settings
    from domain.suppression import Suppression
    from storage.suppressions import SuppressionFilter

app = typer.Typer(
    cls=CommandGroup, rich_markup_mode="rich", no_args_is_help=True, help="Addresses that nothing more is sent to."
)
SOURCE = "operator"
BATCH = 500
"""Lines of an import that are written together."""
FAULTS_SHOWN = 20
_HEADER = ["channel", "address", "reason", "expires"]


def read_since(text: str) -> datetime:
    """A time, or how long ago."""
    from cli.inputs import read_time

    return read_time(text)


def read_expiry(text: str) -> datetime:
    """Read `30d`, from now on, or a time.

    Raises:
        BadParameter: it is neither, or is past.
    """
    try:
        return expiry_of(text, datetime.now(UTC))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def expiry_of(text: str, now: datetime) -> datetime:
    """A duration from `now` on, or a time after it.

    Raises:
        ValueError: it is neither.
    """
    from domain.duration import parse_duration

    try:
        at = now + parse_duration(text)
    except OverflowError:
        raise ValueError("expires: is later than any time there is") from None
    except ValueError:
        at = _time(text)
    if at <= now:
        raise ValueError("expires: is past already")
    return at


def _time(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("expires: should be a duration such as 30d, or a time such as 2027-01-31") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


ReasonOption = Annotated[
    SuppressionReason | None, typer.Option("--reason", show_choices=False, metavar="REASON", help="Only this reason's.")
]
SinceOption = Annotated[
    datetime | None,
    typer.Option("--since", parser=read_since, metavar="TIME", help="Suppressed since: 2026-11-22, or 7d ago."),
]
ExpiresOption = Annotated[
    datetime | None,
    typer.Option(
        "--expires", parser=read_expiry, metavar="TIME", help="Until then: 30d, or 2027-01-31. Else for ever."
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]
ChannelArgument = Annotated[Channel, typer.Argument(metavar="CHANNEL", help="email, sms, push, chat, webhook, inbox.")]


# ---------------------------------------------------------------------------------------------------------------
# list
# ---------------------------------------------------------------------------------------------------------------


@app.command("list")
def list_(
    ctx: typer.Context,
    channel: ChannelOption = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the latest first.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List suppressed addresses, the latest first.

    [bold]Examples[/]

      $ notipy suppressions list --channel email --reason hard_bounce --since 7d
      $ notipy suppressions list --limit 1000000 --json | jq -r .address
    """
    from storage.suppressions import SuppressionFilter

    shown = execute(_list(load(ctx), SuppressionFilter(channel, reason, since), limit, as_json))
    if not shown:
        hint("No suppressed addresses.")
    elif shown == limit:
        hint("There may be more: with --limit.")


async def _list(settings: "Settings", chosen: "SuppressionFilter", limit: int, as_json: bool) -> int:
    rows, shown = [], 0
    async with storage(settings) as stores:
        async for entry in stores.suppressions.listed(chosen, limit):
            shown += 1
            if as_json:
                json_line(record_of(entry))
            else:
                rows.append(entry)
    if rows:
        _print(rows)
    return shown


def record_of(entry: "Suppression") -> dict[str, object]:
    """As `--json` prints it."""
    return {
        "channel": str(entry.channel),
        "address": entry.address,
        "reason": str(entry.reason),
        "source": entry.source,
        "since": entry.since,
        "expires_at": entry.expires_at,
        "delivery": entry.delivery,
    }


def _print(entries: Iterable["Suppression"]) -> None:
    columns = (
        Column("channel"),
        Column("address"),
        Column("reason"),
        Column("since", rank=1),
        Column("expires", rank=3),
        Column("source", rank=4),
        Column("delivery", rank=2, short=LEAST),
    )
    print_table(columns, map(_row, entries))


def _row(entry: "Suppression") -> tuple[str, ...]:
    since, expires = time_text(entry.since), time_text(entry.expires_at)
    about = (str(entry.channel), entry.address, str(entry.reason))
    return (*about, since, expires, entry.source, entry.delivery or "")


# ---------------------------------------------------------------------------------------------------------------
# add and remove
# ---------------------------------------------------------------------------------------------------------------


@app.command("add")
def add(
    ctx: typer.Context,
    channel: ChannelArgument,
    addresses: Annotated[list[str], typer.Argument(metavar="ADDRESS...", help="Addresses, numbers, tokens, URLs.")],
    reason: Annotated[
        SuppressionReason, typer.Option("--reason", show_choices=False, metavar="REASON", help="Why.")
    ] = SuppressionReason.MANUAL,
    expires: ExpiresOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Send nothing more to these addresses; takes effect within seconds. One that is suppressed already is replaced.

    [bold]Examples[/]

      $ notipy suppressions add email ana@example.org
      $ notipy suppressions add sms +4915112345678 --expires 30d --reason unsubscribed
    """
    from domain.suppression import Suppression

    now = datetime.now(UTC)
    entries = [Suppression(channel, _checked(channel, address), reason, SOURCE, now, expires) for address in addresses]
    settings = load(ctx)
    new = 0 if dry_run else execute(_put(settings, entries))
    if as_json:
        for entry in entries:
            json_line({**record_of(entry), "action": "added", **({"dry_run": True} if dry_run else {})})
    elif dry_run:
        say(f"{counted(len(entries), 'address', 'addresses')} would be suppressed.")
    else:
        say(f"{counted(len(entries), 'address', 'addresses')} suppressed, {new} of them new.")


async def _put(settings: "Settings", entries: "list[Suppression]") -> int:
    async with storage(settings) as stores:
        return await stores.suppressions.put(entries)


def _checked(channel: Channel, address: str) -> str:
    try:
        return usable_address(channel, address)
    except ValueError as error:
        raise BadInput(f"{address}: {error}") from None


def usable_address(channel: Channel, address: str) -> str:
    """The address in the form in which deliveries have it.

    Raises:
        ValueError: it is no address of this channel; the message does not repeat it.
    """
    from pydantic import ValidationError

    from channels.numbers import PhoneNumbers
    from domain.event import Recipient
    from domain.ports import NotANumber
    from domain.suppression import addresses_of
    from domain.text import faults_of

    given = address.strip()
    value: object = [{"provider": "any", "token": given}] if channel is Channel.PUSH else given
    try:
        recipient = Recipient.model_validate({Recipient.ADDRESS_FIELDS[channel]: value})
    except ValidationError as error:
        raise ValueError(faults_of(error)[0].fault) from None
    if not (found := addresses_of(channel, recipient.document())):
        raise ValueError("is no address")
    try:
        return PhoneNumbers().normalised(found[0]) if channel is Channel.SMS else found[0]
    except NotANumber as fault:
        raise ValueError(str(fault)) from None


@app.command("remove")
def remove(
    ctx: typer.Context,
    channel: ChannelArgument,
    addresses: Annotated[list[str], typer.Argument(metavar="ADDRESS...", help="Addresses, numbers, tokens, URLs.")],
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Use these addresses again; their soft bounces are forgotten. Exits with 1 if one of them is not suppressed.

    Deliveries that have ended as suppressed stay so: publish their events anew.

    [bold]Example[/]

      $ notipy suppressions remove email ana@example.org
    """
    from domain.suppression import address_key

    asked = {address_key(channel, _loosely(channel, address)): address for address in addresses}
    found = execute(_remove(load(ctx), list(asked), dry_run))
    for key, address in asked.items():
        action = "removed" if key in found else "not_found"
        if as_json:
            record = {"channel": str(channel), "address": address, "action": action}
            json_line({**record, "dry_run": True} if dry_run else record)
        elif key not in found:
            hint(f"{address} is not suppressed.")
    if not as_json:
        say(f"{counted(len(found), 'address', 'addresses')} {'would be used' if dry_run else 'used'} again.")
    if len(found) < len(asked):
        raise typer.Exit(1)


def _loosely(channel: Channel, address: str) -> str:
    """What is stored by an older version may be no address any more: then as it was given."""
    try:
        return usable_address(channel, address)
    except ValueError:
        return address


async def _remove(settings: "Settings", keys: list[str], dry_run: bool) -> "set[str]":
    async with storage(settings) as stores:
        found = set(await stores.suppressions.stored(keys))
        if found and not dry_run:
            await stores.suppressions.remove(sorted(found))
        return found


# ---------------------------------------------------------------------------------------------------------------
# import
# ---------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Imported:
    """What an import did: lines that were used, how many of them were new, and those that were not used."""

    used: int = 0
    new: int = 0
    bad: int = 0


@app.command("import")
def import_(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A CSV file; - for standard input.")],
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Read addresses from a CSV file of the columns channel, address, reason, expires.

    The last two may be left out; a first line with these names is passed by. Each line that cannot be used is told
    with its number; the others are written, and the exit code is 2. Importing the same file again does no harm.

    [bold]Examples[/]

      $ notipy suppressions import bounces.csv --dry-run
      $ printf 'email,ana@example.org,hard_bounce,\\n' | notipy suppressions import -
    """
    settings = load(ctx)
    with _opened(file) as source:
        done = execute(_import(settings, source, dry_run, as_json))
    if as_json:
        json_line({"used": done.used, "new": done.new, "bad": done.bad, "dry_run": dry_run})
    else:
        verb = "would be suppressed" if dry_run else f"suppressed, {done.new:,} of them new"
        say(f"{counted(done.used, 'address', 'addresses')} {verb}.")
    if done.bad:
        raise BadInput(f"{counted(done.bad, 'line')} could not be used.", "Correct them, and import them again.")


@contextmanager
def _opened(file: str) -> Iterator[TextIO]:
    if file == "-":
        yield sys.stdin
        return
    try:
        with Path(file).open(encoding="utf-8-sig", newline="") as source:
            yield source
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror}") from None


async def _import(settings: "Settings", source: TextIO, dry_run: bool, as_json: bool) -> Imported:
    from cli.parked import progress

    done = Imported()
    batch: list[Suppression] = []
    now = datetime.now(UTC)
    async with storage(settings) as stores:
        with progress("importing", None) as advance:
            for number, row in _rows(source):
                try:
                    batch.append(entry_of(row, now))
                except ValueError as fault:
                    _tell_bad(done, number, str(fault), as_json)
                if len(batch) >= BATCH:
                    done.new += 0 if dry_run else await stores.suppressions.put(batch)
                    done.used += len(batch)
                    advance(len(batch))
                    batch = []
            done.new += 0 if dry_run or not batch else await stores.suppressions.put(batch)
            done.used += len(batch)
    return done


def _rows(source: TextIO) -> Iterator[tuple[int, list[str]]]:
    """The lines with their numbers, without the heading and empty ones.

    Raises:
        CommandFailed: the file cannot be read to its end.
    """
    reader = csv.reader(source)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            heading = reader.line_num == 1 and [cell.lower() for cell in cells] == _HEADER[: len(cells)]
            if any(cells) and not heading:
                yield reader.line_num, cells
    except (csv.Error, UnicodeDecodeError) as error:
        raise CommandFailed(f"line {reader.line_num + 1}: is not CSV in UTF-8: {type(error).__name__}") from None


def entry_of(row: list[str], now: datetime) -> "Suppression":
    """The entry of a line.

    Raises:
        ValueError: what is wrong with it; the address is not repeated.
    """
    from domain.suppression import Suppression

    if not 2 <= len(row) <= len(_HEADER):
        raise ValueError(f"should have 2 to 4 columns ({', '.join(_HEADER)}), and has {len(row)}")
    channel, address, reason, expires = [*row, "", ""][:4]
    if channel not in set(Channel):
        raise ValueError(f"channel: should be one of {', '.join(Channel)}")
    if reason and reason not in set(SuppressionReason):
        raise ValueError(f"reason: should be one of {', '.join(SuppressionReason)}")
    try:
        usable = usable_address(Channel(channel), address)
    except ValueError as error:
        raise ValueError(f"address: {error}") from None
    until = expiry_of(expires, now) if expires else None
    return Suppression(Channel(channel), usable, SuppressionReason(reason or "manual"), SOURCE, now, until)


def _tell_bad(done: Imported, number: int, fault: str, as_json: bool) -> None:
    done.bad += 1
    if as_json:
        json_line({"line": number, "action": "refused", "why": fault})
    elif done.bad <= FAULTS_SHOWN:
        stderr().print(plain(f"line {number}: {fault}"))
    elif done.bad == FAULTS_SHOWN + 1:
        hint("More lines cannot be used; --json tells all of them.")

"""A delivery as commands show it: a JSON record, a row of a table, a page with its whole history."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from rich.padding import Padding
from rich.text import Text

from cli.output import Cell, Column, plain, print_fields, print_table, say, state_text, stdout, time_text
from domain.delivery import Change, Delivery
from domain.event import Recipient
from domain.vocabulary import Reason, State

_NO_OUTCOME = frozenset(
    {
        Reason.PLANNED,
        Reason.REPLAYED,
        Reason.RELEASED,
        Reason.REDRIVEN,
        Reason.SCHEDULED,
        Reason.CLAIMED,
        Reason.EXPIRED,
        Reason.CANCELLED,
        Reason.DROPPED,
        Reason.SUPPRESSED_ADDRESS,
        Reason.DELIVERED,
        Reason.HARD_BOUNCE,
        Reason.SOFT_BOUNCE,
        Reason.NOT_DELIVERED,
        Reason.COMPLAINED,
        Reason.UNSUBSCRIBED,
    }
)
"""Reasons of changes that are not what came of an attempt."""

INDENT = 26
"""Where a change's detail begins: under what follows its time."""
COLUMNS = (
    Column("id"),
    Column("channel"),
    Column("state"),
    Column("reason", rank=1),
    Column("attempts", rank=3),
    Column("updated", rank=2),
    Column("event", rank=4),
    Column("recipient", rank=5),
    Column("notification", rank=6),
)


def attempts_of(delivery: Delivery) -> list[dict[str, Any]]:
    """The attempts that were made, one record each, and the live one last."""
    outcomes: dict[tuple[int, int], Change] = {}
    for change in delivery.history:
        if change.attempt and change.reason not in _NO_OUTCOME:
            key = (change.epoch, change.attempt)
            outcomes[key] = _settled(outcomes.get(key), change)
    made = [_attempt(change) for change in outcomes.values()]
    return made + ([_live(delivery)] if delivery.state is State.SENDING else [])


def _settled(known: Change | None, later: Change) -> Change:
    """What came of an attempt: what became known later, where the first word was that nobody knew."""
    if known is None:
        return later
    if known.reason is not Reason.OUTCOME_UNKNOWN:
        return known
    return replace(later, possible_duplicate=known.possible_duplicate or later.possible_duplicate)


def _attempt(change: Change) -> dict[str, Any]:
    return {
        "epoch": change.epoch,
        "attempt": change.attempt,
        "state": str(change.state),
        "at": change.at,
        "provider": change.provider,
        "reason": str(change.reason),
        "detail": change.detail,
        "possible_duplicate": change.possible_duplicate,
    }


def _live(delivery: Delivery) -> dict[str, Any]:
    return _attempt(Change(State.SENDING, delivery.updated_at, Reason.CLAIMED, delivery.epoch, delivery.attempt))


def record_of(delivery: Delivery) -> dict[str, Any]:
    """The delivery as `--json` prints it; the first thirteen names are the contract."""
    return {
        "id": delivery.id,
        "event_id": delivery.event_id,
        "source": delivery.source,
        "type": delivery.type,
        "channel": str(delivery.channel),
        "state": str(delivery.state),
        "reason": str(delivery.reason),
        "attempt": delivery.attempt,
        "provider": delivery.provider,
        "recipient": dict(delivery.recipient),
        "created_at": delivery.created_at,
        "updated_at": delivery.updated_at,
        "attempts": attempts_of(delivery),
        "notification": delivery.notification,
        "version": delivery.version,
        "lane": str(delivery.lane),
        "epoch": delivery.epoch,
        "detail": delivery.detail,
        "due_at": delivery.due_at,
        "possible_duplicate": delivery.possible_duplicate,
    }


def whole_record_of(delivery: Delivery, overdue: timedelta) -> dict[str, Any]:
    """The delivery with every change that it went through; `overdue` as `next_attempt_at` takes it."""
    history = [change.document() for change in delivery.history]
    return {
        **record_of(delivery),
        "next_attempt_at": next_attempt_at(delivery, overdue),
        "send_at": delivery.send_at,
        "expires_at": delivery.expires_at,
        "reference": delivery.reference,
        "history": history,
    }


def row_of(delivery: Delivery) -> Sequence[Cell]:
    """The cells of `COLUMNS`."""
    return (
        delivery.id,
        str(delivery.channel),
        state_text(str(delivery.state)),
        str(delivery.reason),
        str(len(attempts_of(delivery))),
        time_text(delivery.updated_at),
        f"{delivery.source}/{delivery.event_id}",
        address_of(delivery),
        _notification(delivery),
    )


def print_deliveries(deliveries: Sequence[Delivery]) -> None:
    """A table of deliveries."""
    print_table(COLUMNS, map(row_of, deliveries))


def address_of(delivery: Delivery) -> str:
    """Where it goes, or else whose it is."""
    address = delivery.recipient.get(Recipient.ADDRESS_FIELDS[delivery.channel])
    return address if isinstance(address, str) else delivery.recipient_key


def next_attempt_at(delivery: Delivery, overdue: timedelta) -> datetime | None:
    """When its next attempt is to be made, about; None where it waits for no time.

    `overdue`: how long after that the sweeper looks whether it was (`sweeper.overdue`).
    """
    if delivery.due_at is None or delivery.state not in (State.HELD, State.RETRYING):
        return None
    return delivery.due_at if delivery.state is State.HELD else max(delivery.due_at - overdue, delivery.updated_at)


def print_delivery(delivery: Delivery, overdue: timedelta) -> None:
    """Everything about one delivery, its history as a timeline; `overdue` as `next_attempt_at` takes it."""
    print_fields(_fields(delivery, overdue))
    say()
    say(Text("History", style="bold"))
    for line in timeline(delivery):
        stdout().print(line)


def _fields(delivery: Delivery, overdue: timedelta) -> Mapping[str, Cell | None]:
    state = Text.assemble(state_text(str(delivery.state)), f" ({delivery.reason})")
    return {
        "Delivery": delivery.id,
        "State": state,
        "Detail": delivery.detail,
        "Event": f"{delivery.source}/{delivery.event_id} ({delivery.source}.{delivery.type})",
        "Notification": _notification(delivery),
        "Channel": f"{delivery.channel}, lane {delivery.lane}",
        "Recipient": ", ".join(f"{name} {value}" for name, value in delivery.recipient.items()),
        "Provider": delivery.provider,
        "Reference": delivery.reference,
        "Attempts": _counts(delivery),
        "Created": time_text(delivery.created_at),
        **_due(delivery, overdue),
        "Expires": time_text(delivery.expires_at),
        "Duplicate": "possible: an attempt with unknown outcome was followed by another"
        if delivery.possible_duplicate
        else None,
    }


def _due(delivery: Delivery, overdue: timedelta) -> Mapping[str, Cell | None]:
    """When it goes on by itself, and from when on the sweeper sees to it that it does."""
    at = time_text(delivery.due_at)
    if delivery.state is State.HELD:
        return {"Due": at}
    following = next_attempt_at(delivery, overdue)
    return {"Next attempt": f"about {time_text(following)}" if following else None, "Overdue from": at}


def _counts(delivery: Delivery) -> str:
    made = str(len(attempts_of(delivery)))
    return made if delivery.epoch == 1 else f"{made}, now in epoch {delivery.epoch} (replayed)"


def _notification(delivery: Delivery) -> str:
    return f"{delivery.notification} v{delivery.version}" if delivery.version else delivery.notification


def timeline(delivery: Delivery) -> "list[Text | Padding]":
    """Each change in a line, its detail in the next; a heading for each epoch that a replay has begun."""
    changes = list(delivery.history)
    if delivery.state is State.SENDING:
        changes.append(Change(State.SENDING, delivery.updated_at, Reason.CLAIMED, delivery.epoch, delivery.attempt))
    lines: list[Text | Padding] = []
    epoch = 1
    for change in changes:
        if change.epoch != epoch:
            epoch = change.epoch
            lines.append(Text(f"Epoch {epoch}", style="bold"))
        lines += _moment(change)
    return lines


def _moment(change: Change) -> "list[Text | Padding]":
    state = state_text(str(change.state))
    state.pad_right(max(0, 10 - len(state)))
    attempt = f"attempt {change.attempt}" if change.attempt else ""
    by = f" by {change.provider}" if change.provider else ""
    mark = ", possible duplicate" if change.possible_duplicate else ""
    mark += ", address suppressed" if change.address_suppressed else ""
    time = change.at.strftime("%Y-%m-%dT%H:%M:%S.%f")[:23] + "Z"
    line = Text.assemble((time, "dim"), f"  {attempt:<10} ", state, f" {change.reason}{by}{mark}")
    detail = Padding(Text(plain(change.detail or ""), style="dim"), (0, 0, 0, INDENT), expand=False)
    return [line, detail] if change.detail else [line]

"""The commands with which an application says what a person did in an inbox."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from domain.inbox import MAX_IDS, Mark, Marking
from domain.mark_inbox import MarkInbox
from domain.text import Fault

PREFIX: Final = "inbox."
ALL: Final = "all"
_COMMANDS: Final[Mapping[str, Mark]] = {f"{PREFIX}{mark}": mark for mark in Mark}


def is_inbox_command(document: Mapping[str, Any]) -> bool:
    """Whether a command is about an inbox, usable or not."""
    command = document.get("command")
    return isinstance(command, str) and command.startswith(PREFIX)


def read_marking(document: Mapping[str, Any], sent_at: datetime) -> Marking | Sequence[Fault]:
    """What is to be done, or what is wrong with the command.

    Args:
        document: `{"command": "inbox.read", "recipient": "user-7", "ids": ["…"]}`, or `"ids": "all"`.
        sent_at: when the command was given; `all` means what was there then.
    """
    faults = list(_faults(document))
    if faults:
        return faults
    ids = document["ids"]
    chosen = None if ids == ALL else tuple(ids)
    return Marking(document["recipient"], _COMMANDS[document["command"]], chosen, sent_at)


def _faults(document: Mapping[str, Any]) -> Sequence[Fault]:
    faults = []
    if document.get("command") not in _COMMANDS:
        faults.append(Fault("command", f"should be one of {', '.join(_COMMANDS)}"))
    recipient = document.get("recipient")
    if not isinstance(recipient, str) or not recipient:
        faults.append(Fault("recipient", "should be a recipient's id"))
    if not _are_ids(document.get("ids")):
        faults.append(Fault("ids", f"should be {ALL!r} or a list of up to {MAX_IDS} items' ids"))
    return faults


def _are_ids(ids: Any) -> bool:
    if ids == ALL:
        return True
    return isinstance(ids, list) and 0 < len(ids) <= MAX_IDS and all(isinstance(each, str) for each in ids)


async def carry_out(mark: MarkInbox, document: Mapping[str, Any], sent_at: datetime) -> Sequence[Fault]:
    """Do what a command says, or say what is wrong with it."""
    marking = read_marking(document, sent_at)
    if not isinstance(marking, Marking):
        return marking
    await mark(marking)
    return ()

"""Inboxes: keys, and the commands about them."""

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.handlers import CommandHandler
from domain.inbox import MAX_KEY, InboxItem, Mark, Marking, inbox_key
from domain.mark_inbox import MarkInbox
from domain.vocabulary import Reason
from tests.fakes import START, MemoryInbox
from tests.unit.test_handlers import Message as Incoming
from tests.unit.world import World

IDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=255)


@pytest.mark.parametrize(
    ("recipient", "key"),
    [
        ("user-7", "user-7"),
        ("7e1c_A", "7e1c_A"),
        ("#", "~23"),
        ("*.ana", "~2A~2Eana"),
        ("~23", "~7E23"),
        ("ä b", "~C3~A4~20b"),
        ("ana@example.org", "ana~40example~2Eorg"),
    ],
)
def test_a_key_is_one_word(recipient: str, key: str) -> None:
    assert inbox_key(recipient) == key


@given(IDS, IDS)
def test_keys_are_words_and_differ_as_the_ids_do(one: str, other: str) -> None:
    key = inbox_key(one)
    assert len(key) <= MAX_KEY
    assert not set(key) & set(".*#/ %")
    assert key.isascii()
    assert (key == inbox_key(other)) == (one == other)


def test_a_long_id_has_a_key_that_fits() -> None:
    assert len(inbox_key("ж" * 255)) <= MAX_KEY
    assert inbox_key("ж" * 255) != inbox_key("ж" * 254)


@dataclass
class Control:
    """The handler of commands, over an inbox in memory."""

    world: World = field(default_factory=World)
    inbox: MemoryInbox = field(default_factory=MemoryInbox)
    told: list[tuple[str, Any]] = field(default_factory=list)

    async def __call__(self, command: Any, timestamp: datetime | None = None) -> list[str]:
        """Carry a command out; returns what was wrong with it."""
        message: Any = Incoming(json.dumps(command).encode(), exchange="notipy.commands")
        message.timestamp = timestamp
        world = self.world
        mark = MarkInbox(self.inbox, self.tell)
        await CommandHandler(world.operate, world.deliveries, world.queue, mark, world.clock)(message)
        rejected = list(world.queue.rejected)
        world.queue.rejected.clear()
        assert all(reason is Reason.BAD_COMMAND for _, reason, _ in rejected)
        return [str(fault) for _, _, faults in rejected for fault in faults]

    async def tell(self, key: str, body: bytes) -> None:
        self.told.append((key, json.loads(body)))


async def test_a_command_marks_and_tells() -> None:
    control = Control()
    await control.inbox.add(InboxItem("d1/1", "user.7", {}, START))
    read = {"command": "inbox.read", "recipient": "user.7", "ids": ["d1/1"]}
    assert [await control(read), await control(read)] == [[], []]
    assert not control.inbox.stored["d1/1"].unread
    change = {"kind": "read", "recipient": "user.7", "ids": ["d1/1"], "at": "2026-11-22T17:00:00Z"}
    assert control.told == [("user~2E7", change)] * 2


async def test_all_means_what_was_there_when_the_command_was_given() -> None:
    control = Control()
    for number, at in enumerate((START, START + timedelta(minutes=1))):
        await control.inbox.add(InboxItem(f"d{number}/1", "user-7", {}, at))
    command = {"command": "inbox.read", "recipient": "user-7", "ids": "all"}
    control.world.clock.advance(timedelta(hours=1))
    assert await control(command, START) == []
    assert [item.unread for item in control.inbox.stored.values()] == [False, True]
    assert await control(command) == []
    assert [item.unread for item in control.inbox.stored.values()] == [False, False]


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ({"command": "inbox.burn", "recipient": "user-7", "ids": "all"}, "command: should be one of inbox.seen"),
        ({"command": "inbox.read", "ids": "all"}, "recipient"),
        ({"command": "inbox.read", "recipient": 7, "ids": "all"}, "recipient"),
        ({"command": "inbox.read", "recipient": "user-7"}, "ids"),
        ({"command": "inbox.read", "recipient": "user-7", "ids": []}, "ids"),
        ({"command": "inbox.read", "recipient": "user-7", "ids": ["x"] * 1001}, "ids"),
        ({"command": "inbox.read", "recipient": "user-7", "ids": [7]}, "ids"),
        ({"command": "inboxes"}, "command"),
        ("inbox.read", "JSON object"),
    ],
)
async def test_a_command_that_cannot_be_used_is_parked_and_does_nothing(command: Any, fault: str) -> None:
    control = Control()
    await control.inbox.add(InboxItem("d1/1", "user-7", {}, START))
    (told,) = await control(command)
    assert fault in told
    assert control.inbox.stored["d1/1"].unread
    assert control.told == []


def test_every_mark_has_a_command() -> None:
    assert {str(mark) for mark in Mark} == {"seen", "read", "unread", "archived"}
    assert Marking("user-7", Mark("read"), None, START).mark is Mark.READ

"""Inboxes: the same cases in memory and over MongoDB, and lists and counts that only MongoDB answers."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from domain.inbox import InboxCounts, InboxItem, Mark, Marking
from domain.ports import Inbox
from storage.database import connect
from storage.inbox import MongoInbox
from storage.retention import MongoRetention
from tests.fakes import START, MemoryInbox

SECOND = timedelta(seconds=1)


@pytest.fixture
async def mongo(database_url: str) -> AsyncIterator[MongoInbox]:
    async with connect(database_url) as database:
        await database.ensure_indexes()
        yield MongoInbox(database)


@pytest.fixture(params=["memory", "mongodb"])
async def inbox(request: pytest.FixtureRequest) -> AsyncIterator[Inbox]:
    if request.param == "memory":
        yield MemoryInbox()
        return
    async with connect(request.getfixturevalue("database_url")) as database:
        await database.ensure_indexes()
        yield MongoInbox(database)


def item(number: int = 1, recipient: str = "user-7") -> InboxItem:
    return InboxItem(f"d{number}/1", recipient, {"title": "Hi", "text": "Grüße"}, START + SECOND * number)


async def items(inbox: Inbox, recipient: str = "user-7") -> dict[str, InboxItem]:
    if isinstance(inbox, MemoryInbox):
        return {key: each for key, each in inbox.stored.items() if each.recipient == recipient}
    assert isinstance(inbox, MongoInbox)
    found = [*await inbox.page(recipient, 100), *await inbox.page(recipient, 100, archived=True)]
    return {each.id: each for each in found}


async def test_an_item_is_stored_once_and_reads_back(inbox: Inbox) -> None:
    assert all(await asyncio.gather(inbox.add(item()), inbox.add(item(2))))
    assert not await inbox.add(InboxItem("d1/1", "user-7", {"text": "another"}, START))
    assert await items(inbox) == {"d1/1": item(), "d2/1": item(2)}


@pytest.mark.parametrize(
    ("mark", "unseen", "unread", "archived"),
    [
        (Mark.SEEN, False, True, False),
        (Mark.READ, False, False, False),
        (Mark.ARCHIVED, False, False, True),
        (Mark.UNREAD, True, True, False),
    ],
)
@pytest.mark.parametrize("every", [False, True])
async def test_a_mark_is_set_as_often_as_one_likes(
    inbox: Inbox, mark: Mark, unseen: bool, unread: bool, archived: bool, every: bool
) -> None:
    await inbox.add(item(1))
    await inbox.add(item(9))
    marking = Marking("user-7", mark, None if every else ("d1/1", "nobody's"), START + SECOND * 5)
    for _ in range(2):
        await inbox.mark(marking)
        found = await items(inbox)
        assert (found["d1/1"].unseen, found["d1/1"].unread, found["d1/1"].archived) == (unseen, unread, archived)
        assert found["d9/1"] == item(9), "neither named nor there then"


async def test_what_is_unread_again_is_out_of_the_archive(inbox: Inbox) -> None:
    await inbox.add(item())
    for mark in (Mark.ARCHIVED, Mark.UNREAD):
        await inbox.mark(Marking("user-7", mark, ("d1/1",), START))
    found = (await items(inbox))["d1/1"]
    assert (found.unseen, found.unread, found.archived) == (False, True, False)


async def test_nobody_marks_anothers_items(inbox: Inbox) -> None:
    await inbox.add(item(1, "user-8"))
    await inbox.mark(Marking("user-7", Mark.READ, ("d1/1",), START + SECOND * 5))
    await inbox.mark(Marking("user-7", Mark.READ, None, START + SECOND * 5))
    assert await items(inbox, "user-8") == {"d1/1": item(1, "user-8")}


async def test_a_list_goes_on_where_the_page_before_has_ended(mongo: MongoInbox) -> None:
    stored = [item(number) for number in range(7)] + [InboxItem("e/1", "user-7", {}, item(3).at)]
    for each in stored:
        await mongo.add(each)
    await mongo.add(item(99, "user-8"))
    found: list[InboxItem] = []
    while page := await mongo.page("user-7", 2, after=(found[-1].at, found[-1].id) if found else None):
        found += page
    assert found == sorted(stored, key=lambda each: (each.at, each.id), reverse=True)


async def test_an_inbox_is_counted_without_its_archive(mongo: MongoInbox) -> None:
    for number in range(5):
        await mongo.add(item(number))
    for mark, ids in ((Mark.SEEN, ("d1/1",)), (Mark.READ, ("d2/1",)), (Mark.ARCHIVED, ("d3/1",))):
        await mongo.mark(Marking("user-7", mark, ids, START))
    assert await mongo.counts("user-7") == InboxCounts(items=4, unseen=2, unread=3)
    assert await mongo.counts("nobody") == InboxCounts(0, 0, 0)


async def test_what_is_old_is_deleted(database_url: str) -> None:
    async with connect(database_url) as database:
        await database.ensure_indexes()
        inbox = MongoInbox(database)
        for number in range(4):
            await inbox.add(item(number))
        step = await MongoRetention(database).inbox(item(2).at)
        assert (step.deleted, step.more) == ({"inbox": 2}, False)
        assert [each.id for each in await inbox.page("user-7", 10)] == ["d3/1", "d2/1"]

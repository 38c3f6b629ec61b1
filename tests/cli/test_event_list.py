"""`notipy events list`: what came in, above all what met no notification."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path

import pytest
from pymongo import MongoClient

from cli import events
from config.settings import Settings, load_settings
from consumers.app import running
from domain.event import event_key
from domain.ports import StoredEvent
from domain.vocabulary import EventState
from storage import event_pages
from storage.database import Database, Document
from storage.documents import event_document
from storage.event_pages import Place, event_page
from tests.fakes import START
from tests.forking import Notipy
from tests.running import ORDER_SHIPPED, Stack, order
from tests.waiting import eventually

SECOND = timedelta(seconds=1)


def event(number: int, state: EventState = EventState.PLANNED, at: datetime | None = None) -> StoredEvent:
    name, received = f"ord-{number}", at or START + SECOND * number
    plan = (("order-shipped", 2),) if state is EventState.PLANNED else ()
    key = event_key("shop", name)
    return StoredEvent(key, b"{}", name, "shop", "order.shipped", START, received, state, plan, len(plan), "t")


def store(url: str, stored: Sequence[StoredEvent]) -> None:
    with MongoClient[Document](url) as client:
        client.get_default_database()["events"].insert_many([event_document(each) for each in stored])


async def pages(database: Database, state: EventState | None, limit: int) -> list[list[str]]:
    """Every page, as one goes on after the other."""
    found: list[list[str]] = []
    after: Place | None = None
    while True:
        page = await event_page(database, state, after, limit)
        found.append([each.id for each in page.events])
        if (after := page.looked_until) is None:
            return found


def states(number: int) -> EventState:
    """One in five is unmatched, and there is one that failed, long ago."""
    if number == 3:
        return EventState.FAILED
    return EventState.UNMATCHED if number % 5 == 0 else EventState.PLANNED


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("moments", [1, 4, 100], ids="{} of one moment".format)
async def test_pages_go_through_all_once_the_newest_first(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch, moments: int
) -> None:
    monkeypatch.setattr(event_pages, "STRETCH", 7)
    stored = [event(n, states(n), START + SECOND * (n // moments)) for n in range(40)]
    store(database_url, stored)
    newest = [each.id for each in sorted(stored, key=lambda each: (each.received_at, each.key), reverse=True)]
    by_id = {each.id: each.state for each in stored}
    states_asked = (None, EventState.UNMATCHED, EventState.FAILED, EventState.ACCEPTED)
    for state, limit in product(states_asked, (1, 3, 7, 100)):
        found = await pages(database, state, limit)
        assert [name for page in found for name in page] == [n for n in newest if state in {None, by_id[n]}]
        assert max(map(len, found)) <= limit


async def test_nothing_is_listed_of_nothing(database: Database) -> None:
    assert await pages(database, None, 10) == [[]]
    assert await pages(database, EventState.UNMATCHED, 10) == [[]]


async def test_events_of_a_state_are_listed_as_a_table_and_as_json(
    notipy: Notipy, database: Database, database_url: str
) -> None:
    store(database_url, [event(n, states(n)) for n in range(40)])
    first = await notipy("events", "list", "--state", "unmatched", "--limit", "3", "--json")
    assert [record["id"] for record in first.records] == ["ord-35", "ord-30", "ord-25"]
    received = (START + SECOND * 35).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert first.records[0] == {
        "id": "ord-35",
        "source": "shop",
        "type": "order.shipped",
        "time": START.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "received_at": received,
        "state": "unmatched",
        "planned": 0,
        "notifications": [],
    }
    cursor = first.err.split("--after ")[1].strip()
    rest = await notipy("events", "list", "--state", "unmatched", "--after", cursor, "--json")
    assert [record["id"] for record in rest.records] == ["ord-20", "ord-15", "ord-10", "ord-5", "ord-0"]
    assert rest.err == ""
    table = await notipy("events", "list", "--limit", "5")
    head, newest, *_ = table.out.splitlines()
    assert head.split() == ["EVENT", "KEY", "STATE", "RECEIVED", "DELIVERIES", "NOTIFICATIONS"]
    assert newest.split()[:3] == ["shop/ord-39", "shop.order.shipped", "planned"]
    assert newest.split()[4:] == ["1", "order-shipped", "v2"]
    assert await database.collection("events").count_documents({}) == 40
    none = await notipy("events", "list", "--state", "accepted")
    assert (none.code, none.out, none.err) == (0, "", "No accepted events.\n")
    shown = await notipy("events", "show", "shop", "ord-3")
    assert (shown.code, "planning it ended its process" in shown.out) == (0, True)
    wrong = await notipy("events", "list", "--after", "x")
    assert (wrong.code, "is not a cursor" in wrong.err) == (2, True)


@pytest.mark.usefixtures("database")
async def test_one_of_a_rare_state_is_looked_for_within_bounds(
    config_file: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(event_pages, "STRETCH", 7)
    monkeypatch.setattr(events, "LOOKED_AT", 14)
    store(database_url, [event(n, states(n)) for n in range(40)])
    settings, goes_on, numbers = load_settings(config_file), None, list[int]()
    while 1 not in numbers:
        listed = await events._list(settings, EventState.FAILED, 10, goes_on, as_json=True)
        goes_on = listed.goes_on
        numbers.append(listed.number)
    assert numbers == [0, 0, 1]
    assert goes_on is None
    assert '"ord-3"' in capsys.readouterr().out


async def test_what_met_no_notification_is_found_in_a_running_system(
    notipy: Notipy, settings: Settings, stack: Stack
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        met = await stack.publish(order())
        missed = await stack.publish(order(), key="shop.order.shiped")
        await stack.final(met)

        async def seen() -> bool:
            return bool((await notipy("events", "list", "--state", "unmatched", "--json")).records)

        await eventually(seen)
    listed = await notipy("events", "list", "--state", "unmatched")
    assert f"shop/{missed}" in listed.out
    assert "shop.order.shiped" in listed.out
    assert met not in listed.out

"""`notipy events replay`: what met no notification is planned once there is one."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from pymongo import MongoClient
from typer.testing import CliRunner

from cli.main import app
from config.settings import Settings
from consumers.app import running
from deploy.smtp_sink import SmtpSink
from domain.event import event_key
from domain.ports import StoredEvent
from domain.vocabulary import EventState, State
from storage.database import Database, Document
from storage.documents import event_document
from tests.fakes import START
from tests.forking import Notipy
from tests.running import ORDER_SHIPPED, Stack, order
from tests.waiting import eventually

HOUR = timedelta(hours=1)
NOBODY = "no notification is on shop.cart.emptied: `notipy apply` defines one"


def event(number: int, kind: str = "order.shipped", state: EventState = EventState.UNMATCHED) -> StoredEvent:
    name = f"ord-{number}"
    body = json.dumps({**order(), "id": name, "source": "shop", "type": kind}).encode()
    received = START + HOUR * number
    return StoredEvent(event_key("shop", name), body, name, "shop", kind, START, received, state, (), 0, "t")


def store(url: str, stored: Sequence[StoredEvent]) -> None:
    with MongoClient[Document](url) as client:
        client.get_default_database()["events"].insert_many([event_document(each) for each in stored])


async def accepted(database: Database) -> list[str]:
    query = {"state": "accepted", "due_at": {"$exists": True}, "plan": [["order-shipped", 1]]}
    return sorted(await database.collection("events").distinct("id", query))


async def test_one_event_is_replayed_once_or_it_is_told_why_not(
    notipy: Notipy, stack: Stack, database: Database, database_url: str
) -> None:
    store(database_url, [event(1), event(2, "cart.emptied"), event(3, state=EventState.PLANNED), event(4)])
    await stack.apply(ORDER_SHIPPED)
    looked = await notipy("events", "replay", "shop", "ord-1", "--dry-run")
    assert (looked.code, looked.out) == (0, "shop/ord-1 would be replayed: order-shipped v1.\n")
    assert await accepted(database) == []
    done = await notipy("events", "replay", "shop", "ord-1")
    assert (done.code, done.out) == (0, "shop/ord-1 is replayed: order-shipped v1.\n")
    assert "begins to plan within" in done.err
    assert await accepted(database) == ["ord-1"]
    again = await notipy("events", "replay", "shop", "ord-1")
    assert (again.code, again.out) == (1, "")
    assert "shop/ord-1 is left alone: it is accepted: its deliveries are being planned." in " ".join(again.err.split())
    nobody = await notipy("events", "replay", "shop", "ord-2", "--json")
    about = {"id": "ord-2", "source": "shop", "type": "cart.emptied"}
    assert (nobody.code, nobody.records) == (1, [{**about, "action": "skipped", "why": NOBODY}])
    planned = await notipy("events", "replay", "shop", "ord-3")
    assert (planned.code, "notipy dead replay" in planned.err) == (1, True)
    unknown = await notipy("events", "replay", "shop", "ord-9")
    assert (unknown.code, "No event ord-9 of shop is stored." in unknown.err) == (1, True)


async def test_those_that_are_meant_are_replayed_the_newest_first(
    notipy: Notipy, stack: Stack, database: Database, database_url: str
) -> None:
    others = [event(11, "cart.emptied"), event(12, state=EventState.PLANNED), replace(event(13), source="till")]
    store(database_url, [*(event(number) for number in range(1, 10)), *others])
    await stack.apply(ORDER_SHIPPED)
    meant = ("events", "replay", "--state", "unmatched", "--source", "shop")
    window = ("--since", (START + 3 * HOUR).isoformat(), "--until", (START + 8 * HOUR).isoformat())
    dry = await notipy(*meant, *window, "--dry-run", "--json")
    assert dry.code == 0
    assert [record["id"] for record in dry.records] == [f"ord-{number}" for number in (7, 6, 5, 4, 3)]
    assert dry.records[0] == {
        "id": "ord-7",
        "source": "shop",
        "type": "order.shipped",
        "action": "replayed",
        "notifications": [{"name": "order-shipped", "version": 1}],
        "dry_run": True,
    }
    table = await notipy(*meant, *window, "--dry-run")
    assert table.out.splitlines()[0].split()[:3] == ["EVENT", "KEY", "STATE"]
    assert table.out.endswith("5 events would be replayed.\n")
    assert await accepted(database) == []
    few = await notipy(*meant, "--limit", "2", "--type", "order.shipped", "--json")
    assert (few.code, [record["id"] for record in few.records]) == (0, ["ord-9", "ord-8"])
    some = await notipy(*meant, *window)
    assert (some.code, some.out) == (0, "5 events replayed.\n")
    left = await notipy(*meant, "--limit", "2")
    assert (left.code, left.out) == (1, f"2 events replayed.\n1 other left alone: {NOBODY}.\n")
    assert await accepted(database) == [f"ord-{number}" for number in range(1, 10)]
    none = await notipy("events", "replay", "--state", "unmatched", "--type", "order.shipped", "--source", "shop")
    assert (none.code, none.out, none.err) == (0, "0 events replayed.\n", "")


async def test_hundreds_are_replayed_once_by_two_operators(
    notipy: Notipy, stack: Stack, database: Database, database_url: str
) -> None:
    store(database_url, [event(number) for number in range(300)])
    await stack.apply(ORDER_SHIPPED)
    ended = await asyncio.gather(*(notipy("events", "replay", "--state", "unmatched", "--json") for _ in range(2)))
    replayed = [r["id"] for each in ended for r in each.records if r["action"] == "replayed"]
    assert len(replayed) == len(set(replayed)) == len(await accepted(database)) == 300


async def test_an_event_that_met_nothing_is_delivered_once_after_apply_and_replay(
    notipy: Notipy, settings: Settings, stack: Stack, smtp: SmtpSink, tmp_path: Path
) -> None:
    definition = tmp_path / "order-shipped.yaml"
    definition.write_text(yaml.safe_dump(dict(ORDER_SHIPPED)))
    sending = ("send", "--key", "shop.order.shipped", "--id", "ord-1", "--data", '{"order_id": 1042}')
    async with running(settings):
        first = await notipy(*sending, "--to", "ana@example.org", "--wait", "30")
        assert (first.code, "No notification is on shop.order.shipped" in first.err) == (1, True)
        assert (await notipy("apply", str(definition))).code == 0
        second = await notipy(*sending, "--to", "ana@example.org", "--wait", "30")
        assert (second.code, "stored as unmatched when it first came" in second.err) == (1, True)
        assert "notipy events replay shop ord-1" in " ".join(second.err.split())
        ended = await asyncio.gather(*(notipy("events", "replay", "shop", "ord-1") for _ in range(2)))
        assert sorted(each.code for each in ended) == [0, 1]
        (delivery,) = await stack.final("ord-1")
        third = await notipy(*sending, "--to", "ana@example.org", "--wait", "30")
        assert third.code == 0
    assert (delivery.state, delivery.notification) == (State.SENT, "order-shipped")
    assert len(smtp.mails) == 1
    shown = await notipy("events", "show", "shop", "ord-1", "--json")
    assert (shown.records[0]["state"], shown.records[0]["states"]) == ("planned", {"sent": 1})
    audited = await notipy("audit")
    assert audited.code == 0


async def test_what_is_replayed_of_an_hour_that_was_in_order_is_audited(
    notipy: Notipy, settings: Settings, stack: Stack, database_url: str
) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=2)
    store(database_url, [replace(event(1), received_at=long_ago)])
    await stack.apply(ORDER_SHIPPED)
    before = (await notipy("audit", "--json")).records[0]
    assert (before["events"], before["planned"], before["hours_read"]) == (1, 0, 1)
    assert (await notipy("events", "replay", "shop", "ord-1")).code == 0
    async with running(settings):
        (delivery,) = await stack.final("ord-1")

        async def settled() -> bool:
            stored = await stack.core.events.get(event_key("shop", "ord-1"))
            return stored is not None and stored.state is EventState.PLANNED

        await eventually(settled)
    assert delivery.state is State.SENT
    audited = (await notipy("audit", "--json")).records[0]
    assert (audited["events"], audited["planned"], audited["in_order"]) == (1, 1, True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "name one event, SOURCE and ID; or all of them, --state unmatched"),
        (["shop"], "Invalid value for ID: goes with SOURCE"),
        (["--source", "shop"], "name one event"),
        (["shop", "ord-1", "--state", "unmatched"], "is one event"),
        (["shop", "ord-1", "--limit", "3"], "is one event"),
        (["--state", "planned"], "one that is planned: replay its deliveries"),
        (["--state", "unmatched", "--limit", "0"], "--limit"),
    ],
)
def test_wrong_usage_is_told_and_ends_with_2(args: list[str], message: str) -> None:
    runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})
    result = runner.invoke(app, ["events", "replay", *args])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.replace("│", "").split())

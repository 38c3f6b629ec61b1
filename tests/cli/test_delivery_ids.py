"""Deliveries are named by how their ids begin, as commits are in git."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from cli.delivery_ids import CANDIDATES, whole_id
from cli.failures import BadInput
from domain.delivery import Delivery
from domain.event import event_key
from domain.ports import Claim
from domain.vocabulary import Channel, State
from storage.database import connect
from storage.deliveries import MongoDeliveries
from tests.contract.test_repositories import delivery
from tests.fakes import START
from tests.forking import Notipy

ONE = "0c6f1a52-5a0e-5b7e-8d0c-6a3c6e2f9b11"
ALIKE = ("77d0c1e9-0000-5b7e-8d0c-000000000001", "77d0c1e9-f000-5b7e-8d0c-000000000002")
LATER = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
async def deliveries(database_url: str) -> AsyncIterator[MongoDeliveries]:
    async with connect(database_url) as database:
        await database.ensure_indexes()
        yield MongoDeliveries(database)


def stored(name: str, **more: Any) -> Delivery:
    return delivery(1, **({"id": name, "state": State.HELD, "due_at": LATER} | more))


def three() -> list[Delivery]:
    sms = {"channel": Channel.SMS, "state": State.FAILED, "due_at": None}
    return [stored(ONE), stored(ALIKE[0]), stored(ALIKE[1], **sms)]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (ONE, ONE),
        (ONE[:8], ONE),
        (ONE[:35], ONE),
        (ALIKE[1][:10], ALIKE[1]),
        (ONE[:7], ONE[:7]),  # too short to be looked for
        ("ffffffff", "ffffffff"),
        ("0c6f1a52.*", "0c6f1a52.*"),
        ("77d0c1e9-\uffff", "77d0c1e9-\uffff"),
    ],
)
async def test_an_abbreviation_means_the_one_that_begins_so(
    deliveries: MongoDeliveries, given: str, meant: str
) -> None:
    await deliveries.add(three())
    assert await whole_id(deliveries, given) == meant


async def test_one_that_means_several_names_some_of_them(deliveries: MongoDeliveries) -> None:
    await deliveries.add([stored(f"77d0c1e9-{number:04}-5b7e-8d0c-000000000001") for number in range(CANDIDATES)])
    with pytest.raises(BadInput) as told:
        await whole_id(deliveries, "77d0c1e9")
    assert len(str(told.value).splitlines()) == 1 + CANDIDATES
    await deliveries.add([stored("77d0c1e9-9999-5b7e-8d0c-000000000001")])
    with pytest.raises(BadInput, match=r"000000000001  email +held  2026-.*\n  and more$"):
        await whole_id(deliveries, "77d0c1e9")


async def test_one_that_is_being_sent_is_named_so(deliveries: MongoDeliveries) -> None:
    queued = stored(ONE, state=State.QUEUED)
    await deliveries.add([queued])
    await deliveries.claim(Claim(queued.claim_id(1), "t", START, LATER))
    assert [each.state for each in await deliveries.beginning_with(ONE[:8], 2)] == [State.SENDING]


async def test_show_takes_how_an_id_begins(notipy: Notipy, deliveries: MongoDeliveries) -> None:
    await deliveries.add(three())
    assert (await notipy("deliveries", "show", ONE[:8], "--json")).records[0]["id"] == ONE
    several = await notipy("deliveries", "show", "77d0c1e9")
    assert (several.code, several.out) == (2, "")
    (sms,) = [line for line in several.err.splitlines() if ALIKE[1] in line]
    assert sms.split()[1:] == ["sms", "failed", stored(ONE).created_at.strftime("%Y-%m-%dT%H:%M:%SZ")]
    assert ALIKE[0] in several.err
    assert "Give more characters" in several.err
    nothing = await notipy("deliveries", "show", "ffffffff")
    assert (nothing.code, nothing.out) == (1, "")
    assert "There is no delivery ffffffff." in nothing.err


async def test_of_several_none_is_cancelled(notipy: Notipy, deliveries: MongoDeliveries) -> None:
    await deliveries.add(three())
    refused = await notipy("deliveries", "cancel", ONE[:8], "77d0c1e9")
    assert (refused.code, refused.out) == (2, "")
    assert (await deliveries.standing([ONE]))[ONE] == (State.HELD, 1)
    cancelled = await notipy("deliveries", "cancel", "-", "--json", stdin=f"{ONE[:8]}\n{ALIKE[0][:10]}\n")
    assert [(each["id"], each["action"]) for each in cancelled.records] == [
        (ONE, "cancelled"),
        (ALIKE[0], "cancelled"),
    ]
    short = await notipy("deliveries", "cancel", ONE[:7], "--json")
    assert (short.code, short.records[0]["why"]) == (1, "there is no such delivery")


async def test_dead_ones_are_named_so_too(notipy: Notipy, deliveries: MongoDeliveries) -> None:
    await deliveries.add(three())
    listed = await notipy("dead", "list", "--id", ALIKE[1][:10], "--json")
    assert [each["id"] for each in listed.records] == [ALIKE[1]]
    for command in (("list",), ("replay",), ("replay", "--dry-run"), ("drop", "--yes"), ("drop",)):
        several = await notipy("dead", *command, "--id", "77d0c1e9")
        assert (several.code, several.out) == (2, ""), command
        assert ALIKE[0] in several.err
    twice = await notipy("dead", "drop", "--id", ALIKE[1][:10], "--id", ALIKE[1], "--yes", "--json")
    assert [each["id"] for each in twice.records] == [ALIKE[1]]
    assert (await notipy("dead", "replay", "--id", "ffffffff")).code == 1


async def test_one_that_cannot_be_read_is_named_and_hides_no_other(
    notipy: Notipy, deliveries: MongoDeliveries, database_url: str
) -> None:
    await deliveries.add(three())
    async with connect(database_url) as database:
        collection = database.collection("deliveries")
        await collection.update_many({}, {"$set": {"event_key": event_key("shop", "ord-1")}})
        await collection.update_one({"_id": ONE}, {"$set": {"channel": "voice"}})
    shown = await notipy("deliveries", "show", ONE)
    assert (shown.code, shown.out) == (1, "")
    assert f"delivery {ONE} cannot be read" in " ".join(shown.err.split())
    assert "newer NotiPy" in shown.err
    listed = await notipy("deliveries", "list", "--event", "shop", "ord-1", "--json")
    assert {each["id"] for each in listed.records} == set(ALIKE)
    assert "delivery.unreadable" in listed.err

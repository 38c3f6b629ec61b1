"""What `deliveries list` and `dead` go through over a real MongoDB: page by page, while it goes on changing."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from domain.delivery import Change, Delivery
from domain.event import Recipient
from domain.ports import Claim, DeadFilter, Purpose
from domain.vocabulary import Channel, Reason, State
from storage import deliveries as stored
from storage.database import Database
from storage.deliveries import DeliveryFilter, MongoDeliveries
from tests.contract.test_repositories import delivery

NOW = datetime.now(UTC).replace(microsecond=0)
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)


@pytest.fixture
def deliveries(database: Database) -> MongoDeliveries:
    return MongoDeliveries(database)


def claim_on(one: Delivery, attempt: int = 1, lease: timedelta = HOUR, **more: Any) -> Claim:
    """Its lease is compared with the clock: it is not over before this module's tests are, unless it says so."""
    return Claim(one.claim_id(attempt), "t", NOW, NOW + lease, **more)


async def pages(deliveries: MongoDeliveries, chosen: DeliveryFilter, limit: int) -> Sequence[Sequence[str]]:
    """The ids of each page, to the end, as a person goes on with `--after`."""
    found: list[Sequence[str]] = []
    while page := await deliveries.page(chosen, limit):
        found.append([each.id for each in page])
        chosen = replace(chosen, after=(page[-1].created_at, page[-1].id))
    return found


@pytest.mark.parametrize("event_key", [None, "e-1"])
async def test_a_list_is_paged_the_newest_first_also_where_many_are_of_one_moment(
    deliveries: MongoDeliveries, event_key: str | None
) -> None:
    at = NOW - 60 * SECOND
    states = (State.SENT, State.QUEUED, State.FAILED)
    stored = [
        *(delivery(n, state=states[n % 3], channel=list(Channel)[n % 6], created_at=at) for n in range(1, 6)),
        delivery(6, created_at=at + SECOND),
        delivery(7, created_at=at - SECOND),
    ]
    await deliveries.add([*stored, delivery(8, event_key="e-2", created_at=NOW)])
    everything = ["d-6", "d-5", "d-4", "d-3", "d-2", "d-1", "d-7"]
    expected = everything if event_key else ["d-8", *everything]
    for limit in (1, 2, 3, 100):
        found = await pages(deliveries, DeliveryFilter(event_key=event_key), limit)
        assert [name for page in found for name in page] == expected
        assert all(len(page) == limit for page in found[:-1])
    sent = await pages(deliveries, DeliveryFilter(event_key=event_key, state=State.SENT), 1)
    assert sent == [["d-3"]]


async def test_sending_is_what_is_claimed_and_not_on_record_yet(deliveries: MongoDeliveries) -> None:
    queued, retrying, again = delivery(1), delivery(2, state=State.RETRYING, attempt=1), delivery(3, epoch=2)
    others = [
        delivery(4, state=State.SENT, attempt=1, due_at=None),
        delivery(5, state=State.RETRYING, attempt=1),
        delivery(6, epoch=2),
        delivery(7),
        delivery(8),
        delivery(9, state=State.HELD),
    ]
    await deliveries.add([queued, retrying, again, *others])
    claims = {
        "the first attempt": claim_on(queued),
        "another attempt": claim_on(retrying, 2),
        "of this epoch": claim_on(again),
        "sent, and its lease is not over": claim_on(others[0]),
        "failed, and its lease is not over": claim_on(others[1], 1),
        "replayed, and the lease of the epoch before is not over": claim_on(replace(others[2], epoch=1)),
        "its lease has run out": claim_on(others[3], lease=-SECOND),
        "cancelled at this moment": claim_on(others[5], purpose=Purpose.CANCEL),
    }
    for claim in claims.values():
        assert await deliveries.claim(claim)
    found = await deliveries.page(DeliveryFilter(state=State.SENDING), 100)
    assert [each.id for each in found] == ["d-3", "d-2", "d-1"]
    assert [(each.state, each.reason, each.attempt) for each in found] == [
        (State.SENDING, Reason.CLAIMED, 1),
        (State.SENDING, Reason.CLAIMED, 2),
        (State.SENDING, Reason.CLAIMED, 1),
    ]
    assert [each.updated_at for each in found] == [NOW] * 3
    assert found == [await deliveries.current(each.id) for each in found]


async def test_what_is_being_sent_is_paged_among_more_that_was_sent(
    deliveries: MongoDeliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "PAGE", 4)
    sending = [delivery(n, created_at=NOW - SECOND * (n // 3), channel=list(Channel)[n % 2]) for n in range(10, 20)]
    sent = [delivery(n, state=State.SENT, attempt=1, due_at=None, created_at=NOW) for n in range(20, 50)]
    await deliveries.add([*sending, *sent])
    for number, each in enumerate([*sent[:15], *sending, *sent[15:]]):
        await deliveries.claim(claim_on(each, lease=HOUR + SECOND * (number // 2)))
    newest = [each.id for each in sorted(sending, key=lambda one: (one.created_at, one.id), reverse=True)]
    for limit in (1, 3, 10, 100):
        found = await pages(deliveries, DeliveryFilter(state=State.SENDING), limit)
        assert [name for page in found for name in page] == newest
        assert all(len(page) == limit for page in found[:-1])
    by_sms = await pages(deliveries, DeliveryFilter(state=State.SENDING, channel=Channel.SMS), 2)
    assert [name for page in by_sms for name in page] == [name for name in newest if int(name[2:]) % 2]
    assert await pages(deliveries, DeliveryFilter(state=State.SENDING, event_key="e-2"), 2) == []


ANA = {"id": "user-7", "email": "Ana.B@example.org", "phone": "+4915112345678", "chat": "slack:U7"}
PHONE = {"push": [{"provider": "fcm", "token": "t0ken"}], "webhook": "https://a.example/hook"}


async def all_to(deliveries: MongoDeliveries, who: str, limit: int, **chosen: Any) -> Sequence[str]:
    """Those to one recipient, as a person goes on with `--after`."""
    found: list[str] = []
    goes_on = DeliveryFilter(**chosen)
    while True:
        page = await deliveries.page_to(who, goes_on, limit)
        assert len(page.deliveries) <= limit
        found += [each.id for each in page.deliveries]
        if page.looked_until is None:
            return found
        goes_on = replace(goes_on, after=page.looked_until)


@pytest.mark.parametrize("stretch", [1, 2, 5, 1000])
@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_what_was_planned_for_a_person_is_found_by_the_id_and_by_every_address(
    deliveries: MongoDeliveries, monkeypatch: pytest.MonkeyPatch, stretch: int, limit: int
) -> None:
    monkeypatch.setattr(stored, "STRETCH", stretch)
    people = (ANA, {"email": "xana.b@example.org"}, {"id": "Ana.B"}, PHONE, {"email": "anaxb@example.org"})
    added = [
        delivery(
            n,
            recipient=people[n % 5],
            state=(State.SENT, State.QUEUED, State.FAILED)[n % 3],
            channel=list(Channel)[n % 6],
            created_at=NOW - SECOND * (n // 7),
            event_key=f"e-{n % 2}",
        )
        for n in range(10, 40)
    ]
    await deliveries.add(added)
    newest = sorted(added, key=lambda each: (each.created_at, each.id), reverse=True)
    hers = [each.id for each in newest if each.recipient == ANA]
    for who in ("user-7", "ana.b@example.org", "ANA.B@EXAMPLE.ORG", "+49 151 12345678", "slack:U7"):
        assert await all_to(deliveries, who, limit) == hers
    for who in ("t0ken", "https://a.example/hook"):
        assert await all_to(deliveries, who, limit) == [each.id for each in newest if each.recipient == PHONE]
    for who in ("user-8", ".*", "$recipient.id", "ana.b", ""):
        assert await all_to(deliveries, who, limit) == []
    some = [each for each in newest if each.recipient == ANA and each.channel is Channel.SMS]
    assert await all_to(deliveries, "user-7", limit, channel=Channel.SMS) == [each.id for each in some]
    one = [each.id for each in newest if each.recipient == ANA and each.event_key == "e-1"]
    assert await all_to(deliveries, "user-7", limit, event_key="e-1") == one
    since = NOW - 3 * SECOND
    late = [each.id for each in newest if each.recipient == ANA and each.created_at >= since]
    assert await all_to(deliveries, "user-7", limit, since=since) == late
    assert 0 < len(late) < len(hers)


@pytest.mark.parametrize(
    ("published", "asked"),
    [
        ("ana@münchen.de", "Ana@MÜNCHEN.de"),
        ("ana@münchen.de", "ana@xn--mnchen-3ya.de"),
        ("Straße@example.org", "straße@example.org"),
        ("Ana@Example.ORG", "ana@example.org"),
        ("a+b.c@example.org", "A+B.C@example.org"),
    ],
)
async def test_an_address_is_found_as_it_was_published(deliveries: MongoDeliveries, published: str, asked: str) -> None:
    await deliveries.add([delivery(1, recipient=Recipient(email=published).document()), delivery(2, recipient=PHONE)])
    for who in (published, asked):
        assert await all_to(deliveries, who, 10) == ["d-1"]


@pytest.mark.parametrize("state", [None, State.SENT])
@pytest.mark.parametrize("goes_on", [False, True])
async def test_what_is_written_while_it_is_looked_for_pushes_nothing_out(
    deliveries: MongoDeliveries, monkeypatch: pytest.MonkeyPatch, state: State | None, goes_on: bool
) -> None:
    monkeypatch.setattr(stored, "STRETCH", 4)
    hers = [
        delivery(n, recipient=ANA, state=State.SENT, due_at=None, created_at=NOW - SECOND * (n // 2))
        for n in range(10, 30)
    ]
    newer = [delivery(n, state=State.SENT, due_at=None, created_at=NOW) for n in range(30, 36)]
    await deliveries.add([*hers, *(replace(each, state=State.QUEUED, due_at=NOW) for each in newer[:3])])
    by_ids, times = deliveries._by_ids, 0

    async def meanwhile(ids: Sequence[str]) -> Sequence[Delivery]:
        nonlocal times
        times += 1
        if times == (2 if goes_on else 1):
            await deliveries.add(newer[3:])
            sent = {"$set": {"state": "sent"}}
            await deliveries._collection.update_many({"_id": {"$in": [each.id for each in newer[:3]]}}, sent)
        return await by_ids(ids)

    monkeypatch.setattr(deliveries, "_by_ids", meanwhile)
    newest = [each.id for each in sorted(hers, key=lambda one: (one.created_at, one.id), reverse=True)]
    assert await all_to(deliveries, "user-7", 10, state=state) == newest
    assert times > 2


async def test_one_without_a_time_ends_the_look(deliveries: MongoDeliveries, database: Database) -> None:
    await deliveries.add([delivery(n, recipient=ANA, event_key="e-1") for n in (1, 2, 3)])
    await database.collection("deliveries").update_one({"_id": "d-2"}, {"$unset": {"created_at": 1}})
    for chosen in ({}, {"event_key": "e-1", "state": State.QUEUED}, {"event_key": "e-1"}):
        for limit in (1, 10):
            assert await all_to(deliveries, "user-7", limit, **chosen) == ["d-3", "d-1"]


async def test_since_holds_for_a_page_that_goes_on(deliveries: MongoDeliveries) -> None:
    await deliveries.add([delivery(n, recipient=ANA, created_at=NOW - HOUR) for n in (1, 2, 3)])
    behind = DeliveryFilter(since=NOW - HOUR / 2, after=(NOW - HOUR, "d-3"))
    assert await deliveries.page(behind, 10) == []
    assert (await deliveries.page_to("user-7", behind, 10)).deliveries == []
    assert len(await deliveries.page(replace(behind, since=NOW - HOUR), 10)) == 2


@pytest.mark.parametrize("odd", [{"push": {"token": 7}, "email": ["x"]}, {"push": 3}, "nobody", None])
async def test_a_recipient_that_is_none_hides_no_other(
    deliveries: MongoDeliveries, database: Database, odd: object
) -> None:
    await deliveries.add([delivery(1, recipient=ANA), delivery(2), delivery(3, recipient=ANA)])
    await database.collection("deliveries").update_one({"_id": "d-2"}, {"$set": {"recipient": odd}})
    assert await all_to(deliveries, "user-7", 10) == ["d-3", "d-1"]


@pytest.mark.parametrize("reason", [None, Reason.TIMEOUT])
async def test_what_fails_again_while_the_dead_are_gone_through_is_not_met_again(
    deliveries: MongoDeliveries, reason: Reason | None
) -> None:
    dead = [
        delivery(n, state=State.FAILED, due_at=None, reason=Reason.TIMEOUT, updated_at=NOW - SECOND * (9 - n // 4))
        for n in range(10, 20)
    ]
    await deliveries.add(dead)
    met: list[str] = []
    async for each in deliveries.dead(DeadFilter(reason=reason), None):
        met.append(each.id)
        replay = Change(State.QUEUED, NOW, Reason.REPLAYED, 2, 0)
        replayed = each.changed(replay, NOW)
        assert await deliveries.reopen(each, replayed, replay)
        failed = Change(State.FAILED, NOW + SECOND, Reason.TIMEOUT, 2, 1)
        assert await deliveries.record(replayed.changed(failed, None), 0, [failed])
        assert len(met) <= len(dead)
    assert met == [each.id for each in dead]


@pytest.mark.parametrize("reason", [None, Reason.TIMEOUT])
async def test_the_dead_are_gone_through_in_pages(
    deliveries: MongoDeliveries, reason: Reason | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "DEAD_PAGE", 3)
    dead = [
        delivery(
            n,
            state=State.FAILED,
            due_at=None,
            reason=Reason.TIMEOUT,
            channel=list(Channel)[n % 6],
            updated_at=NOW + SECOND * (n // 4),
        )
        for n in range(10, 30)
    ]
    await deliveries.add([*dead, delivery(31, state=State.FAILED, due_at=None, reason=Reason.TLS)])
    window = DeadFilter(reason=reason or None, since=NOW + 3 * SECOND, until=NOW + 6 * SECOND)
    expected = [each.id for each in dead if 3 <= int(each.id[2:]) // 4 <= 6]
    for limit in (None, 1, 2, 3, 7, 100):
        found = [each.id async for each in deliveries.dead(window, limit)]
        assert found == expected[:limit]
    assert await deliveries.count_dead(window) == len(expected)

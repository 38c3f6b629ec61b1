from dataclasses import replace
from datetime import timedelta
from typing import Any

import orjson
import pytest

from consumers import codec
from domain.dispatch import Dispatch
from domain.failures import place_of
from tests.unit.world import World

FULL = b"""{"recipients": [{"email": "ana@example.org", "push": [{"provider": "fcm", "token": "t"}]}],
 "data": {"order_id": 1042, "nested": {"a": [1, 2.5, null, "\\u00e9"]}},
 "content": {"email": {"subject": "s", "text": "t"}},
 "attachments": [{"filename": "a.txt", "content": "aGVsbG8="}, {"filename": "b", "url": "https://example.org/b"}],
 "expires_at": "2026-12-01T00:00:00+02:00"}"""


async def test_a_dispatch_reads_back_as_it_was_written() -> None:
    (job,) = await World().accepted(FULL)
    plain = replace(job.delivery, history=(), detail=None, due_at=None)
    assert codec.read_dispatch(codec.dispatch_body(job)) == [Dispatch(plain, 1, job.event)]


async def test_the_order_of_a_scheduled_delivery_says_when_it_was_wanted_and_an_older_versions_does_not() -> None:
    (job,) = await World().accepted(FULL)
    at = job.delivery.created_at + timedelta(days=2)
    scheduled = replace(job, delivery=replace(job.delivery, history=(), detail=None, due_at=None, send_at=at))
    body = codec.dispatch_body(scheduled)
    assert codec.read_dispatch(body) == [scheduled]
    document = orjson.loads(body)
    del document["delivery"]["send_at"]
    (older,) = codec.read_dispatch(orjson.dumps(document))
    assert older.delivery.send_at is None


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"delivery": {}, "event": null}', b'{"delivery": 1}', b"\xff"])
def test_what_is_no_dispatch_says_so(body: bytes) -> None:
    with pytest.raises(codec.NotADispatch):
        codec.read_dispatch(body)


def test_the_place_of_an_error_tells_nothing_of_what_it_says() -> None:
    try:
        raise ValueError("ana@example.org")
    except ValueError as error:
        told = place_of(error)
    assert "ana" not in told
    assert "ValueError at test_codec.py:" in told


async def several(count: int, **more: Any) -> list[Dispatch]:
    world = World()
    jobs: list[Dispatch] = []
    for number in range(count):
        body = orjson.dumps({"recipients": [{"email": "a@example.org"}, {"email": "b@example.org"}], "data": more})
        jobs += await world.accepted(body, message_id=f"m-{number}")
    return jobs


def as_written(job: Dispatch) -> Dispatch:
    return replace(job, delivery=replace(job.delivery, history=(), detail=None, due_at=None))


async def test_orders_that_travel_together_read_back_each_with_its_event_that_is_written_once() -> None:
    jobs = await several(3, text="x" * 100)
    (parcel,) = codec.parcels(jobs)
    assert isinstance(parcel, codec.Parcel)
    assert codec.read_dispatch(parcel.body) == [as_written(job) for job in jobs]
    assert parcel.body.count(b"x" * 100) == 3
    assert codec.orders(parcel.headers) == 6
    assert "x-notipy-event-id" not in parcel.headers


async def test_orders_of_one_event_say_which() -> None:
    (parcel,) = codec.parcels(await several(1))
    assert isinstance(parcel, codec.Parcel)
    assert parcel.headers["x-notipy-event-id"] == "m-0"


async def test_large_events_do_not_make_large_messages() -> None:
    jobs = await several(40, text="x" * 15_000)
    found = [each for each in codec.parcels(jobs) if isinstance(each, codec.Parcel)]
    assert len(found) > 1
    assert all(len(parcel.body) < codec.PARCEL_BYTES + 20_000 for parcel in found)
    assert [job for parcel in found for job in codec.read_dispatch(parcel.body)] == [as_written(job) for job in jobs]


async def test_an_order_that_cannot_be_written_comes_back_alone() -> None:
    good, bad, other, _ = await several(2)
    assert bad.event is not None
    bad = replace(bad, event=replace(bad.event, key="of its own", data={"a": object()}))
    parcel_or_fault = list(codec.parcels([good, bad, other]))
    (fault,) = [each for each in parcel_or_fault if not isinstance(each, codec.Parcel)]
    (parcel,) = [each for each in parcel_or_fault if isinstance(each, codec.Parcel)]
    assert fault[0] is bad
    assert codec.read_dispatch(parcel.body) == [as_written(good), as_written(other)]

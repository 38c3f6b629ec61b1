"""Which dead events are meant, and under which key they are published again."""

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from cli.parked import Chosen, dead_deliveries, event_record, faults_told, key_of, meant
from consumers.dead_letters import DeadEvent
from domain.operate import Refused
from domain.ports import DeadFilter
from domain.vocabulary import Reason, State
from storage.deliveries import MongoDeliveries
from tests.contract.test_repositories import delivery
from tests.fakes import MemoryDeliveries

PARKED_AT = datetime(2026, 11, 22, 17, tzinfo=UTC)


def dead(**values: Any) -> DeadEvent:
    usual: dict[str, Any] = {
        "parked_at": PARKED_AT,
        "reason": "invalid",
        "detail": '[{"field": "data", "fault": "should be an object"}, {"field": "", "fault": "is odd"}]',
        "routing_key": "shop.order.shipped",
        "message_id": "ord-1",
        "body": b"{}",
    }
    full = usual | values
    return DeadEvent(**full, size=len(full["body"]))


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (DeadFilter(), True),
        (DeadFilter(reason=Reason.INVALID, source="shop", type="order.shipped"), True),
        (DeadFilter(reason=Reason.NOT_JSON), False),
        (DeadFilter(source="order"), False),
        (DeadFilter(type="order"), False),
        (DeadFilter(since=PARKED_AT, until=PARKED_AT), True),
        (DeadFilter(since=PARKED_AT.replace(hour=18)), False),
        (DeadFilter(until=PARKED_AT.replace(hour=16)), False),
    ],
)
def test_a_filter_means_an_event(chosen: DeadFilter, expected: bool) -> None:
    assert meant(dead(), chosen) is expected


def test_an_event_without_a_time_is_in_no_window() -> None:
    assert not meant(dead(parked_at=None), DeadFilter(since=PARKED_AT))


def test_a_message_without_an_id_is_named_by_what_it_says() -> None:
    nameless, other = dead(message_id=None), dead(message_id=None, body=b"[]")
    assert dead().id == "ord-1"
    assert (nameless.id, other.id) == ("44136fa355b3678a", "4f53cda18c2baa0c")
    assert event_record(nameless, body=False)["id"] == nameless.id
    chosen = Chosen(True, DeadFilter(reason=Reason.INVALID), None, ids=(nameless.id, "ord-1"))
    assert [chosen.means(each) for each in (nameless, dead(), other)] == [True, True, False]
    assert not chosen.means(dead(reason="not_json")), "the other filters hold as well"


@pytest.mark.parametrize(
    ("event", "key"),
    [
        (dead(), "shop.order.shipped"),
        (dead(routing_key=None, body=b'{"source": "shop", "type": "x.y"}'), "shop.x.y"),
    ],
)
def test_an_event_is_published_again_under_its_key(event: DeadEvent, key: str) -> None:
    assert key_of(event) == key


@pytest.mark.parametrize(
    "event",
    [
        dead(reason="bad_command"),
        dead(routing_key=None, body=b"[]"),
        dead(routing_key=None, body=b"\xff"),
        dead(routing_key=None, body=b'{"source": "shop"}'),
    ],
)
def test_what_has_no_key_is_refused(event: DeadEvent) -> None:
    assert isinstance(key_of(event), Refused)


@pytest.mark.parametrize(
    ("detail", "line"),
    [
        (dead().detail, "data: should be an object; is odd"),
        ('[{"field": "data", "fau', '[{"field": "data", "fau'),
        ("rejected", "rejected"),
        ("", ""),
    ],
)
def test_faults_are_told_in_a_line(detail: str, line: str) -> None:
    assert faults_told(dead(detail=detail)) == line


def test_a_body_that_is_no_text_is_printed_in_base64() -> None:
    assert event_record(dead(body=b"\xff\xfe"), body=True)["body_base64"] == "//4="
    assert event_record(dead(body=b"{}"), body=True)["body"] == "{}"
    assert "body" not in event_record(dead(), body=False)


async def test_a_limit_counts_what_is_meant_and_not_what_is_named() -> None:
    deliveries = MemoryDeliveries()
    failed = [delivery(number, state=State.FAILED) for number in range(1, 4)]
    await deliveries.add(failed)
    chosen = Chosen(False, DeadFilter(), 2, ids=("no-such", *(each.id for each in failed)))
    found = [each.id async for each in dead_deliveries(cast("MongoDeliveries", deliveries), chosen)]
    assert found == [failed[0].id, failed[1].id]

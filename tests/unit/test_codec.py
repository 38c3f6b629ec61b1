from dataclasses import replace

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
    assert codec.read_dispatch(codec.dispatch_body(job)) == Dispatch(plain, 1, job.event)


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

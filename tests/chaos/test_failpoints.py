"""Failpoints: passed where they say, and nothing where none are set."""

import signal
from collections.abc import Sequence
from typing import Any

import pytest

from consumers.failpoints import NAMES, Failpoint, Failpoints, parse_failpoints


class Port:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.depth = 3

    async def claim(self, wins: bool) -> bool:
        self.calls.append("claim")
        return wins

    async def claim_all(self, wins: Sequence[bool]) -> Sequence[bool]:
        self.calls.append("claim_all")
        return list(wins)

    async def send(self, message: str) -> str:
        self.calls.append(message)
        return "250"


def counted(name: str) -> Failpoint:
    return Failpoint(signal.SIGCONT, at=10**9)


async def test_a_claim_that_is_not_won_passes_nothing() -> None:
    points = Failpoints({"claimed": counted("claimed")})
    port = points.deliveries(Port())
    assert await port.claim(False) is False
    assert points.points["claimed"].passages == 0
    assert await port.claim(True) is True
    assert points.points["claimed"].passages == 1
    assert await port.claim_all([True, False, True]) == [True, False, True]
    assert points.points["claimed"].passages == 3
    assert port.depth == 3


async def test_a_send_passes_before_and_after() -> None:
    points = Failpoints({"sending": counted("sending"), "sent": counted("sent")})
    provider: Any = points.provider(Port())  # type: ignore[arg-type]
    assert await provider.send("hello") == "250"
    assert [points.points[name].passages for name in ("sending", "sent")] == [1, 1]
    assert provider.calls == ["hello"]


async def test_a_handler_passes_before_it_begins() -> None:
    points = Failpoints({"received": counted("received")})
    seen: list[int] = []

    async def handle(_message: object) -> None:
        seen.append(points.points["received"].passages)

    await points.handler(handle)(None)
    assert seen == [1]


def test_a_failover_passes_when_it_has_been_told() -> None:
    points = Failpoints({"failed_over": counted("failed_over")})
    seen: list[tuple[str, int]] = []
    points.failover(lambda settled: seen.append((settled, points.points["failed_over"].passages)))("settled")
    assert seen == [("settled", 0)]
    assert points.points["failed_over"].passages == 1


def test_nothing_is_wrapped_where_none_is_set() -> None:
    port, points = Port(), Failpoints()
    assert points.failover(seen := lambda _: None) is seen
    assert not points
    assert points.deliveries(port) is port
    assert points.queue(port) is port

    async def handle(_message: object) -> None: ...

    assert points.handler(handle) is handle


def test_it_is_passed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr("os.kill", lambda _pid, number: sent.append(number))
    point = parse_failpoints("claimed:stop:2").points["claimed"]
    for _ in range(4):
        point.passed()
    assert sent == [signal.SIGSTOP]


def test_the_setting_is_read() -> None:
    points = parse_failpoints("claimed:kill:25, sent:stop:3").points
    assert (points["claimed"].signal, points["claimed"].at) == (signal.SIGKILL, 25)
    assert (points["sent"].signal, points["sent"].at) == (signal.SIGSTOP, 3)
    assert not parse_failpoints("")
    assert set(NAMES) >= set(points)


@pytest.mark.parametrize("wrong", ["claimed", "nowhere:kill:1", "claimed:end:1", "claimed:kill:0", "claimed:kill:x"])
def test_a_wrong_setting_says_what_it_should_be(wrong: str) -> None:
    with pytest.raises(ValueError, match="claimed:kill:25"):
        parse_failpoints(wrong)

"""Failpoints: a process that kills or stops itself at a named boundary, for tests of failures.

They are wrappers around the ports, the handlers and a callback, put in place by the composition root when the setting
`failpoints` names some, and only then: unset, they cost nothing. The chaos suite (tests/chaos) sets them.

| name          | passed when                                                                            |
| ------------- | -------------------------------------------------------------------------------------- |
| `received`    | a message has been received, and nothing done about it                                 |
| `stored`      | an event is stored, or deliveries are, and nothing is dispatched yet                   |
| `published`   | a follow-up (dispatch, retry, dead letter) is confirmed, its cause not acknowledged    |
| `claimed`     | an attempt is claimed, and nothing sent                                                |
| `sending`     | the provider is about to be called, the message rendered                               |
| `sent`        | the provider has accepted it, and nothing is recorded                                  |
| `recorded`    | the outcome is recorded, its follow-up not published and its message not acknowledged  |
| `failed_over` | a provider's fault is recorded, and the attempt of the next one not claimed            |
"""

import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar, cast

from domain.ports import Provider

T = TypeVar("T")
Handler = Callable[[Any], Awaitable[None]]
NAMES = ("received", "stored", "published", "claimed", "sending", "sent", "recorded", "failed_over")
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
_STORES = {"add": "stored"}
_DELIVERIES = {
    "add": "stored",
    "claim": "claimed",
    "claim_all": "claimed",
    "record": "recorded",
    "record_all": "recorded",
}
_QUEUES = {"dispatch": "published", "dispatch_all": "published", "retry": "published", "park": "published"}


@dataclass(slots=True)
class Failpoint:
    """Sends `signal` to this process at the passage number `at`; once, should it live on."""

    signal: signal.Signals
    at: int
    passages: int = 0

    def passed(self) -> None:
        """One more passage."""
        self.passages += 1
        if self.passages == self.at:
            os.kill(os.getpid(), self.signal)


@dataclass(frozen=True, slots=True)
class Failpoints:
    """Those that are set, by name; false if there are none."""

    points: Mapping[str, Failpoint] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.points)

    def handler(self, handle: Handler) -> Handler:
        """Pass `received` before each message is handled."""
        point = self.points.get("received")
        if point is None:
            return handle

        async def handling(message: Any) -> None:
            point.passed()
            await handle(message)

        return handling

    def failover(self, told: Callable[[Any], None]) -> Callable[[Any], None]:
        """Pass `failed_over` when it has been told that another provider takes over."""
        point = self.points.get("failed_over")
        if point is None:
            return told

        def telling(settled: Any) -> None:
            told(settled)
            point.passed()

        return telling

    def events(self, events: T) -> T:
        """Pass `stored` after each event that is new."""
        return self._after(events, _STORES)

    def deliveries(self, deliveries: T) -> T:
        """Pass `stored`, `claimed` (by those who won) and `recorded`."""
        return self._after(deliveries, _DELIVERIES)

    def queue(self, queue: T) -> T:
        """Pass `published` after each confirmation."""
        return self._after(queue, _QUEUES)

    def provider(self, provider: Provider) -> Provider:
        """Pass `sending` and `sent` around each send."""
        return self._after(self._before(provider, {"send": "sending"}), {"send": "sent"})

    def _after(self, port: T, methods: Mapping[str, str]) -> T:
        """The port, with a passage after each of the named methods that did not return False (a claim not won).

        One that does many at once is passed for each of them.
        """

        def passing(call: Callable[..., Awaitable[Any]], point: Failpoint) -> Callable[..., Awaitable[Any]]:
            @wraps(call)
            async def passed(*arguments: Any, **named: Any) -> Any:
                result = await call(*arguments, **named)
                for each in result if isinstance(result, list) else [result]:
                    if each is not False:
                        point.passed()
                return result

            return passed

        return self._wrapped(port, methods, passing)

    def _before(self, port: T, methods: Mapping[str, str]) -> T:
        def passing(call: Callable[..., Awaitable[Any]], point: Failpoint) -> Callable[..., Awaitable[Any]]:
            @wraps(call)
            async def passed(*arguments: Any, **named: Any) -> Any:
                point.passed()
                return await call(*arguments, **named)

            return passed

        return self._wrapped(port, methods, passing)

    def _wrapped(self, port: T, methods: Mapping[str, str], passing: Callable[..., Any]) -> T:
        points = {method: self.points[name] for method, name in methods.items() if name in self.points}
        if not points:
            return port
        calls = {method: passing(getattr(port, method), point) for method, point in points.items()}
        return cast("T", _Wrapped(port, calls))


class _Wrapped:
    """A port with some of its methods in other hands; everything else is its own."""

    def __init__(self, port: object, calls: Mapping[str, Callable[..., Awaitable[Any]]]) -> None:
        self._port = port
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        return self._calls.get(name) or getattr(self._port, name)


def parse_failpoints(text: str) -> Failpoints:
    """Read `claimed:kill:25,sent:stop:3`: the name, what happens (`kill`, `stop`), and at which passage.

    Raises:
        ValueError: what it should be.
    """
    points = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, rest = part.partition(":")
        action, _, passage = rest.partition(":")
        if name not in NAMES or action not in SIGNALS or not passage.isdecimal() or int(passage) < 1:
            known = ", ".join(NAMES)
            raise ValueError(f"failpoints should be such as claimed:kill:25; there are {known}, each with kill or stop")
        points[name] = Failpoint(SIGNALS[action], int(passage))
    return Failpoints(points)

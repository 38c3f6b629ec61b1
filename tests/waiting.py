"""Waiting on conditions: the only place where tests let time pass."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

_POLL_SECONDS = 0.02


def wait_until(check: Callable[[], object], timeout: float = 10.0) -> None:
    """Return as soon as `check()` is true; fail the test after `timeout` seconds.

    An AssertionError of `check` counts as "not yet", and is the failure that is shown in the end.
    """
    deadline = time.monotonic() + timeout
    while not _holds(check, last=(begun := time.monotonic()) > deadline, timeout=timeout):
        time.sleep(_rest(begun))


async def eventually(check: Callable[[], object | Awaitable[object]], timeout: float = 10.0) -> None:
    """`wait_until` for a running event loop; `check` may be a coroutine function."""
    deadline = time.monotonic() + timeout
    while True:
        begun = time.monotonic()
        last = begun > deadline
        try:
            result = check()
            if inspect.isawaitable(result):
                result = await result
        except AssertionError:
            if last:
                raise
        else:
            if result is True or result:
                return
            if last:
                raise AssertionError(_message(check, timeout))
        await asyncio.sleep(_rest(begun))


def _rest(begun: float) -> float:
    """Until the next look: as long as this one took, so that looking does not slow down what is waited for."""
    return max(_POLL_SECONDS, time.monotonic() - begun)


def _holds(check: Callable[[], object], *, last: bool, timeout: float) -> bool:
    try:
        if check():
            return True
    except AssertionError:
        if last:
            raise
        return False
    if last:
        raise AssertionError(_message(check, timeout))
    return False


def _message(check: Callable[..., object], timeout: float) -> str:
    return f"{getattr(check, '__qualname__', check)} did not hold within {timeout:g} s"

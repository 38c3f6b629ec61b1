"""Limits of time that hold on a machine of any speed: how it grows with the input, or measured by other work."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import thread_time

FOURFOLD = 4
AT_MOST = 9.0
"""Times as long for four times as much: linear is 4, the square 16."""
REPEATED = 5
MOMENTS = 1000
"""That something bounded may take: some ten times what it does. The square of such input takes tens of thousands."""
LEAST = 0.002
"""Seconds; what takes less is taken for so long, for then it is the clock that is measured."""


def grows_linearly(work: Callable[[int], object], size: int) -> bool:
    """Whether four times as much takes clearly less than sixteen times as long."""
    small, large = _least(work, size), _least(work, FOURFOLD * size)
    return large / max(small, LEAST) < AT_MOST


def _least(work: Callable[[int], object], size: int) -> float:
    """Of several times, the one that was disturbed least."""
    return min(_once(work, size) for _ in range(REPEATED))


def _once(work: Callable[[int], object], size: int) -> float:
    gc.disable()
    try:
        started = thread_time()
        work(size)
        return thread_time() - started
    finally:
        gc.enable()


@contextmanager
def ends_soon(moments: float = MOMENTS) -> Iterator[None]:
    """What is done inside takes the CPU no longer than so many moments of this machine."""
    limit = moments * _least(_moment, 100_000)
    started = thread_time()
    yield
    assert thread_time() - started < limit


def _moment(size: int) -> int:
    """Some work: 10 ms on a machine of 2020."""
    words = [f"word{number}" for number in range(size // 10)]
    return sum(len(word.upper()) for _ in range(10) for word in words)

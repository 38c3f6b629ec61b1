"""Signals around servers that must not be left behind."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Make SIGTERM do what Ctrl-C does, so that `with` blocks unwind and asyncio cancels its main task.

    Main thread only. Where SIGINT is ignored (a background job of a non-interactive shell), KeyboardInterrupt is
    raised all the same.
    """

    def interrupt(_number: int, frame: FrameType | None) -> None:
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):
            handler(signal.SIGINT, frame)
        else:
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def signals_deferred() -> Iterator[Sequence[int]]:
    """Hold back SIGINT and SIGTERM, and deliver the first one on leaving; yields those held back so far.

    In another than the main thread nothing needs holding back: Python delivers signals to the main thread.
    """
    held: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    previous = {number: signal.getsignal(number) for number in _ENDING}
    for number in _ENDING:
        signal.signal(number, lambda received, _frame: held.append(received))
    try:
        yield held
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if held:
            signal.raise_signal(held[0])

"""Signals that wait, and SIGTERM that unwinds."""

import signal
import threading

import pytest

from deploy.signals import signals_deferred, terminate_as_interrupt


def test_sigterm_unwinds_like_an_interrupt() -> None:
    before = signal.getsignal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt), terminate_as_interrupt():
        signal.raise_signal(signal.SIGTERM)

    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_unwinds_where_interrupts_are_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), terminate_as_interrupt():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_deferred_interrupt_comes_after_the_block() -> None:
    held_inside: list[int] = []

    def work() -> None:
        with signals_deferred() as held:
            signal.raise_signal(signal.SIGINT)
            held_inside.extend(held)

    with pytest.raises(KeyboardInterrupt):
        work()

    assert held_inside == [signal.SIGINT]


def test_other_threads_have_nothing_to_defer() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def defer() -> None:
        with signals_deferred():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=defer)
    thread.start()
    thread.join()

    assert seen == [before]

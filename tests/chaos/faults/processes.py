"""A consumer is killed, or freezes for longer than its lease, at each boundary of its work."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

from tests.chaos.run import LEASE_SECONDS, Fault, Run
from tests.waiting import eventually

VICTIM = "a"


def _at(point: str, action: str, low: int, high: int) -> Callable[[Run], str]:
    return lambda run: f"{point}:{action}:{run.scaled(run.rng.randint(low, high))}"


async def _killed_by_itself(run: Run) -> None:
    """The failpoint kills it; an orchestrator starts another."""
    await run.fleet.died(VICTIM)
    await run.fleet.replace(VICTIM)


def _by_sink(number: signal.Signals) -> Callable[[Run], Awaitable[None]]:
    async def inject(run: Run) -> None:
        """The mail server signals the client that is just sending to it: before the content or after, by the seed."""
        stage = run.rng.choice(("rcpt", "data"))
        hit: list[int] = []
        countdown = run.scaled(run.rng.randint(1, 60))

        def strike(client: str, at: str) -> None:
            nonlocal countdown
            if at == stage and client.startswith(f"{VICTIM}."):
                countdown -= 1
                if countdown == 0:
                    hit.append(run.fleet.members[VICTIM].pid)
                    os.kill(hit[0], number)

        run.mail.on_content = strike
        run.note(f"at {stage}")
        await eventually(lambda: hit, timeout=40)
        if number is signal.SIGKILL:
            await _killed_by_itself(run)
        else:
            await _thawed(run)

    return inject


async def _frozen_by_itself(run: Run) -> None:
    """The failpoint stops it."""
    await eventually(lambda: _state(run) == "T", timeout=40)
    await _thawed(run)


async def _thawed(run: Run) -> None:
    """Longer than its lease, and long enough for others to decide; then it wakes and tries to finish."""
    await asyncio.sleep(LEASE_SECONDS + run.rng.uniform(1.5, 3.0))
    run.expect(_state(run) == "T", "the zombie was not asleep")
    run.fleet.signal(VICTIM, signal.SIGCONT)


def _state(run: Run) -> str:
    with suppress(OSError), open(f"/proc/{run.fleet.members[VICTIM].pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0]
    return ""


_KILLED = "SIGKILL of a consumer"
FAULTS = (
    Fault(
        "kill-received",
        f"{_KILLED} that has received a message",
        _killed_by_itself,
        failpoints=_at("received", "kill", 50, 700),
    ),
    Fault(
        "kill-stored",
        f"{_KILLED} that has stored, not dispatched",
        _killed_by_itself,
        failpoints=_at("stored", "kill", 30, 350),
    ),
    Fault(
        "kill-published",
        f"{_KILLED} that has published, not acknowledged",
        _killed_by_itself,
        failpoints=_at("published", "kill", 30, 400),
    ),
    Fault(
        "kill-claimed",
        f"{_KILLED} that has claimed, not sent",
        _killed_by_itself,
        failpoints=_at("claimed", "kill", 30, 350),
    ),
    Fault("kill-sending", f"{_KILLED} in the middle of a mail", _by_sink(signal.SIGKILL)),
    Fault(
        "kill-sent",
        f"{_KILLED} that has sent, not recorded",
        _killed_by_itself,
        failpoints=_at("sent", "kill", 30, 350),
    ),
    Fault(
        "kill-recorded",
        f"{_KILLED} that has recorded, not acknowledged",
        _killed_by_itself,
        failpoints=_at("recorded", "kill", 30, 350),
    ),
    Fault(
        "zombie-claimed",
        "SIGSTOP for longer than the lease after a claim, SIGCONT",
        _frozen_by_itself,
        failpoints=_at("claimed", "stop", 30, 350),
    ),
    Fault(
        "zombie-sending", "SIGSTOP for longer than the lease in the middle of a mail, SIGCONT", _by_sink(signal.SIGSTOP)
    ),
    Fault(
        "zombie-sent",
        "SIGSTOP for longer than the lease after a send, SIGCONT",
        _frozen_by_itself,
        failpoints=_at("sent", "stop", 30, 350),
    ),
)

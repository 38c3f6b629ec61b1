"""What happens to a machine and in a deployment: clocks that jump, versions side by side, full disks."""

import asyncio
import functools
import resource
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.chaos.fleet import ROOT
from tests.chaos.judge import Allowances
from tests.chaos.run import Fault, Run
from tests.waiting import eventually

OLD_VERSION = "6851a21"
"""A commit that this version replaces."""
_FAKETIME = "libfaketimeMT.so.1"
_NO_DOUBTS = Allowances(flags=False)
_WRONG_TIME = Allowances(fails=frozenset({"authentication"}), recovery_seconds=60)
"""A webhook's receiver refuses a signature that is an hour old, or an hour too new: 401."""


@functools.cache
def _faketime() -> Path | None:
    """Debian's package libfaketime, installed if that can be done."""
    found = _find_faketime()
    if found is None and shutil.which("apt-get"):
        command = ["apt-get", "-q", "-y", "install", "--no-install-recommends", "libfaketime"]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        found = _find_faketime()
    return found


def _find_faketime() -> Path | None:
    return next(iter(sorted(Path("/usr/lib").glob(f"**/faketime/{_FAKETIME}"))), None)


def _no_faketime() -> str | None:
    return None if _faketime() else "install libfaketime (sudo apt-get install -y libfaketime)"


async def _with_a_clock_of_its_own(run: Run) -> None:
    clock = run.directory / "clock"
    clock.write_text("+0")
    run.options["a"] = {
        "module": "tests.chaos.clocked",
        "environment": {
            "LD_PRELOAD": str(_faketime()),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_CACHE_DURATION": "1",
        },
    }


def _stepped(offset: str) -> Callable[[Run], Awaitable[None]]:
    async def inject(run: Run) -> None:
        """The clock of one process steps, and steps back a few seconds later."""
        clock = run.directory / "clock"
        clock.write_text(offset)
        await asyncio.sleep(run.rng.uniform(4.0, 6.0))
        clock.write_text("+0")

    return inject


async def _rolling_restart(run: Run) -> None:
    """One after the other: asked to stop, and started again."""
    for name in ("a", "b", "a"):
        await _restarted(run, name)


async def _restarted(run: Run, name: str, **changes: object) -> None:
    await run.fleet.stop(name)
    await run.fleet.replace(name, **changes)
    await run.fleet.ready(name)


def _no_history() -> str | None:
    command = ["git", "-C", str(ROOT), "cat-file", "-e", f"{OLD_VERSION}^{{commit}}"]
    try:
        there = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        there = False
    return None if there else f"the commit {OLD_VERSION} is not in this checkout"


async def _with_an_old_version(run: Run) -> None:
    old = run.directory / "old"
    old.mkdir()
    archive = await asyncio.to_thread(
        subprocess.run, ["git", "-C", str(ROOT), "archive", OLD_VERSION], capture_output=True, check=True
    )
    await asyncio.to_thread(subprocess.run, ["tar", "-x", "-C", str(old)], input=archive.stdout, check=True)
    run.options["b"] = {"cwd": old}


async def _upgraded(run: Run) -> None:
    """Old and new share the work for a while; then the old one is replaced, and put back once more."""
    old = run.fleet.members["b"].cwd
    await run.some_progress(100)
    await _restarted(run, "b", cwd=ROOT)
    await run.some_progress(50)
    await _restarted(run, "a", cwd=old)
    await run.some_progress(50)


async def _with_a_full_disk(run: Run) -> None:
    """One process cannot write a line from its start (ENOSPC)."""
    run.options["b"] = {"log": Path("/dev/full")}


async def _disk_full(run: Run) -> None:
    """The other's log cannot grow any more from some moment on (EFBIG)."""
    member = run.fleet.members["a"]
    await eventually(lambda: member.log.stat().st_size > 16_384, timeout=20)
    size = member.log.stat().st_size
    resource.prlimit(member.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    await run.some_progress(200)
    run.expect(member.log.stat().st_size <= size, "the log went on growing")
    resource.prlimit(member.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


FAULTS = (
    Fault(
        "clock-plus-1h",
        "the clock of one process is an hour ahead for seconds",
        _stepped("+3600"),
        prepare=_with_a_clock_of_its_own,
        events=400,  # libfaketime makes a process several times slower
        allowed=_WRONG_TIME,
        missing=_no_faketime,
    ),
    Fault(
        "clock-minus-1h",
        "the clock of one process is an hour behind for seconds",
        _stepped("-3600"),
        prepare=_with_a_clock_of_its_own,
        events=400,  # libfaketime makes a process several times slower
        allowed=_WRONG_TIME,
        missing=_no_faketime,
    ),
    Fault("rolling-restart", "each process is restarted under load", _rolling_restart, allowed=_NO_DOUBTS),
    Fault(
        "old-and-new",
        f"this version and {OLD_VERSION} side by side, upgraded and downgraded",
        _upgraded,
        prepare=_with_an_old_version,
        allowed=_NO_DOUBTS,
        missing=_no_history,
    ),
    Fault(
        "log-disk-full",
        "no log can be written",
        _disk_full,
        prepare=_with_a_full_disk,
        allowed=_NO_DOUBTS,
    ),
)

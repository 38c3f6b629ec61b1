"""Server processes that never outlive the Python process that started them."""

import ctypes
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from deploy.errors import PortTaken, StartFailed
from deploy.signals import signals_deferred

LOOPBACK = "127.0.0.1"

_PORTS = range(20_000, 32_000)  # below the ephemeral range of Linux: no outgoing connection takes one in between
_POLL_SECONDS = 0.02
_KILL_SECONDS = 5.0
_LOG_TAIL_LINES = 15
# As mongod, RabbitMQ's listeners, its Erlang distribution and epmd (with -d) say it.
_IN_USE = re.compile(
    rb"address already in use|eaddrinuse|could not bind to distribution port|already a epmd running", re.IGNORECASE
)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class LiveProcess(NamedTuple):
    """A process as the kernel tells it from all others: ids are used again, ids with start times are not."""

    pid: int
    started: int


@dataclass(frozen=True, eq=False)
class ServerProcess:
    """A server at the head of its own session, writing to its own log.

    Attributes:
        log_begins: bytes that the log had before this process; others of its name have written them.
    """

    name: str
    popen: subprocess.Popen[bytes]
    log: Path
    log_begins: int = 0

    @property
    def pid(self) -> int:
        """Process id, which is the session's id as well."""
        return self.popen.pid

    def runs(self) -> bool:
        """Whether it has not ended yet."""
        return self.popen.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.runs():
            self.popen.send_signal(number)

    def wait_until(self, ready: Callable[[], bool], *, timeout: float) -> None:
        """Return as soon as `ready` holds; raise StartFailed when the process ends or `timeout` seconds pass first.

        It is a PortTaken where the process ended for that.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            self.check_runs()
            if time.monotonic() > deadline:
                raise StartFailed(f"{self.name} did not answer within {timeout:.0f} s.{self._log_tail()}")
            time.sleep(_POLL_SECONDS)

    def check_runs(self) -> None:
        """Raise StartFailed, or PortTaken, if it has ended."""
        if not self.runs():
            failure = PortTaken if _IN_USE.search(self._written()) else StartFailed
            raise failure(f"{self.name} ended with status {self.popen.returncode}.{self._log_tail()}")

    def _log_tail(self) -> str:
        lines = self._written().decode(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        return "\n".join([f" Its log, {self.log}, ends:", *lines]) if lines else f" Its log, {self.log}, is empty."

    def _written(self) -> bytes:
        return self.log.read_bytes()[self.log_begins :]


class Processes:
    """The servers of one run, started one by one and stopped together."""

    def __init__(self) -> None:
        self._started: list[ServerProcess] = []

    def start(self, name: str, command: Sequence[str | Path], *, env: Mapping[str, str], log: Path) -> ServerProcess:
        """Start `command` in a session of its own; from here on `stop` ends it, whatever interrupts the caller.

        On Linux the kernel kills it when the thread that called this ends, by whatever cause, SIGKILL included: call
        it from a thread that lives as long as the server is needed. Elsewhere only `stop` ends it.
        """
        with signals_deferred(), log.open("ab") as output:
            log_begins = output.tell()
            popen = subprocess.Popen(  # noqa: S603 - our own command lines
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                start_new_session=True,
                preexec_fn=_die_with_parent(os.getpid()),  # noqa: PLW1509 - one prctl, bound before the fork
            )
            process = ServerProcess(name, popen, log, log_begins)
            self._started.append(process)
        return process

    def kill(self, process: ServerProcess) -> None:
        """Kill one of them with all of its descendants at once, as a crash would, and forget it."""
        with signals_deferred():
            _kill(process, descendants(process.pid))
            self._started.remove(process)

    def stop(self, *, timeout: float) -> None:
        """End every process with all of its descendants: asked first, killed after `timeout` seconds or at a signal.

        Signals are held back until nothing is left running. Stopping twice is harmless.
        """
        with signals_deferred() as held:
            families = {process: descendants(process.pid) for process in self._started}
            for process in self._started:
                process.signal(signal.SIGTERM)
            deadline = time.monotonic() + timeout
            while not held and time.monotonic() < deadline and any(process.runs() for process in self._started):
                time.sleep(_POLL_SECONDS)
            for process, family in families.items():
                _kill(process, family | descendants(process.pid))
            self._started.clear()


@contextmanager
def stopped_at_exit(*, timeout: float) -> Iterator[Processes]:
    """Yield Processes that are stopped when the block is left, however it is left, `timeout` being that of `stop`."""
    processes = Processes()
    try:
        yield processes
    finally:
        processes.stop(timeout=timeout)


def descendants(root: int) -> set[LiveProcess]:
    """Live processes below `root`, whatever groups and sessions they made for themselves; empty without /proc."""
    table = _process_table()
    family: set[LiveProcess] = set()
    parents = {root}
    while parents:
        children = {process for process, parent in table.items() if parent in parents} - family
        family |= children
        parents = {child.pid for child in children}
    return family


def alive(processes: set[LiveProcess]) -> set[LiveProcess]:
    """Those of the given processes that still run; another process under a used id is not taken for one of them."""
    return processes & _process_table().keys()


def free_ports(count: int) -> list[int]:
    """Distinct ports of the loopback interface that nobody has just now.

    On Linux they stay this process's own until it ends, for the servers that it starts: nobody else is given one of
    them here, and a server can be started on the same one again.
    """
    ports: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        if _held(port):
            ports.append(port)
        if len(ports) == count:
            return ports
    raise StartFailed(f"Fewer than {count} ports between {_PORTS.start} and {_PORTS.stop} are free.")


def _held(port: int) -> bool:
    """Whether it was free; on Linux a socket that does not listen is left bound to it.

    A server listens beside that one if it says SO_REUSEADDR, as servers do (socket(7)); a bind without that, as the one
    here, fails. Other systems let nobody bind beside it.
    """
    with socket.socket() as holder:
        try:
            holder.bind((LOOPBACK, port))
        except OSError:
            return False
        if sys.platform == "linux":
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.detach()
    return True


def _die_with_parent(parent: int) -> Callable[[], None] | None:
    """Return what the child does before exec: ask the kernel for SIGKILL at its parent's end. It survives exec."""
    if _LIBC is None:
        return None
    prctl = _LIBC.prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before it was asked for
            os._exit(1)

    return ask


def _kill(process: ServerProcess, family: set[LiveProcess]) -> None:
    """Kill a server and those of its descendants that did not end by themselves, and wait for their end."""
    process.signal(signal.SIGKILL)
    process.popen.wait()
    deadline = time.monotonic() + _KILL_SECONDS
    while (left := alive(family)) and time.monotonic() < deadline:
        for member in left:
            with suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def _process_table() -> dict[LiveProcess, int]:
    """Every live process, zombies left out, and its parent's id (proc(5), /proc/pid/stat)."""
    table = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            state, parent, started = fields[0], int(fields[1]), int(fields[19])
            if state not in "ZX":
                table[LiveProcess(int(stat.parent.name), started)] = parent
    return table

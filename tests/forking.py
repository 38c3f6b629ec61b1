"""NotiPy's processes without the second in which Python reads their code: forked from one that has read it.

All else is as `python -m` has it: arguments, environment, standard streams, a session of its own, the exit code. What
an interpreter of its own is wanted for (its imports, `--workers`, a terminal) is started in the usual way.
"""

import asyncio
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import struct
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple, NoReturn

ROOT = Path(__file__).parent.parent
PACKAGES = ("config", "domain", "storage", "channels", "consumers", "cli")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_NUMBER = struct.Struct("i")
_MOST = 128 * 1024
"""Bytes of an order: arguments and environment."""


class Ended(NamedTuple):
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """What it printed with `--json`."""
        return [json.loads(line) for line in self.out.splitlines()]


Notipy = Callable[..., Coroutine[Any, Any, Ended]]
"""The command, called with its arguments."""


class Forked:
    """A process, as asyncio's are."""

    def __init__(self, pid: int, report: int) -> None:
        self.pid = pid
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(report, self._end)

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it runs."""
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        """For its end; negative: the signal that ended it."""
        return await asyncio.shield(self._ended)

    def _end(self) -> None:
        self._loop.remove_reader(self._report)
        told = os.read(self._report, _NUMBER.size)
        os.close(self._report)
        if not self._ended.cancelled():  # without a word: it was ended with the process that looks after it
            self._ended.set_result(_NUMBER.unpack(told)[0] if told else -signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        """If it runs."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Do not ask."""
        self.send_signal(signal.SIGKILL)


class Forker:
    """Starts processes. Its own is ready after a second, and ends when this one closes or ends."""

    def __init__(self) -> None:
        self._nothing = os.open(os.devnull, os.O_RDONLY)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", __name__, str(theirs.fileno())]
            self._server = subprocess.Popen(
                command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )

    def close(self) -> None:
        """Start no more, and end those that run: as they do if this process ends."""
        os.close(self._nothing)
        self._control.close()
        self._server.wait()

    async def start(
        self, *arguments: str, stdin: IO[bytes] | None = None, stdout: IO[bytes], stderr: IO[bytes], module: str
    ) -> Forked:
        """`python -m module arguments…`, with the environment of this moment."""
        order = {"module": module, "arguments": arguments, "environment": dict(os.environ)}
        report, theirs = os.pipe()
        streams = [stdin.fileno() if stdin else self._nothing, stdout.fileno(), stderr.fileno(), theirs]
        socket.send_fds(self._control, [json.dumps(order).encode()], streams)
        os.close(theirs)
        return Forked(await _told(report), report)

    @asynccontextmanager
    async def consumer(self, config: Path, *arguments: str, log: Path) -> AsyncIterator[Forked]:
        """`notipy run`; killed at the end, with its workers, if the test has not ended it."""
        command = ("--config", str(config), "run", *arguments)
        with log.open("ab") as output:
            process = await self.start(*command, stdout=output, stderr=output, module="cli.main")
        try:
            yield process
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

    async def run(self, *arguments: str, stdin: str = "", module: str = "cli.main") -> Ended:
        """The same, to its end."""
        with TemporaryFile() as given, TemporaryFile() as out, TemporaryFile() as err:
            given.write(stdin.encode())
            given.seek(0)
            process = await self.start(*arguments, stdin=given, stdout=out, stderr=err, module=module)
            return Ended(await process.wait(), _said(out), _said(err))


def _said(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode()


async def _told(report: int) -> int:
    """The number that the process which looks after another tells first."""
    there = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(report, there.set)
    try:
        await there.wait()
    finally:
        loop.remove_reader(report)
    (number,) = _NUMBER.unpack(os.read(report, _NUMBER.size))
    return int(number)


# ---------------------------------------------------------------------------------------------------------------
# The process that forks
# ---------------------------------------------------------------------------------------------------------------


def serve(control: socket.socket) -> None:
    """A process for each order, until there can come no more."""
    _read_everything()
    parent = os.getpid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for the others
    while True:
        order, streams, _, _ = socket.recv_fds(control, _MOST, 4)
        if not order:
            return
        if os.fork() == 0:
            _end_with(parent)
            control.close()
            _look_after(json.loads(order), streams)
        for stream in streams:
            os.close(stream)


def _read_everything() -> None:
    for package in PACKAGES:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()


def _end_with(parent: int) -> None:
    """Have the kernel end this process with its parent, where it knows how."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def _look_after(order: dict[str, Any], streams: Sequence[int]) -> NoReturn:
    """Start the process; tell its number, and how it ended."""
    report = streams[3]
    with suppress(OSError):  # whoever has asked may be gone
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        parent = os.getpid()
        number = os.fork()
        if number == 0:
            _end_with(parent)
            os.close(report)
            _become(order, streams[:3])
        for stream in streams[:3]:
            os.close(stream)
        os.write(report, _NUMBER.pack(number))
        _, status = os.waitpid(number, 0)
        os.write(report, _NUMBER.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _become(order: dict[str, Any], streams: Sequence[int]) -> NoReturn:
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
            os.close(stream)
        os.environ.clear()
        os.environ.update(order["environment"])
        module = order["module"]
        sys.argv = [module, *order["arguments"]]
        sys.modules.pop(module, None)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except BaseException:  # noqa: BLE001 - of this process there is nothing above
        traceback.print_exc()
    os._exit(1)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))

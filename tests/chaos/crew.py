"""Several runs at a time: worker processes, each with servers of its own, that are given one run after another."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deploy.signals import terminate_as_interrupt

_STOP_SECONDS = 20.0
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Task:
    """One run to make."""

    fault: str
    seed: int


class Crew:
    """`with Crew(2, home) as crew`: leaving it, however it is left, ends the workers and with them all they started."""

    def __init__(self, size: int, home: Path) -> None:
        self._size = size
        self._home = home
        self._workers: list[subprocess.Popen[str]] = []
        self._outcomes: queue.Queue[Mapping[str, Any] | None] = queue.Queue()

    def __enter__(self) -> Self:
        """Start nothing yet."""
        self._signals = terminate_as_interrupt()
        self._signals.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what runs; a worker whose input ends stops by itself, too."""
        for worker in self._workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
        for worker in self._workers:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(_STOP_SECONDS)
            worker.kill()
            worker.wait()
        self._signals.__exit__(kind, error, trace)

    def work(self, tasks: Sequence[Task]) -> Iterator[Mapping[str, Any]]:
        """Each outcome as it comes."""
        waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
        for task in tasks:
            waiting.put(task)
        for number in range(min(self._size, len(tasks))):
            worker = self._start(number)
            threading.Thread(target=self._lead, args=(worker, waiting), daemon=True).start()
        left = min(self._size, len(tasks))
        while left:
            outcome = self._outcomes.get()
            if outcome is None:
                left -= 1
            else:
                yield outcome

    def _start(self, number: int) -> subprocess.Popen[str]:
        # a session of its own: Ctrl-C reaches this process alone, which ends them in order
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.worker", str(self._home), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            env={name: value for name, value in os.environ.items() if not name.startswith("NOTIPY_")},
            start_new_session=True,
        )
        self._workers.append(worker)
        return worker

    def _lead(self, worker: subprocess.Popen[str], waiting: "queue.SimpleQueue[Task]") -> None:
        """Hand it one task after another until there are none, or it has ended."""
        assert worker.stdin is not None
        assert worker.stdout is not None
        while True:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                break
            with suppress(OSError):
                worker.stdin.write(json.dumps(asdict(task)) + "\n")
                worker.stdin.flush()
            answer = worker.stdout.readline()
            if not answer:
                self._outcomes.put({**asdict(task), "error": f"the worker ended with {worker.wait()}"})
                break
            self._outcomes.put(json.loads(answer))
        with suppress(OSError):
            worker.stdin.close()
        self._outcomes.put(None)

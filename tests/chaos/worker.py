"""A worker of the crew: servers of its own, one run for each line of its input, one line of output for each run."""

import asyncio
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from config.logging import configure_logging
from config.settings import LoggingSettings
from deploy.embedded import terminate_as_interrupt
from tests.chaos.arena import Arena, own_arena
from tests.chaos.faults import FAULTS
from tests.chaos.run import execute


def main() -> None:
    """Until the input ends."""
    home, number = Path(sys.argv[1]), sys.argv[2]
    home.mkdir(parents=True, exist_ok=True)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    log = (home / f"harness-{number}.log").open("a")
    os.dup2(log.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    os.dup2(log.fileno(), sys.stderr.fileno())
    configure_logging(LoggingSettings(level="error"))
    orders = Orders()
    with suppress(KeyboardInterrupt), terminate_as_interrupt(), own_arena(home / f"servers-{number}") as arena:
        while (line := orders.next()) is not None:
            outcome = _outcome(json.loads(line), arena, home, orders)
            answers.write(json.dumps(outcome) + "\n")
            answers.flush()


class Orders:
    """The lines of the input. Its end is that of the parent, and interrupts the run that is under way."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._under_way = False
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> str | None:
        """The next one; None at the end."""
        return self._lines.get()

    @contextmanager
    def carrying_out(self) -> Iterator[None]:
        """While this lasts, the end of the input is a SIGTERM."""
        self._under_way = True
        try:
            yield
        finally:
            self._under_way = False

    def _read(self) -> None:
        for line in sys.stdin:
            self._lines.put(line)
        self._lines.put(None)
        if self._under_way:
            os.kill(os.getpid(), signal.SIGTERM)


def _outcome(task: Mapping[str, Any], arena: Arena, home: Path, orders: Orders) -> Mapping[str, Any]:
    fault = FAULTS[task["fault"]]
    if why := fault.missing():
        return {**task, "skipped": why}
    try:
        with orders.carrying_out(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return asdict(runner.run(execute(fault, task["seed"], arena, home)))
    except Exception as error:  # noqa: BLE001 - told in the run's line
        traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)[-1]
        return {**task, "error": f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"}


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    main()

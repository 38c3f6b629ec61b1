"""`notipy run --workers N`: several processes of the same roles, and one page for all of them."""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from itertools import count
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.parser import text_string_to_metric_families

from config.settings import Settings
from consumers.health import EVERY, Condition
from consumers.page import Page

log = structlog.get_logger()
STALE = 5 * EVERY
"""Seconds without a worker's own look after which it counts as stuck."""
RESTART_AFTER = 1.0
"""Seconds before a worker that ended by itself is started again."""
WRONG_SETTINGS = 2
"""With which a worker ends that cannot run with its settings (`cli.failures.BadInput`): no more can the others."""
KILL_MARGIN = timedelta(seconds=5)
"""How long after the grace time a worker that has not stopped is killed."""


class Supervisor:
    """Starts the workers, starts again those that end, stops them all."""

    def __init__(self, settings: Settings, roles: Sequence[str] | None, workers: int, shared: Path) -> None:
        self._settings = settings
        self._roles = roles
        self._workers = workers
        self._shared = shared
        self._registry = CollectorRegistry()
        MultiProcessCollector(self._registry, path=str(shared))  # type: ignore[no-untyped-call]
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ask every worker to end, and then end."""
        self._stopping.set()

    async def run(self) -> int:
        """Run until told to stop, or nothing can run; 0 if every worker ended in order."""
        async with AsyncExitStack() as stack:
            if self._settings.metrics.port is not None:
                page = Page(self.state, self._registry)
                await page.start(self._settings.metrics.host, self._settings.metrics.port)
                stack.push_async_callback(page.stop)
            codes = await asyncio.gather(*(self._keep(number) for number in range(self._workers)))
        return max(codes)

    def state(self) -> Condition:
        """Ready when every worker says so and none has fallen silent."""
        families = text_string_to_metric_families(generate_latest(self._registry).decode())
        samples = [sample for family in families for sample in family.samples]
        values = {s.name: s.value for s in samples if not s.labels}
        paused = {
            f"{s.labels['channel']}: provider {s.labels['provider']} is paused ({s.labels['reason']})"
            for s in samples
            if s.name == "notipy_provider_paused" and s.value > 0
        }
        ready = int(values.get("notipy_ready", 0))
        problems = [] if ready == self._workers else [f"{ready} of {self._workers} workers are ready"]
        if ready and time.time() - values.get("notipy_heartbeat_timestamp_seconds", 0.0) > STALE:
            problems.append("a worker has fallen silent")
        return Condition(tuple(problems), tuple(sorted(paused)))

    async def _keep(self, number: int) -> int:
        """One worker, started again whenever it ends by itself, unless it cannot even begin."""
        for start in count(1):
            process = await self._start(number)
            ended = asyncio.create_task(process.wait())
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if self._stopping.is_set():
                return await self._end(process, ended)
            mark_process_dead(process.pid, str(self._shared))  # type: ignore[no-untyped-call]
            log.error("worker.ended", worker=number, code=ended.result())
            if start == 1 and ended.result() == WRONG_SETTINGS:
                self.stop()
                break
            await asyncio.sleep(RESTART_AFTER)
        return WRONG_SETTINGS

    async def _start(self, number: int) -> asyncio.subprocess.Process:
        command = [sys.executable, "-m", "cli.main"]
        if self._settings.file is not None:
            command += ["--config", str(self._settings.file)]
        command += ["run", "--worker", str(number)]
        if self._roles:
            command += ["--roles", ",".join(self._roles)]
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(self._shared)}
        # a session of its own: a terminal's Ctrl-C reaches the supervisor alone, which then stops them in order
        # and a pipe that ends with the supervisor, however that ends: a worker never runs on alone
        return await asyncio.create_subprocess_exec(
            *command, env=environment, start_new_session=True, stdin=asyncio.subprocess.PIPE
        )

    async def _end(self, process: asyncio.subprocess.Process, ended: "asyncio.Task[int]") -> int:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(ended, (self._settings.grace + KILL_MARGIN).total_seconds())
        except TimeoutError:
            log.error("worker.killed", pid=process.pid)
            process.kill()
            return 1


async def supervise(settings: Settings, roles: Sequence[str] | None, workers: int) -> int:
    """Run `workers` processes of these roles until SIGTERM or SIGINT; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="notipy-metrics-") as shared:
        supervisor = Supervisor(settings, roles, workers, Path(shared))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.stop)
        log.info("supervisor.started", workers=workers)
        return await supervisor.run()

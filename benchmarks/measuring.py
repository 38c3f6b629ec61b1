"""One run of one system: its processes, what they and the servers cost, and what arrived."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from benchmarks.sink import Behaviour, Sink, mail_sink
from benchmarks.systems import Place, System
from deploy.embedded import Servers
from deploy.rabbit_admin import RabbitAdmin

WINDOW = 0.1
"""The part of the mails before the rate is taken: start-up is over, and as much is under way as at any time."""
SECONDS_TO_END = 60
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Cost:
    """Seconds of CPU so far; 0 for a server that was not started here."""

    workers: float
    broker: float
    database: float


@dataclass
class Run:
    """A system that is running."""

    system: System
    place: Place
    sink: Sink
    servers: Servers
    process: asyncio.subprocess.Process | None = None
    started: float = 0.0

    @asynccontextmanager
    async def consuming(self, processes: int = 1) -> AsyncIterator["Run"]:
        """With its processes; they are asked to end, and it is waited for that."""
        self.started = time.monotonic()
        self.process = await asyncio.create_subprocess_exec(*self.system.command(self.place, processes))
        try:
            yield self
        finally:
            self.process.terminate()
            async with asyncio.timeout(SECONDS_TO_END):
                await self.process.wait()

    def cost(self) -> Cost:
        """What was spent until now."""
        broker, database = (self.servers.pids.get(name) for name in ("rabbitmq", "mongod"))
        spent = [sum(map(_cpu, _tree(pid))) if pid else 0.0 for pid in (broker, database)]
        return Cost(sum(map(_cpu, self.pids())), *spent)

    def rss_mib(self) -> float:
        """The resident memory of the largest of its processes."""
        return max(map(_resident, self.pids()), default=0.0)

    def pids(self) -> list[int]:
        """Its processes."""
        return _tree(self.process.pid) if self.process else []

    async def judged(self, expected: set[str]) -> tuple[int, int]:
        """How many mails were lost and how many came twice."""
        times = (await self.sink.received()).times
        return len(expected - set(times)), sum(count - 1 for count in times.values())


@asynccontextmanager
async def running_on(
    servers: Servers,
    system: System,
    behaviour: Behaviour = Behaviour(),  # noqa: B008 - frozen
) -> AsyncIterator[Run]:
    """A virtual host, a database and a mail server of its own, prepared; nothing runs yet."""
    name = f"bench-{uuid4().hex[:8]}"
    admin = RabbitAdmin(str(servers.management_url))
    await asyncio.to_thread(admin.create_vhost, name)
    base, _, query = servers.mongo_url.partition("?")
    try:
        with TemporaryDirectory() as folder:
            async with mail_sink(behaviour) as sink:
                amqp = f"{servers.amqp_url.rsplit('/', 1)[0]}/{name}"
                mongo = f"{base.rsplit('/', 1)[0]}/{name}?{query}"
                run = Run(system, Place(amqp, mongo, sink.port, Path(folder)), sink, servers)
                await system.prepare(run.place)
                yield run
    finally:
        await asyncio.to_thread(admin.delete_vhost, name)


def _tree(pid: int) -> list[int]:
    found = [pid]
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _tree(int(child))
    return found


def _cpu(pid: int) -> float:
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
    return 0.0


def _resident(pid: int) -> float:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / 2**20
    return 0.0

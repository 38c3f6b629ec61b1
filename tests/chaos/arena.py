"""The servers that a run uses: those that the tests share, or a set of its own that it may kill."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from deploy.install import ensure_rabbitmq
from deploy.mongod import await_primary, await_replica_set, mongo_url, replica_set_url, start_mongod
from deploy.processes import Processes, ServerProcess, free_ports, stopped_at_exit
from deploy.rabbit_admin import RabbitAdmin
from deploy.rabbitmq import Ports, RabbitNode, restart_rabbitmq, start_rabbitmq
from deploy.workspace import Workspace, workspace

MEMBERS = 3
ELECTION_MS = 2000
_ORDINARY_MEMORY, _ORDINARY_DISK = "0.4", "50MB"


@dataclass(frozen=True)
class Arena:
    """Where the servers are, and the processes that a run starts."""

    amqp_url: str
    mongo_url: str
    management_url: str
    processes: Processes

    @property
    def admin(self) -> RabbitAdmin:
        """The broker's management interface."""
        return RabbitAdmin(self.management_url)

    def vhost_url(self, vhost: str) -> str:
        """The AMQP URL of a virtual host."""
        return self.amqp_url.rsplit("/", 1)[0] + "/" + vhost.replace("/", "%2f")

    def database_url(self, name: str) -> str:
        """The MongoDB URL of a database."""
        base, _, query = self.mongo_url.partition("?")
        return f"{base.rsplit('/', 1)[0]}/{name}?{query}"


@dataclass
class ReplicaSet:
    """Three members of one set."""

    arena: "OwnArena"
    ports: Sequence[int] = field(default_factory=lambda: free_ports(MEMBERS))
    members: dict[int, ServerProcess] = field(default_factory=dict)

    async def start(self) -> None:
        """All three, and their first primary."""
        for port in self.ports:
            self.start_member(port)
        first = self.members[self.ports[0]]
        await asyncio.to_thread(await_replica_set, first, self.ports, election_ms=ELECTION_MS)

    def start_member(self, port: int) -> None:
        """A member, with the data that it has."""
        arena = self.arena
        self.members[port] = start_mongod(arena.processes, arena.space, port, name=f"member-{port}", test_commands=True)

    def kill_member(self, port: int) -> None:
        """As a crash would."""
        self.arena.processes.kill(self.members.pop(port))

    def stop(self) -> None:
        """Kill them all."""
        for port in list(self.members):
            self.kill_member(port)

    @property
    def url(self) -> str:
        """For clients that follow the primary."""
        return replica_set_url(self.ports)

    async def primary(self) -> int:
        """The port of the primary; waits until there is one."""

        def ask() -> int:
            with MongoClient[dict[str, Any]](self.url, serverSelectionTimeoutMS=30_000) as client:
                client.admin.command("ping")
                address = client.primary
                return address[1] if address else 0

        while not (port := await asyncio.to_thread(ask)):  # noqa: ASYNC110 - nobody tells of an election
            await asyncio.sleep(0.05)
        return port


@dataclass(frozen=True)
class OwnArena(Arena):
    """A broker and a database that faults may kill. `restore` makes them whole again for the next run."""

    space: Workspace
    servers: dict[str, Any] = field(default_factory=dict)

    @property
    def node(self) -> RabbitNode:
        """The broker as it runs now."""
        found: RabbitNode = self.servers["rabbitmq"]
        return found

    @property
    def mongod(self) -> ServerProcess:
        """The database as it runs now."""
        found: ServerProcess = self.servers["mongod"]
        return found

    @property
    def mongo_port(self) -> int:
        """Where the database listens."""
        found: int = self.servers["mongo_port"]
        return found

    def kill_rabbitmq(self) -> None:
        """As a crash would."""
        self.processes.kill(self.node.server)

    async def start_rabbitmq(self, *, wiped: bool = False) -> None:
        """Start it again after it was killed; returns when it serves clients."""
        self.servers["rabbitmq"] = restart_rabbitmq(self.processes, self.space, self.node, wiped=wiped)
        await asyncio.to_thread(self.node.await_ready)

    def kill_mongod(self) -> None:
        """As a crash would."""
        self.processes.kill(self.mongod)

    async def start_mongod(self) -> None:
        """Start it again after it was killed; returns when it takes writes."""
        port = self.mongo_port
        self.servers["mongod"] = start_mongod(self.processes, self.space, port, test_commands=True)
        await asyncio.to_thread(await_primary, self.mongod, port)

    async def memory_alarm(self, raised: bool) -> None:
        """Make the broker believe that it uses too much memory."""
        mark = "0.00001" if raised else _ORDINARY_MEMORY
        await asyncio.to_thread(self.node.control, "set_vm_memory_high_watermark", mark)

    async def disk_alarm(self, raised: bool) -> None:
        """Make the broker believe that its disk is full."""
        limit = str(10**15) if raised else _ORDINARY_DISK
        await asyncio.to_thread(self.node.control, "set_disk_free_limit", limit)

    async def restore(self) -> None:
        """Start what does not run."""
        if not self.node.server.runs():
            await self.start_rabbitmq()
        if not self.mongod.runs():
            await self.start_mongod()


@contextmanager
def own_arena(directory: Path) -> Iterator[OwnArena]:
    """A private broker and database, gone when the block is left. Call it from the main thread."""
    ensure_rabbitmq(print)
    with workspace(directory, keep=False) as space, stopped_at_exit(timeout=1.0) as processes:
        *rabbit_ports, mongo_port = free_ports(6)
        # counts of un-acknowledged messages are half a second old instead of five
        node = start_rabbitmq(processes, space, Ports(*rabbit_ports), "-rabbit quorum_tick_interval 500")
        mongod = start_mongod(processes, space, mongo_port, test_commands=True)
        await_primary(mongod, mongo_port)
        node.await_ready()
        servers: Mapping[str, Any] = {"rabbitmq": node, "mongod": mongod, "mongo_port": mongo_port}
        yield OwnArena(
            amqp_url=node.amqp_url,
            mongo_url=mongo_url(mongo_port),
            management_url=node.management_url,
            processes=processes,
            space=space,
            servers=dict(servers),
        )

"""Three RabbitMQ nodes that are one cluster, a balancer before them, and three MongoDB servers: one replica set."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from deploy.mongod import await_replica_set, replica_set_url, start_mongod
from deploy.processes import LOOPBACK, Processes, ServerProcess, free_ports
from deploy.rabbit_admin import RabbitAdmin
from deploy.rabbitmq import Ports, RabbitNode, restart_rabbitmq, start_rabbitmq
from deploy.workspace import Workspace

MEMBERS = 3
VHOST = "/"
ELECTION_MS = 10_000
"""Without a word from the primary after which another is elected: MongoDB's own default."""
_CHUNK = 64 * 1024


def amqp_url(port: int) -> str:
    """Of whatever listens there for a node."""
    return f"amqp://guest:guest@{LOOPBACK}:{port}/%2f"


@dataclass
class Brokers:
    """The cluster. Start it from the main thread."""

    processes: Processes
    space: Workspace
    nodes: list[RabbitNode] = field(default_factory=list)

    async def start(self) -> None:
        """All of them, joined; returns when each serves clients."""
        ports = free_ports(5 * MEMBERS)
        first: RabbitNode | None = None
        for number in range(MEMBERS):
            given = Ports(*ports[5 * number : 5 * number + 5])
            self.nodes.append(start_rabbitmq(self.processes, self._space(number), given, beside=first))
            if first is None:  # the others take its Erlang cookie
                first = self.nodes[0]
                await asyncio.to_thread(first.await_ready)
        await asyncio.to_thread(self._join)

    def _join(self) -> None:
        """One after the other: two that join at once may each wait for the other."""
        first, *others = self.nodes
        for node in others:
            node.await_ready()
            for command in (["stop_app"], ["join_cluster", first.name], ["start_app"]):
                node.control(*command)
            node.await_ready()

    def kill(self, number: int) -> None:
        """As a crash would."""
        self.processes.kill(self.nodes[number].server)

    async def restart(self, number: int) -> None:
        """One that was killed, with the data that it has; returns when it serves clients."""
        node = restart_rabbitmq(self.processes, self._space(number), self.nodes[number])
        self.nodes[number] = node
        await asyncio.to_thread(node.await_ready)

    async def queues(self) -> list[dict[str, Any]]:
        """As one of the nodes that run describes them, some seconds late."""
        running = next(node for node in self.nodes if node.server.runs())
        return await asyncio.to_thread(RabbitAdmin(running.management_url, timeout=30).queues, VHOST)

    async def queue(self, name: str) -> dict[str, Any]:
        """One of them."""
        return next(queue for queue in await self.queues() if queue["name"] == name)

    def number(self, name: str) -> int:
        """Which of the nodes has this name."""
        return next(number for number, node in enumerate(self.nodes) if node.name == name)

    def _space(self, number: int) -> Workspace:
        own = Workspace(*(folder / f"node-{number + 1}" for folder in (self.space.data, self.space.log)))
        for folder in (own.data, own.log):
            folder.mkdir(exist_ok=True)
        return own


@dataclass
class Members:
    """The replica set. Start it from the main thread."""

    processes: Processes
    space: Workspace
    ports: Sequence[int] = field(default_factory=lambda: free_ports(MEMBERS))
    members: dict[int, ServerProcess] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """For clients that follow the primary."""
        return replica_set_url(self.ports)

    async def start(self) -> None:
        """All of them; returns when there is a primary."""
        for port in self.ports:
            self.start_member(port)
        first = self.members[self.ports[0]]
        await asyncio.to_thread(await_replica_set, first, self.ports, election_ms=ELECTION_MS)

    def start_member(self, port: int) -> None:
        """One of them, with the data that it has."""
        self.members[port] = start_mongod(self.processes, self.space, port, name=f"member-{port}")

    def kill_member(self, port: int) -> None:
        """As a crash would."""
        self.processes.kill(self.members.pop(port))

    async def primary(self) -> int:
        """The port of the primary.

        Raises:
            PyMongoError: there has been none for half a minute.
        """

        def ask() -> int:
            with MongoClient[dict[str, Any]](self.url) as client:
                client.admin.command("ping")
                address = client.primary
                return address[1] if address else 0

        return await asyncio.to_thread(ask)

    async def healthy(self) -> int:
        """How many of them are primary or secondary."""

        def ask() -> int:
            with MongoClient[dict[str, Any]](self.url) as client:
                found = client.admin.command("replSetGetStatus")["members"]
                return sum(member["stateStr"] in {"PRIMARY", "SECONDARY"} for member in found)

        try:
            return await asyncio.to_thread(ask)
        except PyMongoError:
            return 0


class Balancer:
    """`async with Balancer(ports) as balancer`: one address that leads to the first of several that answers.

    What a load balancer or a Kubernetes Service is for a client that knows a single address.
    """

    def __init__(self, targets: Sequence[int]) -> None:
        self.port = 0
        self._targets = targets
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self._connected, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hang up."""
        if self._server is not None:
            self._server.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for target in self._targets:
            with suppress(OSError):
                there, onward = await asyncio.open_connection(LOOPBACK, target)
                for source, sink in ((reader, onward), (there, writer)):
                    pipe = asyncio.create_task(_handed_on(source, sink))
                    self._pipes.add(pipe)
                    pipe.add_done_callback(self._pipes.discard)
                return
        writer.close()


async def _handed_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Until either side hangs up; the other is then hung up on."""
    try:
        with suppress(OSError):
            while data := await source.read(_CHUNK):
                sink.write(data)
                await sink.drain()
    finally:
        sink.close()

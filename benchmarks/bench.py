"""A virtual host, a database, a mail sink and NotiPy's processes: what every scenario runs on."""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import yaml
from aiosmtpd.smtp import Envelope

from config.settings import Settings
from consumers.app import Core, open_core
from deploy.embedded import Servers
from deploy.rabbit_admin import RabbitAdmin
from deploy.smtp_sink import SmtpSink
from domain.notification import Definition

NOTIFICATION = Definition.model_validate(
    {
        "name": "bench",
        "on": "bench.#",
        "channels": {
            "email": {
                "subject": "Order {{ order_id }} shipped",
                "text": "Your order {{ order_id }} is on its way with {{ carrier }}.",
            }
        },
    }
)
DATA = {"order_id": 1042, "carrier": "DHL"}


class CountingSink(SmtpSink):
    """A sink that counts each recipient's mails, and keeps them only if it is told to."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.count = 0
        self.times: Counter[str] = Counter()
        self.keep = False

    def _keep(self, envelope: Envelope) -> None:
        self.count += 1
        self.times.update(recipient for recipient in envelope.rcpt_tos if recipient)
        if self.keep:
            super()._keep(envelope)


@dataclass
class Bench:
    """One virtual host, database and sink, and NotiPy's processes on them."""

    core: Core
    sink: CountingSink
    file: Path
    published: int = 0

    @asynccontextmanager
    async def consumers(self, processes: int) -> AsyncIterator[asyncio.subprocess.Process]:
        """`notipy run`, stopped at the end."""
        arguments = ["--config", str(self.file), "run", "--workers", str(processes)]
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "cli.main", *arguments)
        try:
            yield process
        finally:
            process.terminate()
            await process.wait()

    async def publish(self, number: int) -> None:
        """One event to one recipient."""
        self.published += 1
        body = {"recipients": [{"email": f"u{number}@example.org"}], "data": DATA}
        await self.core.publisher.event("bench.order.shipped", json.dumps(body).encode(), uuid4().hex)

    async def received(self, count: int, seconds: float = 300) -> None:
        """Wait until the sink has so many mails."""
        async with asyncio.timeout(seconds):
            while self.sink.count < count:  # noqa: ASYNC110 - a sink tells nobody; it is looked at
                await asyncio.sleep(0.01)

    def judged(self, count: int) -> tuple[int, int]:
        """How many were lost and how many came twice, counted at the sink."""
        times = self.sink.times
        return count - len(times), sum(n - 1 for n in times.values())


@asynccontextmanager
async def prepared(servers: Servers, folder: Path) -> AsyncIterator[Bench]:
    """A virtual host and a database of the scenario's own."""
    name = f"bench-{uuid4().hex[:8]}"
    RabbitAdmin(str(servers.management_url)).create_vhost(name)
    base, _, query = servers.mongo_url.partition("?")
    async with CountingSink(folder / name) as sink:
        document = {
            "amqp_url": f"{servers.amqp_url.rsplit('/', 1)[0]}/{name}",
            "mongo_url": f"{base.rsplit('/', 1)[0]}/{name}?{query}",
            "channels": {
                "email": {"providers": [{"name": "sink", "kind": "smtp", "url": sink.url, "from": "bench@example.org"}]}
            },
            "metrics": {"port": None},
            "logging": {"level": "warning"},
        }
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(document))
        async with open_core(Settings.model_validate(document)) as core:
            plan = await core.catalog.plan([NOTIFICATION], prune=False)
            await core.catalog.apply([NOTIFICATION], plan)
            yield Bench(core, sink, file)

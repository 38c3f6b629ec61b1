"""The page with `/metrics`, `/healthz` (alive) and `/readyz` (connected and consuming).

A module of its own, read where the page is served: the HTTP server is a tenth of what a start takes.
"""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from consumers.health import Condition


class Page:
    """The HTTP page that Prometheus and the orchestrator read; there is nothing else on it."""

    def __init__(self, state: Callable[[], Condition], registry: CollectorRegistry) -> None:
        self._state = state
        self._registry = registry
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Serve.

        Raises:
            OSError: the port is taken.
        """
        app = web.Application()
        app.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._alive),
                web.get("/readyz", self._ready),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Serve no more."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _alive(self, _: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def _ready(self, _: web.Request) -> web.Response:
        condition = self._state()
        status = 200 if condition.ready else 503
        told = {"ready": condition.ready, "problems": list(condition.problems), "paused": list(condition.paused)}
        return web.json_response(told, status=status)

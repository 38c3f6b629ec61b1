"""The network between NotiPy and a server is cut, swallows packets, or is slow."""

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from tests.chaos.proxy import Mode, TcpProxy
from tests.chaos.run import Fault, Run

_SECONDS = {Mode.CUT: 3.0, Mode.DROP: 5.0, Mode.SLOW: 4.0}
_WORDS = {
    Mode.CUT: "is cut",
    Mode.DROP: "swallows every packet (half-open connections)",
    Mode.SLOW: "takes 0.15 s for each packet",
}
_NAMES = {Mode.CUT: "cut", Mode.DROP: "half-open", Mode.SLOW: "slow"}


def _between(server: str) -> Callable[[Run], Awaitable[None]]:
    async def prepare(run: Run) -> None:
        """NotiPy's settings name the proxy instead of the server."""
        place = run.settings
        if server == "smtp":
            place, key = run.settings["channels"]["email"]["providers"][0], "url"
        else:
            key = f"{server}_url"
        port = urlsplit(place[key]).port
        assert port is not None
        proxy = await run.proxied(port)
        place[key] = place[key].replace(f":{port}", f":{proxy.port}")
        if server == "amqp":
            place[key] += "?heartbeat=2"  # a dead peer is noticed after three of them
        run.proxies[server] = proxy

    return prepare


def _through(server: str, mode: Mode) -> Callable[[Run], Awaitable[None]]:
    async def inject(run: Run) -> None:
        proxy: TcpProxy = run.proxies[server]
        proxy.set(mode)
        await asyncio.sleep(_SECONDS[mode])
        proxy.set(Mode.PASS)
        if mode is Mode.DROP:
            run.expect(proxy.swallowed, "no packet was swallowed")

    return inject


FAULTS = tuple(
    Fault(
        f"net-{name}-{_NAMES[mode]}",
        f"the network to {title} {_WORDS[mode]}",
        _through(server, mode),
        prepare=_between(server),
    )
    for server, name, title in (
        ("amqp", "rabbit", "RabbitMQ"),
        ("mongo", "mongo", "MongoDB"),
        ("smtp", "smtp", "the mail server"),
    )
    for mode in (Mode.CUT, Mode.DROP, Mode.SLOW)
)

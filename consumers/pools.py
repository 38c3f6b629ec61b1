"""The pools of a process: its providers with their circuits and limits, and its shares of the limits."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Protocol

import structlog

from config.settings import ChannelSettings
from domain.circuit import Circuit
from domain.pool import Member, Pool
from domain.ports import Now, Provider
from domain.rate import Limiter
from domain.vocabulary import Channel

log = structlog.get_logger()
RENEWED_EVERY = timedelta(seconds=2)
"""How soon a process learns that another has come."""
LEASE = 3 * RENEWED_EVERY
"""After which a process that has ended without a word is counted no more."""


class Shares(Protocol):
    """Who shares one limit."""

    async def renew(self, lease: timedelta) -> int:
        """Be one of them for as long as `lease`; returns how many there are."""
        ...

    async def leave(self) -> None:
        """Be none of them any more."""
        ...


def pool_of(
    chosen: ChannelSettings | None, providers: Sequence[Provider], now: Now, stopping: Callable[[], bool]
) -> Pool:
    """The providers in their order, each with the weight and the rate that the settings give to its name."""
    named = {each.name: each for each in chosen.providers} if chosen else {}

    def member(provider: Provider) -> Member:
        circuit, settings = Circuit(provider.name, now), named.get(provider.name)
        if settings is None:
            return Member(provider, circuit)
        limiter = Limiter(settings.rate, now, stopping=stopping) if settings.rate else None
        return Member(provider, circuit, settings.weight, limiter)

    return Pool([member(provider) for provider in providers])


def limited(pools: Mapping[Channel, Pool]) -> dict[str, Limiter]:
    """The limiters of these channels' providers, by the name under which processes share them."""
    return {
        f"rate/{channel}/{member.name}": member.limiter
        for channel, pool in pools.items()
        for member in pool.members
        if member.limiter is not None
    }


class Sharing:
    """Divides each limit among the processes that use it, evenly: one write every few seconds and none per message.

    A process that comes uses nothing before the others have learned of it, so that they do not exceed the limit
    together. While the database is away nothing is attempted, and the shares stay as they are.
    """

    def __init__(self, limiters: Mapping[str, Limiter], shares: Callable[[str], Shares]) -> None:
        self._limits = {name: (limiter, shares(name)) for name, limiter in limiters.items()}
        self._processes: dict[str, int] = {}

    async def begin(self) -> None:
        """Join, before anything is sent."""
        for name, (limiter, shares) in self._limits.items():
            processes = self._processes[name] = await shares.renew(LEASE)
            limiter.share(processes, unknown_for=RENEWED_EVERY if processes > 1 else timedelta(0))

    async def run(self) -> None:
        """Renew again and again, until cancelled."""
        while True:
            await asyncio.sleep(RENEWED_EVERY.total_seconds())
            await self.renew()

    async def renew(self) -> None:
        """Renew once, and go by what has changed."""
        for name, (limiter, shares) in self._limits.items():
            processes = await shares.renew(LEASE)
            if processes != self._processes.get(name):
                self._processes[name] = processes
                limiter.share(processes)
                log.info("rate.shared", limit=name, processes=processes)

    async def leave(self) -> None:
        """Leave the limits to the others."""
        await asyncio.gather(*(shares.leave() for _, shares in self._limits.values()))

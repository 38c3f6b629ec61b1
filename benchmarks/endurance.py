"""What shows only over time: memory over many deliveries, and what a consumer costs while its provider is paused."""

import asyncio
import os
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import yaml

from benchmarks.bench import Bench
from consumers.topology import channel_queue
from deploy.processes import free_ports
from domain.vocabulary import Channel, Lane

BACKLOG = 1000
"""Events kept waiting, so that the consumer never idles."""
WARM = 0.2
"""The part of the deliveries after which memory is compared: caches are full then, and pools have grown."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Memory:
    """Resident memory of the consumer, in MiB, at equal distances; `growth` from the warm one to the last, in parts."""

    deliveries: int
    samples_mib: list[float]
    growth: float
    lost: int
    duplicates: int


@dataclass(frozen=True)
class Paused:
    """CPU of a consumer whose provider is dead, in parts of a core, with so many deliveries waiting."""

    waiting: int
    seconds: float
    cpu: float
    tried: int


async def memory(bench: Bench, total: int, samples: int = 20) -> Memory:
    """Deliver `total`, one event each, and look at the memory now and then."""
    found: list[float] = []
    bench.sink.keep = False
    async with bench.consumers(1) as process:
        publishing = asyncio.create_task(_keep_busy(bench, total))
        for step in range(1, samples + 1):
            await bench.received(total * step // samples, seconds=3600)
            found.append(round(_resident(process.pid), 1))
            print(f"{bench.sink.count:>8,} deliveries  {found[-1]:.1f} MiB", flush=True)
        await publishing
    warm = found[max(0, round(samples * WARM) - 1)]
    lost, duplicates = bench.judged(total)
    return Memory(total, found, round(found[-1] / warm - 1, 3), lost, duplicates)


async def _keep_busy(bench: Bench, total: int) -> None:
    numbers = count()
    for _ in range(0, total, 100):
        while bench.published - bench.sink.count > BACKLOG:  # noqa: ASYNC110 - a sink tells nobody; it is looked at
            await asyncio.sleep(0.05)
        await asyncio.gather(*(bench.publish(next(numbers)) for _ in range(100)))


async def paused(bench: Bench, waiting: int, seconds: float = 30.0) -> Paused:
    """Let the provider be gone, and see what the consumer does meanwhile."""
    (port,) = free_ports(1)
    _provider(bench.file, f"smtp://127.0.0.1:{port}?tls=none")
    # each in a message of its own: they are counted in the queue
    await asyncio.gather(*(bench.publish(number) for number in range(waiting)))
    async with bench.consumers(1) as process:
        queue = channel_queue(Channel.EMAIL, Lane.NORMAL)
        async with asyncio.timeout(120):
            while (await bench.core.publisher.counts(queue) or (0, 0))[0] < waiting * 0.7:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        await asyncio.sleep(5)
        used = _cpu(process.pid)
        await asyncio.sleep(seconds)
        spent = _cpu(process.pid) - used
    tried = await bench.core.database.collection("attempts").count_documents({})
    return Paused(waiting, seconds, round(spent / seconds, 4), tried)


def _provider(file: Path, url: str) -> None:
    document = yaml.safe_load(file.read_text())
    document["channels"]["email"]["providers"][0]["url"] = url
    document["dispatch"] = {"normal": 1}
    file.write_text(yaml.safe_dump(document))


def _resident(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / 2**20


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS

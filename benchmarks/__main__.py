"""`make bench`: drain a backlog, broadcast, and steady latency, on private servers; a table and JSON lines.

Losses and duplicates are counted at the SMTP sink in every run. The sink runs in this process and so
shares a core with whatever is measured: the figures compare versions on one machine, they are no limits.
"""

import argparse
import asyncio
import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from rich.console import Console
from rich.table import Table

from benchmarks.bench import DATA, Bench, prepared
from benchmarks.endurance import memory, paused
from consumers.app import Core
from deploy.embedded import Servers, embedded_servers
from deploy.signals import terminate_as_interrupt
from domain.vocabulary import State


@dataclass(frozen=True)
class Figure:
    """One scenario's result; times in seconds, memory in MiB."""

    scenario: str
    processes: int
    deliveries: int
    seconds: float
    per_second: float
    cpu_per_1000: float
    rss_mib: float
    p50_ms: float | None
    p99_ms: float | None
    lost: int
    duplicates: int


async def drain(bench: Bench, count: int, processes: int) -> Figure:
    """A backlog of one-recipient events, from the first mail to the last."""
    await asyncio.gather(*(bench.publish(number) for number in range(count)))
    used = _children()
    async with bench.consumers(processes):
        await bench.received(1)
        begun, before = time.perf_counter(), bench.sink.count
        await bench.received(count)
        seconds = time.perf_counter() - begun
    return _figure("drain", bench, processes, count, (count - before) / seconds, seconds, used)


async def broadcast(bench: Bench, count: int, processes: int) -> Figure:
    """One event to many recipients, from its publication to the last mail."""
    body = {"recipients": [{"email": f"u{number}@example.org"} for number in range(count)], "data": DATA}
    used = _children()
    async with bench.consumers(processes):
        await bench.publish(count)
        await bench.received(1)
        begun = time.perf_counter()
        await bench.core.publisher.event("bench.order.shipped", json.dumps(body).encode(), uuid4().hex)
        await bench.received(count + 1)
        seconds = time.perf_counter() - begun
    return _figure("broadcast", bench, processes, count + 1, count / seconds, seconds, used)


async def steady(bench: Bench, count: int, processes: int) -> Figure:
    """A hundred events a second: the time from planning to the provider's acceptance, as MongoDB has it."""
    used = _children()
    async with bench.consumers(processes):
        await bench.publish(count)
        await bench.received(1)
        begun = time.perf_counter()
        for number in range(count):
            await asyncio.sleep(max(0.0, begun + number / 100 - time.perf_counter()))
            await bench.publish(number)
        await bench.received(count + 1)
        seconds = time.perf_counter() - begun
    figure = _figure("steady 100/s", bench, processes, count + 1, count / seconds, seconds, used)
    latencies = await _latencies(bench.core)
    ranked = {"p50_ms": latencies[len(latencies) // 2], "p99_ms": latencies[len(latencies) * 99 // 100]}
    return Figure(**{**asdict(figure), **ranked})


async def _latencies(core: Core) -> list[float]:
    found = core.database.collection("deliveries").find({"state": str(State.SENT)}, {"created_at": 1, "updated_at": 1})
    return sorted([(d["updated_at"] - d["created_at"]).total_seconds() * 1000 async for d in found])


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _figure(
    scenario: str, bench: Bench, processes: int, count: int, per_second: float, seconds: float, used: float
) -> Figure:
    lost, duplicates = bench.judged(count)
    cpu = (_children() - used) / count * 1000
    rss = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return Figure(
        scenario,
        processes,
        count,
        round(seconds, 2),
        round(per_second),
        round(cpu, 2),
        round(rss),
        None,
        None,
        lost,
        duplicates,
    )


async def measure(servers: Servers, folder: Path, size: int) -> list[Figure]:
    """Every scenario, each on a virtual host and database of its own."""
    figures = []
    for scenario, count, processes in (
        (drain, size, 1),
        (drain, size, 2),
        (broadcast, size, 1),
        (steady, max(300, size // 10), 1),
    ):
        async with prepared(servers, folder) as bench:
            figures.append(await scenario(bench, count, processes))
            print(json.dumps(asdict(figures[-1])), file=sys.stderr)
    return figures


async def _endure(servers: Servers, folder: Path, deliveries: int | None, waiting: int | None) -> int:
    """What takes long is measured by itself; 1 if anything was lost or came twice."""
    wrong = 0
    if deliveries:
        async with prepared(servers, folder) as bench:
            grown = await memory(bench, deliveries)
        wrong += grown.lost + grown.duplicates
        print(json.dumps(asdict(grown)))
    if waiting:
        async with prepared(servers, folder) as bench:
            print(json.dumps(asdict(await paused(bench, waiting))))
    return int(wrong > 0)


def show(figures: list[Figure]) -> None:
    """As a table."""
    table = Table(
        "scenario", "processes", "deliveries", "per second", "CPU s / 1,000", "RSS MiB", "p50 / p99 ms", "lost", "twice"
    )
    for f in figures:
        latency = f"{f.p50_ms:.1f} / {f.p99_ms:.1f}" if f.p50_ms is not None and f.p99_ms is not None else ""
        cells = (
            f.scenario,
            f.processes,
            f.deliveries,
            f.per_second,
            f.cpu_per_1000,
            f.rss_mib,
            latency,
            f.lost,
            f.duplicates,
        )
        table.add_row(*map(str, cells))
    Console().print(table)


def main() -> int:
    """1 if anything was lost or came twice."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 deliveries a scenario in place of 5,000")
    parser.add_argument("--memory", type=int, metavar="N", help="only the memory over N deliveries")
    parser.add_argument("--paused", type=int, metavar="N", help="only the CPU of a paused provider with N waiting")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    chosen = parser.parse_args()
    with (
        terminate_as_interrupt(),
        TemporaryDirectory() as folder,
        embedded_servers(Path(".notipy/bench"), log=lambda line: print(line, file=sys.stderr)) as servers,
    ):
        if chosen.memory or chosen.paused:
            return asyncio.run(_endure(servers, Path(folder), chosen.memory, chosen.paused))
        figures = asyncio.run(measure(servers, Path(folder), 1000 if chosen.quick else 5000))
    show(figures)
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1))
    return int(any(figure.lost or figure.duplicates for figure in figures))


if __name__ == "__main__":
    sys.exit(main())

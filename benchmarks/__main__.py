"""`make bench`: NotiPy beside its peers, on private servers; a table, the ratios and JSON.

Systems take turns, so that what else the machine does meets all of them. Losses and duplicates are counted at the mail
server in every run. Figures compare systems and versions on one machine; they are no limits.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from benchmarks.bench import prepared
from benchmarks.cluster import cluster
from benchmarks.endurance import memory, paused
from benchmarks.scenarios import (
    THREE_ADDRESSES,
    Figure,
    broadcast,
    drain,
    history,
    idle,
    middle,
    steady,
    three_channels,
)
from benchmarks.sink import Behaviour
from benchmarks.systems import CELERY, CELERY_16, FLOOR, NOTIPY
from deploy.embedded import Servers, embedded_servers
from deploy.signals import terminate_as_interrupt

NONE_STORED, MUCH_STORED = "drain, none stored", "drain, 1 M stored"
Measurement = Callable[[], Awaitable[Figure]]
COLUMNS = {
    "rate": "per second",
    "workers": "workers",
    "broker": "broker",
    "database": "database",
    "rss": "RSS MiB",
    "p50": "p50 ms",
    "p99": "p99 ms",
    "first": "first s",
    "idle": "idle %",
}


def beside_peers(servers: Servers, size: int) -> list[list[Measurement]]:
    """Each row: one scenario, the systems in turn."""
    few = max(300, size // 4)  # of what is several times slower
    return [
        [
            lambda: drain(servers, FLOOR, size),
            lambda: drain(servers, NOTIPY, size),
            lambda: drain(servers, CELERY, few),
            lambda: drain(servers, CELERY_16, few),
        ],
        [lambda: drain(servers, FLOOR, size, 2), lambda: drain(servers, NOTIPY, size, 2)],
        [lambda: broadcast(servers, FLOOR, 10_000), lambda: broadcast(servers, NOTIPY, 10_000)],
        [lambda: steady(servers, FLOOR, 10), lambda: steady(servers, NOTIPY, 10), lambda: steady(servers, CELERY, 10)],
        [lambda: idle(servers, NOTIPY)],
    ]


def more(servers: Servers, size: int, folder: str) -> list[list[Measurement]]:
    """What takes longer, of NotiPy alone."""
    return [
        [
            lambda: drain(servers, NOTIPY, size, scenario="provider 20 ms", behaviour=Behaviour(delay=0.02)),
            lambda: drain(servers, NOTIPY, size // 4, scenario="provider 200 ms", behaviour=Behaviour(delay=0.2)),
            lambda: drain(
                servers, NOTIPY, size // 4, scenario="a tenth fails once", behaviour=Behaviour(fail_every=10)
            ),
            lambda: drain(servers, three_channels(folder), size // 2, scenario="three channels", also=THREE_ADDRESSES),
            lambda: drain(servers, NOTIPY, size, 4),
        ],
        [
            lambda: drain(servers, NOTIPY, size, scenario=NONE_STORED),
            lambda: drain(servers, NOTIPY, size, scenario=MUCH_STORED, prepare=history(1_000_000)),
        ],
    ]


async def measure(rows: Sequence[Sequence[Measurement]], rounds: int) -> list[Figure]:
    """Every scenario, so many times, the systems in turn; the medians."""
    figures = []
    for row in rows:
        found: list[list[Figure]] = [[] for _ in row]
        for _ in range(rounds):
            for several, measurement in zip(found, row, strict=True):
                several.append(await measurement())
                print(_line(several[-1]), file=sys.stderr, flush=True)
        figures += [middle(several) for several in found]
    return figures


def _line(figure: Figure) -> str:
    told = "  ".join(f"{name} {_shown(name, figure.values[name])}" for name in COLUMNS if name in figure.values)
    return f"{figure.scenario:<18} {figure.system:<22} x{figure.processes}  {told}"


def _shown(name: str, value: float) -> str:
    if name == "idle":
        return f"{value * 100:.1f}"
    return f"{value:.2f}" if name in {"workers", "broker", "database", "first"} else f"{value:,.0f}"


def show(figures: Sequence[Figure]) -> None:
    """The table, and each figure as a part of the floor's."""
    table = Table("scenario", "system", "processes", "deliveries", *COLUMNS.values(), "lost", "twice")
    for f in figures:
        cells = [_shown(name, f.values[name]) if name in f.values else "" for name in COLUMNS]
        table.add_row(
            f.scenario, f.system, str(f.processes), f"{f.deliveries:,}", *cells, str(f.lost), str(f.duplicates)
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print("workers, broker, database: seconds of CPU per 1,000 deliveries; RSS: of the largest process")
    for line in ratios(figures):
        console.print(line)


def ratios(figures: Sequence[Figure]) -> list[str]:
    """NotiPy by its peers, and with a history by itself without one, where both were measured."""
    lines = []
    for own in (f for f in figures if f.system == NOTIPY.name):
        for peer in figures:
            if peer.system != NOTIPY.name and (peer.scenario, peer.processes) == (own.scenario, own.processes):
                told = [
                    f"{COLUMNS[name]} {own.values[name] / peer.values[name]:.2f}"
                    for name in ("rate", "workers", "p50", "p99")
                    if peer.values.get(name)
                ]
                lines.append(f"{own.scenario}, {own.processes} processes, notipy / {peer.system}: {', '.join(told)}")
    rates = {f.scenario: f.values["rate"] for f in figures if f.scenario in {NONE_STORED, MUCH_STORED}}
    if len(rates) > 1:
        lines.append(f"{MUCH_STORED} / none stored: per second {rates[MUCH_STORED] / rates[NONE_STORED]:.2f}")
    return lines


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


def _survive(count: int) -> int:
    """Once with a balancer before the nodes and once without; 1 if anything was lost, or came twice unflagged."""
    wrong = 0
    with terminate_as_interrupt():
        for balanced in (True, False):
            found = asyncio.run(cluster(Path(".notipy/bench"), count, balanced=balanced))
            print(json.dumps(asdict(found), indent=1))
            unflagged = found.arrivals.duplicates - found.records.flagged
            wrong += found.arrivals.lost + unflagged + (not found.records.audited)
    return int(wrong > 0)


def main() -> int:
    """1 if anything was lost or came twice."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="1,500 events a drain, every scenario once")
    size.add_argument("--full", action="store_true", help="three rounds, and what takes longer: half an hour")
    parser.add_argument("--memory", type=int, metavar="N", help="only the memory over N deliveries")
    parser.add_argument("--paused", type=int, metavar="N", help="only the CPU of a paused provider with N waiting")
    parser.add_argument(
        "--cluster", type=int, metavar="N", help="only N events on a cluster of which a node and the primary are killed"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    chosen = parser.parse_args()
    if chosen.cluster:
        return _survive(chosen.cluster)
    with (
        terminate_as_interrupt(),
        TemporaryDirectory() as folder,
        embedded_servers(Path(".notipy/bench"), log=lambda line: print(line, file=sys.stderr)) as servers,
    ):
        if chosen.memory or chosen.paused:
            return asyncio.run(_endure(servers, Path(folder), chosen.memory, chosen.paused))
        count = 1_500 if chosen.quick else 10_000
        rows = beside_peers(servers, count) + (more(servers, count, folder) if chosen.full else [])
        figures = asyncio.run(measure(rows, 1 if chosen.quick else 3 if chosen.full else 2))
    show(figures)
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1))
    return int(any(figure.lost or figure.duplicates for figure in figures))


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.chaos`: every fault, several seeds each, one line a run; `make chaos` calls it."""

import argparse
import json
import secrets
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from tests.chaos.crew import Crew, Task
from tests.chaos.faults import FAULTS
from tests.chaos.report import HEADER, Line, line_of, summary

HOME = Path(__file__).parents[2] / ".notipy" / "chaos"


def main() -> int:
    """Run; 0 if nothing was wrong."""
    options = _options()
    if options.list:
        print("\n".join(f"{fault.name:<28} {fault.about}" for fault in FAULTS.values()))
        return 0
    first = options.seed if options.seed is not None else secrets.randbelow(1_000_000)
    rounds = options.rounds if options.rounds else (1 if options.seed is not None else 3)
    tasks = [Task(name, first + number) for number in range(rounds) for name in options.fault or FAULTS]
    begun = time.monotonic()
    print(
        f"{len(tasks)} runs, {options.workers} at a time; seeds {first} to {first + rounds - 1}\n{HEADER}", flush=True
    )
    lines: list[Line] = []
    with suppress(KeyboardInterrupt), Crew(options.workers, HOME) as crew:
        for outcome in crew.work(tasks):
            line = line_of(outcome)
            lines.append(line)
            print(line.text, flush=True)
    print(summary(lines, time.monotonic() - begun))
    if options.json:
        _write(options.json, lines)
    if len(lines) < len(tasks):
        print(f"{len(tasks) - len(lines)} runs were not made")
    return 0 if len(lines) == len(tasks) and all(line.good for line in lines) else 1


def _write(path: Path, lines: Sequence[Line]) -> None:
    path.write_text("".join(json.dumps(asdict(line)) + "\n" for line in lines))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--fault", action="append", choices=sorted(FAULTS), help="this one only; may be repeated")
    parser.add_argument("--seed", type=int, help="the first seed (by default at random); alone: one round")
    parser.add_argument("--rounds", type=int, help="runs of each fault, with seeds one after another (3)")
    parser.add_argument(
        "--workers", type=int, default=2, help="runs at a time, each with its own servers (%(default)s)"
    )
    parser.add_argument("--list", action="store_true", help="list the faults")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each run's result there, one object a line")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""A run as a line, and all of them as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

HEADER = (
    f"{'fault':<28} {'seed':>7} {'accepted':>8} {'delivered':>9} {'duplicates':>10} {'flagged':>7}"
    f" {'lost':>4} {'recovery':>8} {'took':>6}"
)


@dataclass(frozen=True)
class Line:
    """One run: `text` is its line, with what was wrong below it."""

    fault: str
    seed: int
    good: bool
    text: str = field(repr=False)
    numbers: Mapping[str, Any]
    skipped: bool = False


def line_of(outcome: Mapping[str, Any]) -> Line:
    """What a worker sent, for people."""
    fault, seed = outcome["fault"], outcome["seed"]
    if why := outcome.get("skipped"):
        return Line(fault, seed, True, f"{fault:<28} {seed:>7} SKIPPED: {why}", outcome, skipped=True)
    if error := outcome.get("error"):
        return Line(fault, seed, False, f"{fault:<28} {seed:>7} FAILED: {error}\n{_replay(fault, seed)}", outcome)
    judged = outcome["judgement"]
    text = (
        f"{fault:<28} {seed:>7} {judged['accepted']:>8} {judged['delivered']:>9} {judged['duplicates']:>10}"
        f" {judged['flagged']:>7} {judged['lost']:>4} {outcome['recovery']:>7.1f}s {outcome['seconds']:>5.1f}s"
    )
    notes = "; ".join(outcome["notes"])
    text += f"  {notes}" if notes else ""
    wrong = [f"    {violation}" for violation in judged["violations"]]
    if wrong:
        text = "\n".join([text, *wrong, f"    logs: {outcome['kept']}", _replay(fault, seed)])
    return Line(fault, seed, not wrong, text, outcome)


def _replay(fault: str, seed: int) -> str:
    return f"    again: python -m tests.chaos --fault {fault} --seed {seed}"


def summary(lines: Sequence[Line], seconds: float) -> str:
    """A line for each fault, and one for all."""
    names = dict.fromkeys(line.fault for line in lines)
    rows = [
        f"\n{'fault':<28} {'runs':>4} {'good':>4} {'accepted':>8} {'delivered':>9} {'duplicates':>10} {'recovery':>8}",
        *(_row(name, [line for line in lines if line.fault == name]) for name in names),
    ]
    bad = [line for line in lines if not line.good]
    skipped = [line for line in lines if line.skipped]
    rows.append(
        f"\n{len(lines)} runs in {seconds / 60:.1f} min: {len(lines) - len(bad) - len(skipped)} good,"
        f" {len(bad)} with violations, {len(skipped)} skipped"
    )
    rows += [f"  {line.fault} --seed {line.seed}" for line in bad]
    return "\n".join(rows)


def _row(name: str, lines: Sequence[Line]) -> str:
    judged = [line.numbers["judgement"] for line in lines if "judgement" in line.numbers]
    recovery = max((line.numbers["recovery"] for line in lines if "recovery" in line.numbers), default=0.0)
    good = sum(line.good and not line.skipped for line in lines)
    totals = [sum(each[key] for each in judged) for key in ("accepted", "delivered", "duplicates")]
    return f"{name:<28} {len(lines):>4} {good:>4} {totals[0]:>8} {totals[1]:>9} {totals[2]:>10} {recovery:>7.1f}s"

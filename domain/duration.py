"""Durations as people write them: `5s`, `2m`, `1h30m`, `6h`, `2d`."""

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def parse_duration(value: object) -> timedelta:
    """Read `1h30m`, a number of seconds or a timedelta.

    Raises:
        ValueError: it is none of these; the message shows the form.
    """
    if isinstance(value, timedelta):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return timedelta(seconds=value)
    text = str(value).strip()
    if not text or _PART.sub("", text):
        raise ValueError("should be a duration such as 500ms, 5s, 2m, 1h30m or 2d")
    parts = {_UNITS[unit]: float(number) for number, unit in _PART.findall(text)}
    try:
        return timedelta(**parts)
    except OverflowError:
        raise ValueError("is longer than any duration can be") from None


def format_duration(value: timedelta) -> str:
    """Write a duration in the largest unit that leaves it whole: `90s` → `90s`, `120s` → `2m`."""
    milliseconds = round(value.total_seconds() * 1000)
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


Duration = Annotated[timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration, return_type=str)]

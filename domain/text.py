"""Short texts that may stand in a header or a log line, and how validation faults are told."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, ValidationError

_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_KEY = "[key]"
"""What pydantic calls a fault in a mapping's key; the values of such a key are not told of."""
_WORDS = {
    "extra_forbidden": "is not a field that NotiPy knows",
    "tuple_type": "should be a list",
    "dict_type": "should be a mapping",
    "model_type": "should be a mapping of fields",
}
"""In place of pydantic's words, which speak of Python's types."""
_PATTERNS = {
    r"^[a-z0-9][a-z0-9._-]{0,99}$": "should be at most 100 of a-z, 0-9, '.', '_' and '-', the first a letter or digit",
    r"^[a-z0-9][a-z0-9_-]{0,49}$": "should be at most 50 of a-z, 0-9, '_' and '-', the first a letter or digit",
    r"^[^/\\]+$": "should be the name of a file, without slashes",
}
"""What a person calls the patterns that fields of ours have to match."""
MAX_FAULTS = 20
"""How many faults of one document are told; the rest is counted."""
MAX_DETAIL = 2000
"""Characters of a detail: it is kept in the database, and travels in a header."""


def detail_text(text: str) -> str:
    """A detail as it may be stored: not too long, and without what cannot be written as UTF-8."""
    return text[:MAX_DETAIL].encode("utf-8", "replace").decode()


def told_over(at: datetime | None) -> str:
    """What is said of a delivery whose time was over then."""
    return f"its time was over at {at:%Y-%m-%dT%H:%M:%SZ}" if at else "its time was over"


def single_line(value: str) -> str:
    """Return the text if it is one line without control characters.

    Raises:
        ValueError: it is not; such a text could smuggle headers into a message.
    """
    if _CONTROL.search(value):
        raise ValueError("contains a line break or another control character")
    return value


SingleLine = Annotated[str, AfterValidator(single_line)]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one field of a document; never the field's value."""

    field: str
    fault: str

    def __str__(self) -> str:
        return f"{self.field}: {self.fault}" if self.field else self.fault


def faults_of(error: ValidationError, prefix: str = "") -> tuple[Fault, ...]:
    """Turn pydantic's errors into faults, one a field, in a person's words."""
    items = error.errors(include_url=False, include_input=False)
    unknown = {item["loc"][:-1] for item in items if item["loc"][-1:] == (_KEY,)}
    return tuple(
        _fault(item, prefix)
        for item in items
        if item["loc"][-1:] == (_KEY,) or not any(item["loc"][: len(loc)] == loc for loc in unknown)
    )


def _fault(item: Any, prefix: str) -> Fault:
    path = ".".join(str(part) for part in (prefix, *item["loc"]) if part not in {"", _KEY})
    return Fault(path[:200], _message(item)[:300])


def _message(item: Any) -> str:
    if item["type"] == "string_pattern_mismatch":
        pattern = item["ctx"]["pattern"]
        return _PATTERNS.get(pattern, f"should match the pattern {pattern}")
    if item["type"] == "enum" and item["loc"][-1:] == (_KEY,):
        return f"is not one of {item['ctx']['expected']}"
    return _WORDS.get(item["type"]) or str(item["msg"]).removeprefix("Value error, ")


def describe(faults: Iterable[Fault]) -> str:
    """Join the faults to one line, the first `MAX_FAULTS` of them."""
    told = [str(fault) for fault in faults]
    more = f"; and {len(told) - MAX_FAULTS} more" if len(told) > MAX_FAULTS else ""
    return "; ".join(told[:MAX_FAULTS]) + more

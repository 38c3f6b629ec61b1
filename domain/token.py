"""Tokens that tell a writer's own document from another's of the same id."""

from itertools import count
from uuid import uuid4

_PROCESS, _NUMBERS = uuid4().hex, count(1)


def unique_token() -> str:
    """Unique among all processes, without asking the system for randomness each time."""
    return f"{_PROCESS}-{next(_NUMBERS)}"

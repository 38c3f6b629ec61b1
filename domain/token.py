"""Tokens that tell a writer's own document from another's of the same id."""

import os
from collections.abc import Iterator
from itertools import count
from uuid import uuid4


def _tokens() -> Iterator[str]:
    prefix = uuid4().hex
    return (f"{prefix}-{number}" for number in count(1))


_own = _tokens()


def _begin_anew() -> None:
    """In a process that was forked: with its parent's tokens it would take others' claims for its own."""
    global _own
    _own = _tokens()


os.register_at_fork(after_in_child=_begin_anew)


def unique_token() -> str:
    """Unique among all processes, without asking the system for randomness each time."""
    return next(_own)

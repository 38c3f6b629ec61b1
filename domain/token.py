"""Tokens that tell a writer's own document from another's of the same id."""

import os
from itertools import count
from uuid import uuid4


class _Tokens:
    """Those of this process. One that is forked begins its own: with its parent's it would take others' for its own."""

    def __init__(self) -> None:
        self._process = 0

    def __call__(self) -> str:
        if self._process != os.getpid():
            self._process, self._prefix, self._numbers = os.getpid(), uuid4().hex, count(1)
        return f"{self._prefix}-{next(self._numbers)}"


_TOKENS = _Tokens()


def unique_token() -> str:
    """Unique among all processes, without asking the system for randomness each time."""
    return _TOKENS()

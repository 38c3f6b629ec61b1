"""Waiting out an outage: the one retry loop around calls to MongoDB and RabbitMQ."""

import asyncio
from collections.abc import Awaitable, Callable
from random import random
from typing import TypeVar

T = TypeVar("T")
FIRST_WAIT = 0.05
"""Seconds before the first repetition."""
LONGEST_WAIT = 5.0
"""Seconds between repetitions at most, so that recovery is noticed soon after it comes."""


async def wait_out(
    operation: Callable[[], Awaitable[T]],
    outages: tuple[type[BaseException], ...],
    on_outage: Callable[[BaseException], None],
) -> T:
    """Call until it succeeds, waiting longer each time (doubling, with full jitter on the upper half).

    Errors other than `outages` are raised at once; being cancelled ends it.
    """
    wait = FIRST_WAIT
    while True:
        try:
            return await operation()
        except outages as outage:
            on_outage(outage)
        await asyncio.sleep(wait * (0.5 + random() / 2))  # noqa: S311 - jitter, not a secret
        wait = min(wait * 2, LONGEST_WAIT)

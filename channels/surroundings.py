"""What a provider may use of NotiPy itself, beside its own settings."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any


async def _nowhere(_exchange: str, _key: str, _body: bytes, _headers: Mapping[str, Any]) -> None:
    raise RuntimeError("there is no connection to RabbitMQ here")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Given to every provider when it is made; most need none of it.

    Attributes:
        publish: exchange, routing key, body and headers, over NotiPy's own connection; returns after the confirmation.
    """

    publish: Callable[[str, str, bytes, Mapping[str, Any]], Awaitable[None]] = _nowhere


NOWHERE = Surroundings()
"""For making a provider only to look at it."""

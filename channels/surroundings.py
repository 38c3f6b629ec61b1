"""What a provider may use of NotiPy itself, beside its own settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from domain.ports import Endpoints, Files, Inbox


class Publish(Protocol):
    """Hands a message to an exchange, over NotiPy's own connection."""

    async def __call__(
        self,
        exchange: str,
        key: str,
        body: bytes,
        headers: Mapping[str, Any],
        *,
        mandatory: bool = False,
        persistent: bool = True,
    ) -> None:
        """Return after the confirmation; that no queue takes it is a failure only if it is `mandatory`."""
        ...


async def _nowhere(
    exchange: str,  # noqa: ARG001
    key: str,  # noqa: ARG001
    body: bytes,  # noqa: ARG001
    headers: Mapping[str, Any],  # noqa: ARG001
    *,
    mandatory: bool = False,  # noqa: ARG001
    persistent: bool = True,  # noqa: ARG001
) -> None:
    raise RuntimeError("there is no connection to RabbitMQ here")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Given to every provider when it is made; most need none of it.

    Attributes:
        publish: exchange, routing key, body and headers, over NotiPy's own connection; returns after the confirmation.
            Raises a `DeliveryFailure`: there is no such exchange, the broker refuses, or the connection was lost.
        endpoints: where the health of recipients' endpoints is kept; None: nowhere, so that none is given up.
        files: where attachments are kept for all deliveries of their event; None: each delivery fetches its own.
        inbox: the recipients' inboxes; None: there are none here.
    """

    publish: Publish = _nowhere
    files: Files | None = None
    endpoints: Endpoints | None = None
    inbox: Inbox | None = None


NOWHERE = Surroundings()
"""For making a provider only to look at it."""

"""What the suites ask of a failure, and how they are parametrised: by the subjects that a promise is for, no others."""

from collections.abc import Callable
from typing import Any

import pytest

from domain.circuit import Circuit, Mode
from domain.failures import DeliveryFailure
from domain.ports import Provider
from tests.conformance.subject import CREATED, Peer, Subject
from tests.conformance.subjects import subjects

SUBJECTS = subjects()


def those(concerned: Callable[[Any], object], kind: type[Subject] = Subject) -> pytest.MarkDecorator:
    """For every subject that the promise is for."""
    found = [each for each in SUBJECTS if isinstance(each, kind) and concerned(each)]
    return pytest.mark.parametrize("subject", found, ids=lambda subject: subject.kind)


def told_of(error: BaseException) -> str:
    """Everything that an error says of itself and of what it came from."""
    current: BaseException | None = error
    words = ""
    while current is not None:
        words += f"{current} {current!r} {getattr(current, 'detail', '')}"
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return words


def pauses(failure: DeliveryFailure) -> bool:
    """Whether this one failure is enough for the provider's circuit."""
    circuit = Circuit("primary", lambda: CREATED)
    circuit.ended(failure)
    return circuit.mode is Mode.OPEN


async def failure_of(provider: Provider, subject: Subject, peer: Peer) -> DeliveryFailure:
    """How the subject's message fails; neither a secret nor the address is told."""
    with pytest.raises(DeliveryFailure) as caught:
        await provider.send(subject.message_over(peer.url))
    assert caught.value.detail.isprintable()
    for private in (*subject.secrets, subject.address):
        assert private not in told_of(caught.value)
    return caught.value

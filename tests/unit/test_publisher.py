"""What a publish waits out."""

from typing import Any, cast

import pytest

from consumers.publisher import Publisher
from consumers.topology import Topology
from domain.vocabulary import Channel


@pytest.mark.parametrize("outage", [Exception, ConnectionError, TimeoutError], ids=lambda outage: outage.__name__)
async def test_a_lost_channel_is_waited_out_whatever_the_client_makes_of_it(outage: type[Exception]) -> None:
    publisher = Publisher(cast("Any", None), Topology((Channel.EMAIL,), ()))
    errors: list[Exception] = [outage("gone"), outage("still gone")]
    told: list[BaseException] = []
    publisher.on_outage = told.append

    async def publish() -> str:
        if errors:
            raise errors.pop()
        return "confirmed"

    assert await publisher._waited(publish) == "confirmed"
    assert len(told) == 2


async def test_a_fault_of_our_own_is_no_outage() -> None:
    publisher = Publisher(cast("Any", None), Topology((Channel.EMAIL,), ()))

    async def publish() -> None:
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        await publisher._waited(publish)

"""Many messages acknowledged at once, and none that is not settled."""

import asyncio
from dataclasses import dataclass, field
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from consumers.acks import Acks
from domain.group_commit import ENOUGH
from tests.waiting import eventually

PREFETCH = 100


@dataclass
class Channel:
    """Remembers what was acknowledged, and like RabbitMQ closes itself over what is acknowledged twice."""

    is_closed: bool = False
    frames: list[tuple[int, bool]] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)

    async def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:
        if self.is_closed or delivery_tag in self.gone:
            self.is_closed = True
            raise ConnectionError
        self.frames.append((delivery_tag, multiple))
        self.gone |= set(range(1, delivery_tag + 1)) if multiple else {delivery_tag}


async def test_what_is_settled_together_is_one_frame() -> None:
    channel = Channel()
    acks = Acks(channel, PREFETCH)
    for tag in (2, 3, 1, 4):
        acks.settled(tag)
    await eventually(lambda: channel.gone == {1, 2, 3, 4})
    assert channel.frames == [(4, True)]


async def test_no_message_waits_where_the_broker_hands_out_no_other() -> None:
    channel = Channel()
    acks = Acks(channel, prefetch=1)
    acks.settled(1)
    for _ in range(5):  # turns of the loop, no time
        await asyncio.sleep(0)
    assert channel.frames == [(1, False)]


async def test_when_there_are_enough_none_waits_longer() -> None:
    channel = Channel()
    acks = Acks(channel, PREFETCH)
    for tag in range(1, ENOUGH + 1):
        acks.settled(tag)
    for _ in range(5):
        await asyncio.sleep(0)
    assert channel.frames == [(ENOUGH, True)]


async def test_one_that_takes_long_does_not_keep_the_others_for_ever_and_is_not_acknowledged_with_them() -> None:
    channel = Channel()
    acks = Acks(channel, PREFETCH)
    for tag in (2, 3):
        acks.settled(tag)
    await eventually(lambda: channel.gone == {2, 3})
    acks.settled(1)
    acks.settled(4)
    await eventually(lambda: channel.gone == {1, 2, 3, 4})


async def test_what_was_given_back_is_not_acknowledged() -> None:
    channel = Channel()
    acks = Acks(channel, PREFETCH)
    acks.given_back(1)
    for tag in (2, 3):
        acks.settled(tag)
    await eventually(lambda: channel.frames == [(3, True)])


async def test_nothing_is_acknowledged_while_held() -> None:
    channel = Channel()
    acks = Acks(channel, PREFETCH)
    acks.hold()
    for tag in (1, 2):
        acks.settled(tag)
    assert acks._flushing is None, "nothing is under way that could acknowledge them"
    assert not channel.frames
    acks.release()
    await eventually(lambda: channel.gone == {1, 2})


async def test_nor_is_what_waits_for_others_when_it_is_held() -> None:
    channel = Channel()
    acks = Acks(channel, PREFETCH)
    acks.settled(1)
    await asyncio.sleep(0)  # it waits for others
    acks.hold()
    await eventually(lambda: acks._flushing is None)
    assert not channel.frames
    acks.release()
    await eventually(lambda: channel.gone == {1})


async def test_behind_one_that_takes_long_none_waits_where_the_broker_hands_out_no_other() -> None:
    channel = Channel()
    acks = Acks(channel, prefetch=4)
    for tag in (2, 3, 4):
        acks.settled(tag)
    for _ in range(5):  # turns of the loop, no time
        await asyncio.sleep(0)
    assert channel.gone == {2, 3, 4}


async def test_a_closed_channel_is_left_alone() -> None:
    channel = Channel()
    acks = Acks(channel, PREFETCH)
    channel.is_closed = True
    acks.settled(1)
    await eventually(lambda: acks._flushing is None)
    assert not channel.frames


@given(st.integers(1, 60), st.randoms(use_true_random=False), st.floats(0, 1))
def test_only_what_is_settled_is_ever_acknowledged(count: int, rng: Random, part: float) -> None:
    async def run() -> None:
        channel = Channel()
        acks = Acks(channel, PREFETCH)
        tags = list(range(1, count + 1))
        rng.shuffle(tags)
        settled: set[int] = set()
        for tag in tags[: round(count * part)]:
            acks.settled(tag)
            settled.add(tag)
            if rng.random() < 0.2:
                await acks.flush()
                assert channel.gone == settled
        await acks.flush()
        assert channel.gone == settled
        assert len(channel.frames) <= len(settled)

    asyncio.run(run())

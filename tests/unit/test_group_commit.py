"""Concurrent callers share a write, and each has its own result."""

import asyncio
from collections.abc import Sequence

import pytest

from domain.group_commit import ENOUGH, GroupCommit, enough
from tests.waiting import eventually

LONG = 60.0
"""Seconds that no test waits."""


class Writer:
    """Remembers the batches; while `hold` is set, a write does not return."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.hold = asyncio.Event()
        self.hold.set()

    async def __call__(self, items: list[int]) -> Sequence[int | Exception]:
        self.batches.append(items)
        await self.hold.wait()
        return [ValueError(f"{item} is odd") if item % 2 else item * 10 for item in items]


async def test_who_comes_while_a_write_is_under_way_shares_the_next() -> None:
    writer = Writer()
    commit = GroupCommit(writer, max_batch=3)
    writer.hold.clear()
    first = asyncio.create_task(commit.submit(0))
    await eventually(lambda: writer.batches == [[0]])
    others = [asyncio.create_task(commit.submit(item)) for item in (2, 4, 6, 8)]
    await asyncio.sleep(0)
    writer.hold.set()
    assert await asyncio.gather(first, *others) == [0, 20, 40, 60, 80]
    assert writer.batches == [[0], [2, 4, 6], [8]]


async def test_a_fault_is_its_own_callers_alone() -> None:
    commit = GroupCommit(Writer())
    even, odd = await asyncio.gather(commit.submit(2), commit.submit(3), return_exceptions=True)
    assert even == 20
    with pytest.raises(ValueError, match="3 is odd"):
        raise odd  # type: ignore[misc]


async def test_a_caller_that_was_cancelled_before_the_write_is_left_out() -> None:
    writer = Writer()
    commit = GroupCommit(writer)
    writer.hold.clear()
    first = asyncio.create_task(commit.submit(0))
    await eventually(lambda: writer.batches == [[0]])
    gone, stays = asyncio.create_task(commit.submit(2)), asyncio.create_task(commit.submit(4))
    await asyncio.sleep(0)
    gone.cancel()
    writer.hold.set()
    assert list(await asyncio.gather(first, stays)) == [0, 40]
    assert writer.batches == [[0], [4]]


async def test_who_is_in_no_hurry_waits_for_others() -> None:
    writer = Writer()
    commit = GroupCommit(writer, linger=LONG, enough=2)
    first = asyncio.create_task(commit.submit(0))
    for _ in range(5):
        await asyncio.sleep(0)
    assert writer.batches == []
    assert list(await asyncio.gather(first, commit.submit(2))) == [0, 20]
    assert writer.batches == [[0, 2]]


async def test_unless_one_is() -> None:
    writer = Writer()
    commit = GroupCommit(writer, linger=LONG, enough=9)
    first = asyncio.create_task(commit.submit(0))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert list(await asyncio.gather(first, commit.submit(2, hurry=True))) == [0, 20]
        assert await commit.submit(4, hurry=True) == 40
    assert writer.batches == [[0, 2], [4]]


@pytest.mark.parametrize(("in_progress", "few"), [(1, 1), (4, 1), (8, 2), (100, ENOUGH), (10_000, ENOUGH)])
def test_never_do_all_that_are_in_progress_wait_for_more(in_progress: int, few: int) -> None:
    assert enough(in_progress) == few <= in_progress


async def test_but_not_for_ever() -> None:
    writer = Writer()
    assert await GroupCommit(writer, linger=0.01, enough=2).submit(4) == 40
    assert writer.batches == [[4]]


async def test_when_there_are_enough_nobody_waits() -> None:
    writer = Writer()
    commit = GroupCommit(writer, linger=LONG, enough=3)
    async with asyncio.timeout(5):
        assert await asyncio.gather(*map(commit.submit, (0, 2, 4))) == [0, 20, 40]
        assert await asyncio.gather(*map(commit.submit, (6, 8, 10))) == [60, 80, 100]
    assert writer.batches == [[0, 2, 4], [6, 8, 10]]


async def test_many_of_one_caller_share_a_write_and_what_one_has_met_stands_in_its_place() -> None:
    writer = Writer()
    results = await GroupCommit(writer, max_batch=3).submit_all([0, 2, 3, 4])
    assert [str(result) for result in results] == ["0", "20", "3 is odd", "40"]
    assert writer.batches == [[0, 2, 3], [4]]
    assert await GroupCommit(writer).submit_all([]) == []


async def test_what_a_cancelled_caller_has_not_written_is_left_out() -> None:
    writer = Writer()
    commit = GroupCommit(writer, max_batch=2)
    writer.hold.clear()
    many = asyncio.create_task(commit.submit_all([0, 2, 4, 6]))
    await eventually(lambda: writer.batches == [[0, 2]])
    other = asyncio.create_task(commit.submit(8))
    await asyncio.sleep(0)
    many.cancel()
    writer.hold.set()
    assert await other == 80
    assert [item for batch in writer.batches for item in batch] == [0, 2, 8]
    with pytest.raises(asyncio.CancelledError):
        await many

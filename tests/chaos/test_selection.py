"""A few faults with small loads and fixed seeds; `make chaos` runs all of them, larger, with others."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.processes import stopped_at_exit
from tests.chaos.arena import Arena
from tests.chaos.faults import FAULTS
from tests.chaos.run import execute
from tests.conftest import SharedServers

SCALE = 0.08
"""Of the load: some 80 events and 120 deliveries."""


@pytest.fixture
def arena(servers: SharedServers) -> Iterator[Arena]:
    """The servers that all tests share; these faults kill none."""
    with stopped_at_exit(timeout=1.0) as processes:
        yield Arena(servers.amqp_url, servers.mongo_url, servers.management_url, processes)


@pytest.mark.parametrize(
    ("fault", "seed"),
    [
        ("kill-recorded", 4),
        ("zombie-sent", 5),
        ("rabbit-connections-closed", 6),
        ("smtp-closes-after-data", 7),
    ],
)
async def test_nothing_is_lost_and_no_duplicate_goes_unflagged(
    fault: str, seed: int, arena: Arena, tmp_path: Path
) -> None:
    result = await execute(FAULTS[fault], seed, arena, tmp_path, scale=SCALE)
    assert result.judgement.violations == ()
    assert result.judgement.delivered > 60

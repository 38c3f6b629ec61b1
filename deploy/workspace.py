"""Where embedded servers keep their data and logs: one locked directory per run."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import DirectoryInUse

_RUN_PREFIX = "run-"
_KEPT_LOGS = 10


@dataclass(frozen=True)
class Workspace:
    """Directories of one run: `data` is this run's alone, `log` outlives it."""

    data: Path
    log: Path


@contextmanager
def workspace(directory: Path, *, keep: bool) -> Iterator[Workspace]:
    """Reserve data and log directories below `directory`; no other run, of this or another process, gets the same.

    With `keep` the data is `directory/data` and stays; DirectoryInUse is raised while another run has it. Without,
    it is a new directory that is removed on leaving. What a killed run left behind is removed by the next one.
    """
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    _sweep(directory)
    data = directory / "data" if keep else Path(tempfile.mkdtemp(prefix=_RUN_PREFIX, dir=directory))
    data.mkdir(exist_ok=True)
    lock = _lock(data)
    if lock is None:
        raise DirectoryInUse(f"{data} is in use by another run. Stop it, or choose another directory.")
    try:
        log = directory / "log" / data.name
        log.mkdir(parents=True, exist_ok=True)
        yield Workspace(data, log)
    finally:
        if not keep:
            shutil.rmtree(data, ignore_errors=True)
        os.close(lock)


def _lock(data: Path) -> int | None:
    """Descriptor that holds the directory's lock until it is closed or the process ends; None if it is taken."""
    descriptor = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep(directory: Path) -> None:
    """Remove the data of runs that were killed, and all logs but the newest."""
    for data in directory.glob(f"{_RUN_PREFIX}*"):
        lock = _lock(data)
        if lock is not None:
            shutil.rmtree(data, ignore_errors=True)
            os.close(lock)
    logs = sorted((directory / "log").glob(f"{_RUN_PREFIX}*"), key=lambda path: path.stat().st_mtime)
    for log in logs[:-_KEPT_LOGS]:
        shutil.rmtree(log, ignore_errors=True)

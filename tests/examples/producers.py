"""The producers of examples/, and what each needs to run.

Python's needs nothing beyond the development environment. The shell's needs `amqp-publish`, which is installed from
Debian's packages like the RabbitMQ of the tests; Node's needs `npm ci`, its only dependency pinned by its hash in
package-lock.json. A producer whose language is not on this machine is no test of it: it is left out, not skipped.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "examples" / "producers"
Command = Sequence[str | Path]


def python(_: Path) -> Command:
    """With pika, from the development environment."""
    return [sys.executable, FOLDER / "publish.py"]


def node(scratch: Path) -> Command:
    """With amqplib, installed beside a copy."""
    copy = scratch / "producers"
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("node_modules"))
    _run("npm", "ci", "--no-audit", "--no-fund", "--prefer-offline", cwd=copy)
    return ["node", copy / "publish.mjs"]


def shell(_: Path) -> Command:
    """With amqp-publish, installed if it is not there."""
    if shutil.which("amqp-publish") is None:
        apt = ("apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=120")
        _run(*apt, "update")
        _run(*apt, "install", "--no-install-recommends", "amqp-tools")
    return ["sh", FOLDER / "publish.sh"]


def at_hand() -> Iterator[Callable[[Path], Command]]:
    """Those that can run on this machine."""
    yield python
    if shutil.which("node") and shutil.which("npm"):
        yield node
    if shutil.which("amqp-publish") or (shutil.which("apt-get") and os.geteuid() == 0):
        yield shell


def _run(*command: str, cwd: Path | None = None) -> None:
    result = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)} failed:\n{result.stdout}"

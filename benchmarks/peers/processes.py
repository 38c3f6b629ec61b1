"""A peer's command line, and several processes of one peer under a parent."""

import os
import signal
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType


@dataclass(frozen=True)
class Addresses:
    """Where a peer finds its servers."""

    amqp: str
    mongo: str
    smtp: tuple[str, int]


def arguments(description: str | None) -> ArgumentParser:
    """The flags that both peers have."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--amqp", required=True, metavar="URL")
    parser.add_argument("--mongo", required=True, metavar="URL", help="with the database in its path")
    parser.add_argument("--smtp", required=True, metavar="HOST:PORT", type=_host_and_port)
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="(%(default)s)")
    return parser


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def supervise(module: str, count: int, given: Sequence[str]) -> int:
    """Run `python -m module` with these arguments `count` times, one process each, and wait for them.

    All of them end on SIGTERM or SIGINT, and as soon as one ends by itself. Returns 0 if every one ended in order.
    """
    children: list[subprocess.Popen[bytes]] = []
    asked = False

    def end(_number: int = 0, _frame: FrameType | None = None) -> None:
        nonlocal asked
        asked = True
        for child in children:
            child.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    command = [sys.executable, "-m", module, *given, "--processes", "1"]
    while len(children) < count and not asked:
        # sessions of their own: a terminal's Ctrl-C reaches the parent alone
        children.append(subprocess.Popen(command, start_new_session=True))
    if asked:  # also the one that was being started just then
        end()
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    end()
    codes = [child.wait() for child in children]
    # a child that was still starting knows no SIGTERM yet, and has taken nothing that it could lose
    return int(any(code not in {0, -signal.SIGTERM} for code in codes))

"""Standard output, as a file, a full disk, a pipe that nobody reads any more."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from channels.surroundings import NOWHERE, Surroundings
from channels.taxonomy import Meaning
from domain.vocabulary import Channel
from tests.conformance.subject import TEXT, Ground, Subject, message

ROOM = "#orders-of-ana"
RULE = "─" * 72


@dataclass(frozen=True)
class Output:
    """What was written to standard output is in a file."""

    path: Path
    url: str = ""
    surroundings: Surroundings = NOWHERE
    connections: int = 0
    opened: int = 0

    async def taken(self) -> Sequence[str]:
        """The blocks, each after its rule."""
        return self.path.read_text("utf-8").split(f"{RULE}\n")[1:]


def opened(answer: str, path: Path) -> TextIO:
    match answer:
        case "a full disk":
            return open("/dev/full", "w", encoding="utf-8")
        case "a pipe that nobody reads":
            reading, writing = os.pipe()
            os.close(reading)
            return os.fdopen(writing, "w", encoding="utf-8")
        case _:
            return path.open("w", encoding="utf-8")


@asynccontextmanager
async def output(_: Subject, answer: str, ground: Ground) -> AsyncIterator[Output]:
    path = ground.folder / "stdout"
    stream = opened(answer, path)
    if answer == "closed":
        stream.close()
    try:
        with redirect_stdout(stream):
            yield Output(path)
    finally:
        with suppress(OSError):  # of what could not be written
            stream.close()


def requested(block: str) -> None:
    for line in ("Channel: chat", f"To: {ROOM}", "Delivery: d1", "Idempotency-Key: d1/1", f"Title: {TEXT}!", TEXT):
        assert line in block.splitlines()


SUBJECT = Subject(
    kind="console",
    channel=Channel.CHAT,
    options=lambda _, __: {},
    message=message(Channel.CHAT, {"chat": ROOM}),
    address=ROOM,
    success="a file",
    failures={name: (name, Meaning.TRANSIENT) for name in ("closed", "a full disk", "a pipe that nobody reads")},
    classes=frozenset({Meaning.TRANSIENT}),
    serve=output,
    requested=requested,
    connections=0,
    stranger=None,
)

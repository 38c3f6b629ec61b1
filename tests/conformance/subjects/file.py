"""A directory of a real file system."""

import resource
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from channels.surroundings import NOWHERE, Surroundings
from channels.taxonomy import Meaning
from domain.vocabulary import Channel
from tests.conformance.subject import TEXT, Ground, Subject, message

PHONE = "+4915112345678"


@dataclass(frozen=True)
class Directory:
    """Where the files are."""

    path: Path
    surroundings: Surroundings = NOWHERE
    connections: int = 0
    opened: int = 0

    @property
    def url(self) -> str:
        return str(self.path)

    async def taken(self) -> Sequence[str]:
        return [path.read_text("utf-8") for path in sorted(self.path.rglob("*")) if path.is_file()]


@asynccontextmanager
async def directory(_: Subject, answer: str, ground: Ground) -> AsyncIterator[Directory]:
    path = Path(mkdtemp(dir=ground.folder)) / "sent"
    if answer == "a file in its place":
        path.write_text("in the way")
    elif answer == "a file in a channel's place":
        path.mkdir()
        (path / "sms").write_text("in the way")
    with _no_room() if answer == "no room" else _as_it_is():
        yield Directory(path)


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _no_room() -> Iterator[None]:
    """The system lets this process write not one byte into a file: a full disk that needs no disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def requested(file: str) -> None:
    head, _, body = file.partition("\n\n")
    lines = {"Channel: sms", f"To: {PHONE}", "Delivery: d1", "Idempotency-Key: d1/1"}
    assert lines <= set(head.splitlines())
    assert body.strip() == TEXT


def key(file: str) -> str:
    (line,) = [line for line in file.splitlines() if line.startswith("Idempotency-Key: ")]
    return line.partition(": ")[2]


SUBJECT = Subject(
    kind="file",
    channel=Channel.SMS,
    options=lambda url, _: {"directory": url},
    message=message(Channel.SMS, {"phone": PHONE}),
    address=PHONE,
    success="writable",
    failures={
        name: (name, meaning)
        for name, meaning in {
            "a file in its place": Meaning.CONFIGURATION,
            "a file in a channel's place": Meaning.CONFIGURATION,
            "no room": Meaning.TRANSIENT,
        }.items()
    },
    classes=frozenset({Meaning.TRANSIENT, Meaning.CONFIGURATION}),
    serve=directory,
    requested=requested,
    idempotency=key,
    connections=0,
    stranger=None,
)

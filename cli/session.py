"""What a command works with: the settings, MongoDB alone, or MongoDB and RabbitMQ. Nothing here outlives a command.

Heavy modules are imported inside functions, so that `notipy --help` answers at once.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from cli.failures import BadInput, CommandFailed
from cli.options import Globals

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection

    from config.settings import Settings
    from consumers.app import Core
    from consumers.stores import Stores
    from domain.text import Fault
    from domain.vocabulary import Channel

T = TypeVar("T")
START_SERVERS = "`notipy run --embedded` starts private ones for development; `notipy doctor` checks everything."


def execute(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work to its end."""
    return asyncio.run(work)


def load(ctx: typer.Context, *, sending: bool = False) -> "Settings":
    """The settings that the command line and the environment name; `sending`: with all that providers need.

    Raises:
        BadInput: they cannot be used; it says of each wrong setting where it is and what it should be.
    """
    from config.logging import configure_logging
    from config.settings import LoggingSettings, SettingsError, load_settings

    chosen = ctx.find_root().obj
    configure_logging(LoggingSettings(level="warning"))
    for client in ("aio_pika", "aiormq"):  # what it would log of a failed connection, the command tells
        logging.getLogger(client).setLevel(logging.CRITICAL)
    try:
        file = chosen.config if isinstance(chosen, Globals) else None
        return load_settings(file, sending=sending, check=_check_provider)
    except SettingsError as error:
        raise BadInput(str(error)) from None


def _check_provider(channel: "Channel", name: str, kind: str, options: "Mapping[str, Any]") -> "Sequence[Fault]":
    """Reads the adapters only where there is something wrong to be told."""
    from consumers.app import check_provider

    return check_provider(channel, name, kind, options)


@asynccontextmanager
async def storage(settings: "Settings") -> AsyncIterator["Stores"]:
    """MongoDB.

    Raises:
        CommandFailed: it cannot be reached, or refuses.
    """
    from consumers.stores import open_storage

    with _database_told(settings):
        async with open_storage(settings) as stores:
            yield stores


@asynccontextmanager
async def core(settings: "Settings") -> AsyncIterator["Core"]:
    """MongoDB and RabbitMQ, indexes and topology declared.

    Raises:
        CommandFailed: one of them cannot be reached, or refuses.
    """
    from consumers.app import open_core

    with _database_told(settings), _broker_told(settings):
        async with open_core(settings) as opened:
            yield opened


@asynccontextmanager
async def broker(settings: "Settings") -> AsyncIterator["AbstractConnection"]:
    """A connection to RabbitMQ; nothing is declared.

    Raises:
        CommandFailed: it cannot be reached, or refuses.
    """
    from aio_pika import Connection
    from yarl import URL

    from consumers.app import amqp_url, connected

    with _broker_told(settings):
        opening = Connection(URL(amqp_url(settings)), client_properties={"connection_name": "notipy cli"})
        async with await connected(opening) as connection:
            yield connection


@contextmanager
def _database_told(settings: "Settings") -> Iterator[None]:
    from storage.database import DatabaseError
    from storage.documents import CannotRead
    from storage.migrations import SchemaError

    try:
        yield
    except CannotRead as error:
        advice = "Use the newer NotiPy that has written it; or mend the document, if somebody has changed it by hand."
        raise CommandFailed(f"MongoDB: {error}", advice) from None
    except SchemaError as error:
        raise CommandFailed(f"MongoDB at {settings.masked()['mongo_url']}: {error}", error.advice) from None
    except DatabaseError as error:
        raise database_failure(settings, error) from None


@contextmanager
def _broker_told(settings: "Settings") -> Iterator[None]:
    from consumers.publisher import OUTAGES

    try:
        yield
    except (*OUTAGES, OSError) as error:
        raise broker_failure(settings, error) from None


def database_failure(settings: "Settings", error: Exception) -> CommandFailed:
    """What is told of an error of MongoDB or its client."""
    url = settings.masked()["mongo_url"]
    return CommandFailed(
        f"MongoDB at {url}: {_shortened(error)}",
        f"See that it runs and that mongo_url (NOTIPY_MONGO_URL) names it. {START_SERVERS}",
    )


def broker_failure(settings: "Settings", error: Exception) -> CommandFailed:
    """What is told of an error of RabbitMQ or its client."""
    url, words = settings.masked()["amqp_url"], _shortened(error)
    if "Connection.OpenOk" in words:  # all that the client says of a virtual host that is not there
        words = "there is no such virtual host, or this user may not use it"
    return CommandFailed(f"RabbitMQ at {url}: {words}", _broker_advice(error, words))


def _broker_advice(error: Exception, words: str) -> str:
    from aio_pika.exceptions import ChannelPreconditionFailed

    if isinstance(error, ChannelPreconditionFailed):
        return "Something of that name was declared otherwise: `notipy topology --check` shows what."
    if "ACCESS_REFUSED" in words:
        return "See that user and password of amqp_url (NOTIPY_AMQP_URL) are right, and what the user may do."
    if "virtual host" in words:
        return "`rabbitmqctl add_vhost` and `rabbitmqctl set_permissions` make one, or correct amqp_url."
    return f"See that it runs and that amqp_url (NOTIPY_AMQP_URL) names it. {START_SERVERS}"


def _shortened(error: Exception) -> str:
    """The error's first sentence: a driver's own words go on with its timeouts and the state of its topology."""
    words = re.split(r" \(configured timeouts|, Timeout:|, full error:|\n", str(error))[0]
    return words[:300] or type(error).__name__

"""`notipy run`: consume until told to stop."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.failures import BadInput, CommandFailed
from cli.options import Globals
from cli.session import load

if TYPE_CHECKING:
    from config.settings import Settings

COLLECT_AFTER = (10_000, 20, 100)
"""Objects, and collections of the younger generation, before a look for cyclic garbage; Python's are 700, 10, 10."""

_ARENA_MAX = -8
"""`M_ARENA_MAX` of malloc.h."""


def run(
    ctx: typer.Context,
    roles: Annotated[
        str | None,
        typer.Option("--roles", metavar="ROLE,...", help="events, channels' names, sweeper; by default all of them."),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, max=256, help="Processes, each with all the roles.")] = 1,
    embedded: Annotated[
        bool,
        typer.Option(
            "--embedded",
            help="Start private servers too, for development, with settings of their own: notipy.yaml is not read.",
        ),
    ] = False,
    worker: Annotated[
        int | None, typer.Option("--worker", hidden=True, help="The supervisor's: which one it is.")
    ] = None,
) -> None:
    """Take events, deliver them, and look after what is overdue, until Ctrl-C or SIGTERM.

    Stopping waits for what is in progress, for the setting [bold]grace[/] at most; a second Ctrl-C exits at once.

    [bold]Examples[/]

      $ notipy run
      $ notipy run --roles events,sweeper
      $ notipy run --roles email --workers 4
      $ notipy run --embedded
    """
    chosen = _roles(roles)
    if embedded:
        _run_embedded(ctx, alone=chosen is None and workers == 1)
        return
    with _collecting_nothing():
        settings = load(ctx, sending=True)
        _configure_logging(settings, worker)
        work = _work(settings, chosen, workers, worker)
        _collect_seldom()
    raise typer.Exit(_in_loop(work))


def _work(
    settings: "Settings", roles: Sequence[str] | None, workers: int, worker: int | None
) -> Coroutine[Any, Any, int]:
    """What the process does; with all its code read, but for what it reads when it first needs it."""
    if workers > 1:
        from consumers.supervisor import supervise

        return supervise(settings, roles, workers)
    import consumers.app  # noqa: F401 - read here, and used in the loop

    return _consume(settings, roles, serve_page=worker is None)


def _roles(given: str | None) -> list[str] | None:
    if given is None:
        return None
    roles = [role for role in (part.strip() for part in given.split(",")) if role]
    if not roles:
        raise typer.BadParameter("names no role", param_hint="--roles")
    return roles


def _run_embedded(ctx: typer.Context, *, alone: bool) -> None:
    from cli.demo import run_embedded

    chosen = ctx.find_root().obj
    if not alone or (isinstance(chosen, Globals) and chosen.config):
        raise typer.BadParameter(
            "has settings of its own, and goes without --config, --roles and --workers. Yours can use its servers: "
            "`notipy run` with the NOTIPY_AMQP_URL and NOTIPY_MONGO_URL that it prints, and another virtual host and "
            "another database in their paths",
            param_hint="--embedded",
        )
    run_embedded()


def _configure_logging(settings: "Settings", worker: int | None) -> None:
    from config.logging import configure_logging

    configure_logging(settings.logging, **({} if worker is None else {"worker": worker}))


def _in_loop(work: Coroutine[Any, Any, int]) -> int:
    """Run on uvloop, where there is one.

    Raises:
        BadInput: a role or a provider of the settings is not one.
        CommandFailed: the metrics' port is taken, the topology exists with other arguments, or a newer NotiPy has
            brought the database to where this one cannot follow.
    """
    from aio_pika.exceptions import ChannelPreconditionFailed

    from config.settings import SettingsError
    from storage.migrations import SchemaError

    _share_heap()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(work)
    except SettingsError as error:
        raise BadInput(str(error)) from None
    except SchemaError as error:
        raise CommandFailed(f"MongoDB: {error}", error.advice) from None
    except ChannelPreconditionFailed as error:
        raise CommandFailed(
            f"RabbitMQ: {error}", "`notipy topology --check` shows what was declared otherwise."
        ) from None
    except OSError as error:
        raise CommandFailed(str(error), "Is the port taken? metrics.port sets another, null none.") from None


@contextmanager
def _collecting_nothing() -> Iterator[None]:
    """While code is read, of which nothing is garbage: looking for some would take a sixth of the start."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _collect_seldom() -> None:
    """Look for cyclic garbage less often: messages leave none, and a look at all that a backlog holds costs a tenth.

    What there is by now stays, without a look of its own.
    """
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def _share_heap() -> None:
    """One heap for all threads: those of the MongoDB client would keep one each, 6 MiB together that nothing uses.

    mallopt(3), M_ARENA_MAX; a C library that has no such thing is left alone. Set before there are threads.
    """
    import ctypes

    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


class _Stop:
    """What SIGTERM and SIGINT do: the first asks to stop in order, the second ends the process at once.

    A worker stops with its supervisor, too.
    """

    def __init__(self, *, worker: bool) -> None:
        self._asked = asyncio.Event()
        self._starting = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._signalled)
        if worker:
            self._loop.add_reader(sys.stdin, self._orphaned)

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._asked.is_set()

    async def wait(self) -> None:
        """Until a signal comes; from now on it does not cancel the task that made this."""
        self._starting = None
        await self._asked.wait()

    def _signalled(self) -> None:
        if self.asked:
            os._exit(130)
        self._ask()

    def _orphaned(self) -> None:
        """A worker's standard input is a pipe that only its supervisor holds: at its end the supervisor is gone."""
        self._loop.remove_reader(sys.stdin)
        if not self.asked:
            self._ask()

    def _ask(self) -> None:
        self._asked.set()
        if self._starting is not None:
            self._starting.cancel()


async def _consume(settings: "Settings", roles: Sequence[str] | None, *, serve_page: bool) -> int:
    """Consume until SIGTERM or SIGINT, also while it still waits for its servers."""
    from consumers.app import running

    stop = _Stop(worker=not serve_page)
    try:
        async with running(settings, roles, serve_page=serve_page):
            await stop.wait()
    except asyncio.CancelledError:
        if not stop.asked:
            raise
    return 0

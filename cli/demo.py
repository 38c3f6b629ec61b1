"""`notipy demo` and `notipy run --embedded`: NotiPy with everything around it, on this machine alone."""

import asyncio
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from cli.failures import BadInput, CommandFailed
from cli.output import plain, say, stdout
from cli.parked import Done, Report, faults_told, treat
from cli.playground import HOME, Host, Playground, hosted, metrics_port, playground
from cli.samples import REJECTED, SAMPLES, Published, to_publish
from cli.verdict import PARKED_EMAIL, Check, DeadLetters, checks, dead_letters, refused_mail
from cli.watch import Watch, table
from config.settings import SettingsError
from consumers.app import Core, running
from consumers.topology import DEAD_EVENTS
from deploy.embedded import terminate_as_interrupt
from deploy.errors import EmbeddedError
from deploy.processes import free_ports
from domain.vocabulary import Channel

# What takes minutes in production can be watched here.
_QUICK = {"retry": ["500ms", "1s", "1s"]}
_DEMO_SETTINGS: Mapping[str, Any] = {
    "channels": {"email": _QUICK, "sms": _QUICK, "webhook": _QUICK},
    "retry_tiers": ["500ms", "1s", "2s"],
    "sweeper": {"interval": "500ms", "overdue": "30s"},
    "logging": {"level": "error"},
    "status": {"publish": "all"},
    "grace": "5s",
}
_INTERRUPTED = 130


def demo_command() -> None:
    """Start everything, send the sample events, show what becomes of them, and stop.

    Raises:
        CommandFailed: a server cannot be had, or something did not end as it should.
        Exit: it was interrupted.
    """
    begun = time.monotonic()
    with _told(interrupted=_INTERRUPTED), hosted("demo", _line) as host:
        wrong = [check for check in asyncio.run(_demo(host, stdout())) if not check.holds]
    if wrong:
        raise CommandFailed(
            "not everything is as it should be:\n"
            + "\n".join(f"  not so: {each.text}; {each.found}" for each in wrong),
            f"The servers' logs are in {HOME / 'log'}; what was sent is in {_shortest(host.directory)}.",
        )
    say(Text(f"\nEverything is as it should be, after {time.monotonic() - begun:.0f} s.", "green"))
    say("Nothing is left running. `make run` starts the same and stays, for your own messages.")


def run_embedded() -> None:
    """Start everything and stay in the foreground until Ctrl-C or SIGTERM; the servers' data is kept.

    Raises:
        CommandFailed: a server cannot be had.
        Exit: always, with 0, when it was told to stop.
    """
    with _told(interrupted=0), hosted("run", _line, keep=True) as host:
        asyncio.run(_run(host))


# ---------------------------------------------------------------------------------------------------------------
# The demo's acts
# ---------------------------------------------------------------------------------------------------------------


async def _demo(host: Host, console: Console) -> Sequence[Check]:
    document = {**_DEMO_SETTINGS, "metrics": {"host": "127.0.0.1", "port": free_ports(1)[0]}}
    async with (
        playground(host, host.directory / "notipy.yaml", document) as play,
        running(play.settings) as application,
    ):
        core = application.core
        _show_places(play)
        _heading("notipy apply examples/catalog")
        _line(", ".join(play.notifications))
        *events, rejected = (
            to_publish(sample, play.webhooks.url, unique=not host.private) for sample in (*SAMPLES, REJECTED)
        )
        watch = Watch(core.deliveries, events, console)
        _heading("The sample events, published to the exchange notipy.events")
        await _publish(core, [*events, rejected])
        _heading("What becomes of them")
        await watch.until_settled(replayed=False)
        refused = refused_mail(watch.begun)
        dead = await dead_letters(core, refused, rejected.id)
        _heading("What could not be delivered is parked")
        _show_dead(dead)
        _heading("The mailbox has been created meanwhile: notipy dead replay --channel email")
        replayed = await treat(core, refused, "replayed", Report(as_json=False, shown=0), dry_run=False)
        await watch.until_settled(replayed=True)
        _heading("How they ended")
        console.print(table(watch.rows(replayed=True), console.width, judged=True))
        return await _judge(play, watch, dead, replayed)


async def _publish(core: Core, events: Iterable[Published]) -> None:
    """As any producer should: persistent, mandatory, confirmed."""
    for event in events:
        for _ in range(2 if event.sample.again else 1):
            await core.publisher.event(event.routing_key, event.body, event.id)
        say(Text.assemble(f"  {event.id:<18} ", (event.sample.shows, "dim")))


async def _judge(play: Playground, watch: Watch, dead: DeadLetters, replayed: Done) -> Sequence[Check]:
    _heading("Checked where it arrived")
    found = await checks(play, watch, dead, replayed)
    for check in found:
        mark = Text("✓", "green") if check.holds else Text("✗", "bold red")
        say(Text.assemble("  ", mark, f" {plain(check.text)}"))
    _heading("To look at")
    _show_kept(play)
    return found


def _show_dead(dead: DeadLetters) -> None:
    for delivery in dead.failed:
        say(f"  {PARKED_EMAIL:<20} {delivery.event_id}  {delivery.reason}: {delivery.detail}")
    if dead.event is not None:
        say(f"  {DEAD_EVENTS:<20} {dead.event.message_id}  {dead.event.reason}: {faults_told(dead.event)}")


def _show_kept(play: Playground) -> None:
    first = f", the first: {_shortest(play.smtp.mails[0].path)}" if play.smtp.mails else ""
    _line(f"mail            {_shortest(play.smtp.directory)}{first}")
    _line(f"SMS             {_shortest(play.folder_of(Channel.SMS))}")
    _line(f"webhook calls   {_shortest(play.calls)}")


# ---------------------------------------------------------------------------------------------------------------
# notipy run --embedded
# ---------------------------------------------------------------------------------------------------------------


async def _run(host: Host) -> None:
    config = HOME / "notipy.yaml"
    document = {
        "channels": {str(channel): {} for channel in Channel},
        "metrics": {"host": "127.0.0.1", "port": metrics_port()},
        "status": {"publish": "all"},
    }
    try:
        async with playground(host, config, document) as play, running(play.settings):
            _show_run(play, config)
            await asyncio.Event().wait()
    finally:
        config.unlink(missing_ok=True)  # it leads nowhere any more


def _show_run(play: Playground, config: Path) -> None:
    _heading("NotiPy is running")
    _show_places(play)
    _show_ways_out(play)
    _heading("Notifications in force")
    _line(", ".join(play.notifications))
    _show_commands(play, config)


def _show_ways_out(play: Playground) -> None:
    _line(f"mail            {_shortest(play.smtp.directory)}, whoever it is for")
    _line(f"SMS and others  {_shortest(play.host.directory)}/<channel>")
    _line(f"webhooks        wherever a recipient says; {play.webhooks.url}/ok answers 204")
    _line(f"                and records the call in {_shortest(play.calls)}")


def _show_commands(play: Playground, config: Path) -> None:
    amqp = play.host.urls.get("amqp_url", "$NOTIPY_AMQP_URL")
    _heading("In another terminal")
    for line in (
        f'export AMQP_URL="{amqp}" NOTIPY_CONFIG={shlex.quote(str(config.absolute()))}',
        ".venv/bin/python examples/producers/publish.py ana@example.org 1   # or publish.mjs, publish.sh",
        ".venv/bin/notipy deliveries list",
    ):
        _line(line)
    _heading("Ctrl-C stops everything")


# ---------------------------------------------------------------------------------------------------------------
# What both tell
# ---------------------------------------------------------------------------------------------------------------


@contextmanager
def _told(*, interrupted: int) -> Iterator[None]:
    """SIGTERM as Ctrl-C, either as an exit code, and expected faults in a command's words."""
    try:
        with terminate_as_interrupt():
            yield
    except KeyboardInterrupt:
        say("\nStopped; nothing is left running.")
        raise typer.Exit(interrupted) from None
    except EmbeddedError as error:
        raise CommandFailed(str(error)) from None
    except SettingsError as error:
        raise BadInput(str(error)) from None


def _show_places(play: Playground) -> None:
    if play.host.management_url:
        _line(f"RabbitMQ        {play.host.management_url} (guest, guest)")
    if mongo := play.host.urls.get("mongo_url"):
        _line(f"MongoDB         {mongo}")
    if play.metrics_url:
        _line(f"metrics         {play.metrics_url}")


def _heading(text: str) -> None:
    say(Text(f"\n{text}", "bold"))


def _line(text: str) -> None:
    say(f"  {text}")


def _shortest(path: Path) -> str:
    """Relative to the current folder where it is in it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)

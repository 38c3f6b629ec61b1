"""The `notipy` command: registers the commands, knows nothing of what they do."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cli import (
    audit,
    catalog,
    classify,
    dead,
    deliveries,
    doctor,
    events,
    inbox,
    render,
    run,
    send,
    suppressions,
    topology,
)
from cli.failures import CommandGroup
from cli.options import Globals

app = typer.Typer(
    name="notipy",
    cls=CommandGroup,
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # they hold addresses and secrets
    context_settings={"help_option_names": ["-h", "--help"]},
)
OPERATE, DEFINE, LOOK, CHECK = "Run", "Define", "Look and act", "Check"

app.command("run", rich_help_panel=OPERATE)(run.run)
app.command("apply", rich_help_panel=DEFINE)(catalog.apply)
app.add_typer(catalog.app, name="notifications", rich_help_panel=DEFINE)
app.command("render", rich_help_panel=DEFINE)(render.render)
app.command("send", cls=send.WaitingCommand, rich_help_panel=LOOK)(send.send)
app.add_typer(events.app, name="events", rich_help_panel=LOOK)
app.add_typer(deliveries.app, name="deliveries", rich_help_panel=LOOK)
app.add_typer(dead.app, name="dead", rich_help_panel=LOOK)
app.add_typer(inbox.app, name="inbox", rich_help_panel=LOOK)
app.add_typer(suppressions.app, name="suppressions", rich_help_panel=LOOK)
app.command("topology", rich_help_panel=CHECK)(topology.topology)
app.command("audit", rich_help_panel=CHECK)(audit.audit)
app.command("doctor", rich_help_panel=CHECK)(doctor.doctor)
app.command("classify", rich_help_panel=CHECK)(classify.classify)


@app.command("demo", rich_help_panel=OPERATE)
def demo() -> None:
    """Start private servers, send the sample events and show what becomes of each.

    It exits with 0 only if every sample delivery reached the state that it should.

    [bold]Example[/]

      $ notipy demo
    """
    from cli.demo import demo_command

    demo_command()


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"notipy {version('notipy')}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Settings; else NOTIPY_CONFIG, else ./notipy.yaml."),
    ] = None,
    version: Annotated[  # noqa: ARG001 - its callback has done the work
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """NotiPy turns events on RabbitMQ into notifications: stored, delivered, retried, replayable.

    Exit codes: 0 done, 1 the thing asked for failed, 2 wrong usage or bad input. Data commands take --json.

    [bold]Examples[/]

      $ notipy demo
      $ notipy apply examples/catalog && notipy run
      $ notipy send --key shop.order.shipped --data '{"order_id": 1042, "carrier": "DHL"}' --to ana@example.org --wait
      $ notipy deliveries list --event shop ord-1042-shipped
    """
    ctx.obj = Globals(config)


def main() -> NoReturn:
    """Run the command line.

    Leaves without the interpreter's last rites: everything was closed by its owner, but the MongoDB client would have
    its idle threads waited for, which takes as long again as a short command.
    """
    code: object = 0
    try:
        app()
    except SystemExit as end:
        code = end.code
    with suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()

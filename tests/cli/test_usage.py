"""The command line itself: help with examples, usage errors, what is imported for it."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from cli.main import app

HEAVY = ["motor", "pymongo", "aio_pika", "faststream", "pydantic", "aiohttp", "jinja2", "structlog", "yaml"]
runner = CliRunner(env={"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"})


def commands() -> Iterator[tuple[str, ...]]:
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        nested = getattr(command, "commands", None)
        yield from ((name, inner) for inner in nested) if nested else [(name,)]


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_every_command_has_help_with_an_example(command: tuple[str, ...]) -> None:
    result = runner.invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert f"$ notipy {' '.join(command)}" in result.output


@pytest.mark.parametrize(
    "command",
    [command for command in commands() if command not in {("run",), ("demo",)}],
    ids=" ".join,
)
def test_every_command_that_prints_data_takes_json(command: tuple[str, ...]) -> None:
    assert "--json" in runner.invoke(app, [*command, "--help"]).output


def test_a_paragraph_of_help_is_wrapped_once() -> None:
    narrow = CliRunner(env={"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"})
    lines = [line.strip() for line in narrow.invoke(app, ["apply", "--help"]).output.splitlines()]
    begin = lines.index("Everything is validated before anything is written: YAML, fields, patterns,")
    assert lines[begin + 1] == "template syntax, schemas, and files, which must lie inside the folder given."


def test_the_version_is_told() -> None:
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("notipy ")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nonsense"], "No such command"),
        (["deliveries", "list", "--state", "dead"], "'dead' is not one of"),
        (["deliveries", "list", "--state", "dead"], "Invalid value for '--state': 'dead'"),
        (["deliveries", "list", "--event", "shop"], "requires 2 arguments"),
        (["deliveries", "list", "--event", "shop", "--json"], "takes SOURCE and ID, and --json stands for ID"),
        (["deliveries", "list", "--limit", "0"], "--limit"),
        (["dead", "list", "--since", "yesterday"], "is not a time"),
        (["dead", "list", "--channel", "events", "--state", "unknown"], "--state"),
        (["dead", "replay", "--channel", "fax"], "--channel"),
        (["render", "x"], "Missing option '--channel'"),
        (["render", "x", "--channel", "sms", "--data", "{"], "--data: is not JSON"),
        (["send", "--key", "shop.x", "--to", "nobody"], "recipients.0.email"),
        (["send", "--key", "shop.x"], "Name recipients with --to"),
        (["send", "--to", "ana@example.org"], "Name source and type with --key"),
        (["run", "--workers", "0"], "--workers"),
        (["run", "--roles", ","], "names no role"),
        (["run", "--embedded", "--roles", "events"], "goes without"),
        (["--config", "nowhere.yaml", "audit"], "nowhere.yaml: cannot be read"),
        (["apply", "nowhere"], "nowhere: there is no such file"),
    ],
)
def test_wrong_usage_is_told_and_ends_with_2(args: list[str], message: str) -> None:
    result = runner.invoke(app, args)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.replace("│", "").split())


def test_help_does_not_wait_for_what_only_the_work_needs() -> None:
    code = f"import sys, cli.main; print([name for name in {HEAVY!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_worker_does_not_hold_what_only_other_providers_need() -> None:
    others = ("aiohttp", "aiobotocore", "apprise", "cryptography", "dkim", "http_ece", "httpx", "inscriptis")
    code = f"import sys, consumers.app, channels.smtp; print([name for name in {others!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

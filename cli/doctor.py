"""`notipy doctor`: the effective settings, and whether everything that they name can be used."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text

from cli.options import JsonOption
from cli.output import counted, hint, json_line, plain, say, stdout
from cli.session import execute, load

if TYPE_CHECKING:
    from cli.checks import Finding
    from config.settings import Settings

_SIGNS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "bold red")}


def doctor(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Check everything that the settings name, and print the settings in force, secrets masked.

    The broker and its topology, the database, every provider (without sending anything), and the catalog. For each
    failure it says what to do next; the exit code is then 1.

    [bold]Examples[/]

      $ notipy doctor
      $ notipy doctor --json | jq 'select(.result == "failed")'
    """
    from cli.checks import check_all

    settings = load(ctx, sending=True)
    masked = settings.masked()
    if as_json:
        json_line({"check": "settings", "result": "ok", "file": _file(settings), "settings": masked})
    findings = execute(check_all(settings))
    for finding in findings:
        if as_json:
            json_line(finding.record())
        else:
            _print_finding(finding)
    if not as_json:
        _print_settings(_file(settings), masked)
    _conclude(findings, as_json)


def _file(settings: "Settings") -> str | None:
    return str(settings.file) if settings.file else None


def _print_settings(file: str | None, masked: dict[str, Any]) -> None:
    import yaml

    say(Text(f"\nSettings from {file or 'the environment and defaults (no notipy.yaml was found)'}", style="bold"))

    class Dumper(yaml.SafeDumper):
        """A list of plain values, such as durations, in one line."""

        def represent_list(self, data: Any) -> Any:
            flow = not any(isinstance(item, dict | list) for item in data)
            return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)

    Dumper.add_representer(list, Dumper.represent_list)
    text = yaml.dump(masked, Dumper=Dumper, allow_unicode=True, sort_keys=False)
    say("\n".join(f"  {line}" for line in text.splitlines()))


def _print_finding(finding: "Finding") -> None:
    sign, style = _SIGNS[finding.result]
    screen = stdout()
    screen.print(Text.assemble((f"{sign} ", style), (f"{finding.check}: ", "bold"), plain(finding.detail)))
    if finding.advice:
        screen.print(Text(f"  → {plain(finding.advice)}"))


def _conclude(findings: "Sequence[Finding]", as_json: bool) -> None:
    failed = sum(finding.result == "failed" for finding in findings)
    if failed:
        hint(f"{failed} of {len(findings)} checks failed.")
        raise typer.Exit(1)
    warnings = sum(finding.result == "warning" for finding in findings)
    if not as_json:
        say("\nEverything can be used" + (f", with {counted(warnings, 'warning')} above." if warnings else "."))

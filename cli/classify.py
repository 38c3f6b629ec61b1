"""`notipy classify`: what a provider's error code means, and what NotiPy does about it."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.failures import BadInput, CommandFailed
from cli.options import JsonOption
from cli.output import Column, hint, json_line, print_fields, print_table

if TYPE_CHECKING:
    from channels.explain import Explained

STAGES = ("connect", "auth", "mail", "rcpt", "data", "body")


def classify(
    code: Annotated[
        list[str] | None, typer.Argument(metavar="[CODE]...", help="The code, as the provider writes it; all without.")
    ] = None,
    provider: Annotated[
        str, typer.Option("--provider", metavar="KIND", help="The kind of provider, e.g. twilio, smtp or webhook.")
    ] = ...,  # type: ignore[assignment]  # typer's word for an option that has to be given
    stage: Annotated[
        str, typer.Option("--stage", metavar="STAGE", help=f"What an SMTP reply answered: {', '.join(STAGES)}.")
    ] = "rcpt",
    as_json: JsonOption = False,
) -> None:
    """Explain a provider's error code: its meaning, and what NotiPy does about it.

    A code that the provider's table does not have is explained too, as what it is treated as. Without a code the
    whole table is shown.

    [bold]Examples[/]

      $ notipy classify --provider twilio 30003
      $ notipy classify --provider smtp 550 5.1.1
      $ notipy classify --provider webhook 410 --json
      $ notipy classify --provider vonage
    """
    found = _looked_up(provider, " ".join(code or ()), stage)
    if as_json:
        for each in found:
            json_line(_record(each))
    elif code:
        _print(found[0])
    else:
        _print_all(found)


def _looked_up(provider: str, code: str, stage: str) -> "Sequence[Explained]":
    from channels.classify import Stage
    from channels.explain import NoSuchCode, NoSuchProvider, every, explain

    if stage not in STAGES:
        raise BadInput(f"--stage: {stage} is none; there are {', '.join(STAGES)}.")
    try:
        return [explain(provider, code, Stage(stage))] if code else list(every(provider))
    except NoSuchProvider as error:
        raise BadInput(
            f"{provider}: no kind of provider with error codes of its own. There are {', '.join(error.known)}."
        ) from None
    except NoSuchCode as error:
        raise BadInput(f"{code} is no error code of {provider}: {error}.") from None
    except ValueError as error:
        raise CommandFailed(str(error), "Repair or uninstall the package that brings it.") from None


def _record(found: "Explained") -> dict[str, Any]:
    return {name: value if isinstance(value, bool) else str(value) for name, value in asdict(found).items()}


def _print(found: "Explained") -> None:
    print_fields(
        {
            "provider": found.provider,
            "code": found.code,
            "says": found.words,
            "meaning": str(found.meaning),
            "reason": str(found.reason),
            "then": found.does,
            "table": f"{found.version}, from {found.source}",
        }
    )


def _print_all(found: "Sequence[Explained]") -> None:
    columns = [Column("code"), Column("meaning"), Column("reason"), Column("says", rank=1)]
    print_table(columns, [[each.code, str(each.meaning), str(each.reason), each.words] for each in found])
    hint(f"Table of {found[0].version}, from {found[0].source}.")

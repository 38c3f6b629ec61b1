"""`notipy render`: what a notification would say, without sending it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from cli.catalog import one, read_catalog
from cli.failures import BadInput, CommandFailed
from cli.inputs import read_document
from cli.options import JsonOption
from cli.output import hint, json_line, say
from cli.session import execute, load
from domain.vocabulary import Channel

if TYPE_CHECKING:
    from config.settings import Settings
    from domain.notification import Definition

EXAMPLE_RECIPIENT: Mapping[str, Any] = {
    "id": "user-7",
    "name": "Ana Example",
    "email": "ana@example.org",
    "phone": "+4915112345678",
    "locale": "en",
}
"""Whom a preview speaks to where no recipient is given."""


def render(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The notification's name.")],
    channel: Annotated[Channel, typer.Option("--channel", help="The channel whose words are shown.")],
    data: Annotated[
        str, typer.Option("--data", metavar="JSON|@FILE|-", help="The event's data: JSON, @file, or - for stdin.")
    ] = "{}",
    recipient: Annotated[
        str | None, typer.Option("--recipient", metavar="JSON|@FILE", help="The recipient; an example by default.")
    ] = None,
    locale: Annotated[
        str | None, typer.Option("--locale", metavar="TAG", help="In the words for this locale, such as de or pt-BR.")
    ] = None,
    version: Annotated[
        int | None, typer.Option("--version", min=1, help="This version, by default the one in force.")
    ] = None,
    catalog: Annotated[
        Path | None, typer.Option("--catalog", metavar="PATH", help="Take it from these files instead of the database.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Preview a notification; nothing is sent.

    Data that the notification would refuse is told, with every field's fault, and the exit code is 1.

    [bold]Examples[/]

      $ notipy render order-shipped --channel email --data '{"order_id": 1042, "carrier": "DHL"}'
      $ notipy render order-shipped --channel sms --data @order.json --recipient '{"name": "Ana"}'
      $ notipy render order-shipped --channel email --data @order.json --locale de
      $ notipy render order-shipped --channel email --data - --catalog examples/catalog < order.json
    """
    values = read_document(data, "--data")
    whom = read_document(recipient, "--recipient") if recipient else dict(EXAMPLE_RECIPIENT)
    if locale is not None:
        whom = {**whom, "locale": locale}
    definition = _chosen(catalog, name) if catalog else execute(_stored(load(ctx), name, version))
    fields = rendered(definition, channel, values, whom)
    parts = _segments(fields["text"]) if channel is Channel.SMS else {}
    if as_json:
        json_line({"name": name, "channel": str(channel), **fields, **parts})
    else:
        _print(fields)
        _print_segments(parts)
        hint("Nothing was sent.")


def _chosen(catalog: Path, name: str) -> "Definition":
    definitions = read_catalog([catalog]).definitions
    if name not in definitions:
        raise CommandFailed(f"{catalog} defines no {name}.", f"It defines: {', '.join(sorted(definitions))}.")
    return definitions[name]


async def _stored(settings: "Settings", name: str, version: int | None) -> "Definition":
    return (await one(settings, name, version)).definition


def rendered(
    definition: "Definition", channel: Channel, data: Mapping[str, Any], recipient: Mapping[str, Any]
) -> Mapping[str, str]:
    """The fields as a provider is given them.

    Raises:
        BadInput: the recipient is none.
        CommandFailed: the channel is not the notification's, or the data is not what the notification needs.
    """
    from channels.rendering import TemplateRenderer
    from domain.ports import TemplateError

    if channel not in definition.channels:
        raise CommandFailed(f"{definition.name} has no {channel}.", f"It has: {', '.join(definition.channels)}.")
    whom = _recipient(recipient)
    renderer, content = TemplateRenderer(), definition.contents[channel]
    if faults := _data_faults(definition, data, renderer.missing(channel, content, data, whom.get("locale"))):
        raise CommandFailed("The data cannot be used:\n" + "\n".join(f"  {fault}" for fault in faults))
    try:
        return renderer.render(channel, content, _context(definition, data, whom))
    except TemplateError as error:
        raise CommandFailed(f"The template cannot be rendered with this data: {error}") from None


def _data_faults(definition: "Definition", data: Mapping[str, Any], missing: Iterable[str]) -> Sequence[str]:
    """What is wrong with the data, in the words that a delivery's detail has for it."""
    from channels.schema import JsonSchemaCheck

    required = [name for name in definition.required if name not in data]
    lacking = ", ".join(dict.fromkeys((*required, *missing)))
    faults = list(map(str, JsonSchemaCheck().faults(definition, data)))
    return [f"data lacks {lacking}", *faults] if lacking else faults


def _recipient(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipient as templates see it; a preview does not need an address."""
    from pydantic import ValidationError

    from domain.event import Recipient
    from domain.text import describe, faults_of

    try:
        document = Recipient.model_validate({"id": "preview", **given}).document()
    except ValidationError as error:
        raise BadInput(f"--recipient: {describe(faults_of(error))}") from None
    return {name: value for name, value in document.items() if name in given}


def _context(definition: "Definition", data: Mapping[str, Any], recipient: Mapping[str, Any]) -> Mapping[str, Any]:
    """What templates see, of an event that might have been."""
    from datetime import UTC, datetime

    from domain.dispatch import EventData

    source, _, kind = definition.on.replace("*", "any").replace("#", "any").partition(".")
    return EventData("", "preview", source, kind or "any", datetime.now(UTC), data).context(recipient)


def _print(fields: Mapping[str, str]) -> None:
    for name, value in fields.items():
        say(Text(name, style="bold cyan"))
        say(_indented(value) + "\n")


def _segments(text: str) -> Mapping[str, Any]:
    """What an SMS costs: its parts, its encoding, and the characters for which it is not the cheaper one."""
    from channels.segments import segments

    counted = segments(text)
    return {
        "encoding": str(counted.encoding),
        "segments": counted.count,
        "units": counted.units,
        "forcing": list(counted.forcing),
    }


def _print_segments(parts: Mapping[str, Any]) -> None:
    if not parts:
        return
    say(Text("segments", style="bold cyan"))
    say(f"{parts['segments']} ({parts['encoding']})")
    if parts["forcing"]:
        named = " ".join(f"{character} U+{ord(character):04X}" for character in parts["forcing"])
        say(f"UCS-2 for: {named}; without, GSM-7 has 160 characters in a segment instead of 70")
    say()


def _indented(value: str) -> str:
    try:
        parsed = json.loads(value)
    except ValueError:
        return value
    return json.dumps(parsed, indent=2, ensure_ascii=False) if isinstance(parsed, dict | list) else value

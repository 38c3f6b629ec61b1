"""`notipy apply` and `notipy notifications`: what is told on which events."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from cli.failures import BadInput, CommandFailed, CommandGroup
from cli.options import AtMostOption, JsonOption
from cli.output import Column, counted, hint, json_line, print_fields, print_table, say
from cli.session import execute, load, storage

if TYPE_CHECKING:
    from datetime import timedelta

    from cli.catalog_files import Catalog
    from config.settings import Settings
    from domain.notification import Notification
    from storage.catalog import Plan

app = typer.Typer(cls=CommandGroup, rich_markup_mode="rich", no_args_is_help=True, help="The notifications in force.")
_STYLES = {"new": "green", "changed": "yellow", "unchanged": "dim", "removed": "red"}


# ---------------------------------------------------------------------------------------------------------------
# apply
# ---------------------------------------------------------------------------------------------------------------


def apply(
    ctx: typer.Context,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="YAML files, or folders with all the YAML files in them.")
    ],
    prune: Annotated[bool, typer.Option("--prune", help="Take those out of force that are not given.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Put notifications in force.

    Everything is validated before anything is written: YAML, fields, patterns, template syntax, schemas, and files,
    which must lie inside the folder given. Each change is a new version; deliveries keep the one that they were
    planned with. Consumers take it over within seconds.

    [bold]Examples[/]

      $ notipy apply examples/catalog --dry-run
      $ notipy apply examples/catalog --prune
      $ notipy apply order-shipped.yaml --json
    """
    settings = load(ctx)
    catalog = read_catalog(paths)
    plan, current = execute(_apply(settings, catalog, prune, dry_run))
    _print_plan(plan, current, catalog, as_json)
    if not as_json:
        _print_summary(plan, dry_run, settings.catalog_refresh)


def read_catalog(paths: list[Path]) -> "Catalog":
    """The definitions of these paths; doubts about them are told.

    Raises:
        BadInput: something is wrong with one of them; every fault is told.
    """
    from cli.catalog_files import load_catalog

    catalog = load_catalog(paths)
    for warning in catalog.warnings:
        hint(f"Warning: {warning}")
    if catalog.faults:
        listed = "\n".join(f"  {fault}" for fault in catalog.faults)
        raise BadInput(f"{counted(len(catalog.faults), 'fault')} in the catalog; nothing was written:\n{listed}")
    return catalog


async def _apply(
    settings: "Settings", catalog: "Catalog", prune: bool, dry_run: bool
) -> "tuple[Plan, Mapping[str, int]]":
    from storage.catalog import CatalogConflict

    definitions = list(catalog.definitions.values())
    async with storage(settings) as stores:
        plan = await stores.catalog.plan(definitions, prune=prune)
        current = {notification.name: notification.version for notification in stores.catalog.current}
        try:
            if not dry_run:
                await stores.catalog.apply(definitions, plan)
        except CatalogConflict as conflict:
            raise CommandFailed(str(conflict)) from None
    return plan, current


def _print_plan(plan: "Plan", current: Mapping[str, int], catalog: "Catalog", as_json: bool) -> None:
    versions = {**current, **plan.versions}
    actions = [(name, action) for action in _STYLES for name in getattr(plan, action)]
    if as_json:
        for name, action in sorted(actions):
            json_line({"name": name, "action": action, "version": versions[name]})
        return
    columns = (Column("notification"), Column("action"), Column("version"), Column("from", rank=1))
    print_table(
        columns,
        [
            (name, Text(action, style=_STYLES[action]), str(versions[name]), catalog.places.get(name, ""))
            for name, action in sorted(actions)
        ],
    )


def _print_summary(plan: "Plan", dry_run: bool, seen_within: "timedelta") -> None:
    from domain.duration import format_duration

    told = ", ".join(f"{len(getattr(plan, action))} {action}" for action in _STYLES)
    in_force = f"In force for events that come from {format_duration(seen_within)} from now."
    say(f"\n{told}. {'Nothing was written (--dry-run).' if dry_run else in_force}")


# ---------------------------------------------------------------------------------------------------------------
# notifications
# ---------------------------------------------------------------------------------------------------------------


@app.command("list")
def list_(
    ctx: typer.Context,
    search: Annotated[
        str, typer.Option("--search", help="Only those with these words in name, description, pattern or templates.")
    ] = "",
    limit: AtMostOption = 100,
    after: Annotated[str, typer.Option("--after", metavar="NAME", help="Go on after this name.")] = "",
    as_json: JsonOption = False,
) -> None:
    """List the notifications in force, by name.

    [bold]Examples[/]

      $ notipy notifications list
      $ notipy notifications list --search "order shipped"
      $ notipy notifications list --limit 20 --after order-shipped
    """
    found = [n for n in execute(_current(load(ctx))) if n.name > after and _mentions(n, search)]
    for notification in found[:limit] if as_json else ():
        json_line(_summary(notification))
    if not as_json:
        _print_list(found[:limit])
    if len(found) > limit:
        hint(f"There are {len(found) - limit} more: --after {found[limit - 1].name}")


async def _current(settings: "Settings") -> "list[Notification]":
    async with storage(settings) as stores:
        await stores.catalog.refresh()
        return list(stores.catalog.current)


def _mentions(notification: "Notification", search: str) -> bool:
    from domain.locales import LOCALES
    from domain.notification import templates

    definition = notification.definition
    contents = [*definition.channels.values()]
    contents += [words for content in contents for words in (content.get(LOCALES) or {}).values()]
    words = [*(text for content in contents for _, text in templates(content)), *definition.partials.values()]
    text = " ".join((definition.name, definition.description, definition.on, *definition.channels, *words)).casefold()
    return all(word in text for word in search.casefold().split())


def _summary(notification: "Notification") -> dict[str, object]:
    definition = notification.definition
    return {
        "name": notification.name,
        "version": notification.version,
        "on": definition.on,
        "channels": [str(channel) for channel in definition.channels],
        "lane": str(definition.lane) if definition.lane else None,
        "description": definition.description,
    }


def _print_list(notifications: "list[Notification]") -> None:
    if not notifications:
        hint("No notifications. `notipy apply PATH` puts some in force.")
        return
    columns = (Column("notification"), Column("version"), Column("on"), Column("channels", rank=1))
    print_table(
        (*columns, Column("description", rank=2)),
        [
            (n.name, str(n.version), n.definition.on, ", ".join(n.definition.channels), n.definition.description)
            for n in notifications
        ],
    )


@app.command("show")
def show(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The notification's name.")],
    version: Annotated[
        int | None, typer.Option("--version", min=1, help="This version, also one no longer in force.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a notification's definition.

    [bold]Examples[/]

      $ notipy notifications show order-shipped
      $ notipy notifications show order-shipped --version 2 --json
    """
    notification = execute(one(load(ctx), name, version))
    if as_json:
        json_line({"version": notification.version, **notification.definition.document()})
    else:
        _print_definition(notification)


async def one(settings: "Settings", name: str, version: int | None) -> "Notification":
    """A notification: a version of it, or the one in force.

    Raises:
        CommandFailed: there is none.
    """
    async with storage(settings) as stores:
        await stores.catalog.refresh()
        if version is not None:
            found = await stores.catalog.version(name, version)
        else:
            found = next((n for n in stores.catalog.current if n.name == name), None)
    if found is None:
        what = f"There is no version {version} of {name}." if version else f"{name} is not in force."
        raise CommandFailed(what, "`notipy notifications list` shows those that are.")
    return found


def _print_definition(notification: "Notification") -> None:
    definition = notification.definition.document()
    channels, partials = definition.pop("channels"), definition.pop("partials", {})
    head = {name: value if isinstance(value, str) else _yaml(value).rstrip() for name, value in definition.items()}
    print_fields({"name": notification.name, "version": str(notification.version), **head})
    for channel, content in channels.items():
        locales = content.pop("locales", None) or {}
        _print_words(channel, content)
        for locale, words in locales.items():
            _print_words(f"{channel}, {locale}", words)
    if partials:
        _print_words("partials", partials)


def _print_words(title: str, words: Mapping[str, object]) -> None:
    say(Text(f"\n{title}", style="bold"))
    for name, value in words.items():
        say(Text(f"  {name}", style="cyan"))
        say("\n".join(f"    {line}" for line in str(value).splitlines()))


def _yaml(value: object) -> str:
    import yaml

    return yaml.safe_dump(value, allow_unicode=True, sort_keys=False, default_flow_style=None)


@app.command("delete")
def delete(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The notification's name.")],
    as_json: JsonOption = False,
) -> None:
    """Take a notification out of force.

    Its versions stay stored, for the deliveries that were planned with them; `notipy apply` puts it in force again.

    [bold]Example[/]

      $ notipy notifications delete order-shipped
    """
    if not execute(_delete(load(ctx), name)):
        raise CommandFailed(f"{name} is not in force.", "`notipy notifications list` shows those that are.")
    if as_json:
        json_line({"name": name, "action": "removed"})
    else:
        say(f"{name} is no longer in force.")


async def _delete(settings: "Settings", name: str) -> bool:
    from storage.catalog import CatalogConflict

    async with storage(settings) as stores:
        try:
            return await stores.catalog.delete(name)
        except CatalogConflict as conflict:
            raise CommandFailed(str(conflict)) from None

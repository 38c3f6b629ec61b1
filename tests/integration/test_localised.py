"""A catalog with a layout and two languages, from its files to the mails that arrive; and a layout that changes."""

import email
import email.policy
from email.message import EmailMessage
from pathlib import Path

from cli.catalog_files import load_catalog
from config.settings import Settings
from consumers.app import running
from deploy.smtp_sink import SmtpSink
from domain.vocabulary import Reason, State
from tests.running import Stack, order
from tests.waiting import eventually

FILES = {
    "layout.html.j2": '<style>p { color: red }</style>{% block body %}{% endblock %}<p>{% include "legal.j2" %}</p>',
    "legal.j2": "Shop AG",
    "mail.html.j2": '{% extends "layout.html.j2" %}{% block body %}<p>{{ total | money("EUR") }}</p>{% endblock %}',
    "shipped.yaml": """
name: shipped
on: shop.order.shipped
required: [total]
default_locale: en
channels:
  email:
    subject: "Shipped on {{ event.time | date('long') }}"
    html: {file: mail.html.j2}
    locales:
      de:
        subject: "Versandt am {{ event.time | date('long') }}"
        html: {file: mail.html.j2}
""",
}


def write(folder: Path, **changed: str) -> None:
    for name, text in (FILES | {name.replace("_", "."): text for name, text in changed.items()}).items():
        (folder / name).write_text(text)


async def put_in_force(stack: Stack, folder: Path) -> tuple[str, ...]:
    """As `notipy apply` does; returns what has changed."""
    catalog = load_catalog([folder])
    assert not catalog.faults
    definitions = list(catalog.definitions.values())
    plan = await stack.core.catalog.plan(definitions, prune=False)
    await stack.core.catalog.apply(definitions, plan)
    return (*plan.new, *plan.changed)


def to_people() -> dict[str, object]:
    recipients = [
        {"email": "ana@example.org", "locale": "de_AT", "timezone": "Pacific/Auckland"},
        {"email": "ben@example.org", "locale": "fr"},
    ]
    return order() | {"recipients": recipients, "data": {"total": 1234.5}, "time": "2026-11-22T17:00:00Z"}


def by_recipient(smtp: SmtpSink) -> dict[str, EmailMessage]:
    mails = [email.message_from_bytes(mail.content, policy=email.policy.default) for mail in smtp.mails]
    return {str(mail["To"]): mail for mail in mails}


def text_of(mail: EmailMessage) -> str:
    text = mail.get_body(("plain",))
    assert text is not None
    return str(text.get_content()).replace("\xa0", " ").replace("\r", "")


async def test_everybody_gets_their_own_language_and_zone(
    settings: Settings, stack: Stack, smtp: SmtpSink, tmp_path: Path
) -> None:
    write(tmp_path)
    await put_in_force(stack, tmp_path)
    async with running(settings):
        await stack.final(await stack.publish(to_people()), count=2)
    mails = by_recipient(smtp)
    german, english = mails["ana@example.org"], mails["ben@example.org"]
    assert german["Subject"] == "Versandt am 23. November 2026"
    assert english["Subject"] == "Shipped on November 22, 2026"
    assert text_of(german) == "€ 1.234,50\n\nShop AG\n"
    assert text_of(english) == "€1,234.50\n\nShop AG\n"
    html = german.get_body(("html",))
    assert html is not None
    assert '<p style="color: red;">Shop AG</p>' in html.get_content()


async def test_a_layout_that_changes_is_a_new_version_and_leaves_what_is_planned_alone(
    settings: Settings, stack: Stack, smtp: SmtpSink, tmp_path: Path
) -> None:
    write(tmp_path)
    assert await put_in_force(stack, tmp_path) == ("shipped",)
    async with running(settings):
        held = await stack.publish(to_people() | {"send_at": "2999-01-01T00:00:00Z"})
        await eventually(lambda: planned(stack, held))
        assert await put_in_force(stack, tmp_path) == ()
        write(tmp_path, legal_j2="Shop SE")
        assert await put_in_force(stack, tmp_path) == ("shipped",)
        versions = {delivery.version for delivery in await stack.deliveries(held)}
    assert versions == {1}
    before = await stack.core.catalog.version("shipped", 1)
    after = await stack.core.catalog.version("shipped", 2)
    assert before is not None
    assert after is not None
    assert (before.definition.partials["legal.j2"], after.definition.partials["legal.j2"]) == ("Shop AG", "Shop SE")


async def planned(stack: Stack, event: str) -> bool:
    return len(await stack.deliveries(event)) == 2


async def test_what_is_too_long_fails_with_the_numbers(settings: Settings, stack: Stack, smtp: SmtpSink) -> None:
    long = {"name": "long", "on": "shop.#", "channels": {"email": {"subject": "{{ 'x' * n }}", "text": "t"}}}
    await stack.apply(long)
    async with running(settings):
        (delivery,) = await stack.final(await stack.publish(order() | {"data": {"n": 2000}}))
    assert (delivery.state, delivery.reason) == (State.FAILED, Reason.MESSAGE_TOO_LARGE)
    assert delivery.detail == "subject: 2000 characters; the limit of email is 998"
    assert not smtp.mails

"""Layouts, partials, locales, MJML and styles of a catalog: what is read along, and what `apply` makes of it."""

from pathlib import Path

import pytest

from channels.rendering import TemplateRenderer
from cli.catalog_files import Catalog, load_catalog
from domain.notification import Definition
from domain.vocabulary import Channel

MAIL = "name: mail\non: shop.x\ndefault_locale: en\nchannels:\n  email:\n    subject: s\n    {}\n"


def load(folder: Path, body: str, **files: str) -> Catalog:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_j2", ".j2")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "a.yaml").write_text(MAIL.format(body))
    return load_catalog([folder])


def faults(catalog: Catalog, folder: Path) -> list[str]:
    return [str(fault).replace(f"{folder}/", "").replace(str(folder), "FOLDER") for fault in catalog.faults]


def warnings(catalog: Catalog, folder: Path) -> list[str]:
    return [str(warning).replace(f"{folder}/", "") for warning in catalog.warnings]


def definition(catalog: Catalog) -> Definition:
    assert [str(fault) for fault in catalog.faults] == []
    return catalog.definitions["mail"]


def rendered(catalog: Catalog, locale: str = "en") -> dict[str, str]:
    content = definition(catalog).contents[Channel.EMAIL]
    return dict(TemplateRenderer().render(Channel.EMAIL, content, {"recipient": {"locale": locale}, "data": {}}))


def test_what_templates_use_is_stored_with_the_definition(tmp_path: Path) -> None:
    catalog = load(
        tmp_path,
        "html: {file: mail.j2}",
        mail_j2='{% extends "layout.j2" %}{% block body %}{% include "parts/x.j2" %}{% endblock %}',
        layout_j2="<b>{% block body %}{% endblock %}</b>",
        parts__x_j2="{% include 'parts/y.j2' %}",
        parts__y_j2="y",
        unused_j2="z",
    )
    assert list(definition(catalog).partials) == ["layout.j2", "parts/x.j2", "parts/y.j2"]
    assert rendered(catalog)["html"] == "<b>y</b>"


def test_a_layout_that_changes_makes_another_definition(tmp_path: Path) -> None:
    files = {"mail_j2": '{% extends "l.j2" %}', "l_j2": "one"}
    before = definition(load(tmp_path, "html: {file: mail.j2}", **files))
    again = definition(load(tmp_path, "html: {file: mail.j2}", **files))
    after = definition(load(tmp_path, "html: {file: mail.j2}", **files | {"l_j2": "two"}))
    assert before.document() == again.document() != after.document()


def test_a_name_is_looked_up_in_the_definitions_folder_and_then_above_it(tmp_path: Path) -> None:
    orders = tmp_path / "mails" / "orders"
    orders.mkdir(parents=True)
    (orders / "a.yaml").write_text(MAIL.format("text: \"{% include 'x' %}{% include 'y' %}\""))
    (tmp_path / "x").write_text("far")
    (tmp_path / "y").write_text("far")
    (tmp_path / "mails" / "x").write_text("near")
    assert rendered(load_catalog([tmp_path]))["text"] == "nearfar"
    alone = load_catalog([orders / "a.yaml"])
    assert [str(fault).partition("line 1: ")[2] for fault in alone.faults] == [
        f"{name!r} is no file in {orders} or a folder above it, up to {orders}" for name in "xy"
    ]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "line 1: 'x.j2' is no file in FOLDER or a folder above it, up to FOLDER"),
        ({"x_j2": "\n{% include 'y.j2' %}"}, "x.j2 line 2: 'y.j2' is no file in FOLDER or a folder above it"),
        ({"x_j2": "{% include '../y.j2' %}"}, "x.j2 line 1: there is no partial '../y.j2': it should be the path of a"),
        ({"x_j2": "{% include '/etc/passwd' %}"}, "x.j2 line 1: there is no partial '/etc/passwd': it should be"),
        ({"x_j2": "{% include 'x.j2' %}"}, "x.j2 line 1: goes round in a circle: x.j2 → x.j2"),
        ({"x_j2": "\n\n{{ a | nope }}"}, "x.j2 line 3: there is no filter 'nope'"),
        ({"x_j2": "x" * 140_000}, "x.j2 is too large: 131072 characters"),
        ({"x_j2": "x" * 1_100_000}, "line 1: 'x.j2' is too large: 1100000 bytes; the limit is 1048576"),
    ],
)
def test_faults_have_file_and_line(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    (fault,) = faults(load(tmp_path, "html: \"{% include 'x.j2' %}\"", **files), tmp_path)
    assert fault.startswith(f"a.yaml:7: channels.email.html: {expected}")


def test_no_link_leads_outside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    folder = tmp_path / "catalog"
    folder.mkdir()
    (folder / "x.j2").symlink_to(tmp_path / "secret")
    (fault,) = faults(load(folder, "text: \"{% include 'x.j2' %}\""), folder)
    assert "'x.j2' lies outside FOLDER: only files of the catalog folder are read" in fault


def test_definitions_may_hold_their_partials_themselves(tmp_path: Path) -> None:
    catalog = load(tmp_path, "text: \"{% include 'x' %}\"\npartials: {x: \"[{% include 'y.j2' %}]\"}", y_j2="y")
    assert rendered(catalog)["text"] == "[y]"
    stored = definition(catalog)
    assert Definition.model_validate(stored.document()) == stored


# --- locales --------------------------------------------------------------------------------------------------------


def test_each_locale_may_have_files(tmp_path: Path) -> None:
    catalog = load(
        tmp_path,
        "text: {file: en.j2}\n    locales:\n      de: {subject: S, text: {file: de.j2}}",
        en_j2="Hello {% include 'foot.j2' %}",
        de_j2="Hallo {% include 'fuss.j2' %}",
        foot_j2="bye",
        fuss_j2="tschüss",
    )
    assert rendered(catalog, "de_AT") == {"subject": "S", "text": "Hallo tschüss"}
    assert rendered(catalog, "fr") == {"subject": "s", "text": "Hello bye"}
    assert list(definition(catalog).partials) == ["foot.j2", "fuss.j2"]


@pytest.mark.parametrize(
    ("locales", "expected"),
    [
        ("{de: {text: \"{{ a|nope }}\"}}", "de.text: line 1: there is no filter 'nope'"),
        ("{de: {text: {file: x}}}", "de.text: file x: there is no such file"),
        ("{de: {texts: a}}", "de.texts: is not a field that NotiPy knows"),
        ("{d: {text: a}}", "d: is not a locale such as de or pt-BR"),
    ],
)  # fmt: skip
def test_faults_of_a_locale_have_its_line(tmp_path: Path, locales: str, expected: str) -> None:
    found = faults(load(tmp_path, f"text: t\n    locales: {locales}"), tmp_path)
    assert found == [f"a.yaml:8: channels.email.locales.{expected}"]


# --- styles and MJML ------------------------------------------------------------------------------------------------

STYLED = "<html><head><style>p { color: red }</style></head><body>{}</body></html>"


def test_styles_are_inlined_in_every_html_and_in_layouts(tmp_path: Path) -> None:
    catalog = load(
        tmp_path,
        "html: {file: mail.j2}\n    locales:\n      de: {html: {file: de.j2}}",
        mail_j2='{% extends "l.j2" %}{% block b %}<i>x</i><p>y</p>{% endblock %}',
        l_j2=STYLED.replace("{}", "<p>{% block b %}{% endblock %}</p>"),
        de_j2=STYLED.replace("{}", "<p>{{ recipient.locale }}</p>"),
    )
    assert '<p style="color: red;"><i>x</i><p style="color: red;">y</p></p>' in rendered(catalog)["html"]
    assert '<p style="color: red;">de</p>' in rendered(catalog, "de")["html"]
    assert "<style>p { color: red }</style>" in rendered(catalog)["html"]


def test_what_cannot_be_inlined_safely_is_left_and_told(tmp_path: Path) -> None:
    source = "<style>p:first-child {{ color: red }}</style>{{% if a %}}<p>x</p>{{% endif %}}".replace(
        "{{", "{"
    ).replace("}}", "}")
    catalog = load(tmp_path, "html: {file: mail.j2}", mail_j2=source)
    assert definition(catalog).channels[Channel.EMAIL]["html"] == source
    assert any(
        "a.yaml:7: channels.email.html: styles are not inlined: its <style> chooses" in w
        for w in warnings(catalog, tmp_path)
    )


def test_faults_name_the_line_of_the_file_and_not_of_what_became_of_it(tmp_path: Path) -> None:
    (fault,) = faults(
        load(tmp_path, "html: {file: mail.j2}", mail_j2=STYLED.replace("{}", "\n<p>{{ a|nope }}")), tmp_path
    )
    assert fault == "a.yaml:7: channels.email.html: mail.j2 line 2: there is no filter 'nope'"


MJML = """<mjml><mj-body>
<mj-raw>{% if recipient %}</mj-raw>
<mj-section><mj-column><mj-text>Hi {{ recipient.locale | default("<x>") }}</mj-text></mj-column></mj-section>
<mj-raw>{% endif %}</mj-raw>
</mj-body></mjml>"""


def test_mjml_becomes_html(tmp_path: Path) -> None:
    catalog = load(tmp_path, "mjml: {file: mail.mjml}", **{"mail.mjml": MJML})
    html = definition(catalog).channels[Channel.EMAIL]["html"]
    assert '{{ recipient.locale | default("<x>") }}' in html
    assert html.index("{% if recipient %}") < html.index("Hi ") < html.index("{% endif %}")
    assert "mjml" not in definition(catalog).channels[Channel.EMAIL]
    assert rendered(catalog) == {"subject": "s", "html": rendered(catalog)["html"], "text": "Hi en\n"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("mjml: <mjml>", "channels.email.mjml: is not usable MJML: "),
        ("mjml: <mjml><mj-head>{% if a %}</mj-head></mjml>", "channels.email.mjml: is not usable MJML: "),
        ("mjml: '<mjml><mj-body><mj-include path=\"/etc/passwd\"/></mj-body></mjml>'", "mjml: is not usable MJML: "),
        ("mjml: <mjml></mjml>\n    html: x", "channels.email.mjml: stands beside html: give one of the two"),
        ("mjml: {file: x}", "channels.email.mjml: file x: there is no such file"),
        ("mjml: '<mjml><mj-body><mj-text><b>{{ b }}{# x #}</b></mj-text></mj-body></mjml>'", None),
    ],
)  # fmt: skip
def test_faults_of_mjml(tmp_path: Path, body: str, expected: str | None) -> None:
    found = faults(load(tmp_path, body), tmp_path)
    assert [fault for fault in found if expected is None or expected not in fault] == []
    assert bool(found) == (expected is not None)

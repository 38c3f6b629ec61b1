"""A mail's HTML: its styles put into its elements, and the text that is made of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.css import inlined as inlined_all
from channels.jinja_tags import TAG, put_away
from channels.mjml import MjmlError, html_of
from channels.plain_text import MAX_HTML, plain_text
from channels.rendering import TemplateRenderer
from domain.vocabulary import Channel
from tests.fakes import MemoryCatalog
from tests.growth import ends_soon
from tests.unit.world import World, notification


def inlined(source: str) -> tuple[str, str | None]:
    result = inlined_all({"mail": source}, {})
    return result.roots["mail"], result.left.get("mail")


STYLE = "<style>td { color: red } a.btn { top: 0 } .card p { left: 0 } @media print { td { color: blue } }</style>"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("<td>x</td>", None),  # a cell outside of a table is none
        ("<table><tr><td>x</td></tr></table>", '<table><tr><td style="color: red;">x</td></tr></table>'),
        (
            "<table>{% for r in rows %}<tr><td>{{ r > 1 }}</td></tr>{% endfor %}</table>",
            '<table>{% for r in rows %}<tr><td style="color: red;">{{ r > 1 }}</td></tr>{% endfor %}</table>',
        ),
        ("<a class='btn' href={{ u }}>x</a>", None),
        (
            "<a class='btn' href='{{ u }}?a=1&b={{ \"'\" }}'>x</a>",
            "<a style=\"top: 0;\" class='btn' href='{{ u }}?a=1&b={{ \"'\" }}'>x</a>",
        ),
        ('<a class="btn {{ kind }}">x</a>', None),
        ('<a class="btn" {% if a %}id="b"{% endif %}>x</a>', None),
        ('<a class="btn" style="color: {{ c }}">x</a>', None),
        ('<a STYLE="bottom: 1px" class=btn>x</a>', '<a style="top: 0;bottom: 1px" class=btn>x</a>'),
        ('<div class="card"><p>x<br/></p></div>', '<div class="card"><p style="left: 0;">x<br/></p></div>'),
        ("<!-- <a class='btn'> --><script><a class='btn'></script>", None),
        ("{% raw %}<a class='btn'>{{ x }}{% endraw %}{# <a class='btn'> #}", None),
        ("&nbsp;&euro;&lt; <P>unclosed <IMG src=x>", None),
    ],
)
def test_styles_are_put_where_they_belong_and_nothing_else_changes(source: str, expected: str | None) -> None:
    assert inlined(STYLE + source) == (STYLE + (source if expected is None else expected), None)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("<style>{{ css }}</style><p>x", "its <style> is written by tags of the template"),
        ("<style>p:nth-child(2) { top: 0 }</style>{% if a %}<p>{% endif %}", "chooses elements by their place"),
        ("<style>p + p { top: 0 }</style>{% if a %}<p>{% endif %}", "chooses elements by their place"),
    ],
)
def test_what_is_not_safe_is_left_as_it_is(source: str, why: str) -> None:
    result, left = inlined(source)
    assert result == source
    assert left is not None
    assert why in left


def test_calculations_and_attributes_are_no_siblings() -> None:
    source = "<style>p[class~=a] { width: calc(1px + 2px) } /* a + b */</style>{% if a %}<p class=a>x{% endif %}"
    assert inlined(source)[0].endswith('{% if a %}<p style="width: calc(1px + 2px);" class=a>x{% endif %}')


def test_nothing_is_fetched(unused_tcp_port: int) -> None:
    link = f"<link rel=stylesheet href=http://127.0.0.1:{unused_tcp_port}/a.css>"
    source = f"{link}<style>@import 'x.css'; p{{top:0}}</style><p>x"
    assert inlined(source)[0].endswith('<p style="top: 0;">x')


LAYOUT = "<style>p { top: 0 } .card p { left: 0 }</style>"
LAYOUT += "<p>{% block a %}<p>old{% endblock %}<div class=card>{% block b %}{% endblock %}"


def test_blocks_are_styled_where_they_will_stand() -> None:
    mail = (
        "{% extends 'l' %}{% block a %}{{ super() }}<p>a{% endblock %}{% block b %}<p>b{% include 'i' %}{% endblock %}"
    )
    result = inlined_all({"mail": mail}, {"l": LAYOUT, "i": "{% if x %}<p>i{% endif %}", "unused": "<p>"})
    assert result.left == {}
    assert result.roots["mail"] == (
        "{% extends 'l' %}{% block a %}{{ super() }}<p style=\"top: 0;\">a{% endblock %}"
        "{% block b %}<p style=\"top: 0;left: 0;\">b{% include 'i' %}{% endblock %}"
    )
    assert result.partials["i"] == '{% if x %}<p style="top: 0;left: 0;">i{% endif %}'
    assert result.partials["l"].startswith(
        LAYOUT.partition("<p>")[0] + '<p style="top: 0;">{% block a %}<p style="top: 0;">old'
    )
    assert result.partials["unused"] == "<p>"


def test_what_looks_different_in_two_mails_keeps_what_it_has() -> None:
    mails = {"one": "{% extends 'l' %}{% block a %}{% include 'i' %}{% endblock %}"}
    mails["two"] = mails["one"].replace("block a", "block b")
    assert inlined_all(mails, {"l": LAYOUT, "i": "<p>i"}).partials["i"] == "<p>i"
    assert inlined_all({"one": mails["one"]}, {"l": LAYOUT, "i": "<p>i"}).partials["i"] == '<p style="top: 0;">i'


def test_a_style_may_be_a_file_and_a_macro_stays_as_it_is() -> None:
    mail = "<style>{% include 'mail.css' %}</style>{% macro m() %}<p>m{% endmacro %}{% set s %}<p>s{% endset %}<p>x"
    result = inlined_all({"mail": mail}, {"mail.css": "p { top: 0 }"})
    assert result.roots["mail"] == mail.removesuffix("<p>x") + '<p style="top: 0;">x'
    assert result.partials == {"mail.css": "p { top: 0 }"}
    by_data = inlined_all({"mail": mail}, {"mail.css": "p { top: {{ x }} }"})
    assert by_data.left == {"mail": "its <style> is written by tags of the template"}


def test_files_that_include_each_other_very_often_are_left() -> None:
    partials = {f"p{n}": f"{{% include 'p{n + 1}' %}}" * 2 for n in range(40)} | {"p40": "<p>"}
    mail = "<style>p { top: 0 }</style>{% include 'p0' %}"
    assert inlined_all({"mail": mail}, partials).left == {"mail": "its files are too long together"}


@given(st.text(alphabet="<>{}%#a='\" /p-!\n", max_size=60))
def test_tags_survive_whatever_the_source_is(text: str) -> None:
    source = "<style>p{top:0}</style>" + text
    result, _ = inlined(source)
    assert TAG.findall(result) == TAG.findall(source)
    assert result.replace(' style="top: 0;"', "") == source or "style" in text


@given(st.text(alphabet="{}%#a'\" \\raw end-\n", max_size=60))
def test_what_is_put_away_comes_back(text: str) -> None:
    masked, tags = put_away(text, "\ue000{}\ue001".format)
    for number, tag in enumerate(tags):
        masked = masked.replace(f"\ue000{number}\ue001", tag.text)
    assert masked == text


def test_a_tag_that_mjml_would_drop_is_told_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "<mjml><mj-body>\n{% if a %}{{ b }}{# c #}{% endif %}</mj-body></mjml>"
    for made in ("notipy0tag notipy3tag", "notipy1tag notipy3tag notipy0tag", "notipy0tag notipy1tag"):
        monkeypatch.setattr("channels.mjml._compiled", lambda _, made=made: made)
        with pytest.raises(MjmlError, match=r"^line 2: \{.* would not stay in its place: put it into <mj-raw>$"):
            html_of(source)
    monkeypatch.setattr("channels.mjml._compiled", lambda _: "notipy1tag notipy0tag notipy1tag notipy3tag")
    assert html_of(source) == "{{ b }} {% if a %} {{ b }} {% endif %}"


# --- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>Hello</p><p>Ana &amp; Ben&nbsp;!</p>", "Hello\n\nAna & Ben !\n"),
        ("<a href='https://x.y/?a=1&amp;b=2'>See</a>.", "See <https://x.y/?a=1&b=2>.\n"),
        ("<a href='https://x.y'>https://x.y</a> <a href='mailto:a@b.c'>a@b.c</a>", "https://x.y a@b.c\n"),
        ("<a href='#top'>up</a> <a href='javascript:x'>x</a> <a>y</a>", "up x y\n"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><th>c</th><th></th></tr></table>", "a  b\nc\n"),
        ("<table><tr><td><p>Left</p></td><td><p>Right</p></td></tr></table>", "Left\n\nRight\n"),
        ("<ul><li>a</li><li>b</li></ul><ol><li>c</li></ol>", "* a\n* b\n1. c\n"),
        ("<div style='DISPLAY : none'>pre<b>header</b></div><style>p{}</style><script>x</script>y", "y\n"),
        ("<title>t</title><!-- c -->a<br>b", "a\nb\n"),
        ("<pre>a\n  b</pre>", "a\n  b\n"),
        ("<div style='margin-top: 99999em; padding-left: 99999em'>a</div>", "a\n"),
        ("", "\n"),
        ("<!-- -->", "\n"),
    ],
)
def test_what_can_be_read_in_html(html: str, text: str) -> None:
    assert (plain_text(html) or "").lstrip("\n") == text.lstrip("\n")


def test_a_mail_of_html_alone_gets_a_text() -> None:
    renderer = TemplateRenderer()
    content = {"subject": "s", "html": "<p>Hi {{ a }}</p>"}
    assert renderer.render(Channel.EMAIL, content, {"a": "<b>"})["text"] == "Hi <b>\n"
    given_both = renderer.render(Channel.EMAIL, content | {"text": "own"}, {"a": "x"})
    assert given_both["text"] == "own"


@pytest.mark.parametrize(
    ("size", "fields"), [(MAX_HTML, ["subject", "html", "text"]), (MAX_HTML + 1, ["subject", "html"])]
)
def test_a_mail_of_html_that_is_too_large_has_no_text(size: int, fields: list[str]) -> None:
    rendered = TemplateRenderer().render(Channel.EMAIL, {"subject": "s", "html": "{{ a }}"}, {"a": "x" * size})
    assert list(rendered) == fields


async def test_a_large_mail_is_sent_with_its_html_alone_and_that_is_on_record() -> None:
    html = "<p>" + "x" * MAX_HTML + "</p>"
    world = World(catalog=MemoryCatalog([notification(channels={"email": {"subject": "s", "html": html}})]))
    (job,) = await world.accepted()
    await world.deliver(job)
    assert world.deliveries.stored[job.delivery.id].detail == (
        "ok; without a text part: the HTML is too large to make one of"
    )


@pytest.mark.parametrize(
    "piece",
    [
        "<p>a",
        "<li>x",
        "<ul><li>x",
        "<table><tr><td>x",
        "<td>",
        "<div>",
        "<br>",
        "<a href='http://x'>",
        "<b>x",
        "&lt; <",
        "\n",
    ],
)
@pytest.mark.parametrize("before", ["", "<pre>", "<ul>" * 200, "<table><tr><td>" + "x" * 100_000 + "</td></tr>"])
def test_no_html_takes_long(before: str, piece: str) -> None:
    html = before + piece * ((MAX_HTML - len(before)) // len(piece))
    with ends_soon():
        text = plain_text(html)
        assert text is not None
        assert len(text) < 2 * MAX_HTML


def test_a_long_run_of_spaces_takes_no_time_by_its_square() -> None:
    with ends_soon():
        plain_text(f"<pre>x{chr(0xA0) * 100_000}y</pre>")

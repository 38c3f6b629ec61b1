"""Layouts and partials: what they do together, what is found in them beforehand, and that they share one budget."""

import gc
import tracemalloc
from typing import Any

import pytest

from channels.rendering import TemplateRenderer
from domain.locales import SHARED, Shared
from domain.ports import TemplateError
from domain.vocabulary import Channel
from tests.growth import ends_soon

LAYOUT = """<title>{% block title %}Shop{% endblock %}</title>
{% block body required %}{% endblock %}
{% include "parts/footer.j2" %}"""
FOOTER = "<p>to {{ recipient.email }} for {{ reason }}</p>"
MACROS = "{% macro button(label) %}<a>{{ label }}{{ recipient.email }}</a>{% endmacro %}{% set name = 'Shop' %}"
DOUBLING = {f"p{n}": f"{{% include 'p{n + 1}' %}}" * 2 for n in range(40)} | {"p40": "{{ a }}"}
PARTIALS = {"layout.j2": LAYOUT, "parts/footer.j2": FOOTER, "macros.j2": MACROS}


def content(template: str, partials: dict[str, str], field: str = "html") -> dict[str, Any]:
    return {"subject": "s", "text": "t", field: template, SHARED: Shared(tuple(sorted(partials.items())))}


def render(template: str, partials: dict[str, str] = PARTIALS, field: str = "html", **data: Any) -> str:
    context = data | {"recipient": {"email": "a@b.c"}, "event": {}, "data": data}
    return TemplateRenderer().render(Channel.EMAIL, content(template, partials, field), context)[field]


def fault(template: str, partials: dict[str, str] = PARTIALS, field: str = "html", **data: Any) -> str:
    with pytest.raises(TemplateError) as caught:
        render(template, partials, field, **data)
    return str(caught.value)


def checked(template: str, partials: dict[str, str]) -> list[str]:
    found = TemplateRenderer().check(Channel.EMAIL, content(template, partials))
    assert {each.field for each in found} <= {"email.html"}
    return [each.fault for each in found]


def missing(template: str, partials: dict[str, str] = PARTIALS) -> list[str]:
    return list(TemplateRenderer().missing(Channel.EMAIL, content(template, partials), {}))


# --- what they are for ----------------------------------------------------------------------------------------------


def test_a_layout_is_filled() -> None:
    template = (
        '{% extends "layout.j2" %}{% import "macros.j2" as m %}'
        "{% block title %}{{ super() }}: {{ a }}{% endblock %}"
        "{% block body %}{{ m.button(a) }}{{ m.name }}{% endblock %}"
    )
    assert render(template, a="<b>", reason="you") == (
        "<title>Shop: &lt;b&gt;</title>\n<a>&lt;b&gt;a@b.c</a>Shop\n<p>to a@b.c for you</p>"
    )


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% include 'x' %}", "[1]"),
        ("{% for i in [1, 2] %}{% include 'i' %}{% endfor %}", "12"),
        ("{% set a = 5 %}{% include 'x' %}", "[5]"),
        ("{% include 'x' without context %}", "[1]"),  # there is no file without its reader's data
        ("{% from 'm' import two as t, one %}{{ t() }}{{ one }}", "[1]one"),
        ("{% import 'm' as m %}{{ m.two() }}{{ m.none is defined }}", "[1]False"),
        ("{% block a %}A{% block b %}B{% endblock %}{% endblock %}", "AB"),
        ("{% for i in [1, 2] %}{% block a scoped %}{{ i }}{% endblock %}{% endfor %}", "12"),
        ("{% extends 'above' %}{% block a %}2{{ super() }}{% endblock %}", "<210>"),
        ("{% set z = 3 %}{% extends 'above' %}{% block a %}{{ z }}{% endblock %}", "<3>"),
    ],
)
def test_what_files_can_do_for_each_other(template: str, expected: str) -> None:
    partials = {
        "x": "[{{ a }}]",
        "i": "{{ i }}",
        "m": "{% macro two() %}{% include 'x' %}{% endmacro %}{% set one = 'one' %}",
        "above": "{% extends 'top' %}{% block a %}1{{ super() }}{% endblock %}",
        "top": "<{% block a %}0{% endblock %}>",
    }
    assert render(template, partials, a=1) == expected


def test_a_file_is_escaped_where_it_is_used_in_html_alone() -> None:
    partials = {"x": "{{ a }}"}
    assert render("{% include 'x' %}", partials, "html", a="<") == "&lt;"
    assert render("{% include 'x' %}", partials, "text", a="<") == "<"


def test_files_of_two_notifications_are_not_mixed_up() -> None:
    renderer = TemplateRenderer()
    context: dict[str, Any] = {"recipient": {}}
    for number in (1, 2, 1):
        words = content("{% include 'x' %}", {"x": str(number)}, "text")
        assert renderer.render(Channel.EMAIL, words, context)["text"] == str(number)


# --- what is wrong with them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "partials", "expected"),
    [
        ("\n{% include 'x' %}", {}, ["line 2: there is no partial 'x'"]),
        ("{% include 'x' %}", {"x": "\n{% include 'y' %}"}, ["x line 2: there is no partial 'y'"]),
        ("{% include 'x' %}", {"x": "\n\n{{ a|nope }}"}, ["x line 3: there is no filter 'nope'"]),
        ("{% include 'x' %}{% include 'x' %}", {"x": "{% if %}"}, ["x line 1: Expected an expression, got 'end of st"]),
        ("{% extends 'x' %}", {"x": "{% extends 'x' %}"}, ["x line 1: goes round in a circle: x → x"]),
        (
            "{% include 'x' %}",
            {"x": "{% include 'y' %}", "y": "{% import 'x' as x %}"},
            ["y line 1: goes round in a circle: x → y → x"],
        ),
        ("{% include 'x' %}", {"x": "{% include a %}"}, ["x line 1: include takes the name of a file in quotes"]),
        ("{% include 'x' ignore missing %}", {"x": ""}, ["line 1: include … ignore missing is not available"]),
        ("{% if a %}{% extends 'x' %}{% endif %}", {"x": ""}, ["line 1: extends should stand once, outside"]),
        ("{% extends 'x' %}{% extends 'x' %}", {"x": ""}, ["line 1: extends should stand once, outside"]),
        ("{% include 'x' %}", {"x": "y" * 200_000}, ["x is too large"]),
        ("fine", {"x": "{{ a|nope }}"}, []),
        (
            "{% include 'x' %}",
            {"x": "{{ a }}" * 2000, "y": "{{ a }}" * 2000},
            ["x is one of several files with more than 3000 tags together"],
        ),
    ],
)
def test_check_names_the_file_and_the_line(template: str, partials: dict[str, str], expected: list[str]) -> None:
    found = checked(template, partials)
    assert len(found) == len(expected)
    assert all(each.startswith(words) for each, words in zip(found, expected, strict=True))
    if expected:
        assert fault(template, partials, a=1).startswith("html: ")


def test_a_missing_name_is_told_with_its_file() -> None:
    template = "{% extends 'layout.j2' %}\n{% block body %}\n{{ nope }}{% endblock %}"
    assert fault(template, reason="") == "html: line 3: 'nope' is undefined"
    whole = "{% extends 'layout.j2' %}{% block body %}{% endblock %}"
    assert fault(whole) == "html: parts/footer.j2 line 1: 'reason' is undefined"
    assert "'secret'" not in fault("{% from 'macros.j2' import nope %}{{ nope() }}", secret="secret")


def test_a_block_that_is_required_is_told_of() -> None:
    assert fault("{% extends 'layout.j2' %}", reason="").startswith("html: layout.j2 line 2: fails with a")


@pytest.mark.parametrize(
    "template",
    [
        "{{ self.title() }}",
        "{{ self }}",
        "{% import 'macros.j2' as m %}{{ m }}",
        "{% import 'macros.j2' as m %}{{ m.__class__ }}",
        "{% import 'macros.j2' as m %}{{ m._body_stream }}",
        "{% import 'macros.j2' as m %}{{ m|attr('__dict__') }}",
        "{% import 'macros.j2' as m %}{{ m.button.__globals__ }}",
        "{% extends 'layout.j2' %}{% block title %}{{ super }}{% endblock %}{% block body %}{% endblock %}",
        "{% extends 'layout.j2' %}{% block title %}{{ super._stack }}{% endblock %}{% block body %}{% endblock %}",
        "{% extends 'layout.j2' %}{% block title %}{{ super.super() }}{% endblock %}{% block body %}{% endblock %}",
    ],
)
def test_nothing_new_leads_out_of_the_sandbox(template: str) -> None:
    assert fault(template, reason="").startswith("html: line 1: ")


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% include 'parts/footer.j2' %}", ["reason"]),
        ("{% if a %}{% include 'parts/footer.j2' %}{% endif %}", ["a"]),
        ("{% set reason = 1 %}{% include 'parts/footer.j2' %}", []),
        ("{% extends 'layout.j2' %}{% block body %}{{ b }}{% endblock %}", ["b", "reason"]),
        ("{% extends 'layout.j2' %}{% block nowhere %}{{ b }}{% endblock %}", ["reason"]),
        ("{% extends 'l' %}{% block a %}{{ x }}{% endblock %}", ["x"]),
        ("{% extends 'l' %}{% block a %}{{ x }}{{ super() }}{% endblock %}", ["deep", "inner", "x"]),
        ("{% extends 'l' %}{% block inner %}{% endblock %}", ["deep"]),
        ("{% extends 'l' %}", ["deep", "inner"]),
        ("{% import 'm' as m %}{{ m.x() }}{{ data.y }}", ["top", "y"]),
        ("{% block a %}{{ x }}{% endblock %}", ["x"]),
    ],
)
def test_missing_names_are_found_along_the_way(template: str, expected: list[str]) -> None:
    partials = PARTIALS | {
        "l": "{% block a %}{{ deep }}{% block inner %}{{ inner }}{% endblock %}{% endblock %}",
        "m": "{% macro x() %}{{ nope }}{% endmacro %}{{ top }}",
    }
    assert missing(template, partials) == expected


def test_files_that_use_each_other_very_often_are_looked_at_once() -> None:
    with ends_soon():
        assert missing("{% include 'p0' %}", DOUBLING) == ["a"]
        layouts = {
            f"l{n}": f"{{% extends 'l{n + 1}' %}}"
            + "".join(
                f"{{% block b{m} %}}{{{{ super() }}}}{{% block c{n}x{m} %}}{{% endblock %}}{{% endblock %}}"
                for m in range(20)
            )
            for n in range(20)
        }
        top = "".join(f"{{% block b{m} %}}" for m in range(20)) + "{{ a }}" + "{% endblock %}" * 20
        assert missing("{% extends 'l0' %}", layouts | {"l20": top}) == ["a"]


# --- bombs ----------------------------------------------------------------------------------------------------------

LOOP = "{% for i in range(99999) %}"
BOMBS: dict[str, tuple[str, dict[str, str]]] = {
    "doubling includes": ("{% include 'p0' %}", DOUBLING),
    "included in loops": (LOOP + LOOP + "{% include 'x' %}" + "{% endfor %}" * 2, {"x": ""}),
    "long text included": (LOOP + "{% include 'x' %}{% endfor %}", {"x": "y" * 100_000}),
    "long text imported": (LOOP + "{% import 'x' as x %}{% endfor %}", {"x": "y" * 100_000}),
    "loops in files": ("{% include 'x' %}" * 50, {"x": LOOP + "{% set a = i %}{% endfor %}"}),
    "a budget of its own": (
        "{% import 'x' as x without context %}" + LOOP + "{{ x.m() }}{% endfor %}" * 1,
        {"x": "{% macro m() %}{% for i in range(99999) %}{% set a = i %}{% endfor %}{% endmacro %}"},
    ),
    "blocks in loops": (LOOP + LOOP + "{% block a scoped %}" + "y" * 1000 + "{% endblock %}" + "{% endfor %}" * 2, {}),
    "supers": (
        "{% extends 'x' %}{% block a %}" + "{{ super() }}" * 100 + "{% endblock %}",
        {
            "x": "{% extends 'y' %}{% block a %}" + "{{ super() }}" * 100 + "{% endblock %}",
            "y": "{% extends 'z' %}{% block a %}" + "{{ super() }}" * 100 + "{% endblock %}",
            "z": "{% block a %}" + "y" * 1000 + "{% endblock %}",
        },
    ),
    "macros of files": (
        "{% import 'x' as x %}{{ x.m(40) }}",
        {"x": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}"},
    ),
    "output": ("{% include 'x' %}" * 20, {"x": "y" * 100_000}),
    "much data": (LOOP + "{% set b = i %}{% include 'x' %}{% endfor %}", {"x": ""}),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_of_several_files_end_soon_and_stay_small(name: str) -> None:
    template, partials = BOMBS[name]
    data = {f"n{number}": number for number in range(20_000 if name == "much data" else 0)} | {"a": ""}
    with ends_soon():
        message = fault(template, partials, "text", **data)
    assert message.startswith("text: ")
    assert "takes too many steps" in message or "makes a text of more" in message
    tracemalloc.start()
    try:
        fault(template, partials, "text", **data)
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()


def test_no_data_stands_in_for_the_budget() -> None:
    data: dict[str, Any] = {" purse": {"left": 10**12}, "a": 1}
    assert render("{% include 'x' %}", {"x": "{{ a }}"}, **data) == "1"
    message = fault(LOOP + LOOP + "{% include 'x' %}" + "{% endfor %}" * 2, {"x": ""}, **data)
    assert "takes too many steps" in message


def test_a_rendering_leaves_no_cycle_behind() -> None:
    renderer = TemplateRenderer()
    template = "{% extends 'layout.j2' %}{% block body %}{% include 'parts/footer.j2' %}{% endblock %}"
    words = content(template, PARTIALS, "text")
    context = {"reason": "x", "recipient": {"email": "a"}, "event": {}, "data": {}}
    renderer.render(Channel.EMAIL, words, context)
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            renderer.render(Channel.EMAIL, words, context)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_compiled_files_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("channels.rendering.CACHE_SOURCE", 20_000)
    renderer = TemplateRenderer()
    for number in range(100):
        words = content("{% include 'x' %}", {"x": f"{number}"}, "text")
        renderer.render(Channel.EMAIL, words, {"recipient": {}})
    assert renderer._cached <= 20_000
    assert renderer._cached == sum(kept.size for kept in renderer._cache.values())

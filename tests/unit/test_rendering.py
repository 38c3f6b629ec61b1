"""Templates: what they may do, what they are told when they may not, and what no template can do."""

import json
import tracemalloc
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.rendering import TemplateRenderer
from domain.ports import TemplateError
from domain.vocabulary import Channel
from tests.growth import ends_soon

NOW = datetime(2026, 11, 22, 17, 0, tzinfo=UTC)
EVENT = {"id": "ord-1", "source": "shop", "type": "order.shipped", "time": NOW}


def context(**data: Any) -> dict[str, Any]:
    return data | {"recipient": {"name": "Ana", "email": "ana@example.org"}, "event": EVENT, "data": data}


def text(template: str, **data: Any) -> str:
    return TemplateRenderer().render(Channel.SMS, {"text": template}, context(**data))["text"]


def html(template: str, **data: Any) -> str:
    return TemplateRenderer().render(Channel.EMAIL, {"html": template}, context(**data))["html"]


def fault(template: str, field: str = "text", **data: Any) -> str:
    with pytest.raises(TemplateError) as caught:
        TemplateRenderer().render(Channel.EMAIL, {field: template}, context(**data))
    return str(caught.value)


# --- what templates are for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("Hi {{ recipient.name }}, {{ order_id }}", "Hi Ana, 7"),
        ("{{ data.order_id }} {{ data['order_id'] }} {{ event.type }}", "7 7 order.shipped"),
        ("{% for r in rows %}{{ loop.index }}{{ r.name }}{% if not loop.last %},{% endif %}{% endfor %}", "1a,2b"),
        ("{{ rows|map(attribute='name')|join('+') }}", "a+b"),
        ("{{ rows|sum(attribute='price') }}", "3"),
        ("{{ rows|length }} {{ rows|first|tojson }}", '2 {"name": "a", "price": 1}'),
        ("{{ order.items }} {{ order.keys() | list }}", "5 ['items']"),
        ("{{ missing|default('none') }}{{ '!' if missing is defined }}", "none"),
        ("{% set t = namespace(v=0) %}{% for r in rows %}{% set t.v = t.v + r.price %}{% endfor %}{{ t.v }}", "3"),
        ("{% macro b(x) %}*{{ x }}*{% endmacro %}{{ b('a') ~ b(order_id) }}", "*a**7*"),
        ("{% macro b() %}[{{ caller() }}]{% endmacro %}{% call b() %}x{% endcall %}", "[x]"),
        ("{% for r in tree recursive %}{{ r.n }}{% if r.c %}({{ loop(r.c) }}){% endif %}{% endfor %}", "1(2)"),
        ("{% filter upper %}a{% endfilter %}{% set z %}b{% endset %}{{ z }}", "Ab"),
        ("{{ 'a' * 3 }} {{ 2 ** 10 }} {{ 7 // 2 }} {{ 7 % 4 }} {{ -1 }} {{ 1.5 + 1 }}", "aaa 1024 3 3 -1 2.5"),
        ("{{ '%05.2f'|format(price) }} {{ price|round(1) }}", "03.14 3.1"),
        ("{{ name.upper() }} {{ name[:2] }} {{ name.split('z')|join }}", "LIZA Li Lia"),
        ("{{ name|replace('i', 'u') }} {{ name|center(8) }}|", "Luza   Liza  |"),
        ("{{ event.time.strftime('%d.%m.%Y') }} {{ event.time.year }}", "22.11.2026 2026"),
        ("{{ rows|groupby('name')|map('first')|list }}", "['a', 'b']"),
        ("{{ rows|rejectattr('price', 'eq', 1)|list|length }}", "1"),
        ("{{ 'a' in name }} {{ 3 in [1, 2, 3] }} {{ name is in ['Liza'] }}", "True True True"),
        ("{{ rows|reverse|map(attribute='name')|list }} {{ order.values()|join }}", "['b', 'a'] 5"),
        ("{% for k, v in stock.items() if v > 1 %}{{ k }}{{ v }}{% endfor %}", "b2"),
        ("{% with a = 1 %}{{ a }}{% endwith %}{{ range(3)|list }}{{ none }}", "1[0, 1, 2]None"),
        ("<b>{{ markup }}</b>", "<b><i></b>"),
    ],
)  # fmt: skip
def test_what_templates_can_do(template: str, expected: str) -> None:
    data: dict[str, Any] = {
        "order_id": 7, "rows": [{"name": "a", "price": 1}, {"name": "b", "price": 2}], "price": 3.14159, "name": "Liza",
        "order": {"items": 5}, "stock": {"a": 1, "b": 2}, "tree": [{"n": 1, "c": [{"n": 2, "c": []}]}], "markup": "<i>",
    }  # fmt: skip
    assert text(template, **data) == expected


def test_a_field_of_the_data_comes_before_the_method_of_its_name() -> None:
    assert text("{{ order.items }}", order={"items": 5}) == "5"
    assert "not callable" in fault("{{ order.items() }}", order={"items": 5})


def test_html_alone_is_escaped() -> None:
    assert (
        html("<b>{{ a }}</b>{{ a ~ '&' }}{{ ['<', a]|join }}", a="<i>") == "<b>&lt;i&gt;</b>&lt;i&gt;&amp;&lt;&lt;i&gt;"
    )
    assert text("{{ a }}", a="<i>") == "<i>"


def test_subjects_are_one_line() -> None:
    content = {"subject": "  Order {{ id }}\n", "text": "x"}
    rendered = TemplateRenderer().render(Channel.EMAIL, content, context(id=1))
    assert rendered == {"subject": "Order 1", "text": "x"}
    for injected in ("a\r\nBcc: x@y.z", "a\nb", "a\x00b", "a\u2028b", "a\x85b"):
        assert "subject: contains a line break" in fault("{{ a }}", "subject", a=injected)
        assert "title: contains a line break" in fault("{{ a }}", "title", a=injected)


def test_the_attachments_number_is_no_template() -> None:
    assert TemplateRenderer().render(Channel.EMAIL, {"text": "a", "attachments": 1}, context()) == {"text": "a"}


# --- webhooks -------------------------------------------------------------------------------------------------------


def payload(template: str | None, **data: Any) -> Any:
    content = {} if template is None else {"payload": template}
    return json.loads(TemplateRenderer().render(Channel.WEBHOOK, content, context(**data))["payload"])


def test_a_payload_is_json() -> None:
    rendered = TemplateRenderer().render(
        Channel.WEBHOOK,
        {"payload": '{"a":  {{ a|tojson }},\n "b": {{ b }} }'},
        context(a='ü"<', b=12345678901234567890123),
    )
    assert rendered["payload"] == '{"a":"ü\\"<","b":12345678901234567890123}'


def test_without_a_payload_the_event_is_told() -> None:
    assert payload(None, a=[1, "ü"]) == {
        "type": "order.shipped",
        "timestamp": "2026-11-22T17:00:00+00:00",
        "data": {"a": [1, "ü"]},
    }


@pytest.mark.parametrize("template", ['{"a": {{ a }}}', "", "{", "NaN", '{"a": Infinity}', "[" * 5000, "1 2"])
def test_a_payload_that_is_no_json(template: str) -> None:
    with pytest.raises(TemplateError, match="payload: does not render to JSON") as caught:
        payload(template, a="secret")
    assert "secret" not in str(caught.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_tojson_gives_back_what_it_got(value: Any) -> None:
    if "\\ud" in json.dumps(value):  # lone surrogates are refused, see below
        return
    assert payload("{{ a|tojson }}", a=value) == value


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ a", "line 1: unexpected end of template"),
        ("\n{% if a %}", "line 2: Unexpected end of template"),
        ("\n\n{{ a|nope }}", "line 3: there is no filter 'nope'"),
        ("{% if a is nope %}{% endif %}", "line 1: there is no test 'nope'"),
        ("{% include 'x' %}", "line 1: there is no partial 'x'"),
        ("\n{% import 'x' as y %}", "line 2: there is no partial 'x'"),
        ("{% from 'x' import y %}", "there is no partial 'x'"),
        ("{% extends 'x' %}", "there is no partial 'x'"),
        ("{% include a %}", "line 1: include takes the name of a file in quotes"),
        ("{% include ['x', 'y'] %}", "include takes the name of a file in quotes"),
        ("{% extends a ~ 'x' %}", "extends takes the name of a file in quotes"),
        ("{% block x %}{% endblock %}{% block x %}{% endblock %}", "block 'x' defined twice"),
        ("{% do a %}", "unknown tag 'do'"),
        ("{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}", "too large|nested too deeply"),
        ("x" * 200_000, "is too large"),
    ],
)
def test_check_names_field_and_line(template: str, words: str) -> None:
    (found,) = TemplateRenderer().check(Channel.EMAIL, {"subject": "fine", "html": template})
    assert found.field == "email.html"
    assert any(word.lower() in found.fault.lower() for word in words.split("|"))
    with pytest.raises(TemplateError):
        html(template)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("\n{{ carrier }}", "text: line 2: 'carrier' is undefined"),
        ("{{ recipient.phone }}", "'dict object' has no attribute 'phone'"),
        ("{{ recipient[secret] }}", "has no such item"),
        ("{{ secret + 1 }}", "line 1: can only concatenate str"),
        ("{{ 1 / 0 }}", "divides by zero"),
        ("{{ secret.index('z') }}", "fails with a ValueError"),
        ("{{ secret.format(1) }}", "access to attribute 'format'"),
        ("{{ ''.__class__ }}", "is unsafe"),
        ("{{ ''|attr('__class__') }}", "is unsafe"),
        ("{{ ''['__class__'] }}", "is unsafe"),
        ("{{ ('a'|attr('ljust'))(10) }}", "is unsafe"),
        ("{{ (['a']|map('attr', 'zfill')|first)(10) }}", "is unsafe"),
        ("{{ (['a']|map(attribute='ljust')|first)(10) }}", "has no such item"),
        ("{{ [recipient]|map(attribute='nope')|list }}", "has no such item"),
        ("{{ range.__init__.__globals__ }}", "is unsafe"),
        ("{{ namespace.__init__ }}", "is unsafe"),
        ("{{ self }}", "a value of type"),
        ("{{ recipient.clear() }}", "clear"),
        ("{{ [].append(1) }}", "append"),
        ("{{ recipient.update({}) }}", "update"),
        ("{% macro m() %}\n{{ nope }}{% endmacro %}\n{{ m() }}", "line 2: 'nope' is undefined"),
        ("{{ '\\ud800' }}", "has a character that cannot be sent"),
        ("{{ [1]|map('upper') }}", "a value of type generator"),
        ("{{ range }}", "a value of type"),
        ("{{ 5() }}", "not callable"),
    ],
)
def test_faults_name_field_line_and_cause_and_no_value(template: str, words: str) -> None:
    message = fault(template, secret="hunter2")
    assert words in message
    assert "hunter2" not in message


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ a }} {{ b.c }} {{ d[0] }}", ["a", "b", "d"]),
        ("{{ data.x }} {{ data['y'] }} {{ data.get('z') }}", ["x", "y"]),
        ("{{ recipient.name }} {{ event.id }} {{ data }} {{ range(3) }}", []),
        ("{{ a|default('x') }} {% if b is defined %}{{ b }}{% endif %}", []),
        ("{% if a %}{{ b }}{% else %}{{ c }}{% endif %}", ["a"]),
        ("{{ b if a else c }} {{ d and e }}", ["a", "d"]),
        ("{% for x in xs %}{{ x }}{{ y }}{% endfor %}", ["xs"]),
        ("{% set a = b %}{{ a }}", ["b"]),
        ("{% macro m(x) %}{{ x }}{{ y }}{% endmacro %}{{ m(z) }}", ["z"]),
        ("{{ a ~ b|upper }}", ["a", "b"]),
        ("{{ a", []),
    ],
)
def test_missing_names_are_those_used_for_certain(template: str, expected: list[str]) -> None:
    renderer = TemplateRenderer()
    assert renderer.missing(Channel.SMS, {"text": template}, {}) == expected
    assert renderer.missing(Channel.SMS, {"text": template}, dict.fromkeys(expected)) == []


# --- bombs ----------------------------------------------------------------------------------------------------------


def _nested(name: str, opening: str = "[", closing: str = "]") -> str:
    first = f"{{% set {name} = {opening}'lol', 'lol'{closing} %}}"
    return first + f"{{% set {name} = {opening}{','.join([name] * 10)}{closing} %}}" * 12


TWO = _nested("a") + _nested("b")
BOMBS = {
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "filtered loops": "{% for i in range(9999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "text in a loop": "{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}",
    "text captured": "{% set z %}{% for i in range(99999) %}" + "x" * 10000 + "{% endfor %}{% endset %}",
    "repeated text": "{{ 'a' * 10**9 }}",
    "repeated list": "{{ ([1] * 10**9)|length }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "product": "{{ 9999999999**400 * 9999999999**400 }}",
    "int": "{{ ('f' * 900000)|int(base=16) }}",
    "modulo": "{{ '%1000000000s' % 1 }}",
    "format": "{{ '%1000000000s'|format(1) }}",
    "format star": "{{ '%*s'|format(10**9, 1) }}",
    "str.format": "{{ '{:>1000000000}'.format(1) }}",
    "center": "{{ 'a'|center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "expandtabs": "{{ 'a'.expandtabs(10**9) }}",
    "indent": "{{ 'a'|indent(10**9, true) }}",
    "indent text": "{{ ('\n' * 10000)|indent('x' * 1000) }}",
    "batch": "{{ [1]|batch(10**9, 'x')|list|length }}",
    "slice": "{{ [1]|slice(10**9)|list|length }}",
    "replace": "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
    "replace nothing": "{{ ('a' * 1000)|replace('', 'b' * 100000) }}",
    "join": "{{ range(99999)|join('x' * 10000) }}",
    "join lazily": "{{ range(99999)|map('string')|join('x' * 10000) }}",
    "wordwrap": "{{ ('a ' * 30000)|wordwrap(1, wrapstring='x' * 10000) }}",
    "round": "{{ 5|round(-(10**9)) }}",
    "strftime": "{{ event.time.strftime('%9999Y' * 10000) }}",
    "billion laughs": _nested("a") + "{{ a }}",
    "laughs as JSON": _nested("a") + "{{ a|tojson }}",
    "laughs joined": _nested("a") + "{{ a ~ 'x' }}",
    "laughs compared": TWO + "{{ a == b }}",
    "laughs searched": TWO + "{{ a in [b] }}",
    "laughs sorted": TWO + "{{ [a, b]|sort|length }}",
    "laughs selected": TWO + "{{ [a]|select('eq', b)|list|length }}",
    "laughs changed": TWO + "{% for i in [a, b] %}{{ loop.changed(i) }}{% endfor %}",
    "laughs as a key": _nested("a", "(", ")") + "{{ data[a] }}",
    "laughs as a new key": _nested("a", "(", ")") + "{{ {a: 1}|length }}",
    "doubling block": "{% set x = 'a' * 10 %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60 + "{{ x }}",
    "doubling text": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling list": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling macro": "{% macro m(x, n) %}{% if n %}{{ m(x ~ x, n - 1) }}{% endif %}{% endmacro %}{{ m('a', 60) }}",
    "doubling filter": "{% set x = 'a' * 100000 %}" + "{% filter upper %}{{ x }}{{ x }}" * 40 + "{% endfilter %}" * 40,
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "two macros": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "call blocks": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call m() %}" * 30
    + "x"
    + "{% endcall %}" * 30,
    "recursive loop": "{% for i in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "striptags": "{{ ('<!---->' * 100000)|striptags }}",
    "urlize": "{{ ('http://a.b ' * 90000)|urlize }}",
    "escaping": "{{ ('<' * 1000000)|e }}",
    "splitting": "{{ ('ab' * 500000).split('a')|length }}",
    "sum of lists": "{{ [[1], [2]]|sum(start=[])|length }}",
    "output": "{{ 'a' * 1000000 }}{{ 'a' * 1000000 }}",
    "slices": "{% set x = 'a' * 1000000 %}" + "{% set y = x[1:] %}" * 1000,
    "filters": "{{ ('a' * 1000000)" + "|upper" * 400 + " }}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "cycler": "{{ cycler(1) }}",
    "refilling the budget": "{{ [-10**9]|map(' tick')|list }}" + "{% for i in range(99999) %}" * 2 + "{% endfor %}" * 2,
    "parentheses": "{{ " + "(" * 30000 + "1" + ")" * 30000 + " }}",
    "long sum": "{{ 1" + "+1" * 15000 + " }}",
    "long chain": "{{ 'a'" + "|upper" * 5000 + " }}",
    "deep ifs": "{% if 1 %}" * 1400 + "{% endif %}" * 1400,
    "deep loops": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "many arguments": "{{ namespace(" + ",".join(f"a{i}=1" for i in range(9000)) + ") }}",
}


@pytest.mark.parametrize("field", ["text", "html"])
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end_soon(name: str, field: str) -> None:
    with ends_soon():
        message = fault(BOMBS[name], field)
    assert message.startswith(f"{field}: ")
    assert len(message) < 300


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_stay_small(name: str) -> None:
    field = "text"
    tracemalloc.start()
    try:
        fault(BOMBS[name], field)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


def test_a_large_honest_mail_is_no_bomb() -> None:
    rows = [{"name": f"Item <{i}>", "price": i * 1.5, "tags": ["a", "b"]} for i in range(2000)]
    template = (
        "<table>{% for row in rows %}<tr class='{{ loop.cycle('odd', 'even') }}'><td>{{ loop.index }}</td>"
        "<td>{{ row.name|upper }}</td><td>{{ '%.2f'|format(row.price) }}</td><td>{{ row.tags|join(', ') }}</td>"
        "{% if row.price > 100 and row.name != 'x' %}<td>!</td>{% endif %}</tr>{% endfor %}</table>"
    )
    assert html(template, rows=rows).count("<tr") == 2000


def test_compiled_templates_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("channels.rendering.CACHE_SOURCE", 20_000)
    renderer = TemplateRenderer()
    for number in range(100):
        renderer.render(Channel.SMS, {"text": f"{number} {{{{ a }}}}"}, context(a=1))
    assert renderer._cached <= 20_000
    assert renderer._cached == sum(compiled.size for compiled in renderer._cache.values())

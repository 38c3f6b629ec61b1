"""Filters for what people of different languages write differently."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from babel import localedata

from channels.filters import FILTERS, LOCALES_KEPT
from channels.rendering import TemplateRenderer
from domain.ports import TemplateError
from domain.vocabulary import Channel
from tests.growth import ends_soon

AT = "2026-11-22T17:00:00Z"
DATA: dict[str, Any] = {
    "n": 1234.5,
    "one": 1,
    "two": 2,
    "five": 5,
    "nil": 0,
    "text": "12.50",
    "day": "2026-11-22",
    "at": AT,
    "local": "2026-11-22T17:00:00+05:30",
    "naive": "2026-11-22T17:00:00",
    "names": ["Ana", "Ben", "Cem"],
    "marked": ["<a>", "b"],
    "moment": datetime(2026, 11, 22, 17, tzinfo=UTC),
    "birthday": date(2000, 2, 29),
    "later": "2026-11-22T19:00:00Z",
    "earlier": "2026-11-19T17:00:00Z",
}


def render(template: str, locale: str = "en", zone: str | None = None, field: str = "text", **data: Any) -> str:
    recipient = {"name": "Ana", "locale": locale} | ({"timezone": zone} if zone else {})
    context = DATA | data | {"recipient": recipient, "event": {"time": AT}, "data": data}
    content = {"subject": "s", "text": "t", field: template}
    # Spaces of other widths are for the eye.
    return TemplateRenderer().render(Channel.EMAIL, content, context)[field].replace("\xa0", " ").replace("\u202f", " ")


def fault(template: str, **data: Any) -> str:
    with pytest.raises(TemplateError) as caught:
        render(template, **data)
    return str(caught.value)


@pytest.mark.parametrize(
    ("template", "locale", "expected"),
    [
        ("{{ n | money('EUR') }}", "de", "1.234,50 €"),
        ("{{ n | money('EUR') }}", "en", "€1,234.50"),
        ("{{ n | money('JPY') }}", "ja", "￥1,234"),  # there are no sen; half to even
        ("{{ text | money('USD') }}", "en", "$12.50"),
        ("{{ -5 | money('CHF') }}", "de-CH", "CHF-5.00"),
        ("{{ n | number }}", "de", "1.234,5"),
        ("{{ n | number(2) }}", "fr", "1 234,50"),
        ("{{ n | number(0) }}", "en", "1,234"),
        ("{{ 12345678 | number(1) }}", "hi", "1,23,45,678.0"),
        ("{{ 0.256 | percent }}", "de", "26 %"),
        ("{{ 0.256 | percent(1) }}", "en", "25.6%"),
        ("{{ day | date }}", "de", "22.11.2026"),
        ("{{ day | date('full') }}", "en-GB", "Sunday, 22 November 2026"),
        ("{{ birthday | date('d. MMMM y') }}", "de", "29. Februar 2000"),
        ("{{ at | time }}", "de", "17:00"),
        ("{{ moment | datetime('short') }}", "de", "22.11.26, 17:00"),
        ("{{ local | time }}", "en-GB", "11:30"),
        ("{{ naive | time }}", "en-GB", "17:00"),
        ("{{ at | datetime('short', timezone='Asia/Tokyo') }}", "en-GB", "23/11/2026, 02:00"),
        ("{{ 7200 | timedelta }}", "de", "2 Stunden"),
        ("{{ later | ago }}", "de", "in 2 Stunden"),
        ("{{ earlier | ago }}", "en", "3 days ago"),
        ("{{ one | plural(one='{n} item', other='{n} items') }}", "en", "1 item"),
        ("{{ n | plural(one='{n} item', other='{n} items') }}", "en", "1,234.5 items"),
        ("{{ 1.0 | plural(one='{n} item', other='{n} items') }}", "en", "1 item"),
        ("{{ two | plural(one='{n} plik', few='{n} pliki', many='{n} plików', other='{n} pliku') }}", "pl", "2 pliki"),
        ("{{ five | plural(one='{n} plik', few='{n} pliki', many='{n} plików', other='x') }}", "pl", "5 plików"),
        ("{{ nil | plural(zero='nothing', other='{n} items') }}", "en", "nothing"),
        ("{{ nil | plural(one='{n} item', other='{n} items') }}", "fr", "0 item"),
        ("{{ names | format_list }}", "de", "Ana, Ben und Cem"),
        ("{{ names | format_list('or') }}", "en", "Ana, Ben, or Cem"),
        ("{{ names | map('upper') | format_list }}", "es", "ANA, BEN y CEM"),
        ("{{ [] | format_list }}|{{ ['x'] | format_list }}", "de", "|x"),
    ],
)
def test_what_is_written_in_a_language(template: str, locale: str, expected: str) -> None:
    assert render(template, locale) == expected


def test_times_are_shown_where_the_recipient_is() -> None:
    assert render("{{ at | datetime('short') }}", "de", "Europe/Berlin") == "22.11.26, 18:00"
    assert render("{{ at | date }}", "en", "Pacific/Auckland") == "Nov 23, 2026"
    assert render("{{ day | date }}", "en", "Pacific/Auckland") == "Nov 22, 2026"  # a day is the same everywhere


def test_an_sms_keeps_its_alphabet() -> None:
    rendered = TemplateRenderer().render(
        Channel.SMS, {"text": "{{ n | money('EUR') }}"}, {"n": 5, "recipient": {"locale": "de"}}
    )
    assert rendered["text"] == "5,00 €"


def test_html_is_escaped_in_lists_and_plurals() -> None:
    assert render("{{ marked | format_list }}", field="html") == "&lt;a&gt; and b"
    assert render("{{ one | plural(one='<b>', other='') }}", field="html") == "&lt;b&gt;"


def test_timedeltas_are_taken_as_they_are() -> None:
    assert render("{{ d | timedelta('short') }}", d=timedelta(days=3)) == "3 days"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("\n{{ secret | money('EUR') }}", "text: line 2: the filter money takes a number, and this text is none"),
        ("{{ n | money('Euro') }}", "the filter money takes a currency of three capital letters, such as EUR"),
        ("{{ n | money }}", "missing 1 required positional argument: 'currency'"),
        ("{{ names | number }}", "the filter number takes a number, not a value of type list"),
        ("{{ true | number }}", "not a value of type bool"),
        ("{{ 'nan' | number }}", "a number of at most 40 digits"),
        ("{{ '1e999999' | number }}", "a number of at most 40 digits"),
        ("{{ '1e-999999' | percent }}", "a number of at most 40 digits"),
        ("{{ (10 ** 400) | number }}", "a number of at most 40 digits"),
        ("{{ n | number(99) }}", "from 0 to 20 digits"),
        ("{{ secret | date }}", "the filter date takes a date or time in ISO 8601"),
        ("{{ five | date }}", "the filter date takes a date or time in ISO 8601"),
        ("{{ day | time }}", "the filter time takes a date with a time"),
        ("{{ at | date('zzzzz' * 3) }}", "the filter date takes full, long, medium, short or a pattern"),
        ("{{ at | date('y' * 101) }}", "a format of at most 100 characters"),
        ("{{ day | date('HH:mm') }}", "the filter date takes full, long, medium, short or a pattern"),
        ("{{ at | time(timezone=secret) }}", "there is no such time zone"),
        ("{{ at | time(timezone='../../etc/passwd') }}", "there is no such time zone"),
        ("{{ five | timedelta('tall') }}", "takes the formats narrow, short and long"),
        ("{{ 1e30 | timedelta }}", "at most three thousand years"),
        ("{{ five | plural(one='x') }}", "the filter plural takes the texts other=…"),
        ("{{ five | plural(other='{n}' * 9999) }}", "the filter plural takes the texts other=…"),
        ("{{ five | plural(other='x', lots='y') }}", "the filter plural takes the texts other=…"),
        ("{{ secret | format_list }}", "the filter format_list takes a list, not a value of type str"),
        ("{{ names | format_list('nor') }}", "the filter format_list takes the styles"),
        ("{{ range(1001) | list | format_list }}", "takes at most 1000 items"),
        ("{{ missing | money('EUR') }}", "'missing' is undefined"),
        ("{{ missing | format_list }}", "'missing' is undefined"),
        ("{{ missing | date }}", "'missing' is undefined"),
    ],
)
def test_faults_name_the_filter_and_no_value(template: str, words: str) -> None:
    message = fault(template, secret="hunter2")
    assert words in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "\n{{ n | money('EUROS') }}",
            "line 2: the filter money takes a currency of three capital letters, such as EUR",
        ),
        ("{{ n | money }}", "line 1: the filter money: missing a required argument: 'currency'"),
        ("{{ n | money('EUR', 2) }}", "line 1: the filter money: too many positional arguments"),
        ("{{ n | money(code='EUR') }}", "line 1: the filter money: missing a required argument: 'currency'"),
        ("{% if a %}{{ n | number(99) }}{% endif %}", "line 1: the filter number takes from 0 to 20 digits"),
        ("{{ n | percent(digits='2') }}", "line 1: the filter percent takes from 0 to 20 digits"),
        ("{{ at | date('HH:mm') }}", "line 1: the filter date takes full, long, medium, short or a pattern"),
        ("{{ at | time('y') }}", "line 1: the filter time takes full, long, medium, short or a pattern"),
        ("{{ at | datetime('zzzzzz') }}", "line 1: the filter datetime takes full"),
        ("{{ at | datetime('short', 'Europe/Berlni') }}", "line 1: there is no such time zone"),
        ("{{ at | date(format, timezone=7) }}", "line 1: there is no such time zone"),
        ("{{ at | ago('tall') }}", "line 1: the filter ago takes the formats narrow, short and long"),
        ("{{ five | plural(one='x') }}", "line 1: the filter plural takes the texts other=…"),
        ("{{ five | plural }}", "line 1: the filter plural takes the texts other=…"),
        ("{{ five | plural(one=x, other=y, lots=z) }}", "line 1: the filter plural takes the texts other=…"),
        ("{{ names | format_list('nor') }}", "line 1: the filter format_list takes the styles"),
        ("{% filter money('Euro') %}5{% endfilter %}", "line 1: the filter money takes a currency"),
    ],
)
def test_an_argument_that_can_never_be_right_is_found_before_anything_is_rendered(template: str, words: str) -> None:
    (found,) = TemplateRenderer(strict=True).check(Channel.SMS, {"text": template})
    assert words in str(found)
    assert TemplateRenderer().check(Channel.SMS, {"text": template}) == [], "what is in force goes on as it did"


@pytest.mark.parametrize(
    "call",
    [
        *("money('EUR')", "money(currency)", "money(currency='JPY')", "money(*given)", "money(**given)"),
        *("number", "number(0)", "number(none)", "number(digits)", "percent(1)"),
        *("date", "date('long')", "date('EEEE, d. MMMM y')", "date('yQQQ', 'Europe/Berlin')", "date(timezone=none)"),
        *("time('HH:mm:ss')", "time('full', zone)", "datetime(format=f)", "datetime('yyyy-MM-dd HH:mm')"),
        *("timedelta('narrow')", "ago", "format_list('or')", "format_list(style)"),
        *("plural(other='x')", "plural(one=a, other=b)", "plural(**forms)"),
    ],
)
def test_what_may_be_right_is_no_fault(call: str) -> None:
    assert TemplateRenderer(strict=True).check(Channel.SMS, {"text": f"{{{{ value | {call} }}}}"}) == []


BOMBS = {
    "money": "{{ n | money('EUR') }}",
    "number": "{{ i | number(20) }}",
    "percent": "{{ n | percent(20) }}",
    "date": "{{ at | date('full') }}",
    "time": "{{ at | time('full') }}",
    "datetime": "{{ at | datetime('full') }}",
    "timedelta": "{{ i | timedelta }}",
    "ago": "{{ later | ago }}",
    "plural": "{{ i | plural(one='{n}', other='{n}' * 1000) }}",
    "format_list": "{{ names | format_list }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_no_filter_costs_more_than_the_budget(name: str) -> None:
    with ends_soon():
        message = fault(f"{{% for i in range(99999) %}}{BOMBS[name]}{{% endfor %}}")
        assert "takes too many steps" in message or "makes a text of more" in message


def test_long_lists_stay_within_the_budget() -> None:
    with ends_soon():
        message = fault("{% for i in range(9999) %}{{ many | format_list }}{% endfor %}", many=["x" * 500] * 1000)
        assert "takes too many steps" in message or "makes a text of more" in message


def test_each_filter_has_a_bomb() -> None:
    assert BOMBS.keys() == FILTERS.keys()


@pytest.mark.parametrize("call", ["datetime('%s')", "time('%s', 'UTC')", "date('%s')"])
def test_a_pattern_is_paid_for_by_its_length(call: str) -> None:
    many = "{% for i in range(1500) %}{{ at | %s }}{% endfor %}"
    assert render(many.replace("%s", call % "short"))
    with pytest.raises(TemplateError, match="too many steps"):
        render(many.replace("%s", call % (("H " if "time" in call else "W ") * 50)))


def test_the_locales_of_recipients_do_not_fill_memory() -> None:
    for tag in localedata.locale_identifiers()[: 4 * LOCALES_KEPT]:
        render("{{ n | number }}", locale=tag.replace("_", "-"))
    assert len(localedata._cache) <= LOCALES_KEPT + 5
    assert render("{{ n | number }}", locale="de") == "1.234,5"

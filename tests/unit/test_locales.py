"""Which words a recipient gets, and what a content in several locales has to be."""

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.rendering import TemplateRenderer
from domain.event import Incoming, parse_event
from domain.locales import localised, lookup
from domain.notification import Definition, Notification, check_content
from domain.plan import Planner
from domain.vocabulary import Channel, State
from tests.fakes import START, NoSchemas

CONTENT: dict[str, Any] = {
    "subject": "Hello",
    "text": "base {{ a }}",
    "locales": {"de": {"subject": "Hallo"}, "de_AT": {"subject": "Servus"}, "pt-BR": {"text": "Olá {{ b }}"}},
}


def definition(**more: Any) -> Definition:
    return Definition.model_validate({"name": "n", "on": "a.b", "channels": {"email": CONTENT}} | more)


def subject(tag: str | None, content: dict[str, Any] = CONTENT) -> str:
    return str(localised(content, tag)[0]["subject"])


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("de", "Hallo"),
        ("DE", "Hallo"),
        ("de-CH", "Hallo"),
        ("de-CH-1996", "Hallo"),
        ("de-AT", "Servus"),
        ("de_at", "Servus"),
        ("de-AT-x-wien", "Servus"),
        ("den", "Hello"),
        ("fr", "Hello"),
        ("pt", "Hello"),
        (None, "Hello"),
        ("", "Hello"),
    ],
)
def test_the_most_specific_words_are_chosen(tag: str | None, expected: str) -> None:
    assert subject(tag) == expected


def test_a_tag_falls_back_part_by_part() -> None:
    assert list(lookup("zh_Hant_TW")) == ["zh-hant-tw", "zh-hant", "zh"]
    assert list(lookup("de-x-wien")) == ["de-x-wien", "de"]
    assert list(lookup("")) == [""]


def test_a_locale_overrides_field_by_field() -> None:
    assert localised(CONTENT, "pt-BR") == ({"subject": "Hello", "text": "Olá {{ b }}"}, "pt-br")
    german = {"subject": "s", "text": "t", "locales": {"de": {"subject": "S", "text": "T"}, "de-AT": {"subject": "A"}}}
    assert localised(german, "de-AT") == ({"subject": "A", "text": "T"}, "de-at")
    removed = {"subject": "s", "text": "t", "html": "h", "locales": {"de": {"html": None}}}
    rendered = TemplateRenderer().render(Channel.EMAIL, removed, {"recipient": {"locale": "de"}})
    assert rendered == {"subject": "s", "text": "t"}


@given(st.text(max_size=30))
def test_any_locale_gets_some_words(tag: str) -> None:
    assert subject(tag) in {"Hello", "Hallo", "Servus"}


def test_each_locale_must_make_a_usable_content() -> None:
    faults = check_content(
        Channel.EMAIL,
        {
            "subject": "s",
            "text": "t",
            "locales": {
                "de": {"subjekt": "S", "attachments": 1},
                "DE": {"text": None},
                "fr": {"subject": 5},
                "x!": {},
                "it": {"locales": {}},
            },
        },
    )
    assert [str(fault) for fault in faults] == [
        "email.locales.x!: is not a locale such as de or pt-BR",
        "email.locales.DE: is the same locale as de",
        "email.locales.de.attachments: is the same for all locales: set it in the channel itself",
        "email.locales.de.subjekt: is not a field that NotiPy knows",
        "email.locales.DE: needs text, html or both",
        "email.locales.fr.subject: Input should be a valid string",
        "email.locales.it.locales: is the same for all locales: set it in the channel itself",
    ]


def test_a_locale_need_not_say_again_what_a_less_specific_one_says() -> None:
    assert not check_content(Channel.SMS, {"text": "t", "locales": {"de": {"max_segments": 2}, "de-AT": {"text": "u"}}})
    broken = {"text": "t", "locales": {"de": {"text": None}, "de-AT": {"text": "u"}}}
    assert [fault.field for fault in check_content(Channel.SMS, broken)] == ["sms.locales.de.text"]


def test_a_fault_of_the_channels_own_words_is_told_once() -> None:
    content = {"text": "t", "locales": {"de": {"text": "T"}, "fr": {"text": "U"}}}
    assert [str(fault) for fault in check_content(Channel.EMAIL, content)] == ["email.subject: Field required"]


@pytest.mark.parametrize("locales", [5, [], {"de": 5}, {"de": ["a"]}])
def test_what_is_no_mapping_is_a_fault_and_no_crash(locales: object) -> None:
    faults = check_content(Channel.SMS, {"text": "t", "locales": locales})
    assert all(fault.field.startswith("sms.locales") for fault in faults)
    assert len(faults) == 1


@pytest.mark.parametrize("name", ["../x", "/x", "a/../b", "./a", "a//b", "", ".hidden", "a\\b", "a\nb", "ü"])
def test_names_of_partials_lead_nowhere_else(name: str) -> None:
    with pytest.raises(ValueError, match="should be the path of a file below"):
        definition(partials={name: "x"})


def test_partials_are_limited() -> None:
    with pytest.raises(ValueError, match="partials of more than"):
        definition(partials={f"p{number}": "x" * 100_000 for number in range(6)})
    with pytest.raises(ValueError, match="at most 50"):
        definition(partials={f"p{number}": "x" for number in range(51)})


def test_a_definition_without_the_new_fields_is_stored_as_before() -> None:
    assert definition().document() == {"name": "n", "on": "a.b", "channels": {"email": CONTENT}}


def test_a_definition_is_read_back_as_it_was() -> None:
    full = definition(default_locale="en", partials={"footer.j2": "x"})
    assert Definition.model_validate(full.document()) == full


def test_an_event_cannot_bring_what_only_a_notification_shares() -> None:
    assert check_content(Channel.SMS, {"text": "t", " shared": {"partials": []}})
    assert check_content(Channel.SMS, {"text": "t", "partials": {"a": "b"}})


# --- in the renderer ------------------------------------------------------------------------------------------------


def test_every_locale_is_checked() -> None:
    content = {"text": "{{ a }}", "locales": {"de": {"text": "\n{{ a|nope }}"}, "fr": {"text": "{{ b }}"}}}
    (fault,) = TemplateRenderer().check(Channel.SMS, content)
    assert str(fault) == "sms.locales.de.text: line 2: there is no filter 'nope'"


@pytest.mark.parametrize(
    ("locale", "expected"),
    [
        (None, ["a", "s"]),
        ("it", ["a", "s"]),
        ("de", ["b", "s"]),
        ("de-AT", ["b", "c"]),
        ("de_CH", ["b", "s"]),
        ("fr", ["s"]),
    ],
)
def test_a_name_is_missing_for_those_alone_whose_words_use_it(locale: str | None, expected: list[str]) -> None:
    content = {
        "subject": "{{ s }}",
        "text": "{{ a }}",
        "locales": {"de": {"text": "{{ b }}"}, "de-at": {"subject": "{{ c }}"}, "fr": {"text": "rien"}},
    }
    assert TemplateRenderer().missing(Channel.EMAIL, content, {}, locale) == expected
    assert TemplateRenderer().missing(Channel.EMAIL, content, {"a": 1, "b": 1, "c": 1, "s": 1}, locale) == []


def planned(channels: dict[str, Any], data: dict[str, Any]) -> dict[str, tuple[State, str | None]]:
    """State and detail by the recipient's id, of one for each locale and of one without."""
    people = [{"id": tag or "none", "email": "a@example.org", **({"locale": tag} if tag else {})}
              for tag in (None, "de-AT", "fr")]  # fmt: skip
    body = json.dumps({"recipients": people, "data": data}).encode()
    event = parse_event(Incoming(body, "a.b", "m-1"), START, 1000)
    notification = Notification(version=1, definition=definition(channels=channels))
    planner = Planner(TemplateRenderer(), NoSchemas(), frozenset({Channel.EMAIL}), timedelta(minutes=5))
    return {each.recipient_key: (each.state, each.detail) for each in planner.plan(event, [notification], START, START)}


def test_an_event_without_a_name_that_one_locale_uses_is_planned_for_all_others() -> None:
    email = {"subject": "s", "text": "{{ a }}", "locales": {"de": {"text": "{{ a }} {{ b }}"}}}
    found = planned({"email": email}, {"a": 1})
    assert found == {
        "none": (State.QUEUED, None),
        "de-AT": (State.FAILED, "data lacks b"),
        "fr": (State.QUEUED, None),
    }
    assert {state for state, _ in planned({"email": email}, {"a": 1, "b": 2}).values()} == {State.QUEUED}


def test_a_name_that_a_locale_does_not_use_is_not_asked_of_it() -> None:
    email = {"subject": "s", "text": "{{ a }}", "locales": {"de": {"text": "Hallo"}}}
    assert {key: state for key, (state, _) in planned({"email": email}, {}).items()} == {
        "none": State.FAILED,
        "de-AT": State.QUEUED,
        "fr": State.FAILED,
    }


@pytest.mark.parametrize(
    ("locale", "default", "expected"),
    [
        ("de", None, "Summe 1.234,5"),
        ("de-CH", None, "Summe 1’234.5"),
        ("fr", "en", "Total 1,234.5"),  # the words are English, so is the number
        ("fr", None, "Total 1\u202f234,5"),  # nobody knows what the words are
        ("en-IN", "en", "Total 1,234.5"),
        (None, "de-CH", "Total 1’234.5"),
        (None, None, "Total 1,234.5"),
        ("tlh", None, "Total 1,234.5"),
    ],
)
def test_filters_follow_the_words(locale: str | None, default: str | None, expected: str) -> None:
    words = {"text": "Total {{ t | number }}", "locales": {"de": {"text": "Summe {{ t | number }}"}}}
    given = definition(channels={"chat": words}, **({"default_locale": default} if default else {}))
    recipient = {"locale": locale} if locale else {}
    rendered = TemplateRenderer().render(
        Channel.CHAT, given.contents[Channel.CHAT], {"t": 1234.5, "recipient": recipient}
    )
    assert rendered["text"] == expected


def test_each_field_is_formatted_in_the_language_that_it_is_in() -> None:
    shown = "{{ amount | money('EUR') }}"
    definition = Definition.model_validate(
        {
            "name": "n",
            "on": "a.b",
            "default_locale": "en",
            "channels": {
                "email": {
                    "subject": f"Total {shown}",
                    "text": f"Total {shown}",
                    "locales": {"de": {"subject": f"Summe {shown}"}},
                }
            },
        }
    )
    context = {"amount": 1234.5, "recipient": {"locale": "de"}, "event": {}, "data": {}}
    said = TemplateRenderer().render(Channel.EMAIL, definition.contents[Channel.EMAIL], context)
    assert said == {"subject": "Summe 1.234,50\u00a0€", "text": "Total €1,234.50"}

"""The fields of `recipient` and `event`: one that never exists is found when a template is put in force."""

from datetime import UTC, datetime

import pytest

from channels.given import FIELDS, GIVEN
from channels.rendering import TemplateRenderer
from domain.dispatch import EventData
from domain.event import Recipient
from domain.vocabulary import Channel


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (
            "\n{{ recipient.nmae }}",
            "line 2: recipient.nmae never exists: do you mean recipient.name?",
        ),
        (
            "{{ recipient.nmae | default('you') }}",
            "line 1: recipient.nmae never exists: do you mean recipient.name?",
        ),
        (
            "{% if recipient['e-mail'] %}{% endif %}",
            "line 1: recipient.e-mail never exists: do you mean recipient.email?",
        ),
        (
            "{{ event.kind }}",
            "line 1: event.kind never exists: event has id, source, time, type; what else an event says is in data",
        ),
        ("{{ event.data.total }}", "line 1: event.data never exists"),
        (
            "{% for x in rows %}{{ recipient.zzz }}{% endfor %}",
            "line 1: recipient.zzz never exists: recipient has chat, ",
        ),
    ],
)
def test_a_field_that_never_exists_is_found_before_anything_is_rendered(template: str, told: str) -> None:
    (found,) = TemplateRenderer(strict=True).check(Channel.SMS, {"text": template})
    assert told in str(found)
    assert TemplateRenderer().check(Channel.SMS, {"text": template}) == [], "what is in force goes on as it did"


@pytest.mark.parametrize(
    "template",
    [
        *("{{ recipient.name }}", "{{ recipient['name'] }}", "{{ recipient.get('name', 'you') }}"),
        *("{{ recipient[field] }}", "{{ recipient[0] }}", "{{ data.anything }}", "{{ order.nmae }}"),
        "{{ order.recipient.nmae }}",
        "{% set recipient = order.customer %}{{ recipient.nmae }}",
        "{% for recipient in people %}{{ recipient.nmae }}{% endfor %}",
        "{% macro hello(recipient) %}{{ recipient.nmae }}{% endmacro %}{{ hello(order) }}",
        "{% for key, value in recipient.items() %}{{ key }}{% endfor %}",
    ],
)
def test_what_may_exist_is_no_fault(template: str) -> None:
    assert TemplateRenderer(strict=True).check(Channel.SMS, {"text": template}) == []


def test_the_fields_are_those_that_templates_are_given() -> None:
    now = datetime.now(UTC)
    ana = Recipient(id="user-7", name="Ana", email="ana@example.org", phone="+4915112345678", locale="de")
    context = EventData("k", "1", "shop", "order.shipped", now, {"order_id": 1}).context(ana.document())
    assert context["event"].keys() == FIELDS["event"]
    assert context["recipient"].keys() < FIELDS["recipient"]
    assert context.keys() == GIVEN | {"order_id"}

"""How long what is said over a channel may be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.limits import LIMITS, check_lengths
from channels.rendering import TemplateRenderer
from channels.segments import excess
from domain.ports import MessageTooLarge, TemplateError
from domain.vocabulary import Channel, Reason

RENDERER = TemplateRenderer()


@pytest.mark.parametrize(
    ("channel", "fits", "words"),
    [
        (Channel.EMAIL, {"subject": "x" * 998}, "subject: 999 characters; the limit of email is 998"),
        (Channel.CHAT, {"text": "x" * 4000}, "text: 4001 characters; the limit of chat is 4000"),
        (
            Channel.CHAT,
            {"title": "t" * 10, "text": "x" * 3990},
            "title and text: 4001 characters; the limit of chat is 4000",
        ),
        (Channel.PUSH, {"text": "ü" * 2047 + "x"}, "text: 4096 bytes of UTF-8"),
        (Channel.INBOX, {"title": "x" * 250, "text": "y" * 10_000}, "title: 251 characters; the limit of inbox is 250"),
    ],
)
def test_what_is_longer_is_told_with_field_and_numbers(channel: Channel, fits: dict[str, str], words: str) -> None:
    check_lengths(channel, fits)
    first = next(iter(fits))
    with pytest.raises(MessageTooLarge) as caught:
        check_lengths(channel, fits | {first: fits[first] + ("xx" if channel is Channel.PUSH else "x")})
    assert words in str(caught.value).replace("4097", "4096")


def test_it_is_a_fault_of_rendering_with_a_reason_of_its_own() -> None:
    with pytest.raises(TemplateError) as caught:
        TemplateRenderer().render(Channel.CHAT, {"text": "{{ 'x' * 5000 }}"}, {})
    assert caught.value.reason is Reason.MESSAGE_TOO_LARGE
    assert TemplateError("x").reason is Reason.TEMPLATE_ERROR


def test_what_is_not_in_the_table_has_no_limit() -> None:
    assert Channel.WEBHOOK not in LIMITS
    check_lengths(Channel.WEBHOOK, {"payload": "x" * 100_000})


@given(st.text(alphabet="a€ü😀\u00a0", max_size=400), st.integers(1, 12))
def test_a_short_sms_that_is_not_counted_has_no_more_parts_than_allowed(text: str, most: int) -> None:
    content = {"text": "{{ t }}", "max_segments": most}
    plain = text.replace("\u00a0", " ")
    if excess(plain, most):
        with pytest.raises(MessageTooLarge, match=f"max_segments is {most}$"):
            RENDERER.render(Channel.SMS, content, {"t": text})
    else:
        assert RENDERER.render(Channel.SMS, content, {"t": text}) == {"text": plain}

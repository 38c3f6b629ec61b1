"""The parts of an SMS."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.segments import ALONE, BASIC, EXTENSION, GSM_7, JOINED, Encoding, Segments, segments

GSM = st.text(st.sampled_from(sorted(GSM_7)), max_size=1000)
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=500)


def septets(text: str) -> int:
    """By the standard's own words: an escape before a character of the extension table."""
    return len("".join("\x1b" + character if character in EXTENSION else character for character in text))


def test_the_alphabet_is_the_standards() -> None:
    assert len(BASIC) == 127, "128 positions, of which one is the escape"
    assert len(EXTENSION) == 10
    assert not BASIC & EXTENSION


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Segments(Encoding.GSM_7, 1, 0)),
        ("a" * 160, Segments(Encoding.GSM_7, 1, 160)),
        ("a" * 161, Segments(Encoding.GSM_7, 2, 161)),
        ("a" * 306, Segments(Encoding.GSM_7, 2, 306)),
        ("a" * 307, Segments(Encoding.GSM_7, 3, 307)),
        ("€" * 80, Segments(Encoding.GSM_7, 1, 160)),
        ("a" * 152 + "€" + "a" * 152, Segments(Encoding.GSM_7, 3, 306)),  # the escape would end the first part
        ("Grüße, Ångström", Segments(Encoding.GSM_7, 1, 15)),
        ("`", Segments(Encoding.UCS_2, 1, 1, ("`",))),
        ("ж" * 70, Segments(Encoding.UCS_2, 1, 70, ("ж",))),
        ("ж" * 71, Segments(Encoding.UCS_2, 2, 71, ("ж",))),
        ("ж" * 135, Segments(Encoding.UCS_2, 3, 135, ("ж",))),
        ("🚲" * 35, Segments(Encoding.UCS_2, 1, 70, ("🚲",))),
        ("🚲" * 67, Segments(Encoding.UCS_2, 3, 134, ("🚲",))),  # 33 pairs a part: the 67th unit stays empty
        ("„so“ é ç €", Segments(Encoding.UCS_2, 1, 10, ("„", "“", "ç"))),
    ],
)
def test_the_limits(text: str, expected: Segments) -> None:
    assert segments(text) == expected


@given(GSM)
def test_a_text_of_the_alphabet_takes_as_many_septets_as_the_standard_says(text: str) -> None:
    counted = segments(text)
    assert (counted.encoding, counted.units, counted.forcing) == (Encoding.GSM_7, septets(text), ())


@given(ANY)
def test_another_text_takes_as_many_units_as_utf_16_has(text: str) -> None:
    counted = segments(text + "ж")
    assert (counted.encoding, counted.units) == (Encoding.UCS_2, len((text + "ж").encode("utf-16-be")) // 2)
    assert set(counted.forcing) == {character for character in text + "ж" if character not in GSM_7}


@given(ANY | GSM)
def test_the_parts_hold_the_text_and_waste_one_unit_each_at_most(text: str) -> None:
    counted = segments(text)
    if counted.count == 1:
        assert counted.units <= ALONE[counted.encoding]
        return
    size = JOINED[counted.encoding]
    assert counted.units > ALONE[counted.encoding]
    assert -(-counted.units // size) <= counted.count <= -(-counted.units // (size - 1))


@given(ANY, ANY)
def test_a_longer_text_never_takes_fewer(text: str, more: str) -> None:
    assert segments(text).count <= segments(text + more).count

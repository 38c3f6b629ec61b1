"""How many parts an SMS takes: its encoding and its segments (3GPP TS 23.038 §6.2.1, TS 23.040 §9.2.3.24.1).

A text in the GSM 7-bit default alphabet has 160 septets in one part, or 153 in each of several, for the header that
joins them takes 7. One character outside of it, and the whole text is sent as UCS-2: 70 or 67 units of 16 bits. A
character of two units, an escape sequence or a surrogate pair, is never cut in two by a part's end.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Encoding(StrEnum):
    """Of a whole text."""

    GSM_7 = "GSM-7"
    UCS_2 = "UCS-2"


BASIC: Final = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
"""TS 23.038 §6.2.1: the default alphabet; a septet each. (Its 128th position is the escape to the extension.)"""
EXTENSION: Final = frozenset("\f^{}\\[~]|€")
"""TS 23.038 §6.2.1.1: the extension table; an escape and a septet each."""
GSM_7: Final = BASIC | EXTENSION
ALONE: Final = {Encoding.GSM_7: 160, Encoding.UCS_2: 70}
"""Units of a text in one part."""
JOINED: Final = {Encoding.GSM_7: 153, Encoding.UCS_2: 67}
"""Units of each part of several."""
MAX_SEGMENTS: Final = 10
"""Of a text whose content sets no limit: what most providers take, and more than anybody wants to pay for."""
_BEYOND_UCS_2: Final = 0xFFFF


@dataclass(frozen=True, slots=True)
class Segments:
    """How a text is sent.

    Attributes:
        count: the parts; an empty text takes one.
        units: septets, or units of 16 bits, in all of them, without their headers.
        forcing: the characters that GSM-7 lacks, each once, in the order of the text.
    """

    encoding: Encoding
    count: int
    units: int
    forcing: tuple[str, ...] = ()


def segments(text: str) -> Segments:
    """Count the parts of a text."""
    forcing = tuple(dict.fromkeys(character for character in text if character not in GSM_7))
    encoding = Encoding.UCS_2 if forcing else Encoding.GSM_7
    widths = _widths(text, encoding)
    units = sum(widths)
    count = 1 if units <= ALONE[encoding] else _parts(widths, JOINED[encoding])
    return Segments(encoding, count, units, forcing)


def excess(text: str, most: int | None) -> str | None:
    """What to tell of a text that takes more parts than allowed; None of one that does not.

    Args:
        text: rendered.
        most: as the content has it; `MAX_SEGMENTS` where it says nothing.
    """
    counted, most = segments(text), MAX_SEGMENTS if most is None else most
    if counted.count <= most:
        return None
    why = "" if counted.encoding is Encoding.GSM_7 else ", because not all of it is in the GSM alphabet"
    return f"takes {counted.count} segments as {counted.encoding}{why}; max_segments is {most}"


def _widths(text: str, encoding: Encoding) -> list[int]:
    if encoding is Encoding.GSM_7:
        return [1 + (character in EXTENSION) for character in text]
    return [1 + (ord(character) > _BEYOND_UCS_2) for character in text]


def _parts(widths: Iterable[int], size: int) -> int:
    """The parts that characters of these widths fill, none of them cut in two."""
    count, filled = 1, 0
    for width in widths:
        if filled + width > size:
            count, filled = count + 1, 0
        filled += width
    return count

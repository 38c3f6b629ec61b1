"""Whether a phone number can be one, by Google's data (phonenumbers), and the one form in which it is dialled (E.164).

Its length has to be one that its country has. Whether somebody has been given the number is not asked: the ranges in
the data age from the day of their release, and a number of a new one would be refused for good, while the provider
says of one that leads nowhere what it costs, once, and the suppression list remembers it. The data knows as invalid
also every number that countries keep for examples and films.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from phonenumbers import (
    NumberParseException,
    PhoneNumberFormat,
    ValidationResult,
    format_number,
    is_possible_number_with_reason,
    parse,
)

from domain.ports import NotANumber

_TOO_SHORT: Final = "is too short for a number of its country"
_TOO_LONG: Final = "is too long for a number of its country"
_LENGTH: Final = "has a length that no number of its country has"
_COUNTRY: Final = "begins with the code of no country"
_UNPARSED: Final[Mapping[int, str]] = {
    NumberParseException.INVALID_COUNTRY_CODE: _COUNTRY,
    NumberParseException.TOO_SHORT_AFTER_IDD: _TOO_SHORT,
    NumberParseException.TOO_SHORT_NSN: _TOO_SHORT,
    NumberParseException.TOO_LONG: _TOO_LONG,
}
_IMPOSSIBLE: Final[Mapping[int, str]] = {
    ValidationResult.INVALID_COUNTRY_CODE: _COUNTRY,
    ValidationResult.TOO_SHORT: _TOO_SHORT,
    ValidationResult.TOO_LONG: _TOO_LONG,
    ValidationResult.IS_POSSIBLE_LOCAL_ONLY: "lacks its area code",
    ValidationResult.INVALID_LENGTH: _LENGTH,
}


class PhoneNumbers:
    """Implements `domain.ports.Numbers`."""

    def normalised(self, number: str) -> str:
        """As it is dialled from anywhere: `+49 (0)1511 2345678` is `+4915112345678`.

        Raises:
            NotANumber: what is wrong with it.
        """
        return _normalised(number)


@lru_cache(maxsize=4096)
def _normalised(number: str) -> str:
    """Some 20 µs each; of an event over several notifications, once."""
    try:
        parsed = parse(number)
    except NumberParseException as error:
        raise NotANumber(_UNPARSED.get(error.error_type, "is no phone number")) from None
    found = is_possible_number_with_reason(parsed)
    if found != ValidationResult.IS_POSSIBLE:
        raise NotANumber(_IMPOSSIBLE.get(found, _LENGTH))
    return format_number(parsed, PhoneNumberFormat.E164)

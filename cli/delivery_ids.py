"""Deliveries' ids as they are typed: whole, or abbreviated as git's are."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from cli.failures import BadInput
from cli.output import time_text

if TYPE_CHECKING:
    from domain.delivery import Delivery
    from storage.deliveries import MongoDeliveries

LEAST: Final = 8
"""Characters of an abbreviation: the first group of a UUID, which a double click marks."""
WHOLE: Final = 36
"""Characters of an id, a UUID as text. Such a one is not looked for: a list of thousands costs no query each."""
CANDIDATES: Final = 10
"""How many are named where an abbreviation means several."""


async def whole_ids(deliveries: "MongoDeliveries", given: Sequence[str]) -> list[str]:
    """Each id whole; one that is too short to be looked for, or that no delivery's begins with, stays as it is.

    Raises:
        BadInput: an abbreviation means several deliveries; it names them. Nothing has been done to any of them then.
    """
    return [await whole_id(deliveries, each) for each in given]


async def whole_id(deliveries: "MongoDeliveries", given: str) -> str:
    """As `whole_ids`, for one."""
    if not LEAST <= len(given) < WHOLE:
        return given
    found = await deliveries.beginning_with(given, CANDIDATES + 1)
    if len(found) > 1 and found[0].id != given:
        raise BadInput(_ambiguous(given, found), "Give more characters of the one that is meant.")
    return found[0].id if found else given


def _ambiguous(given: str, found: "Sequence[Delivery]") -> str:
    states = max(len(each.state) for each in found)
    lines = [
        f"  {each.id}  {each.channel:<7}  {each.state:<{states}}  {time_text(each.created_at)}"
        for each in found[:CANDIDATES]
    ]
    more = ["  and more"] if len(found) > CANDIDATES else []
    return "\n".join([f"ID: the ids of several deliveries begin with {given}:", *lines, *more])

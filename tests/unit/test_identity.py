"""Stored ids outlive every release: they are what the standard library makes of the same names."""

import uuid

from hypothesis import given
from hypothesis import strategies as st

from domain.identity import NAMESPACE, named_uuid


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_an_id_is_the_uuid_of_its_name(name: str) -> None:
    assert named_uuid(name) == str(uuid.uuid5(NAMESPACE, name))


def test_the_ids_of_yesterday_are_those_of_today() -> None:
    assert named_uuid("shop\nord-1042-shipped") == "8a4ee892-b1d3-5547-b1ea-685829bd52b3"

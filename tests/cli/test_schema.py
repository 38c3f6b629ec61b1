"""What a person sees of the schema's version."""

from typing import Any

import pytest
from pymongo import MongoClient

from config.settings import Settings
from tests.forking import Notipy


@pytest.fixture
def schema(settings: Settings) -> Any:
    """Write what the database says of itself."""

    def write(version: int, readable_by: int) -> None:
        with MongoClient[dict[str, Any]](settings.mongo_url.get_secret_value()) as client:
            update = {"$set": {"version": version, "readable_by": readable_by}}
            client.get_default_database()["housekeeping"].update_one({"_id": "schema"}, update, upsert=True)

    return write


async def test_the_doctor_shows_it(notipy: Notipy, schema: Any) -> None:
    async def told() -> dict[str, Any]:
        lines = (await notipy("doctor", "--json")).records
        return next(line for line in lines if line["check"] == "schema")

    assert (await told())["detail"] == "version 1"
    schema(0, 0)
    assert (await told())["result"] == "warning"
    schema(7, 1)
    assert (await told())["detail"] == "version 7, newer than this NotiPy's 1, which can use it"


@pytest.mark.parametrize("command", [("run",), ("deliveries", "list"), ("doctor",)])
async def test_where_this_notipy_is_too_old_it_stops_and_says_what_to_do(
    notipy: Notipy, schema: Any, command: tuple[str, ...]
) -> None:
    schema(7, 5)
    code, out, err = await notipy(*command)
    assert code == 1
    told = " ".join((out + err).split())
    assert "schema version 7, written by a newer NotiPy" in told
    assert "Install the version of NotiPy that the other processes run" in told
    assert "Traceback" not in told

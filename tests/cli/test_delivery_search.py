"""`notipy deliveries list --to`: what was planned for a person."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cli import deliveries as commands
from config.settings import load_settings
from domain.event import event_key
from domain.vocabulary import Channel, State
from storage import deliveries as stored
from storage.database import Database
from storage.deliveries import DeliveryFilter, MongoDeliveries, Place
from tests.contract.test_repositories import delivery
from tests.forking import Notipy

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)
ANA = {"id": "user-7", "email": "Ana@example.org", "phone": "+4915112345678"}


def name(number: int) -> str:
    return f"00000000-0000-5000-8000-0000000000{number}"


async def store(database: Database) -> None:
    """Of one in ten she is the recipient; each an hour older than the one before."""
    await MongoDeliveries(database).add(
        [
            delivery(
                number,
                id=name(number),
                recipient=ANA if number % 10 == 0 else {"email": f"u{number}@example.org"},
                channel=Channel.SMS if number == 30 else Channel.EMAIL,
                state=State.SENT,
                due_at=None,
                event_key=event_key("shop", "ord-1"),
                created_at=NOW - HOUR * (number - 9.5),
            )
            for number in range(10, 50)
        ]
    )


async def test_what_a_person_was_told_is_listed(notipy: Notipy, database: Database) -> None:
    await store(database)
    for who in ("ana@example.org", "user-7", "+49 151 12345678"):
        listed = await notipy("deliveries", "list", "--to", who, "--json")
        assert (listed.code, listed.err) == (0, "")
        assert [each["id"] for each in listed.records] == [name(number) for number in (10, 20, 30, 40)]
    table = await notipy("deliveries", "list", "--to", "user-7", "--since", "12h")
    assert [line.split()[0] for line in table.out.splitlines()] == ["ID", name(10), name(20)]
    texts = await notipy("deliveries", "list", "--to", "user-7", "--channel", "sms", "--json")
    assert [each["id"] for each in texts.records] == [name(30)]
    first = await notipy("deliveries", "list", "--to", "user-7", "--limit", "3", "--json")
    assert [each["id"] for each in first.records] == [name(10), name(20), name(30)]
    rest = await notipy(
        "deliveries", "list", "--to", "user-7", "--json", "--after", first.err.split("--after ")[1].strip()
    )
    assert [each["id"] for each in rest.records] == [name(40)]
    nobody = await notipy("deliveries", "list", "--to", "eve@example.org", "--event", "shop", "ord-1")
    assert (nobody.code, nobody.out) == (0, "")
    assert "No event ord-1 of shop is stored." in nobody.err
    nobody = await notipy("deliveries", "list", "--to", "eve@example.org")
    assert (nobody.code, nobody.out, nobody.err) == (0, "", "No deliveries to eve@example.org.\n")
    for who in ("", " ", "x" * 4097):
        refused = await notipy("deliveries", "list", "--to", who)
        assert (refused.code, "should be an id or an address" in " ".join(refused.err.split())) == (2, True)
    wrong = await notipy("deliveries", "list", "--to", "user-7", "--state", "sending")
    assert (wrong.code, "every state but sending" in " ".join(wrong.err.split())) == (2, True)


async def test_the_look_ends_where_many_are_to_others_unless_it_is_said_since_when(
    config_file: Path, database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stored, "STRETCH", 2)
    monkeypatch.setattr(commands, "LOOKED_AT", 4)
    await store(database)
    settings = load_settings(config_file)

    async def look(since: datetime | None, after: Place | None) -> tuple[list[str], Place | None]:
        chosen = DeliveryFilter(since=since, after=after)
        listed = await commands._list(settings, chosen, "user-7", 50, as_json=True)
        found = [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()]
        assert len(found) == listed.number
        return found, listed.goes_on

    found, goes_on = await look(None, None)
    assert found == [name(10)]
    assert goes_on == (NOW - HOUR * 5.5, name(15))
    assert await look(None, goes_on) == ([], (NOW - HOUR * 9.5, name(19)))
    everything = [name(number) for number in (10, 20, 30, 40)]
    assert await look(NOW - HOUR * 100, None) == (everything, None)
